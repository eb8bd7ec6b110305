"""Whether a run that waited is still needed when its turn comes, asked with its VM as it is then. Pure."""

from __future__ import annotations

from datetime import datetime

from policies.decision import BackUp
from policies.facts import Consistency, Facts, Vm
from policies.policyset import PolicySet
from policies.protection import Protection, due_of, last_good, protection
from policies.schedule import opening


def dropped(decision: BackUp, vm: Vm, policies: PolicySet, facts: Facts, *, asked: bool) -> str:
    """Why this run is given up; empty when it should start. `asked` runs are those of people and messages.

    A run keeps the rule that decided first, but it stands for all that joined it: it starts as well for a trigger of
    a policy that selects the VM, which has fired since the last restore point.
    """
    if vm.refusal:
        return vm.refusal
    if asked:
        return ""
    effective = protection(policies, vm)
    if not effective.policies:
        return "no policy selects the VM any more"
    why = _why_not(decision, effective, vm, facts)
    return "" if why and _fired_since(effective, vm, facts) else why


def _why_not(decision: BackUp, effective: Protection, vm: Vm, facts: Facts) -> str:
    """Why the rule that decided does not want the run any more; empty when it does."""
    if decision.rule.startswith("trigger"):
        named = any(policy.name == decision.policy for policy in effective.policies)
        return "" if named else f"policy {decision.policy} does not select the VM any more"
    due = due_of(effective, vm.id, facts)
    if due is None:
        return "no policy has a goal or fixed times for the VM any more"
    if due[1].at > facts.now:
        return f"not due any more: {due[1].why}" if due[1].why else "not due any more"
    return ""


def _fired_since(effective: Protection, vm: Vm, facts: Facts) -> bool:
    """Whether a trigger waits for a restore point: it fired after the newest one was taken."""
    known = facts.history.get(vm.id)
    taken = [known.last_success if known is not None else None, last_good(vm.id, facts, Consistency.CRASH)]
    newest = max((at for at in taken if at is not None and at <= facts.now), default=None)
    for policy in effective.policies:
        for trigger in policy.triggers:
            fired = facts.fired.get((policy.name, trigger.rule, vm.id)) if trigger.action == "backup" else None
            if fired is not None and (newest is None or fired > newest):
                return True
    return False


def held_until(decision: BackUp, vm: Vm, policies: PolicySet, facts: Facts, *, asked: bool) -> datetime | None:
    """When a triggered run may start that waited into a blackout, or past a window, of its policy; None when it may.

    Where a schedule of the VM asks for a run too, that one decides.
    """
    policy = policies.policy(decision.policy)
    if asked or policy is None or not decision.rule.startswith("trigger"):
        return None
    any_time = all(trigger.any_time for trigger in policy.triggers if trigger.rule == decision.rule)
    until = opening(policy.timing, facts.now, any_time=any_time)
    if until <= facts.now:
        return None
    due = due_of(protection(policies, vm), vm.id, facts)
    sooner = min(until, due[1].at) if due is not None else until
    return sooner if sooner > facts.now else None
