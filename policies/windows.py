"""Backup windows: weekly local times in a time zone, as instants.

A window is a constraint, not a start time. Its opening at a local time that a change to summer time skips is the
next valid instant; a repeated hour belongs to the window both times.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from policies.errors import Unusable, quoted

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = "|".join(DAYS)
_WINDOW = re.compile(
    rf"(?:((?:{_DAY})(?:\.\.(?:{_DAY}))?(?:,(?:{_DAY})(?:\.\.(?:{_DAY}))?)*) )?"
    r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})",
    re.ASCII,
)
_EXAMPLE = 'write days and times such as "mon..fri 18:00-06:00" or "sat,sun 00:00-24:00"'

HORIZON_DAYS = 16
"""How far around a day openings are computed: two weeks, as a change of clocks can swallow one week's window."""

Segment = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Window:
    """Days of the week (0 is Monday) on which it opens, and minutes of the local day; `closes` may be past 24 h."""

    days: frozenset[int]
    opens: int
    closes: int
    text: str


def parse_window(text: str) -> Window:
    """One window as a policy writes it; raises Unusable."""
    match = _WINDOW.fullmatch(text)
    if not match:
        raise Unusable(f"{quoted(text)} is not a window", _EXAMPLE)
    days = _days(match[1]) if match[1] else frozenset(range(7))
    opens, closes = _minutes(match[2], match[3], text), _minutes(match[4], match[5], text)
    if opens == 24 * 60:
        raise Unusable(f"window {quoted(text)} opens at 24:00", "write 00:00 and the next day, or an earlier time")
    if opens == closes:
        raise Unusable(f"window {quoted(text)} is empty", "write 00:00-24:00 for the whole day")
    return Window(days, opens, closes if closes > opens else closes + 24 * 60, text)


def _days(text: str) -> frozenset[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("..")
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 if last else 0
        chosen.update((start + step) % 7 for step in range(length + 1))
    return frozenset(chosen)


def _minutes(hours: str, minutes: str, text: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > 24 * 60:
        raise Unusable(
            f"window {quoted(text)} has no such time as {hours}:{minutes}", "write times from 00:00 to 24:00"
        )
    return total


def wall_time(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    """What calendar and clock on a wall show, of no time zone yet; ValueError where there is no such time."""
    return datetime.combine(date(year, month, day), time(hour, minute, second))


def instant(day: date, minutes: int, zone: ZoneInfo, *, last: bool = False) -> datetime:
    """A local time as UTC: the next valid instant when it is skipped; when repeated, the first or the last."""
    local = datetime.combine(day, time()) + timedelta(minutes=minutes)
    before = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    after = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if before <= after:
        return after if last else before
    # Skipped: the offset changes somewhere between the two readings; the first instant after that is wanted.
    low, high = after, before
    offset = high.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return high


def open_at(windows: tuple[Window, ...], zone: ZoneInfo, at: datetime) -> Segment | None:
    """The stretch of open time that `at` lies in; without windows, always. Its end is not part of it."""
    if not windows:
        return (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    segments = segments_around(windows, zone, at.astimezone(zone).date())
    index = bisect_right(segments, at, key=_opening) - 1
    return segments[index] if index >= 0 and at < segments[index][1] else None


def next_open(windows: tuple[Window, ...], zone: ZoneInfo, at: datetime) -> datetime:
    """The first instant from `at` on at which a window is open: `at` itself when one is."""
    if open_at(windows, zone, at):
        return at
    segments = segments_around(windows, zone, at.astimezone(zone).date())
    return segments[bisect_right(segments, at, key=_opening)][0]


def merged(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """In order, without gaps or overlaps; empty ones are left out."""
    joined: list[Segment] = []
    for start, end in sorted(segments):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif start < end:
            joined.append((start, end))
    return tuple(joined)


def _opening(segment: Segment) -> datetime:
    return segment[0]


@lru_cache(maxsize=4096)
def segments_around(windows: tuple[Window, ...], zone: ZoneInfo, day: date) -> tuple[Segment, ...]:
    """Stretches of open time from the horizon before the local day to the one after it, merged and in order."""
    found: list[Segment] = []
    for offset in range(-HORIZON_DAYS, HORIZON_DAYS + 1):
        local = day + timedelta(days=offset)
        found.extend(
            (instant(local, window.opens, zone), instant(local, window.closes, zone, last=True))
            for window in windows
            if local.weekday() in window.days
        )
    return merged(found)
