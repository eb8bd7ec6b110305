"""What the policies of one VM come to: which one wins, and the settings that a run takes from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TypeVar

from policies.facts import (
    CONSISTENCY_ORDER,
    USUAL_QUIESCING,
    Consistency,
    Disk,
    Facts,
    Quiescing,
    RestorePoint,
    Vm,
    VmHistory,
    VmId,
)
from policies.policy import DEFAULT_FALLBACK, DEFAULT_WANT, OnCbtInvalid, OnMigrate, Policy
from policies.policyset import PolicySet
from policies.quiescing import most_patient
from policies.rehearsing import Rehearse, most_frequent
from policies.schedule import Due, next_due

_Set = TypeVar("_Set")
_NOTHING_KNOWN = VmHistory()
DEFAULT_SAMPLE = 100
"""Blocks, where no policy says: 6 MiB of each disk and run at 64 KiB, less of small disks. Where change tracking forgot
a hundredth of what is unchanged, two of three runs notice."""

_DOUBTS, _MOVES = tuple(OnCbtInvalid), tuple(OnMigrate)


@dataclass(frozen=True, slots=True)
class Protection:
    """The policies of one VM, highest priority first, and the effective settings.

    A setting comes from the policies of highest priority that say something about it; several of one priority give
    the most protective value: each of their schedules counts, and the strictest consistency. Second copies are those
    of all policies, and the longest lock counts.
    """

    policies: tuple[Policy, ...]
    scheduling: tuple[Policy, ...]
    want: Consistency
    fallback: Consistency
    transports: tuple[str, ...]
    copies: tuple[str, ...] = ()
    destination: str = ""
    lock: timedelta = timedelta()
    verify_every: timedelta | None = None
    rehearse: Rehearse | None = None
    notify: tuple[str, ...] = ()
    on_cbt_invalid: OnCbtInvalid = OnCbtInvalid.FULL
    tracking_sample: int | None = None
    on_migrate: OnMigrate = OnMigrate.FINISH
    quiescing: Quiescing = USUAL_QUIESCING

    @property
    def winner(self) -> Policy | None:
        """The policy of highest priority, by name among equals."""
        return self.policies[0] if self.policies else None

    @property
    def priority(self) -> int:
        """The priority of the winner; 0 without one."""
        return self.policies[0].priority if self.policies else 0


def protection(policies: PolicySet, vm: Vm) -> Protection:
    """Who protects this VM, and with which settings."""
    return combine(policies.matching(vm))


def destinations(policies: PolicySet) -> Callable[[Vm], str] | None:
    """Tells where the backups of a VM go; None where no policy says, and all go to the engine's own repository."""
    kept = (policy for several in policies.kept_protection.values() for policy in several)
    if not any(policy.destination for policy in (*policies.policies, *kept)):
        return None
    return lambda vm: protection(policies, vm).destination


def copies_of(policies: PolicySet, vm: Vm | None, point: RestorePoint) -> tuple[str, ...]:
    """The second copies that a restore point belongs in. Of a VM that no policy selects, its own policy says so."""
    if vm is not None and (selecting := protection(policies, vm)).policies:
        return selecting.copies
    own = policies.policy(point.policy)
    return own.copies if own is not None else ()


def left_out(effective: Protection, disk: Disk) -> str:
    """Why the policies leave this disk of their VM out; "" where one of them wants it."""
    policies = effective.policies
    if not policies or not all(any(term.matches(disk) for term in one.excluded_disks) for one in policies):
        return ""
    return f"left out by {'policy' if len(policies) == 1 else 'policies'} {', '.join(one.name for one in policies)}"


def refusal_of(effective: Protection, vm: Vm) -> str:
    """Why the VM cannot be backed up; "" when it can."""
    return vm.refusal or nothing_wanted(effective, vm)


def nothing_wanted(effective: Protection, vm: Vm) -> str:
    """Why no disk of the VM would be backed up, where its policies leave all of them out; "" otherwise."""
    for policy in effective.policies:  # asked for each VM in each sweep: `any` takes four times as long
        if policy.excluded_disks:
            break
    else:
        return ""
    reasons = [left_out(effective, disk) for disk in vm.disks if not disk.unprotected]
    return f"all its disks are {reasons[0]}" if reasons and all(reasons) else ""


@lru_cache(maxsize=16_384)
def combine(matching: tuple[Policy, ...]) -> Protection:
    """The effective settings of policies that all select one VM, highest priority first."""
    scheduling = _highest(matching, lambda policy: policy.timing.scheduled)
    wanting = _highest(matching, lambda policy: policy.says_consistency)
    order = CONSISTENCY_ORDER.index
    doubting = _highest(matching, lambda policy: policy.on_cbt_invalid is not None)
    sampling = _highest(matching, lambda policy: policy.tracking_sample is not None)
    moving = _highest(matching, lambda policy: policy.on_migrate is not None)
    sending = _highest(matching, lambda policy: bool(policy.destination))
    carrying = _highest(matching, lambda policy: bool(policy.transports))
    return Protection(
        policies=matching,
        scheduling=scheduling,
        want=max((policy.wanted for policy in wanting), key=order, default=DEFAULT_WANT),
        fallback=max((policy.weakest_good for policy in wanting), key=order, default=DEFAULT_FALLBACK),
        transports=tuple(dict.fromkeys(name for policy in carrying for name in policy.transports)),
        quiescing=most_patient(tuple(policy.quiescing for policy in wanting if policy.quiescing is not None)),
        copies=tuple(dict.fromkeys(name for policy in matching for name in policy.copies)),
        destination=sending[0].destination if sending else "",
        lock=max((policy.retention.lock for policy in matching), default=timedelta()),
        rehearse=most_frequent(policy.rehearse for policy in matching),
        verify_every=min((p.verify_every for p in matching if p.verify_every is not None), default=None),
        notify=tuple(dict.fromkeys(name for policy in matching for name in policy.notify)),
        on_cbt_invalid=max(
            (policy.on_cbt_invalid for policy in doubting if policy.on_cbt_invalid is not None),
            key=_DOUBTS.index,
            default=OnCbtInvalid.FULL,
        ),
        tracking_sample=max(
            (policy.tracking_sample for policy in sampling if policy.tracking_sample is not None), default=None
        ),
        on_migrate=max(
            (policy.on_migrate for policy in moving if policy.on_migrate is not None),
            key=_MOVES.index,
            default=OnMigrate.FINISH,
        ),
    )


def _highest(policies: tuple[Policy, ...], says: Callable[[Policy], bool]) -> tuple[Policy, ...]:
    saying = [policy for policy in policies if says(policy)]
    return tuple(policy for policy in saying if policy.priority == saying[0].priority)


def due_of(protection: Protection, vm: VmId, facts: Facts, *, words: bool = True) -> tuple[Policy, Due] | None:
    """The VM's next scheduled run and the policy that asks for it; None when no policy has a goal or fixed times.

    Without `words` it may leave out why.
    """
    history = facts.history.get(vm, _NOTHING_KNOWN)
    good = last_good(vm, facts, protection.fallback)
    attempted = history.last_attempt is not None or bool(facts.points.get(vm))
    found = [
        (policy, due)
        for policy in protection.scheduling
        if (due := next_due(policy.timing, good, attempted, facts.now, vm, words=words)) is not None
    ]
    if len(found) < 2:
        return found[0] if found else None
    now = facts.now
    return min(found, key=lambda one: (max(one[1].at, now), one[1].deadline, one[0].name), default=None)


def last_good(vm: VmId, facts: Facts, weakest: Consistency) -> datetime | None:
    """When the newest good restore point was taken that is not from the future; the engine's memory counts too."""
    history = facts.history.get(vm, _NOTHING_KNOWN)
    remembered = history.last_good if history.last_good is not None and history.last_good <= facts.now else None
    kept = newest_good(facts.points, vm, weakest, facts.now) if facts.points.get(vm) else None
    if remembered is None or kept is None:
        return kept if remembered is None else remembered
    return max(remembered, kept)


def newest_good(
    points: Mapping[VmId, tuple[RestorePoint, ...]], vm: VmId, weakest: Consistency, now: datetime
) -> datetime | None:
    """From restore points alone."""
    least = CONSISTENCY_ORDER.index(weakest)
    return max(
        (
            point.taken_at
            for point in points.get(vm, ())
            if point.complete
            and not point.damaged
            and CONSISTENCY_ORDER.index(point.consistency) >= least
            and point.taken_at <= now
        ),
        default=None,
    )
