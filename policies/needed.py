"""Whether a run that waited is still needed when its turn comes, asked with its VM as it is then. Pure."""

from __future__ import annotations

from policies.decision import BackUp
from policies.facts import Facts, Vm
from policies.policyset import PolicySet
from policies.protection import due_of, protection


def dropped(decision: BackUp, vm: Vm, policies: PolicySet, facts: Facts, *, asked: bool) -> str:
    """Why this run is given up; empty when it should start. `asked` runs are those of people and messages."""
    if vm.refusal:
        return vm.refusal
    if asked:
        return ""
    effective = protection(policies, vm)
    if not effective.policies:
        return "no policy selects the VM any more"
    if decision.rule.startswith("trigger"):
        named = any(policy.name == decision.policy for policy in effective.policies)
        return "" if named else f"policy {decision.policy} does not select the VM any more"
    due = due_of(effective, vm.id, facts)
    if due is None:
        return "no policy has a goal or fixed times for the VM any more"
    if due[1].at > facts.now:
        return f"not due any more: {due[1].why}" if due[1].why else "not due any more"
    return ""
