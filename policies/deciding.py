"""Which policy each setting of a VM's protection comes from, and why its next run is when it is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.facts import Facts, VmId
from policies.policy import Leaving, Policy
from policies.protection import Protection, last_good
from policies.schedule import LEAD_SHARE, Due
from policies.settings import settings_of
from policies.units import clock, span

_TIMES = ("rpo", "schedule", "window", "blackout", "start_within", "finish_within")


def decided_by(protection: Protection) -> dict[str, str]:
    """For each setting in effect where it comes from, such as "gold, the highest priority that says so (30)"."""
    policies = protection.policies
    says: dict[str, Callable[[Policy], bool]] = {
        "consistency": lambda policy: policy.says_consistency,
        "transports": lambda policy: bool(policy.transports),
        "destination": lambda policy: bool(policy.destination),
        "on_cbt_invalid": lambda policy: policy.on_cbt_invalid is not None,
        "tracking_sample": lambda policy: policy.tracking_sample is not None,
        "on_migrate": lambda policy: policy.on_migrate is not None,
    }
    united: dict[str, Callable[[Policy], bool]] = {
        "policy": lambda policy: True,
        "triggers": lambda policy: bool(policy.triggers),
        "copies": lambda policy: bool(policy.copies),
        "copy_retention": lambda policy: bool(policy.kept_in_copies),
        "notify": lambda policy: bool(policy.notify),
        "disks": lambda policy: bool(policy.excluded_disks),
        "retention": lambda policy: True,
        "on_unmatched": lambda policy: policy.on_unmatched is not Leaving.HOLD,
        "on_removed": lambda policy: policy.on_removed is not Leaving.HOLD,
        "limits": lambda policy: policy.limits is not None,
    }
    found: dict[str, str] = {}
    for setting in settings_of(protection):
        if setting in _TIMES:
            found[setting] = _highest(protection.scheduling)
        elif setting in says:
            saying = [policy for policy in policies if says[setting](policy)]
            top = [policy for policy in saying if policy.priority == saying[0].priority]
            found[setting] = _highest(top) if top else "no policy says so: the default"
        elif setting == "lock":
            longest = [one.name for one in policies if one.retention.lock == protection.lock]
            found[setting] = f"{', '.join(longest)}, the longest of all"
        elif setting == "verify":
            shortest = [one.name for one in policies if one.verify_every == protection.verify_every]
            found[setting] = f"{', '.join(shortest)}, the shortest of all"
        elif setting == "rehearse":
            asking = next(one.name for one in policies if one.rehearse == protection.rehearse)
            found[setting] = f"{asking}, the most frequent of all"
        elif setting in united:
            names = ", ".join(policy.name for policy in policies if united[setting](policy))
            found[setting] = names if len(policies) == 1 else f"{names}: of all policies that select it"
    return found


def _highest(policies: Sequence[Policy]) -> str:
    if len(policies) == 1:
        return f"{policies[0].name}, the highest priority that says so ({policies[0].priority})"
    names = " and ".join(policy.name for policy in policies)
    return f"{names} of one priority ({policies[0].priority}): the more protective value counts"


def due_words(policy: Policy, due: Due, protection: Protection, vm: VmId, facts: Facts) -> str:
    """Why the next run is due when it is."""
    now, zone = facts.now, policy.timing.zone
    rpo = policy.timing.rpo
    good = last_good(vm, facts, protection.fallback)
    if due.rule != "rpo" or rpo is None or good is None:
        waits = " and waits for its window" if due.at > max(due.slot, now) and not policy.timing.spread else ""
        return f"{due.why}{waits}"
    lead = rpo / LEAD_SHARE
    planned = good + rpo - lead
    why = (
        f"the RPO of {span(rpo)} is missed at {clock(good + rpo, zone, now)}, and a run starts when an eighth of it "
        f"({span(lead)}) is left"
    )
    if due.at <= now or due.at == planned:
        return why
    if due.at < planned:
        return f"{why}; no window is open then, so it runs near the end of the last one before"
    closing = " and ".join(
        name for name, there in (("windows", policy.timing.windows), ("blackouts", policy.timing.blackouts)) if there
    )
    return f"{why}; its {closing or 'times'} let it start only then"
