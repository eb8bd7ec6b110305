"""Times in which no run starts: dates, dates of every year, hours of the week, and the events of calendars."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from policies.calendars import Calendar, calendar_stretches
from policies.errors import Unusable, quoted
from policies.recurrence import FIRST_YEAR, LAST_YEAR
from policies.windows import Segment, Window, instant, merged, parse_window

DAY = 24 * 60

_BOUND = re.compile(r"(?:([0-9]{4})-)?([0-9]{2})-([0-9]{2})(?: ([0-9]{2}):([0-9]{2}))?", re.ASCII)
_EXAMPLE = 'write "2026-12-24 18:00..2026-12-27", "12-24..12-26" for every year, "fri 16:00-18:00" or "holidays.ics"'


@dataclass(frozen=True, slots=True)
class Bound:
    """A local day and its minute; year 0 is every year."""

    year: int
    month: int
    day: int
    minutes: int


@dataclass(frozen=True, slots=True)
class Dates:
    """From one local time to another, once or every year."""

    text: str
    first: Bound
    last: Bound

    @property
    def yearly(self) -> bool:
        """Whether it comes every year."""
        return not self.first.year


Blackout = Dates | Window | Calendar


def is_calendar(text: str) -> bool:
    """Whether a text of `blackout` names a file."""
    return text.endswith(".ics")


def check_blackout(text: str) -> str:
    """The text itself when it can be read, or names a calendar; raises Unusable."""
    if not is_calendar(text):
        parse_blackout(text)
    return text


def parse_blackout(text: str) -> Dates | Window:
    """One blackout that is not a calendar; raises Unusable."""
    if len(text) > 200 or not text[:1].isdigit() or re.match(r"[0-9]{2}:", text, re.ASCII):
        try:
            return parse_window(text)
        except Unusable as error:
            instead = _EXAMPLE if "is not a window" in error.what else error.instead
            raise Unusable(error.what.replace("is not a window", "is not a blackout"), instead) from None
    begin, dots, end = (part.strip() for part in text.partition(".."))
    first = _bound(begin, text, 0)
    last = _bound(end, text, DAY) if dots else Bound(first.year, first.month, first.day, DAY)
    if not dots and ":" in begin:
        raise Unusable(f"blackout {quoted(text)} has no end", f'write "{begin}..{begin[:-5]}24:00" or the like')
    if bool(first.year) != bool(last.year):
        raise Unusable(f"blackout {quoted(text)} has a year at one end only", "write the year twice, or not at all")
    if first.year and (last.year, last.month, last.day, last.minutes) < (
        first.year,
        first.month,
        first.day,
        first.minutes,
    ):
        raise Unusable(f"blackout {quoted(text)} ends before it begins", "write the earlier time first")
    if first == last:
        raise Unusable(f"blackout {quoted(text)} is empty", "write a later end")
    return Dates(text, first, last)


def _bound(text: str, whole: str, default: int) -> Bound:
    match = _BOUND.fullmatch(text)
    if match is None:
        raise Unusable(f"{quoted(whole)} is not a blackout", _EXAMPLE)
    year = int(match[1] or 0)
    minutes = default if match[4] is None else int(match[4]) * 60 + int(match[5])
    try:
        date(year or 2024, int(match[2]), int(match[3]))
        if (match[1] and not FIRST_YEAR <= year < LAST_YEAR) or minutes > DAY or int(match[5] or 0) > 59:
            raise ValueError
    except ValueError:
        what = f"blackout {quoted(whole)} has no such time as {quoted(text)}"
        raise Unusable(what, "write a date and a time that there are") from None
    return Bound(year, int(match[2]), int(match[3]), minutes)


@lru_cache(maxsize=1024)
def stretches(blackout: Blackout, zone: ZoneInfo, year: int) -> tuple[Segment, ...]:
    """When it is that touches a year, in UTC, merged and in order; those of other years may be among them."""
    if not FIRST_YEAR < year < LAST_YEAR:
        return ()
    match blackout:
        case Window():
            found = _weekly(blackout, zone, year)
        case Dates():
            found = _dated(blackout, zone, year)
        case Calendar():
            found = calendar_stretches(blackout, zone, year)
    return merged(found)


def _weekly(window: Window, zone: ZoneInfo, year: int) -> Iterator[Segment]:
    day = date(year - 1, 12, 25)
    while day <= date(year + 1, 1, 7):
        if day.weekday() in window.days:
            yield instant(day, window.opens, zone), instant(day, window.closes, zone, last=True)
        day += timedelta(days=1)


def _dated(dates: Dates, zone: ZoneInfo, year: int) -> Iterator[Segment]:
    first, last = dates.first, dates.last
    if first.year:
        yield _instant(first, first.year, zone), _instant(last, last.year, zone, last=True)
        return
    turns = int((last.month, last.day, last.minutes) <= (first.month, first.day, first.minutes))
    for begin in (year - 1, year, year + 1):
        yield _instant(first, begin, zone), _instant(last, begin + turns, zone, last=True)


def _instant(bound: Bound, year: int, zone: ZoneInfo, *, last: bool = False) -> datetime:
    if (bound.month, bound.day) == (2, 29) and not _leap(year):
        # What begins or ends on a day that is not there does so between its neighbours.
        return instant(date(year, 3, 1), 0, zone, last=last)
    return instant(date(year, bound.month, bound.day), bound.minutes, zone, last=last)


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
