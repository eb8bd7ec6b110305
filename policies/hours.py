"""When runs may start: inside the windows and outside the blackouts of a policy, as instants."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from policies.blackouts import Blackout, Dates, stretches
from policies.windows import HORIZON_DAYS, Segment, Window, merged, segments_around

HORIZON = timedelta(days=400)
"""How far an opening is looked for. Where there is none the answer is this far ahead, and so never comes."""

_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)

ALWAYS: Segment = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Hours:
    """Windows and blackouts in a time zone. Without windows it is always open, but for the blackouts."""

    windows: tuple[Window, ...] = ()
    blackouts: tuple[Blackout, ...] = ()
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for each VM in each sweep, so it is worked out once.
        object.__setattr__(self, "_hash", hash((self.windows, self.blackouts, self.zone)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def always(self) -> bool:
        """Whether nothing ever closes."""
        return not self.windows and not self.blackouts


def open_at(hours: Hours, at: datetime) -> Segment | None:
    """The stretch of open time that `at` lies in, as far as it is known; its end is not part of it."""
    if hours.always:
        return ALWAYS
    segments = _segments(hours, at.astimezone(UTC).toordinal())
    index = bisect_right(segments, at, key=_opening) - 1
    return segments[index] if index >= 0 and at < segments[index][1] else None


def next_open(hours: Hours, at: datetime) -> datetime:
    """The first instant from `at` on at which a run may start: `at` itself when it is open."""
    if not hours.windows and not hours.blackouts:
        return at
    day = at.astimezone(UTC).toordinal()
    segments = _segments(hours, day)
    index = bisect_right(segments, at, key=_opening)
    if index and at < segments[index - 1][1]:
        return at
    return segments[index][0] if index < len(segments) else _far(hours, day)


def last_open_before(hours: Hours, at: datetime) -> Segment | None:
    """The last stretch of open time that ended at `at` or earlier; None when there is none for long."""
    if hours.always:
        return None
    day = at.astimezone(UTC).toordinal()
    for back in range(0, HORIZON.days, HORIZON_DAYS):
        ended = [segment for segment in _segments(hours, day - back) if segment[1] <= at]
        if ended:
            return ended[-1]
    return None


def blackout_at(hours: Hours, at: datetime) -> tuple[Blackout, datetime] | None:
    """The blackout that `at` falls into and its end, the one that lasts longest of several."""
    found: list[tuple[datetime, int]] = []
    for index, blackout in enumerate(hours.blackouts):
        known = stretches(blackout, hours.zone, at.year)
        place = bisect_right(known, at, key=_opening) - 1
        if place >= 0 and at < known[place][1]:
            found.append((known[place][1], -index))
    end, index = max(found, default=(at, 1))
    return (hours.blackouts[-index], end) if found else None


def closes_always(hours: Hours) -> bool:
    """Whether the blackouts of every week and year leave nothing of the windows; those of single dates end."""
    again = tuple(one for one in hours.blackouts if isinstance(one, Window) or (isinstance(one, Dates) and one.yearly))
    if not again:
        return False
    at = _SOME_DAY
    return next_open(Hours(hours.windows, again, hours.zone), at) - at >= HORIZON


def _opening(segment: Segment) -> datetime:
    return segment[0]


def _closing(segment: Segment) -> datetime:
    return segment[1]


@lru_cache(maxsize=1024)
def _far(hours: Hours, day: int) -> datetime:
    """The first opening later than those that the segments around this day show."""
    known = _midnight(day + HORIZON_DAYS - 1)
    for ahead in range(HORIZON_DAYS, HORIZON.days, HORIZON_DAYS):
        found = next((start for start, _ in _segments(hours, day + ahead) if start > known), None)
        if found is not None:
            return found
    return _midnight(day) + HORIZON


def _midnight(day: int) -> datetime:
    return datetime.fromordinal(day).replace(tzinfo=UTC)


@lru_cache(maxsize=4096)
def _segments(hours: Hours, day: int) -> tuple[Segment, ...]:
    """Stretches of open time around a UTC day, in order. Those at the rim may be cut."""
    first, last = _midnight(day - HORIZON_DAYS), _midnight(day + HORIZON_DAYS + 1)
    opened: tuple[Segment, ...] = ((first, last),)
    if hours.windows:
        opened = segments_around(hours.windows, hours.zone, date.fromordinal(day))
    return tuple(_without(opened, _closed(hours, first - timedelta(days=3), last + timedelta(days=3))))


def _closed(hours: Hours, first: datetime, last: datetime) -> tuple[Segment, ...]:
    near: list[Segment] = []
    for blackout in hours.blackouts:
        for year in range(first.year, last.year + 1):
            known = stretches(blackout, hours.zone, year)
            near += known[bisect_right(known, first, key=_closing) : bisect_left(known, last, key=_opening)]
    return merged(near)


def _without(opened: tuple[Segment, ...], closed: tuple[Segment, ...]) -> Iterator[Segment]:
    for start, end in opened:
        at = start
        for begin, finish in closed:
            if finish <= at or begin >= end:
                continue
            if begin > at:
                yield at, begin
            at = finish
        if at < end:
            yield at, end
