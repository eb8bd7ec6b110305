"""What another set of policies would do to each VM and each restore point, before it does.

What adds protection takes effect at once. What would leave a VM without protection, or newly expire a restore
point, stays pending: the old policies go on protecting those VMs and keeping those points until the plan, by its
id, is confirmed; so does what would make the guard looser, by the guard in force. The removal of a file by itself
never expires anything, as a VM that no policy selects keeps its restore points. Pure: the plan is a value to print,
refuse or confirm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache

from policies.changes import PointChange, ReloadPlan, VmChange, plan_id
from policies.copied import covers, in_copy
from policies.expiry import dated, expiries, kept_until_now
from policies.facts import Facts, PointId, RestorePoint, Vm, VmId
from policies.guarding import changes_of, refusals, stricter
from policies.policy import Policy
from policies.policyset import HELD_UNTIL_CONFIRMED, PolicySet
from policies.protection import combine, nothing_wanted
from policies.selection import match
from policies.settings import retention_words, settings_of, trigger_words
from policies.weakening import weaker_settings


def plan_reload(old: PolicySet, new: PolicySet, facts: Facts, *, look: Callable[[], None] = lambda: None) -> ReloadPlan:
    """What going from the policies in force (`old`, with what they still keep) to the new files does.

    Call it with a complete inventory: with an empty one it cannot tell who loses protection, so the old policies
    stay in force and the plan says so. `look` is called before each VM; what it raises ends the plan.
    """
    before = {policy.name: policy.hash for policy in old.policies}
    after = {policy.name: policy.hash for policy in new.policies}
    added = tuple(sorted(after.keys() - before.keys()))
    removed = tuple(sorted(before.keys() - after.keys()))
    changed = tuple(sorted(name for name in after.keys() & before.keys() if after[name] != before[name]))
    if old.policies and not facts.vms and (added or removed or changed):
        refusal = "the inventory is not known yet, so nobody can tell which VMs would lose protection"
        return ReloadPlan(old, new, old, added, removed, changed, (), (), (refusal,), plan_id(old, new, (), ()))
    found_expiring: list[PointChange] = []
    for copy in ("", *facts.copies):
        for id, points in facts.points_in(copy).items():
            look()
            found_expiring += _expiring(old, new, id, points, facts, copy)
    expiring = tuple(found_expiring)
    going = {change.point for change in expiring if not change.copy}
    changing: list[VmChange] = []
    for vm in facts.vms.values():
        look()
        if (change := _vm_change(old, new, vm, facts, going)) is not None:
            changing.append(change)
    vms = tuple(changing)
    losing = tuple(change for change in vms if change.kind == "loses")
    unsure = tuple(name for name in facts.unseen_copies if old.policies and _may_weaken(old, new, name, facts, look))
    away = facts.unseen_repositories if old.policies and _may_weaken(old, new, "", facts, look) else ()
    limits = changes_of(old, new)
    judged = refusals(old.guard, limits, len(losing), expiring, facts)
    refused = (*judged, *map(_unseen, unsure), *map(_away, away))
    effective = replace(
        new,
        guard=stricter(old.guard, new.guard) if losing or expiring or refused else new.guard,
        kept_protection={change.vm: old.matching(facts.vms[change.vm]) for change in losing},
        kept_retention={
            vm: old.retaining_of(vm, facts) or (HELD_UNTIL_CONFIRMED,)
            for vm in {one.vm for one in expiring if not one.copy}
        },
        kept_copies={
            copy: old for copy in {*unsure, *(one.copy for one in expiring if one.copy), *([""] if away else [])}
        },
    )
    return ReloadPlan(
        old,
        new,
        effective,
        added,
        removed,
        changed,
        vms,
        expiring,
        refused,
        plan_id(old, new, (change.vm for change in losing), (change.key for change in expiring)),
        limits,
    )


@lru_cache(maxsize=16_384)
def _level(policies: tuple[Policy, ...]) -> int:
    """2 with a goal or fixed times, 1 with triggers only, 0 when nothing ever backs the VM up."""
    if any(policy.timing.scheduled for policy in policies):
        return 2
    return 1 if any(policy.triggered for policy in policies) else 0


@lru_cache(maxsize=16_384)
def _differences(before: tuple[Policy, ...], after: tuple[Policy, ...]) -> tuple[tuple[str, str], ...]:
    """What another set of policies changes for a VM, by setting and in words; of some settings policy by policy."""
    old, new = {policy.name: policy for policy in before}, {policy.name: policy for policy in after}
    found = []
    if not old.keys() & new.keys():
        found.append(("policy", f"policy {', '.join(old)} → {', '.join(new)}"))
    else:
        found += [("policy", f"no longer by policy {name}") for name in old if name not in new]
        found += [("policy", f"also by policy {name}") for name in new if name not in old]
    said_before, said_after = settings_of(combine(before)), settings_of(combine(after))
    found += [
        (key, f"{key} {said_before.get(key) or _unsaid(key)} → {said_after.get(key) or _unsaid(key)}")
        for key in dict.fromkeys((*said_before, *said_after))
        if key not in _BY_POLICY and said_before.get(key) != said_after.get(key)
    ]
    for name in (name for name in new if name in old):
        for what, words in (("retention", _retention_items), ("triggers", _trigger_items)):
            was, now = words(old[name]), words(new[name])
            if was != now:
                gone, come = (
                    ", ".join(one for one in mine if one not in other) for mine, other in ((was, now), (now, was))
                )
                found.append((what, f"{what} of {name}: {gone or 'none'} → {come or 'none'}"))
    return tuple(found)


def _unsaid(key: str) -> str:
    """What a setting is when no policy says it."""
    said = {"transports": "those of the configuration", "window": "any time", "destination": "the first repository"}
    return said.get(key, "none")


def _without(mine: Sequence[str], other: Sequence[str]) -> str:
    return ", ".join(one for one in mine if one not in other) or "none"


_BY_POLICY = ("policy", "retention", "triggers")


def _retention_items(policy: Policy) -> list[str]:
    return retention_words(policy.retention).split(", ")


def _trigger_items(policy: Policy) -> list[str]:
    return [trigger_words(trigger) for trigger in policy.triggers]


def _level_of(policies: tuple[Policy, ...], vm: Vm) -> int:
    """The same for a VM: none where the policies leave all its disks out."""
    return 0 if nothing_wanted(combine(policies), vm) else _level(policies)


def _vm_change(old: PolicySet, new: PolicySet, vm: Vm, facts: Facts, going: Collection[PointId]) -> VmChange | None:
    before, after = old.matching(vm), new.matching(vm)
    if [(policy.name, policy.hash) for policy in before] == [(policy.name, policy.hash) for policy in after]:
        return None
    names = tuple(policy.name for policy in before), tuple(policy.name for policy in after)
    was, will = _level_of(before, vm), _level_of(after, vm)
    if will < was:
        points = tuple(point.id for point in facts.points.get(vm.id, ()) if point.id not in going)
        what = f"loses {'its schedule' if will else 'protection'}: {_why_less(before, new, vm)}"
        return VmChange(vm.id, vm.name, "loses", *names, what, points)
    if will > was:
        what = f"gains {'protection' if not was else 'a schedule'}: {_why_more(after, old, vm)}"
        return VmChange(vm.id, vm.name, "gains", *names, what)
    differences = _differences(before, after)
    if not differences:
        return None
    less = weaker_settings(before, after, vm)
    weaker = tuple(words for setting, words in differences if setting in less)
    parts = tuple(words for _, words in differences)
    return VmChange(vm.id, vm.name, "changes", *names, ", ".join(parts), parts=parts, weaker=weaker)


def _why_less(before: Sequence[Policy], new: PolicySet, vm: Vm) -> str:
    said = []
    for policy in before:
        now = new.policy(policy.name)
        if now is None:
            said.append(f"policy {policy.name} is gone")
        elif why := nothing_wanted(combine(new.matching(vm)), vm):
            said.append(why)
        elif not (matched := match(now, vm)).selected:
            said.append(f"policy {policy.name} no longer selects it ({matched.why})")
        else:
            said.append(f"policy {policy.name} no longer says when to back it up")
    return ", ".join(said)


def _why_more(after: Sequence[Policy], old: PolicySet, vm: Vm) -> str:
    said = []
    for policy in after:
        before = old.policy(policy.name)
        if before is None:
            said.append(f"policy {policy.name} is new ({match(policy, vm).why})")
        elif not match(before, vm).selected:
            said.append(f"policy {policy.name} selects it now ({match(policy, vm).why})")
        elif before.hash != policy.hash and not before.timing.scheduled and policy.timing.scheduled:
            said.append(f"policy {policy.name} says now when to back it up")
    return ", ".join(said)


def _expiring(
    old: PolicySet, new: PolicySet, vm_id: VmId, points: Sequence[RestorePoint], facts: Facts, copy: str
) -> tuple[PointChange, ...]:
    vm = facts.vms.get(vm_id)
    before, after = old.retaining_of(vm_id, facts, copy), new.retaining_of(vm_id, facts, copy)
    if _keeping(before) == _keeping(after):
        return ()
    known = dated(points, facts.now)
    going = expiries(known, after)
    if not going:
        return ()
    went = expiries(known, before)
    sooner = [point for point in points if point.id in going and not _no_later(went.get(point.id), going[point.id])]
    if not sooner:
        return ()
    kept = kept_until_now(known, before)
    return tuple(
        PointChange(
            vm_id,
            vm.name if vm else point.vm_name,
            point.id,
            point.taken_at,
            going[point.id],
            went.get(point.id),
            kept[point.id][0] if point.id in kept else "its grace, or a lock",
            point.stored_bytes,
            copy,
        )
        for point in sooner
    )


def _no_later(went: datetime | None, going: datetime) -> bool:
    return went is not None and went <= going


@lru_cache(maxsize=16_384)
def _keeping(policies: tuple[Policy, ...]) -> tuple[object, ...]:
    """All that retention takes from policies."""
    return tuple(
        (one.retention, one.wanted, one.weakest_good, one.timing.zone.key, one.leaving and (one.leaving, one.name))
        for one in policies
    )


def _may_weaken(old: PolicySet, new: PolicySet, copy: str, facts: Facts, look: Callable[[], None]) -> bool:
    """Whether restore points of a copy that nobody has listed could expire which would not have before."""
    for name in (policy.name for policy in old.policies):
        was, now = old.policy(name), new.policy(name)
        if was is not None and now is not None and not covers(in_copy(now, copy), in_copy(was, copy)):
            return True
    for vm in facts.vms.values():
        look()
        if not _all_covered(old.retaining(vm, copy=copy), new.retaining(vm, copy=copy)):
            return True
    return False


@lru_cache(maxsize=16_384)
def _all_covered(before: tuple[Policy, ...], after: tuple[Policy, ...]) -> bool:
    if not before or not after:
        return not after
    return all(any(covers(now, was) for now in after) for was in before)


def _unseen(copy: str) -> str:
    return f"the restore points of the copy {copy} are not known, so nobody can tell which of them would expire"


def _away(name: str) -> str:
    return f"repository {name} is away, so nobody can tell which of its restore points would expire"
