"""Whether a job that waits is still needed, asked with its VM as it is now."""

from __future__ import annotations

from engine.jobs import Job, JobKind
from policies.facts import Facts, Vm
from policies.policyset import PolicySet
from policies.protection import due_of, protection


def stands(job: Job) -> bool:
    """Whether the job is tried for as long as it is due: its key keeps another of its slot, or message, from coming."""
    return job.kind is JobKind.HOLD or job.rule in ("rpo", "schedule")


def still_due(job: Job, vm: Vm, policies: PolicySet, facts: Facts) -> str:
    """Why this job should not run any more; empty when it should. Asked with the VM as it is now."""
    if vm.refusal:
        return vm.refusal
    if job.manual:
        return ""
    effective = protection(policies, vm)
    if not effective.policies:
        return "no policy selects the VM any more"
    if job.rule.startswith("trigger"):
        named = any(policy.name == job.policy for policy in effective.policies)
        return "" if named else f"policy {job.policy} does not select the VM any more"
    due = due_of(effective, vm.id, facts)
    if due is None:
        return "no policy has a goal or fixed times for the VM any more"
    if due[1].at > facts.now:
        return f"not due any more: {due[1].why}" if due[1].why else "not due any more"
    return ""
