"""When the events of calendars are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from policies.recurrence import Recurrence, days_of_year, times_of
from policies.windows import Segment, instant, wall_time


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


def a_year(entry: Entry) -> int:
    """How often the event comes in its busiest year, by the first few."""
    added = max(Counter(at.year for at in entry.extra).values(), default=1)
    if entry.rule is None:
        return added
    first = entry.start.year
    days = max(len(days_of_year(entry.rule, year)) for year in range(first, first + 5))
    return added + days * len(entry.rule.hours) * len(entry.rule.minutes)


def calendar_stretches(calendar: Calendar, zone: ZoneInfo, year: int) -> Iterator[Segment]:
    """When the events are that touch a year, in UTC; floating times in the zone."""
    first, last = wall_time(year - 1, 12, 30), wall_time(year + 1, 1, 3)
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
