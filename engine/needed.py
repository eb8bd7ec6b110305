"""Whether a job that waits is still needed, asked with its VM as it is now."""

from __future__ import annotations

from datetime import datetime

from engine.jobs import Job, JobKind, decision_of
from policies.facts import Facts, Vm
from policies.needed import dropped, held_until
from policies.policyset import PolicySet


def stands(job: Job) -> bool:
    """Whether the job is tried for as long as it is due: its key keeps another of its slot, or message, from coming."""
    return job.kind is JobKind.HOLD or job.rule in ("rpo", "schedule")


def still_due(job: Job, vm: Vm, policies: PolicySet, facts: Facts) -> str:
    """Why this job should not run any more; empty when it should. Asked with the VM as it is now."""
    return dropped(decision_of(job), vm, policies, facts, asked=job.manual)


def waits_until(job: Job, vm: Vm, policies: PolicySet, facts: Facts) -> datetime | None:
    """When this job may start, where a blackout began while it waited."""
    return held_until(decision_of(job), vm, policies, facts, asked=job.manual)
