"""Which VMs are to be rehearsed now, and how that stands for each policy. Pure.

A VM without a good restore point is not rehearsed: that it has none is told in other ways.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from policies.facts import CONSISTENCY_ORDER, Consistency, Facts, PointId, RestorePoint, Vm, VmId
from policies.policyset import PolicySet
from policies.protection import Protection, protection
from policies.rehearsing import Rehearse
from policies.units import span
from policies.windows import Window, next_open, open_at

LEAD_SHARE = 8
"""A rehearsal is due when so small a part of its time is left, so that it is done before the time is over."""

AGAIN = timedelta(days=1)
"""A rehearsal that failed is tried again no sooner, for others wait as well; in half of the policy's time at most."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The newest rehearsal of a VM: of which restore point, when it began, how long it took and how it ended.

    `passed_at` is when one last passed, this one or an earlier one; None for never.
    """

    vm: VmId
    point: PointId
    at: datetime
    seconds: float
    passed: bool
    why: str = ""
    passed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DueRehearsal:
    """A VM that is to be rehearsed now, from which restore point, as which policy asks, and why."""

    vm: VmId
    point: PointId
    policy: str
    how: Rehearse
    deadline: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class RehearsalStanding:
    """How one policy's wish stands: its VMs with a good restore point, those overdue, and those that failed last."""

    policy: str
    every: timedelta
    vms: int
    overdue: int
    failed: int


def due_rehearsals(
    policies: PolicySet,
    facts: Facts,
    rehearsed: Mapping[VmId, Rehearsed],
    *,
    busy: Collection[VmId] = (),
    aside: Collection[VmId] = (),
    most: int = 1,
    usual: tuple[tuple[Window, ...], ZoneInfo] | None = None,
) -> tuple[DueRehearsal, ...]:
    """Which to begin now, longest overdue first; `most` go on at once, those that are `busy` with one included.

    Those `aside` cannot be rehearsed now and let others go first. The `usual` windows are those of policies that
    name none.
    """
    found = []
    for vm, effective, how, good in _wanted(policies, facts):
        if vm.id in busy or vm.id in aside:
            continue
        last = rehearsed.get(vm.id)
        deadline = _deadline(how, last, good)
        timed = how if how.windows or usual is None else replace(how, windows=usual[0], zone=usual[1])
        why = _due(timed, last, deadline, facts.now)
        if why:
            reason = f"{why}; policy {_asking(effective, how)} wants it every {span(how.every)}"
            found.append(DueRehearsal(vm.id, good[-1].id, _asking(effective, how), how, deadline, reason))
    found.sort(key=lambda one: (one.deadline, one.vm))
    return tuple(found[: max(0, most - len(busy))])


def rehearsal_standing(
    policies: PolicySet, facts: Facts, rehearsed: Mapping[VmId, Rehearsed]
) -> tuple[RehearsalStanding, ...]:
    """For each policy that counts for rehearsals or would, in the order of names."""
    every = {policy.name: policy.rehearse.every for policy in policies.policies if policy.rehearse is not None}
    vms, overdue, failed = dict.fromkeys(every, 0), dict.fromkeys(every, 0), dict.fromkeys(every, 0)
    for vm, effective, how, good in _wanted(policies, facts):
        name, last = _asking(effective, how), rehearsed.get(vm.id)
        vms[name] += 1
        since = last.passed_at if last is not None and last.passed_at is not None else good[0].taken_at
        overdue[name] += since + how.every < facts.now
        failed[name] += last is not None and not last.passed
    return tuple(RehearsalStanding(n, every[n], vms[n], overdue[n], failed[n]) for n in sorted(every))


def good_points(points: Collection[RestorePoint], weakest: Consistency) -> tuple[RestorePoint, ...]:
    """Those that a rehearsal may take, oldest first: complete, not damaged and as consistent as wanted."""
    least = CONSISTENCY_ORDER.index(weakest)
    good = [
        one for one in points if one.complete and not one.damaged and CONSISTENCY_ORDER.index(one.consistency) >= least
    ]
    return tuple(sorted(good, key=lambda one: (one.taken_at, one.id)))


def _deadline(how: Rehearse, last: Rehearsed | None, good: tuple[RestorePoint, ...]) -> datetime:
    """What was never rehearsed is due from its first good restore point on."""
    if last is not None and last.passed_at is not None:
        return last.passed_at + how.every
    return good[0].taken_at


def _due(how: Rehearse, last: Rehearsed | None, deadline: datetime, now: datetime) -> str:
    """Why a rehearsal is to begin now; empty when it is not."""
    window = open_at(how.windows, how.zone, now)
    if window is None:
        return ""
    if last is not None and not last.passed:
        again = last.at + min(AGAIN, how.every / 2)
        return f"its rehearsal {span(now - last.at)} ago failed" if again <= now else ""
    if deadline - how.every / LEAD_SHARE > now and not _last_window(how, window[1], deadline):
        return ""
    return "never rehearsed" if last is None else f"last rehearsed {span(now - last.at)} ago"


def _last_window(how: Rehearse, closes: datetime, deadline: datetime) -> bool:
    """Whether the deadline is over before a window opens again."""
    return bool(how.windows) and deadline < next_open(how.windows, how.zone, closes)


def _wanted(policies: PolicySet, facts: Facts) -> Iterator[tuple[Vm, Protection, Rehearse, tuple[RestorePoint, ...]]]:
    """VMs that are to be rehearsed, with how and with their good restore points."""
    if not any(policy.rehearse is not None for policy in policies.policies):
        return
    for vm in facts.vms.values():
        effective = protection(policies, vm)
        if effective.rehearse is None:
            continue
        listed = [one for one in facts.points.get(vm.id, ()) if one.taken_at <= facts.now]
        good = good_points(listed, effective.fallback)
        if good:
            yield vm, effective, effective.rehearse, good


def _asking(effective: Protection, how: Rehearse) -> str:
    return next((policy.name for policy in effective.policies if policy.rehearse == how), "")
