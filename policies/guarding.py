"""What the guard in force refuses of a change, and which changes of the guard itself it refuses. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta

from policies.changes import GuardChange, PointChange
from policies.facts import Facts
from policies.policyset import Guard, PolicySet
from policies.retention import SMALLEST_MASS
from policies.units import counted, span


def guard_changes(before: Guard, after: Guard) -> tuple[GuardChange, ...]:
    """Each limit that another guard has, and whether it lets more happen than before."""
    return tuple(_changes(before, after))


def _changes(before: Guard, after: Guard) -> Iterator[GuardChange]:
    losing, may_lose = before.max_vms_losing_protection, after.max_vms_losing_protection
    if losing != may_lose:
        yield GuardChange("max_vms_losing_protection", str(losing), str(may_lose), looser=may_lose > losing)
    share, may_expire = before.max_expire_share, after.max_expire_share
    if share != may_expire:
        yield GuardChange("max_expire_share", _percent(share), _percent(may_expire), looser=may_expire > share)
    length, new_length = before.add_up_over, after.add_up_over
    if length != new_length:
        yield GuardChange("add_up_over", _length(length), _length(new_length), looser=new_length < length)


def _percent(share: float) -> str:
    return f"{share * 100:.6g}%"


def _length(length: timedelta) -> str:
    return span(length) if length else "0"


def stricter(one: Guard, other: Guard) -> Guard:
    """What both allow: a change that waits for confirmation must not loosen the guard of retention meanwhile."""
    return Guard(
        min(one.max_vms_losing_protection, other.max_vms_losing_protection),
        min(one.max_expire_share, other.max_expire_share),
        max(one.add_up_over, other.add_up_over),
    )


def refusals(
    guard: Guard, changes: Sequence[GuardChange], losing: int, expiring: Sequence[PointChange], facts: Facts
) -> tuple[str, ...]:
    """By the guard in force: a change cannot loosen the guard that judges it, and none does so unseen."""
    found = [f"guard.{one} would be loosened" for one in changes if one.looser]
    if losing > guard.max_vms_losing_protection:
        found.append(
            f"{counted(losing, 'VM')} would lose protection, more than the {guard.max_vms_losing_protection} of "
            "guard.max_vms_losing_protection"
        )
    going = Counter(change.copy for change in expiring)
    for copy in ("", *facts.copies):
        total = sum(len(points) for points in facts.points_in(copy).values())
        if going[copy] >= SMALLEST_MASS and going[copy] > guard.max_expire_share * total:
            where = f" in the copy {copy}" if copy else ""
            found.append(
                f"{going[copy]} of {total} restore points{where} would expire, more than the "
                f"{guard.max_expire_share:.0%} of guard.max_expire_share"
            )
    return tuple(found)


def changes_of(old: PolicySet, new: PolicySet) -> tuple[GuardChange, ...]:
    """The same of two sets of policies; nothing where nothing was in force before, as there was no guard to loosen."""
    return guard_changes(old.guard, new.guard) if old.texts or old.policies else ()
