"""Which settings of a VM another set of policies makes weaker, although the VM stays protected. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache

from policies.copied import lock_in
from policies.facts import CONSISTENCY_ORDER, Vm
from policies.policy import OnCbtInvalid, OnMigrate, Policy
from policies.protection import DEFAULT_SAMPLE, Protection, combine, left_out
from policies.quiescing import less_patient
from policies.rehearsing import less_rehearsed

_CONSISTENCIES, _DOUBTS, _MOVES = tuple(CONSISTENCY_ORDER), tuple(OnCbtInvalid), tuple(OnMigrate)


def weaker_settings(before: tuple[Policy, ...], after: tuple[Policy, ...], vm: Vm) -> frozenset[str]:
    """The settings, named as `settings_of` does, that protect the VM less than before."""
    found = _weaker(before, after)
    if not any(policy.excluded_disks for policy in after):
        return found
    was, will = combine(before), combine(after)
    disks = (disk for disk in vm.disks if not disk.unprotected)
    more = any(left_out(will, disk) and not left_out(was, disk) for disk in disks)
    return found | {"disks"} if more else found


@lru_cache(maxsize=16_384)
def _weaker(before: tuple[Policy, ...], after: tuple[Policy, ...]) -> frozenset[str]:
    return frozenset(_compared(combine(before), combine(after)))


def _compared(was: Protection, will: Protection) -> Iterator[str]:
    goal, new_goal = goal_of(was), goal_of(will)
    if _longer(goal, new_goal):
        yield "rpo"
    if _times(will) < _times(was) and (new_goal is None or new_goal == goal):
        yield "schedule"
    rank = _CONSISTENCIES.index
    lower = rank(will.want) < rank(was.want) or rank(will.fallback) < rank(was.fallback)
    if lower or less_patient(will.quiescing, than=was.quiescing):
        yield "consistency"
    if set(was.copies) - set(will.copies):
        yield "copies"
    if any(lock_in(will.policies, copy) < lock_in(was.policies, copy) for copy in was.copies):
        yield "copy_retention"
    if will.lock < was.lock:
        yield "lock"
    if _longer(was.verify_every, will.verify_every):
        yield "verify"
    if less_rehearsed(was.rehearse, will.rehearse):
        yield "rehearse"
    if _DOUBTS.index(will.on_cbt_invalid) < _DOUBTS.index(was.on_cbt_invalid):
        yield "on_cbt_invalid"
    if _sample(will) < _sample(was):
        yield "tracking_sample"
    if _MOVES.index(will.on_migrate) < _MOVES.index(was.on_migrate):
        yield "on_migrate"


def _sample(protection: Protection) -> int:
    return DEFAULT_SAMPLE if protection.tracking_sample is None else protection.tracking_sample


def goal_of(protection: Protection) -> timedelta | None:
    """The RPO that counts for a VM; None where nobody who decides has one."""
    return min((one.timing.rpo for one in protection.scheduling if one.timing.rpo is not None), default=None)


def _times(protection: Protection) -> frozenset[tuple[str, str]]:
    return frozenset((when, one.timing.zone.key) for one in protection.scheduling for when in one.timing.times)


def _longer(was: timedelta | None, will: timedelta | None) -> bool:
    return was is not None and (will is None or will > was)
