"""Which restore points of a VM stay, and why. Pure: time is an argument.

The laws: a point stays if any rule of any policy keeps it; adding a rule to a retention that has one, or a policy
to a VM that has one, never expires more; guards beat rules; no policy or no rule at all keeps everything; what is
weaker never takes the place of what is better; the order of the points does not matter; a second plan after the
first was carried out, at the same now, expires nothing.

Periods are those of the policy's time zone, weeks those of ISO. A rule counts periods that have a restore point,
not calendar time; `keep_within` counts back from the newest good point, so that a VM which is not backed up any
more, or a clock that jumped, loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import overload

from policies.decision import Expire, Kept, RetentionPlan
from policies.facts import PointId, RestorePoint, VmId
from policies.keeping import (
    BEST,
    EVERYTHING,
    HELD,
    MADE,
    MIN_GOOD,
    NEWER,
    NONE_COMPLETE,
    WITHIN,
    Row,
    choices,
    rows_of,
    unkept,
)
from policies.policy import Leaving, Policy
from policies.units import clock, span

SMALLEST_MASS = 10
"""Fewer restore points than this are never a mass expiry: shares of small numbers mean nothing."""

Reasons = dict[PointId, list[str]]


def plan_retention(
    vm: VmId, points: Iterable[RestorePoint], policies: Sequence[Policy], now: datetime
) -> RetentionPlan:
    """What stays and what goes of one VM's restore points.

    `policies` are all that select the VM (`PolicySet.retaining`); none of them keeps everything. A point that
    nothing keeps is first marked (`plan.mark`) and, unless the grace is zero, expires once it has been marked for as
    long as the longest grace among the policies; `plan.unmark` are marked points that are kept again. The reasons
    of what is kept are made when they are looked at.
    """
    rows = rows_of(point for point in points if point.vm == vm)
    going = unkept(rows, policies, now)
    sentence = _unkept(policies)
    grace = longest_grace(policies)
    gone: set[int] = set()
    expire: list[Expire] = []
    mark: list[Expire] = []
    for position in going:
        point = rows[position].point
        since = point.expiring_since
        if (since if since is not None else now) + grace <= now:
            gone.add(position)
            expire.append(Expire(point.id, sentence(point)))
        elif since is None:
            mark.append(Expire(point.id, sentence(point)))
    stays = set(range(len(rows))).difference(going)
    unmark = tuple(rows[i].point.id for i in sorted(stays) if rows[i].point.expiring_since is not None)
    keep = _Keeping([i for i in range(len(rows)) if i not in gone], rows, tuple(policies), now, grace)
    leaving = len(going) if any(policy.leaving is not None for policy in policies) else 0
    return RetentionPlan(vm, keep, tuple(expire), tuple(mark), unmark, leaving)


def longest_grace(policies: Iterable[Policy]) -> timedelta:
    """How long a point that nothing keeps stays marked: the longest that any of the policies says."""
    return max((policy.retention.grace for policy in policies), default=timedelta())


@dataclass(eq=False, slots=True)
class _Keeping(Sequence[Kept]):
    """The points that stay, newest first; their sentences are made when the first is looked at."""

    positions: list[int]
    rows: list[Row]
    policies: tuple[Policy, ...]
    now: datetime
    grace: timedelta
    _made: tuple[Kept, ...] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Kept: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Kept]: ...
    def __getitem__(self, index: int | slice) -> Kept | Sequence[Kept]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> tuple[Kept, ...]:
        if self._made is None:
            reasons = _reasons(self.rows, self.policies, self.now)
            points = [self.rows[position].point for position in self.positions]
            self._made = tuple(
                Kept(point.id, tuple(reasons.get(point.id) or (self._grace(point),))) for point in points
            )
        return self._made

    def _grace(self, point: RestorePoint) -> str:
        since = point.expiring_since if point.expiring_since is not None else self.now
        ends = clock(since + self.grace, self.policies[0].timing.zone)
        return f"{_unkept(self.policies)(point)}, but grace lasts until {ends}"


def mass_expiry(plans: Iterable[RetentionPlan], max_share: float, gone: int = 0, over: timedelta = timedelta()) -> str:
    """The circuit breaker: why these plans together expire or mark too much to be carried out; "" when they do not.

    Points of VMs that left or that no policy selects any more count for as long as their grace lasts, and the `gone`
    ones, which expired `over` the time before, beside them: so that VMs which vanish little by little, as when
    permissions do, add up.
    """
    total = going = leaving = 0
    for plan in plans:
        total += len(plan.keep) + len(plan.expire)
        going += len(plan.expire) + len(plan.mark)
        leaving += plan.leaving
    allowed = f"more than the {max_share:.0%} of guard.max_expire_share"
    if going >= SMALLEST_MASS and going > max_share * total:
        return f"{going} of {total} restore points would expire, {allowed}"
    left, all_of = leaving + gone, total + gone
    if leaving and left >= SMALLEST_MASS and left > max_share * all_of:
        before = f" ({gone} of them expired in the last {span(over)})" if gone else ""
        return f"{left} of {all_of} restore points are of VMs that left or are not selected any more{before}, {allowed}"
    return ""


def kept_reasons(points: Iterable[RestorePoint], policies: Sequence[Policy], now: datetime) -> Reasons:
    """Why each point that stays does, grace aside. Points of one VM."""
    return _reasons(rows_of(points), policies, now)


def _reasons(rows: Sequence[Row], policies: Sequence[Policy], now: datetime) -> Reasons:
    reasons: Reasons = {}
    for policy, kind, chosen in choices(rows, policies, now):
        say = _GUARDS[kind] if policy is None else _SENTENCES.get(kind, _by_rule)(policy, kind)
        for number, position in enumerate(chosen, start=1):
            reasons.setdefault(rows[position].point.id, []).append(say(number))
    for row in rows:
        own = [*_own_reasons(row.point, now)]
        if own:
            reasons.setdefault(row.point.id, []).extend(own)
    return reasons


def _own_reasons(point: RestorePoint, now: datetime) -> Iterator[str]:
    for hold in point.holds:
        yield f"hold: {hold}"
    if point.locked_until is not None and point.locked_until > now:
        yield f"locked until {point.locked_until:%Y-%m-%d %H:%M} UTC"
    if point.taken_at > now:
        yield "guard: taken in the future, so a clock is wrong"


Say = Callable[[int], str]
"""The sentence for the point that a rule keeps as its n-th."""


def _always(sentence: str) -> Say:
    return lambda number: sentence


def _by_rule(policy: Policy, rule: str) -> Say:
    count = dict(policy.retention.counts)[rule]
    return lambda number: f"policy {policy.name}: keep_{rule} {number} of {count}"


def _by_min_good(policy: Policy, kind: str) -> Say:
    count = policy.retention.min_good
    return lambda number: f"guard: min_good {number} of {count} of policy {policy.name}"


def _by_within(policy: Policy, kind: str) -> Say:
    return _always(f"policy {policy.name}: keep_within {span(policy.retention.keep_within or timedelta())}")


def _by_maker(policy: Policy, kind: str) -> Say:
    held = policy.leaving is Leaving.HOLD
    return _always(
        f"held: {policy.leaving_why}" if held else f"guard: the last good one that policy {policy.name} made"
    )


_GUARDS: dict[str, Say] = {
    HELD: _always("no policy selects the VM: its restore points are held"),
    NONE_COMPLETE: _always("guard: the VM has no complete restore point"),
}

_SENTENCES: dict[str, Callable[[Policy, str], Say]] = {
    EVERYTHING: lambda policy, kind: _always(f"policy {policy.name} has no retention rule: everything is kept"),
    WITHIN: _by_within,
    MIN_GOOD: _by_min_good,
    MADE: _by_maker,
    BEST: lambda policy, kind: _always(f"guard: the newest of the best consistency under policy {policy.name}"),
    NEWER: lambda policy, kind: _always(f"guard: newer than the newest good restore point under policy {policy.name}"),
}


def _unkept(policies: Sequence[Policy]) -> Callable[[RestorePoint], str]:
    """Makes the sentence for a point that none of these policies keeps."""
    asked = [policy for policy in policies if policy.leaving is not Leaving.HOLD]
    names = ", ".join(policy.name for policy in asked)
    rules = f"no rule of {'policy' if len(asked) == 1 else 'policies'} {names} and no guard keeps the restore point of"
    whys = {policy.name: f"{policy.leaving_why}; " for policy in asked if policy.leaving is not None}

    def sentence(point: RestorePoint) -> str:
        state = "incomplete, and " if not point.complete else "damaged, and " if point.damaged else ""
        return f"{whys.get(point.policy, '')}{state}{rules} {point.taken_at.isoformat(' ')[:16]} UTC"

    return sentence
