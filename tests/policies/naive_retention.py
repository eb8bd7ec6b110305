"""Retention as it is defined, point by point and sentence by sentence: slow, and what the engine's must agree with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from policies.decision import Expire, Kept, RetentionPlan
from policies.facts import CONSISTENCY_ORDER, Consistency, PointId, RestorePoint, VmId
from policies.policy import Policy, Retention
from policies.units import clock, span

Period = tuple[int, ...]

_PERIODS: Mapping[str, Callable[[datetime], Period]] = {
    "hourly": lambda at: (at.year, at.month, at.day, at.hour, at.fold),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: tuple(at.isocalendar()[:2]),
    "monthly": lambda at: (at.year, at.month),
    "quarterly": lambda at: (at.year, (at.month - 1) // 3),
    "yearly": lambda at: (at.year,),
}

_DAMAGED, _INCOMPLETE = -1, -2

Reasons = dict[PointId, list[str]]


def plan_retention(
    vm: VmId, points: Iterable[RestorePoint], policies: Sequence[Policy], now: datetime
) -> RetentionPlan:
    """What stays and what goes of one VM's restore points.

    `policies` are all that select the VM (`PolicySet.retaining`); none of them keeps everything. A point that
    nothing keeps is first marked (`plan.mark`) and, unless the grace is zero, expires once it has been marked for as
    long as the longest grace among the policies; `plan.unmark` are marked points that are kept again.
    """
    ordered = sorted((point for point in points if point.vm == vm), key=_age, reverse=True)
    reasons = kept_reasons(ordered, policies, now)
    grace = max((policy.retention.grace for policy in policies), default=timedelta())
    keep: list[Kept] = []
    expire: list[Expire] = []
    mark: list[Expire] = []
    for point in ordered:
        if point.id in reasons:
            keep.append(Kept(point.id, tuple(reasons[point.id])))
            continue
        sentence = _unkept(point, policies)
        since = point.expiring_since
        ends = (since if since is not None else now) + grace
        if ends <= now:
            expire.append(Expire(point.id, sentence))
            continue
        zone = policies[0].timing.zone
        keep.append(Kept(point.id, (f"{sentence}, but grace lasts until {clock(ends, zone)}",)))
        if since is None:
            mark.append(Expire(point.id, sentence))
    unmark = tuple(point.id for point in ordered if point.expiring_since is not None and point.id in reasons)
    return RetentionPlan(vm, tuple(keep), tuple(expire), tuple(mark), unmark)


def kept_reasons(points: Sequence[RestorePoint], policies: Sequence[Policy], now: datetime) -> Reasons:
    """Why each point that stays does, grace aside. Points of one VM."""
    ordered = sorted(points, key=_age, reverse=True)
    reasons: Reasons = {}
    if not policies:
        _keep(reasons, ordered, "no policy selects the VM: its restore points are held")
    # What a wrong clock dated into the future stays by itself and must not make anything else look old.
    past = [point for point in ordered if point.taken_at <= now]
    if past and not any(point.complete for point in past):
        _keep(reasons, past, "guard: the VM has no complete restore point")
    views: dict[tuple[Consistency, Consistency, tzinfo], _Ranked] = {}
    for policy in policies:
        if policy.retention.empty:
            _keep(reasons, ordered, f"policy {policy.name} has no retention rule: everything is kept")
            continue
        levels = (policy.wanted, policy.weakest_good, policy.timing.zone)
        if levels not in views:
            views[levels] = _rank(past, *levels)
        _apply(reasons, views[levels], policy.retention, policy.name)
    for point in ordered:
        for hold in point.holds:
            _keep(reasons, [point], f"hold: {hold}")
        if point.locked_until is not None and point.locked_until > now:
            _keep(reasons, [point], f"locked until {point.locked_until:%Y-%m-%d %H:%M} UTC")
        if point.taken_at > now:
            _keep(reasons, [point], "guard: taken in the future, so a clock is wrong")
    return reasons


def _age(point: RestorePoint) -> tuple[datetime, PointId]:
    return (point.taken_at, point.id)


def _keep(reasons: Reasons, points: Iterable[RestorePoint], why: str) -> None:
    for point in points:
        reasons.setdefault(point.id, []).append(why)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A policy's view of the points, newest first.

    The rank is the consistency that was achieved, at most that which is wanted; damaged and incomplete points rank
    below all. `good` are those of at least the fall-back; when there is none, the best complete ones.
    """

    points: Sequence[RestorePoint]
    ranks: Mapping[PointId, int]
    local: Mapping[PointId, datetime]
    good: tuple[RestorePoint, ...]
    weaker: tuple[RestorePoint, ...]


def _rank(points: Sequence[RestorePoint], wanted: Consistency, weakest: Consistency, zone: tzinfo) -> _Ranked:
    most = CONSISTENCY_ORDER.index(wanted)
    least = CONSISTENCY_ORDER.index(weakest)

    def rank(point: RestorePoint) -> int:
        if not point.complete:
            return _INCOMPLETE
        return _DAMAGED if point.damaged else min(CONSISTENCY_ORDER.index(point.consistency), most)

    ranks = {point.id: rank(point) for point in points}
    best = max(ranks.values(), default=_INCOMPLETE)
    needed = least if best >= least else max(best, _DAMAGED)
    return _Ranked(
        points=points,
        ranks=ranks,
        local={point.id: point.taken_at.astimezone(zone) for point in points},
        good=tuple(point for point in points if ranks[point.id] >= needed),
        weaker=tuple(point for point in points if _INCOMPLETE < ranks[point.id] < needed),
    )


def _apply(reasons: Reasons, ranked: _Ranked, retention: Retention, name: str) -> None:
    for rule, number in retention.counts:
        chosen = _last(ranked, number) if rule == "last" else _periods(ranked, rule, number)
        for position, point in enumerate(chosen, start=1):
            _keep(reasons, [point], f"policy {name}: keep_{rule} {position} of {number}")
    if retention.keep_within is not None and ranked.good:
        oldest = ranked.good[0].taken_at - retention.keep_within
        within = [point for point in ranked.points if point.taken_at >= oldest and ranked.ranks[point.id] > _INCOMPLETE]
        _keep(reasons, within, f"policy {name}: keep_within {span(retention.keep_within)}")
    _guard(reasons, ranked, retention, name)


def _guard(reasons: Reasons, ranked: _Ranked, retention: Retention, name: str) -> None:
    for position, point in enumerate(ranked.good[: retention.min_good], start=1):
        _keep(reasons, [point], f"guard: min_good {position} of {retention.min_good} of policy {name}")
    if not ranked.good:
        return
    best = max(ranked.ranks[point.id] for point in ranked.good)
    first_best = next(point for point in ranked.good if ranked.ranks[point.id] == best)
    if first_best is not ranked.good[0]:
        _keep(reasons, [first_best], f"guard: the newest of the best consistency under policy {name}")
    newer = [
        point for point in ranked.points if _age(point) > _age(ranked.good[0]) and ranked.ranks[point.id] > _INCOMPLETE
    ]
    _keep(reasons, newer, f"guard: newer than the newest good restore point under policy {name}")


def _last(ranked: _Ranked, number: int) -> Sequence[RestorePoint]:
    """The newest good points; weaker ones only fill what good ones leave free."""
    return [*ranked.good, *_best_first(ranked, ranked.weaker)][:number]


def _periods(ranked: _Ranked, rule: str, number: int) -> Sequence[RestorePoint]:
    """One point for each of the newest periods that have one: the newest of the best rank in the period.

    Periods with a good point come first; periods that only have weaker ones fill what is left of the number.
    """
    period_of, local, ranks = _PERIODS[rule], ranked.local, ranked.ranks
    good: dict[Period, RestorePoint] = {}
    for point in ranked.good:
        period = period_of(local[point.id])
        known = good.get(period)
        if known is None:
            if len(good) == number:
                break  # Newest first: every further period is older than those that are counted.
            good[period] = point
        elif ranks[point.id] > ranks[known.id]:
            good[period] = point
    first = sorted(good.values(), key=_age, reverse=True)
    if len(first) == number:
        return first
    weaker: dict[Period, RestorePoint] = {}
    for point in ranked.weaker:
        period = period_of(local[point.id])
        known = weaker.get(period)
        if period not in good and (known is None or ranks[point.id] > ranks[known.id]):
            weaker[period] = point
    return [*first, *_best_first(ranked, weaker.values())][:number]


def _best_first(ranked: _Ranked, points: Iterable[RestorePoint]) -> list[RestorePoint]:
    return sorted(points, key=lambda point: (ranked.ranks[point.id], *_age(point)), reverse=True)


def _unkept(point: RestorePoint, policies: Sequence[Policy]) -> str:
    names = ", ".join(policy.name for policy in policies)
    noun = "policy" if len(policies) == 1 else "policies"
    state = ""
    if not point.complete:
        state = "incomplete, and "
    elif point.damaged:
        state = "damaged, and "
    return (
        f"{state}no rule of {noun} {names} and no guard keeps the restore point of {point.taken_at:%Y-%m-%d %H:%M} UTC"
    )
