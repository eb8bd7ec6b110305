"""What the rules and guards of retention keep, as positions of restore points: the part that is evaluated often.

Sentences are made from it in `policies.retention` when somebody reads them. A caller that asks again and again for
the same VM (a simulation) keeps its rows from one time to the next:

    rows_of(points) -> list[Row]            newest first; a Row knows its periods once it was asked for them
    row_of(point) -> Row                    put a newer one in front, take expired ones out
    unkept(rows, policies, now) -> list[int]  the positions that no rule and no guard keeps; grace is not looked at
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from operator import attrgetter

from policies.facts import CONSISTENCY_ORDER, Consistency, RestorePoint
from policies.policy import Leaving, Policy

Periods = tuple[int, ...]
"""Numbers of a point's local hour, day, ISO week, month, quarter and year: equal numbers are the same period."""

_INDEX: Mapping[str, int] = {"hourly": 0, "daily": 1, "weekly": 2, "monthly": 3, "quarterly": 4, "yearly": 5}
_QUALITY = {level: number for number, level in enumerate(CONSISTENCY_ORDER)}
_DAMAGED, _INCOMPLETE = -1, -2
_HOURS = 48
"""Numbers for the hours of a day, each of which may come twice."""

HELD, NONE_COMPLETE, EVERYTHING = "held", "none_complete", "everything"
WITHIN, MIN_GOOD, BEST, NEWER, MADE = "within", "min_good", "best", "newer", "made"

Choice = tuple[Policy | None, str, Sequence[int]]
"""A policy, one of its rules by period or a guard by the names above, and the positions that it keeps, in order."""

_AGE = attrgetter("taken_at", "point.id")
_TAKEN = attrgetter("taken_at")


class Row:
    """A restore point as the rules see it. `quality` is its consistency by number, below 0 what nobody relies on."""

    __slots__ = ("_periods", "_zone", "point", "quality", "taken_at")

    def __init__(self, point: RestorePoint) -> None:
        self.point = point
        self.taken_at = point.taken_at
        self.quality = _INCOMPLETE if not point.complete else _DAMAGED if point.damaged else _QUALITY[point.consistency]
        self._zone: tzinfo | None = None
        self._periods: Periods = ()

    def periods(self, zone: tzinfo) -> Periods:
        """The periods that it lies in."""
        if self._zone is not zone:
            local = self.taken_at.astimezone(zone)
            self._periods = _periods(local.toordinal(), local.hour, local.fold)
            self._zone = zone
        return self._periods


@lru_cache(maxsize=65_536)
def _periods(day: int, hour: int, fold: int) -> Periods:
    date = datetime.fromordinal(day)
    month = date.year * 12 + date.month - 1
    return (day * _HOURS + hour * 2 + fold, day, (day - 1) // 7, month, month // 3, date.year)


row_of = Row
"""One restore point as the rules see it."""


def rows_of(points: Iterable[RestorePoint]) -> list[Row]:
    """Restore points of one VM, newest first."""
    rows = [Row(point) for point in points]
    rows.sort(key=_TAKEN, reverse=True)
    if any(rows[i].taken_at == rows[i + 1].taken_at for i in range(len(rows) - 1)):
        rows.sort(key=_AGE, reverse=True)
    return rows


def unkept(rows: Sequence[Row], policies: Sequence[Policy], now: datetime) -> list[int]:
    """The positions of the points that no rule of any policy and no guard keeps, newest first; grace aside.

    `rows` are all restore points of one VM, newest first.
    """
    going = _unkept_alike(rows, policies, now)
    if going is None:
        left = set(range(len(rows)))
        for _, _, chosen in choices(rows, policies, now):
            left.difference_update(chosen)
        going = sorted(left)
    return [i for i in going if not guarded(rows[i].point, now)]


def _unkept_alike(rows: Sequence[Row], policies: Sequence[Policy], now: datetime) -> Sequence[int] | None:
    """The same, guards of single points aside, where all points are of one rank, as they are most of the time.

    Then only their periods count, and those of many VMs are the same. None where it does not apply.
    """
    if not rows or rows[0].taken_at > now:
        return None
    qualities = {row.quality for row in rows}
    worst = min(qualities)
    going: Sequence[int] | None = None
    for policy in policies:
        finest = _finest(policy)
        if finest is None or worst == _INCOMPLETE or (len(qualities) > 1 and worst < _QUALITY[policy.wanted]):
            return None
        zone, within = policy.timing.zone, policy.retention.keep_within
        left: Sequence[int] = _left_by_periods(policy, tuple([row.periods(zone)[finest] for row in rows]))
        if within is not None:
            oldest = rows[0].taken_at - within
            left = [i for i in left if rows[i].taken_at < oldest]
        going = left if going is None else [i for i in going if i in left]
    return going


@lru_cache(maxsize=16_384)
def _finest(policy: Policy) -> int | None:
    """Which number of `Periods` tells all that the policy's rules ask for; None where they are not all that counts."""
    if policy.retention.empty or policy.leaving is not None:
        return None
    return _INDEX["hourly" if "hourly" in dict(policy.retention.counts) else "daily"]


@lru_cache(maxsize=32_768)
def _left_by_periods(policy: Policy, finest: tuple[int, ...]) -> tuple[int, ...]:
    """The positions that no count and not `min_good` keeps, of points of one rank in these hours or days."""
    days = [number // _HOURS for number in finest] if _finest(policy) == _INDEX["hourly"] else finest
    kept = set(range(policy.retention.min_good))
    for rule, number in policy.retention.counts:
        if rule == "last":
            kept.update(range(number))
            continue
        numbers = finest if rule == "hourly" else [_periods(day, 0, 0)[_INDEX[rule]] for day in days]
        newest = {period: i for i, period in reversed([*enumerate(numbers)])}
        kept.update(sorted(newest.values())[:number])
    return tuple(i for i in range(len(finest)) if i not in kept)


def guarded(point: RestorePoint, now: datetime) -> bool:
    """What keeps a point by itself, whatever the policies say; `policies.retention` has the sentences."""
    locked = point.locked_until
    return bool(point.holds) or (locked is not None and locked > now) or point.taken_at > now


def choices(rows: Sequence[Row], policies: Sequence[Policy], now: datetime) -> Iterator[Choice]:
    """Each rule and guard of each policy with what it keeps, in the order in which people are told.

    Guards of single points (holds, locks, a date in the future) are not among them.
    """
    everything = range(len(rows))
    if not policies:
        yield None, HELD, everything
    # What a wrong clock dated into the future stays by itself and must not make anything else look old.
    first = 0
    while first < len(rows) and rows[first].taken_at > now:
        first += 1
    qualities = [row.quality for row in rows]
    best = max(qualities[first:], default=None)
    if best == _INCOMPLETE:
        yield None, NONE_COMPLETE, range(first, len(rows))
    views: dict[tuple[Consistency, Consistency], _View] = {}
    for policy in policies:
        if policy.leaving is not None:
            yield policy, MADE, _made_by(rows, first, policy)
            if policy.leaving is Leaving.HOLD:
                continue
        if policy.retention.empty:
            yield policy, EVERYTHING, everything
            continue
        if best is None:
            continue
        levels = (policy.wanted, policy.weakest_good)
        if levels not in views:
            views[levels] = _View(rows, qualities, first, *levels)
        yield from _chosen(views[levels], policy)


def _made_by(rows: Sequence[Row], first: int, policy: Policy) -> Sequence[int]:
    """Of the points that a policy made and no longer protects: all that it holds, or its newest good one.

    Where none of them is good it is the newest of the best. Points of the future stay by themselves.
    """
    own = [i for i in range(len(rows)) if rows[i].point.policy == policy.name]
    if policy.leaving is Leaving.HOLD:
        return own
    past = [i for i in own if i >= first]
    least = _QUALITY[policy.weakest_good]
    good = [i for i in past if rows[i].quality >= least]
    return good[:1] or sorted(past, key=lambda i: (-rows[i].quality, i))[:1]


class _View:
    """The points as the levels of a policy rank them, newest first, those of the future left out.

    The rank is the consistency that was achieved, at most that which is wanted; damaged and incomplete points rank
    below all. `good` are those of at least the fall-back; when there is none, the best complete ones. `even` tells
    that all the good ones are of one rank, `alike` that all points are good and of one rank.
    """

    __slots__ = ("_columns", "alike", "even", "first", "good", "ranks", "rows", "weaker")

    def __init__(
        self, rows: Sequence[Row], qualities: Sequence[int], first: int, wanted: Consistency, weakest: Consistency
    ) -> None:
        most, least = _QUALITY[wanted], _QUALITY[weakest]
        self.rows, self.first = rows, first
        self._columns: dict[tzinfo, list[Periods]] = {}
        self.ranks: Sequence[int] = [most if quality > most else quality for quality in qualities]
        past = self.ranks[first:] if first else self.ranks
        best, worst = max(past), min(past)
        needed = least if best >= least else max(best, _DAMAGED)
        self.good: Sequence[int] = range(first, len(rows))
        self.weaker: Sequence[int] = ()
        self.even = self.alike = worst == best >= needed
        if worst < needed:
            self.good = [i for i in range(first, len(rows)) if self.ranks[i] >= needed]
            self.weaker = [i for i in range(first, len(rows)) if _INCOMPLETE < self.ranks[i] < needed]
            self.even = best == needed

    def periods(self, zone: tzinfo) -> list[Periods]:
        """For each kind of period those of all points, oldest first."""
        found = self._columns.get(zone)
        if found is None:
            found = self._columns[zone] = [*zip(*[row.periods(zone) for row in reversed(self.rows)], strict=True)]
        return found

    def best_first(self, positions: Iterable[int]) -> list[int]:
        """By rank, then the newest."""
        return sorted(positions, key=lambda i: (-self.ranks[i], i))


def _chosen(view: _View, policy: Policy) -> Iterator[Choice]:
    retention, good, ranks = policy.retention, view.good, view.ranks
    zone = policy.timing.zone
    for rule, number in retention.counts:
        if rule == "last":
            # The newest good points; weaker ones only fill what good ones leave free.
            yield policy, rule, [*good[:number], *view.best_first(view.weaker)][:number]
        else:
            yield policy, rule, _of_periods(view, _INDEX[rule], zone, number)
    if not good:
        return
    newest = good[0]
    if retention.keep_within is not None:
        oldest = view.rows[newest].taken_at - retention.keep_within
        within = []
        for i in range(view.first, len(view.rows)):
            if view.rows[i].taken_at < oldest:
                break
            if ranks[i] > _INCOMPLETE:
                within.append(i)
        yield policy, WITHIN, within
    yield policy, MIN_GOOD, good[: retention.min_good]
    if not view.even:
        best = max(ranks[i] for i in good)
        if ranks[newest] < best:
            yield policy, BEST, [next(i for i in good if ranks[i] == best)]
    if newest > view.first:
        yield policy, NEWER, [i for i in range(view.first, newest) if ranks[i] > _INCOMPLETE]


def _of_periods(view: _View, index: int, zone: tzinfo, number: int) -> list[int]:
    """One point for each of the newest periods that have one: the newest of the best rank in the period.

    Periods with a good point come first; periods that only have weaker ones fill what is left of the number.
    """
    periods, ranks = view.periods(zone)[index], view.ranks
    if view.alike:
        # Oldest first, so that the newest position of each period is what the dictionary ends up with.
        newest = dict(zip(periods, range(len(ranks) - 1, view.first - 1, -1), strict=False))
        return sorted(newest.values())[:number]
    last = len(ranks) - 1
    good: dict[int, int] = {}
    for i in view.good:
        period = periods[last - i]
        known = good.get(period)
        if known is None:
            if len(good) == number:
                break  # Newest first: every further period is older than those that are counted.
            good[period] = i
        elif ranks[i] > ranks[known]:
            good[period] = i
    first = sorted(good.values())
    if len(first) == number:
        return first
    weaker: dict[int, int] = {}
    for i in view.weaker:
        period = periods[last - i]
        known = weaker.get(period)
        if period not in good and (known is None or ranks[i] > ranks[known]):
            weaker[period] = i
    return [*first, *view.best_first(weaker.values())][:number]
