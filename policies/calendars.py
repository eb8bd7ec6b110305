"""Calendars (iCalendar files) beside the policies: when their events are. Pure: the text is an argument.

Read line by line here, and not by a library, so that a problem has its line, a megabyte is read soon, and no text
makes it search for long.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from policies.errors import Unusable, quoted
from policies.recurrence import Recurrence, days_of_year, times_of
from policies.rrule import parse_moment, parse_rule
from policies.windows import Segment, instant

LARGEST_CALENDAR = 524_288
MOST_EVENTS = 1000
MOST_RECURRING = 200
MOST_LISTED = 4000
MOST_A_YEAR = 4000
LONGEST_RECURRING = timedelta(days=366)
"""A calendar beyond these bounds is not one of holidays and freezes, and would slow every decision down."""

_LINE = re.compile(
    r"^(BEGIN|END|UID|STATUS|DTSTART|DTEND|DURATION|RRULE|EXDATE|RDATE|RECURRENCE-ID)([;:].*(?:\r?\n[ \t].*)*)",
    re.MULTILINE | re.IGNORECASE,
)
_FOLD = re.compile(r"\r?\n[ \t]")
_PARTS = re.compile(r'((?:;[^":;]*(?:"[^"]*"[^":;]*)*)*):(.*)', re.DOTALL)
_DURATION = re.compile(
    r"\+?P(?:([0-9]{1,4})W|(?:([0-9]{1,5})D)?(?:T(?:([0-9]{1,5})H)?(?:([0-9]{1,6})M)?(?:[0-9]{1,6}S)?)?)", re.ASCII
)
_CHECK = "correct the calendar there"


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, in local times; `zone` is None where the policy's counts. `extra` and `without` are of its start."""

    start: datetime
    end: datetime
    zone: ZoneInfo | None = None
    rule: Recurrence | None = None
    extra: tuple[datetime, ...] = ()
    without: tuple[datetime, ...] = ()


@dataclass(frozen=True, slots=True)
class Calendar:
    """All events of a file. `text` is its name; `digest` is of what it says, not of how it is written."""

    text: str
    entries: tuple[Entry, ...]
    digest: str = ""

    def __hash__(self) -> int:
        return hash((self.text, self.digest))


@dataclass(slots=True)
class _Event:
    """`at` is where it begins in the text."""

    at: int
    values: dict[str, list[tuple[Mapping[str, str], str]]] = field(default_factory=dict)


def parse_calendar(name: str, text: str) -> Calendar:
    """The events of an iCalendar text; raises Unusable, which names the line."""
    if len(text) > LARGEST_CALENDAR:
        raise Unusable(f"calendar {quoted(name)} is larger than {LARGEST_CALENDAR} bytes", "leave old events out")
    events = list(_events(name, text))
    if len(events) > MOST_EVENTS:
        raise Unusable(f"calendar {quoted(name)} has more than {MOST_EVENTS} events", "leave old events out")
    if sum("RRULE" in event.values for event in events) > MOST_RECURRING:
        what = f"calendar {quoted(name)} has more than {MOST_RECURRING} recurring events"
        raise Unusable(what, "name several calendars")
    listed = (text for event in events for key in ("RDATE", "EXDATE") for _, text in event.values.get(key, ()))
    if sum(text.count(",") + 1 for text in listed) > MOST_LISTED:
        raise Unusable(f"calendar {quoted(name)} lists more than {MOST_LISTED} dates", "leave old ones out")
    changed: dict[str, list[_Event]] = {}
    for event in events:
        if "RECURRENCE-ID" in event.values:
            changed.setdefault(_uid(event), []).append(event)
    entries: list[Entry] = []
    for event in events:
        try:
            entry = _entry(event, changed.get(_uid(event), ()))
        except Unusable as error:
            what = f"calendar {quoted(name)}, event at line {_line(text, event.at)}: {error.what}"
            raise Unusable(what, error.instead) from None
        if entry is not None:
            entries.append(entry)
    if sum(_a_year(entry) for entry in entries) > MOST_A_YEAR:
        raise Unusable(f"events of calendar {quoted(name)} come more than {MOST_A_YEAR} times a year", _CHECK)
    said = "\n".join(sorted(repr(entry) for entry in entries))
    digest = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
    return Calendar(name, tuple(entries), digest)


def _events(name: str, text: str) -> Iterator[_Event]:
    inside: list[str] = []
    event: _Event | None = None
    seen = False
    for found in _LINE.finditer(text):
        key = found[1].upper()
        parts = _PARTS.fullmatch(_FOLD.sub("", found[2]).rstrip("\r\n"))
        if parts is None:
            if event is not None and inside[-1] == "VEVENT":
                raise _broken(name, text, found.start(), f"{key} has no value")
            continue
        value = parts[2].strip()
        if key == "BEGIN":
            inside.append(value.upper())
            if len(inside) > 4:
                raise _broken(name, text, found.start(), "is nested too deeply")
            seen = seen or inside == ["VCALENDAR"]
            if inside == ["VCALENDAR", "VEVENT"]:
                event = _Event(found.start())
        elif key == "END":
            if not inside or inside.pop() != value.upper():
                raise _broken(name, text, found.start(), "ends what did not begin")
            if inside == ["VCALENDAR"] and event is not None:
                yield event
                event = None
        elif event is not None and inside[-1] == "VEVENT":
            event.values.setdefault(key, []).append((_parameters(parts[1]), value))
    if not seen or inside:
        what = f"is cut off inside {inside[-1][:20]}" if inside else "is not an iCalendar file"
        raise Unusable(f"calendar {quoted(name)} {what}", "export it again")


def _broken(name: str, text: str, at: int, what: str) -> Unusable:
    return Unusable(f"calendar {quoted(name)}, line {_line(text, at)}: {what}", _CHECK)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _parameters(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";") if part)
    return {name.upper(): value.strip('"') for name, _, value in pairs}


def _uid(event: _Event) -> str:
    return event.values["UID"][0][1] if "UID" in event.values else f"at {event.at}"


def _entry(event: _Event, changed: Sequence[_Event]) -> Entry | None:
    """None for what closes nothing: what is cancelled, and what takes no time. Changed are single times of it."""
    values = event.values
    if any(value.upper() == "CANCELLED" for _, value in values.get("STATUS", ())):
        return None
    if "DTSTART" not in values:
        raise Unusable("the event has no DTSTART", _CHECK)
    parameters, text = values["DTSTART"][0]
    start, whole_day = parse_moment(text)
    zone = _zone(parameters, start)
    start = start.replace(tzinfo=None, second=0)
    end = _end(event, start, zone, whole_day)
    if end < start:
        raise Unusable("the event ends before it begins", _CHECK)
    if end == start:
        return None
    entry = Entry(start, end, zone)
    if "RECURRENCE-ID" in values or not values.keys() & {"RRULE", "RDATE"}:
        return entry
    if end - start > LONGEST_RECURRING:
        raise Unusable("the event recurs and is longer than a year", _CHECK)
    rules = values.get("RRULE", [])
    if len(rules) > 1:
        raise Unusable("the event has several RRULE", "make an event of each")
    rule = parse_rule(rules[0][1].upper(), start) if rules else None
    if rule is not None and rule.frequency == "HOURLY":
        raise Unusable("the event recurs by the hour", "write FREQ=DAILY;BYHOUR=8,9,10")
    left_out = (("EXDATE", event), *(("RECURRENCE-ID", one) for one in changed))
    without = {at for key, one in left_out for at in _moments(one, key, zone)}
    return replace(
        entry,
        rule=rule,
        extra=(start, *sorted(set(_moments(event, "RDATE", zone)))),
        without=tuple(sorted(without)),
    )


def _end(event: _Event, start: datetime, zone: ZoneInfo | None, whole_day: bool) -> datetime:
    if "DTEND" in event.values:
        parameters, text = event.values["DTEND"][0]
        end, _ = parse_moment(text)
        return _local(end, _zone(parameters, end), zone).replace(second=0)
    if "DURATION" in event.values:
        text = event.values["DURATION"][0][1]
        match = _DURATION.fullmatch(text)
        if match is None:
            raise Unusable(f"{quoted(text, 20)} is not a duration", 'write it such as "PT2H" or "P1D"')
        weeks, days, hours, minutes = (int(part or 0) for part in match.groups())
        return start + timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes)
    return start + timedelta(days=1) if whole_day else start


def _moments(event: _Event, key: str, zone: ZoneInfo | None) -> Iterator[datetime]:
    """The local times that a property lists, in the zone of the event."""
    for parameters, text in event.values.get(key, ()):
        for one in text.split(","):
            at, _ = parse_moment(one.partition("/")[0].strip())
            yield _local(at, _zone(parameters, at), zone).replace(second=0)


def _local(at: datetime, zone: ZoneInfo | None, wanted: ZoneInfo | None) -> datetime:
    naive = at.replace(tzinfo=None)
    if zone is None or wanted is None or zone == wanted:
        return naive
    return naive.replace(tzinfo=zone).astimezone(wanted).replace(tzinfo=None)


def _zone(parameters: Mapping[str, str], at: datetime) -> ZoneInfo | None:
    if at.tzinfo is not None:
        return ZoneInfo("UTC")
    name = parameters.get("TZID", "")
    if not name:
        return None
    # Some programs put themselves before the name of the zone: "/example.org/Europe/Berlin".
    words = name.strip("/").split("/")
    for tried in ("/".join(words[begin:]) for begin in range(max(0, len(words) - 3), len(words))):
        try:
            return ZoneInfo(tried)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
    return _windows_zone(name)


def _windows_zone(name: str) -> ZoneInfo:
    # Its table of Microsoft's names is all that is wanted of icalendar, which takes 0.2 s to load: only when needed.
    from icalendar.timezone.windows_to_olson import WINDOWS_TO_OLSON

    known = WINDOWS_TO_OLSON.get(name)
    if known is None:
        raise Unusable(f"{quoted(name)} is not a time zone", 'write an IANA name such as "Europe/Berlin"')
    return ZoneInfo(known)


def _a_year(entry: Entry) -> int:
    """How often the event comes in its busiest year, by the first few."""
    added = max(Counter(at.year for at in entry.extra).values(), default=1)
    if entry.rule is None:
        return added
    first = entry.start.year
    days = max(len(days_of_year(entry.rule, year)) for year in range(first, first + 5))
    return added + days * len(entry.rule.hours) * len(entry.rule.minutes)


def calendar_stretches(calendar: Calendar, zone: ZoneInfo, year: int) -> Iterator[Segment]:
    """When the events are that touch a year, in UTC; floating times in the zone."""
    first, last = datetime(year - 1, 12, 30), datetime(year + 1, 1, 3)  # noqa: DTZ001
    for entry in calendar.entries:
        own = entry.zone or zone
        length = entry.end - entry.start
        for start in _starts(entry, own, year) if entry.extra else (entry.start,):
            end = start + length
            if start < last and end > first:
                yield _instant(start, own), _instant(end, own, last=True)


def _starts(entry: Entry, zone: ZoneInfo, year: int) -> Iterator[datetime]:
    gone = set(entry.without)
    found = {at for at in entry.extra if year - 2 <= at.year <= year + 1}
    if entry.rule is not None:
        until = entry.rule.until
        for near in (year - 2, year - 1, year, year + 1):
            for day in days_of_year(entry.rule, near):
                found.update(times_of(entry.rule, day))
        if until is not None and until.tzinfo is not None:
            found = {at for at in found if _instant(at, zone) <= until}
    return (at for at in sorted(found) if at not in gone and at.replace(hour=0, minute=0) not in gone)


def _instant(at: datetime, zone: ZoneInfo, *, last: bool = False) -> datetime:
    return instant(at.date(), at.hour * 60 + at.minute, zone, last=last)
