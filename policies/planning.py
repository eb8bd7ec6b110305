"""What another set of policies would do to each VM and each restore point, before it does.

What adds protection takes effect at once. What would leave a VM without protection, or newly expire a restore
point, stays pending: the old policies go on protecting those VMs and keeping those points until the plan, by its
id, is confirmed. The removal of a file by itself never expires anything, as a VM that no policy selects keeps its
restore points. Pure: the plan is a value to print, refuse or confirm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from policies.facts import Facts, PointId, RestorePoint, Vm, VmId
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.protection import combine
from policies.retention import SMALLEST_MASS, kept_reasons
from policies.selection import match
from policies.settings import settings_of
from policies.units import counted

Kind = Literal["gains", "loses", "changes"]

_KINDS: tuple[tuple[Kind, str], ...] = (
    ("gains", "Gain protection"),
    ("changes", "Change"),
    ("loses", "Would lose protection"),
)

_HELD = Policy(name="(restore points held until the change is confirmed)", hash="")


@dataclass(frozen=True, slots=True)
class VmChange:
    """What the change does to one VM. `points` are its restore points now, when it loses protection."""

    vm: VmId
    name: str
    kind: Kind
    before: tuple[str, ...]
    after: tuple[str, ...]
    sentence: str
    points: tuple[PointId, ...] = ()


@dataclass(frozen=True, slots=True)
class PointChange:
    """A restore point that was kept and would not be any more."""

    vm: VmId
    name: str
    point: PointId
    taken_at: datetime
    sentence: str


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The way from one policy set to another.

    `effective` is in force while the plan is pending, `new` once it is confirmed; they are the same when nothing is
    pending. `refusals` are the sentences of the guards that it breaks. `id` is the same for the same outcome, and
    another one when the outcome has changed.
    """

    id: str
    new: PolicySet
    effective: PolicySet
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    vms: tuple[VmChange, ...]
    expiring: tuple[PointChange, ...]
    refusals: tuple[str, ...]

    @property
    def losing(self) -> tuple[VmChange, ...]:
        """The VMs that would lose protection."""
        return tuple(change for change in self.vms if change.kind == "loses")

    @property
    def pending(self) -> bool:
        """Whether a part of it waits for confirmation."""
        return bool(self.losing or self.expiring or self.refusals)

    @property
    def empty(self) -> bool:
        """Whether nothing at all changes."""
        return not (self.added or self.removed or self.changed or self.vms or self.expiring or self.refusals)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "id": self.id,
            "pending": self.pending,
            "policies": {"added": [*self.added], "removed": [*self.removed], "changed": [*self.changed]},
            "vms": [
                {
                    "vm": change.vm,
                    "name": change.name,
                    "kind": change.kind,
                    "before": [*change.before],
                    "after": [*change.after],
                    "sentence": change.sentence,
                    "points": [*change.points],
                }
                for change in self.vms
            ],
            "expiring": [
                {
                    "vm": change.vm,
                    "name": change.name,
                    "point": change.point,
                    "taken_at": change.taken_at.isoformat(),
                    "sentence": change.sentence,
                }
                for change in self.expiring
            ],
            "refusals": [*self.refusals],
        }

    def render(self) -> str:
        """For a person."""
        if self.empty:
            return "Nothing changes.\n"
        lines = [
            f"{title}: {', '.join(names)}"
            for title, names in (
                ("Policies added", self.added),
                ("Policies removed", self.removed),
                ("Policies changed", self.changed),
            )
            if names
        ]
        for kind, title in _KINDS:
            changes = [change for change in self.vms if change.kind == kind]
            if changes:
                lines += ["", f"{title}: {counted(len(changes), 'VM')}"]
            for change in changes:
                lines.append(f"  {change.sentence}")
                lines += [f"    restore point {point}" for point in change.points]
        if self.expiring:
            lines += ["", f"Would expire: {counted(len(self.expiring), 'restore point')}"]
            lines += [f"  {change.sentence}" for change in self.expiring]
        if self.refusals:
            lines += ["", "Refused by a guard:", *(f"  {sentence}" for sentence in self.refusals)]
        if self.pending:
            lines += [
                "",
                "What adds protection is in force. The rest is pending: the old policies go on protecting these VMs",
                f"and keeping these restore points until plan {self.id} is confirmed with `backstay policy apply`.",
            ]
        return "\n".join(lines).lstrip("\n") + "\n"


def plan_reload(old: PolicySet, new: PolicySet, facts: Facts) -> ReloadPlan:
    """What going from the policies in force (`old`, with what they still keep) to the new files does.

    Call it with a complete inventory: with an empty one it cannot tell who loses protection, so the old policies
    stay in force and the plan says so.
    """
    before = {policy.name: policy.hash for policy in old.policies}
    after = {policy.name: policy.hash for policy in new.policies}
    added = tuple(sorted(after.keys() - before.keys()))
    removed = tuple(sorted(before.keys() - after.keys()))
    changed = tuple(sorted(name for name in after.keys() & before.keys() if after[name] != before[name]))
    if old.policies and not facts.vms and (added or removed or changed):
        refusal = "the inventory is not known yet, so nobody can tell which VMs would lose protection"
        return ReloadPlan(_id(new, (), ()), new, old, added, removed, changed, (), (), (refusal,))
    vms = tuple(change for vm in facts.vms.values() if (change := _vm_change(old, new, vm, facts)) is not None)
    losing = tuple(change for change in vms if change.kind == "loses")
    expiring = tuple(change for vm, points in facts.points.items() for change in _expiring(old, new, vm, points, facts))
    effective = replace(
        new,
        kept_protection={change.vm: old.matching(facts.vms[change.vm]) for change in losing},
        kept_retention={change.vm: old.retaining(facts.vms.get(change.vm)) or (_HELD,) for change in expiring},
    )
    return ReloadPlan(
        id=_id(new, losing, expiring),
        new=new,
        effective=effective,
        added=added,
        removed=removed,
        changed=changed,
        vms=tuple(sorted(vms, key=lambda change: (change.name, change.vm))),
        expiring=tuple(sorted(expiring, key=lambda change: (change.name, change.taken_at, change.point))),
        refusals=_refusals(old if old.policies else new, len(losing), len(expiring), facts),
    )


def _id(new: PolicySet, losing: Iterable[VmChange], expiring: Iterable[PointChange]) -> str:
    parts = [new.hash, *sorted(change.vm for change in losing), "", *sorted(change.point for change in expiring)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=16_384)
def _level(policies: tuple[Policy, ...]) -> int:
    """2 with a goal or fixed times, 1 with triggers only, 0 when nothing ever backs the VM up."""
    if any(policy.timing.scheduled for policy in policies):
        return 2
    return 1 if any(policy.triggers for policy in policies) else 0


@lru_cache(maxsize=16_384)
def _settings(policies: tuple[Policy, ...]) -> dict[str, str]:
    return settings_of(combine(policies))


def _vm_change(old: PolicySet, new: PolicySet, vm: Vm, facts: Facts) -> VmChange | None:
    before, after = old.matching(vm), new.matching(vm)
    if [(policy.name, policy.hash) for policy in before] == [(policy.name, policy.hash) for policy in after]:
        return None
    names = tuple(policy.name for policy in before), tuple(policy.name for policy in after)
    if _level(after) < _level(before):
        points = facts.points.get(vm.id, ())
        sentence = f"{vm.name} loses {'its schedule' if _level(after) else 'protection'}: {_why(before, new, vm)}"
        held = f"; its {counted(len(points), 'restore point')} would stay" if points and not after else ""
        return VmChange(vm.id, vm.name, "loses", *names, sentence + held, tuple(point.id for point in points))
    if _level(after) > _level(before):
        gained = f"{vm.name} gains {'protection' if not _level(before) else 'a schedule'} by {', '.join(names[1])}"
        return VmChange(vm.id, vm.name, "gains", *names, gained)
    said_before, said_after = _settings(before), _settings(after)
    differences = [
        f"{key} {said_before.get(key, 'none')} → {said_after.get(key, 'none')}"
        for key in dict.fromkeys((*said_before, *said_after))
        if said_before.get(key) != said_after.get(key)
    ]
    if not differences:
        return None
    return VmChange(vm.id, vm.name, "changes", *names, f"{vm.name}: {', '.join(differences)}")


def _why(before: Sequence[Policy], new: PolicySet, vm: Vm) -> str:
    said = []
    for policy in before:
        now = new.policy(policy.name)
        if now is None:
            said.append(f"policy {policy.name} is gone")
        elif not (matched := match(now, vm)).selected:
            said.append(f"policy {policy.name} no longer selects it ({matched.why})")
        else:
            said.append(f"policy {policy.name} no longer says when to back it up")
    return ", ".join(said)


def _expiring(
    old: PolicySet, new: PolicySet, vm_id: VmId, points: Sequence[RestorePoint], facts: Facts
) -> tuple[PointChange, ...]:
    vm = facts.vms.get(vm_id)
    before, after = old.retaining(vm), new.retaining(vm)
    if [(policy.name, policy.hash) for policy in before] == [(policy.name, policy.hash) for policy in after]:
        return ()
    kept_after = kept_reasons(points, after, facts.now)
    going = [point for point in points if point.id not in kept_after]
    if not going:
        return ()
    kept_before = kept_reasons(points, before, facts.now)
    return tuple(
        PointChange(
            vm_id,
            vm.name if vm else point.vm_name,
            point.id,
            point.taken_at,
            f"{vm.name if vm else point.vm_name}: restore point {point.id} of {point.taken_at:%Y-%m-%d %H:%M} UTC, "
            f"kept until now ({kept_before[point.id][0]})",
        )
        for point in going
        if point.id in kept_before
    )


def _refusals(guarded: PolicySet, losing: int, expiring: int, facts: Facts) -> tuple[str, ...]:
    """By the guard in force: a change cannot loosen the guard that judges it."""
    guard = guarded.guard
    refusals = []
    if losing > guard.max_vms_losing_protection:
        refusals.append(
            f"{counted(losing, 'VM')} would lose protection, more than the {guard.max_vms_losing_protection} of "
            "guard.max_vms_losing_protection"
        )
    total = sum(len(points) for points in facts.points.values())
    if expiring >= SMALLEST_MASS and expiring > guard.max_expire_share * total:
        refusals.append(
            f"{expiring} of {total} restore points would expire, more than the {guard.max_expire_share:.0%} of "
            "guard.max_expire_share"
        )
    return tuple(refusals)
