"""Recurrence rules of iCalendar as policies and calendars write them. Pure, and total: read, or refused soon."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.recurrence import FIRST_YEAR, LAST_YEAR, SEARCH_YEARS, Recurrence, times_of, years_from
from policies.windows import wall_time

MOST_COUNTED = 1000
MOST_A_DAY = 288
"""A rule comes every five minutes at most."""

LONGEST_RULE = 400

FREQUENCIES = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY")
WEEK = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_BY = ("BYMONTH", "BYWEEKNO", "BYYEARDAY", "BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE", "BYSECOND", "BYSETPOS")
_PARTS = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", *_BY)
_MOMENT = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:T([0-9]{2})([0-9]{2})([0-9]{2})(Z?))?", re.ASCII)
_BY_DAY = re.compile(rf"([+-]?[0-9]{{1,2}})?({'|'.join(WEEK)})", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,4}", re.ASCII)
_EXAMPLE = 'write a rule such as "RRULE:FREQ=MONTHLY;BYDAY=2SA;BYHOUR=1;BYMINUTE=0"'


def parse_moment(text: str) -> tuple[datetime, bool]:
    """A date or a local time as iCalendar writes it, and whether it is a date; with the zone UTC after a "Z".

    Raises Unusable.
    """
    match = _MOMENT.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        at = wall_time(year, month, day, hour, minute, second)
    except ValueError:
        raise Unusable(f"{quoted(text)} is not a date or time", 'write it such as "20261224T220000"') from None
    if at.year < FIRST_YEAR:
        raise Unusable(f"{quoted(text)} is before {FIRST_YEAR}", "write a later year")
    if at.year >= LAST_YEAR:
        at = wall_time(LAST_YEAR, 1, 1)
    return (at.replace(tzinfo=UTC) if match[7] else at), match[4] is None


@lru_cache(maxsize=1024)
def parse_recurrence(text: str) -> Recurrence:
    """ "RRULE:…", with "DTSTART:…" and a space or a new line before it where the rule needs one; raises Unusable.

    Times are to the minute, in the time zone of the policy. Without a start the day must be in the rule; hour and
    minute are 0 where it does not say them.
    """
    if len(text) > LONGEST_RULE:
        raise Unusable(f"{quoted(text)} is longer than {LONGEST_RULE} characters", "write a simpler rule")
    head, _, rule = text.strip().upper().rpartition("RRULE:")
    start = _start(head.strip()) if head.strip() else None
    found = parse_rule(rule, start)
    years = islice(years_from(found, start.year if start else 2024), SEARCH_YEARS)
    if next((at for days in years for at in _times(found, days)), None) is None:
        raise Unusable(f"{quoted(text)} never comes", _EXAMPLE)
    return found


def _times(rule: Recurrence, days: Iterable[date]) -> Iterator[datetime]:
    return (at for day in days for at in times_of(rule, day))


def _start(text: str) -> datetime:
    if not text.startswith("DTSTART:"):
        if text.startswith("DTSTART;"):
            raise Unusable("DTSTART has a parameter", "write DTSTART:20260101T010000, in the time zone of the policy")
        raise Unusable(f"{quoted(text)} does not belong before a rule", _EXAMPLE)
    start, _ = parse_moment(text.removeprefix("DTSTART:"))
    if start.tzinfo is not None:
        raise Unusable("DTSTART is in UTC", "leave the Z out: it is in the time zone of the policy")
    if start.second:
        raise Unusable("DTSTART has seconds", "write 00 for them")
    return start


def parse_rule(text: str, start: datetime | None) -> Recurrence:
    """What stands after "RRULE:"; a rule that names no day or time has those of the start. Raises Unusable."""
    parts = _split(text)
    frequency = parts.get("FREQ", "")
    if frequency not in FREQUENCIES:
        instead = "write one of " + ", ".join(FREQUENCIES)
        if frequency in ("MINUTELY", "SECONDLY"):
            instead = "write FREQ=HOURLY;BYMINUTE=0,15,30,45"
        raise Unusable(f"FREQ={frequency} cannot be used" if frequency else "the rule has no FREQ", instead)
    _check_parts(parts, frequency, start)
    daily = start or wall_time(2024, 1, 1)
    hours = tuple(sorted(_numbers(parts, "BYHOUR", 0, 23)))
    found = Recurrence(
        frequency=frequency,
        interval=_number(parts, "INTERVAL", 1, 1000, 1),
        start=start,
        count=_number(parts, "COUNT", 1, MOST_COUNTED, 0),
        until=_until(parts["UNTIL"]) if "UNTIL" in parts else None,
        week_start=_week_start(parts.get("WKST", "MO")),
        months=_numbers(parts, "BYMONTH", 1, 12),
        weeks=_numbers(parts, "BYWEEKNO", 1, 53, signed=True),
        year_days=_numbers(parts, "BYYEARDAY", 1, 366, signed=True),
        month_days=_numbers(parts, "BYMONTHDAY", 1, 31, signed=True),
        week_days=_week_days(parts.get("BYDAY", ""), frequency),
        hours=hours if hours or frequency == "HOURLY" else (daily.hour,),
        minutes=tuple(sorted(_numbers(parts, "BYMINUTE", 0, 59))) or (daily.minute,),
        positions=_numbers(parts, "BYSETPOS", 1, 366, signed=True),
    )
    times = (len(found.hours) or 24) * len(found.minutes)
    if times > MOST_A_DAY:
        raise Unusable(f"the rule comes {times} times a day", f"write at most {MOST_A_DAY} times a day")
    if found.positions and times > 1:
        raise Unusable("BYSETPOS stands with several times a day", "write one BYHOUR and one BYMINUTE")
    return _counted(_with_day_of(found, start))


def _split(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in text.rstrip(";").split(";"):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise Unusable(f"{quoted(part)} is not a part of a rule", _EXAMPLE)
        if name not in _PARTS:
            close = closest(name, _PARTS)
            instead = f"write {close}" if close else f"write one of {', '.join(_PARTS)}"
            raise Unusable(f"{quoted(name)} is not a part of a rule", instead)
        if name in parts:
            raise Unusable(f"{name} stands twice in the rule", "write it once")
        parts[name] = value
    return parts


def _check_parts(parts: dict[str, str], frequency: str, start: datetime | None) -> None:
    """What RFC 5545 forbids, and what needs a start to mean anything."""
    refused: tuple[tuple[bool, str, str], ...] = (
        ("COUNT" in parts and "UNTIL" in parts, "COUNT and UNTIL stand together", "write one of them"),
        (parts.get("BYSECOND", "0") not in ("0", "00"), "BYSECOND is not 0", "leave it out: runs start at a minute"),
        ("BYMONTHDAY" in parts and frequency == "WEEKLY", "BYMONTHDAY stands with FREQ=WEEKLY", "write FREQ=MONTHLY"),
        (
            "BYYEARDAY" in parts and frequency not in ("YEARLY", "HOURLY"),
            f"BYYEARDAY stands with FREQ={frequency}",
            "write FREQ=YEARLY",
        ),
        ("BYWEEKNO" in parts and frequency != "YEARLY", f"BYWEEKNO stands with FREQ={frequency}", "write FREQ=YEARLY"),
        ("BYWEEKNO" in parts and "BYDAY" not in parts, "BYWEEKNO stands without BYDAY", "write BYDAY=MO or the like"),
        ("BYSETPOS" in parts and frequency == "HOURLY", "BYSETPOS stands with FREQ=HOURLY", "write FREQ=DAILY"),
    )
    for wrong, what, instead in refused:
        if wrong:
            raise Unusable(what, instead)
    if start is not None:
        return
    for part in ("INTERVAL", "COUNT"):
        if parts.get(part, "1").lstrip("0+") != "1" or (part == "COUNT" and part in parts):
            raise Unusable(
                f"{part} counts from a start, and there is none", "write DTSTART:20260101T010000 before RRULE:"
            )
    if frequency not in ("DAILY", "HOURLY") and not parts.keys() & {"BYDAY", "BYMONTHDAY", "BYYEARDAY"}:
        raise Unusable("the rule does not say on which day", "write BYDAY=SA, BYMONTHDAY=1 or the like")


def _number(parts: dict[str, str], name: str, least: int, most: int, default: int) -> int:
    text = parts.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise Unusable(f"{name}={text[:20]} is out of bounds", f"write {least} to {most}")
    return int(text)


def _numbers(parts: dict[str, str], name: str, least: int, most: int, *, signed: bool = False) -> frozenset[int]:
    if name not in parts:
        return frozenset()
    texts = parts[name].split(",")
    for text in texts:
        if not _NUMBER.fullmatch(text) or not least <= (abs(int(text)) if signed else int(text)) <= most:
            below = f", or -{most} to -{least}" if signed else ""
            raise Unusable(f"{name} has {quoted(text, 20)}", f"write {least} to {most}{below}")
    return frozenset(int(text) for text in texts)


def _until(text: str) -> datetime:
    until, whole_day = parse_moment(text)
    return until + timedelta(hours=23, minutes=59) if whole_day else until


def _week_start(text: str) -> int:
    if text not in WEEK:
        raise Unusable(f"WKST={text[:20]} is not a day of the week", f"write one of {', '.join(WEEK)}")
    return WEEK.index(text)


def _week_days(text: str, frequency: str) -> frozenset[tuple[int, int]]:
    found = set()
    for part in text.split(",") if text else ():
        match = _BY_DAY.fullmatch(part)
        if match is None or (match[1] and not 1 <= abs(int(match[1])) <= 53):
            raise Unusable(f"BYDAY has {quoted(part, 20)}", "write days such as MO or 2SA or -1FR")
        if match[1] and frequency not in ("MONTHLY", "YEARLY"):
            raise Unusable(f"BYDAY={part} stands with FREQ={frequency}", "write FREQ=MONTHLY")
        found.add((WEEK.index(match[2]), int(match[1] or 0)))
    return frozenset(found)


def _with_day_of(rule: Recurrence, start: datetime | None) -> Recurrence:
    """The day of the start, where the rule names none."""
    if start is None or rule.weeks or rule.year_days or rule.month_days or rule.week_days:
        return rule
    match rule.frequency:
        case "YEARLY":
            return replace(rule, months=rule.months or frozenset({start.month}), month_days=frozenset({start.day}))
        case "MONTHLY":
            return replace(rule, month_days=frozenset({start.day}))
        case "WEEKLY":
            return replace(rule, week_days=frozenset({(start.weekday(), 0)}))
    return rule


def _counted(rule: Recurrence) -> Recurrence:
    """A rule with COUNT as one with UNTIL: where it has come so often. One that takes too long for that has no end."""
    if not rule.count or rule.start is None:
        return rule
    left = rule.count
    endless = replace(rule, count=0)
    for days in years_from(endless, rule.start.year):
        if days[0].year > rule.start.year + SEARCH_YEARS:
            break
        for at in _times(endless, days):
            left -= 1
            if not left:
                return replace(endless, until=at)
    return endless
