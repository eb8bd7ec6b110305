"""The settings of a VM's protection as words, for plans and explanations."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from policies.facts import USUAL_QUIESCING
from policies.policy import Leaving, Policy, PolicyLimits, Retention, Trigger
from policies.protection import Protection
from policies.quiescing import quiescing_words
from policies.rehearsing import rehearse_words
from policies.units import span


def settings_of(protection: Protection) -> dict[str, str]:
    """Setting by setting in a fixed order; what nobody says is left out."""
    if not protection.policies:
        return {}
    timings = [policy.timing for policy in protection.scheduling]
    goals = [timing.rpo for timing in timings if timing.rpo is not None]
    found = {
        "policy": ", ".join(policy.name for policy in protection.policies),
        "rpo": span(min(goals)) if goals else "",
        "schedule": "; ".join(f"{when} {timing.zone.key}" for timing in timings for when in timing.times),
        "window": "; ".join(f"{window.text} {timing.zone.key}" for timing in timings for window in timing.windows),
        "blackout": "; ".join(f"{one.text} {timing.zone.key}" for timing in timings for one in timing.blackouts),
        "start_within": "; ".join(span(one.start_within) for one in timings if one.start_within is not None),
        "finish_within": "; ".join(span(one.finish_within) for one in timings if one.finish_within is not None),
        "triggers": "; ".join(
            f"{policy.name}: {trigger_words(trigger)}" for policy in protection.policies for trigger in policy.triggers
        ),
        "consistency": _consistency(protection),
        "transports": ", ".join(protection.transports),
        "destination": protection.destination,
        "copies": ", ".join(protection.copies),
        "copy_retention": "; ".join(
            f"{policy.name} in {copy}: {retention_words(retention)}{_locked(retention)}"
            for policy in protection.policies
            for copy, retention in policy.kept_in_copies
        ),
        "disks": _disks(protection),
        "lock": span(protection.lock) if protection.lock else "",
        "notify": ", ".join(protection.notify),
        "verify": f"every {span(protection.verify_every)}" if protection.verify_every is not None else "",
        "rehearse": rehearse_words(protection.rehearse) if protection.rehearse is not None else "",
        "on_cbt_invalid": _unless_silent(
            protection.on_cbt_invalid, (one.on_cbt_invalid for one in protection.policies)
        ),
        "tracking_sample": "" if protection.tracking_sample is None else str(protection.tracking_sample),
        "on_migrate": _unless_silent(protection.on_migrate, (one.on_migrate for one in protection.policies)),
        "retention": "; ".join(f"{policy.name}: {retention_words(policy.retention)}" for policy in protection.policies),
        "on_unmatched": _said((one.name, one.on_unmatched) for one in protection.policies),
        "on_removed": _said((one.name, one.on_removed) for one in protection.policies),
        "limits": "; ".join(f"{one.name}: {limits_words(one.limits)}" for one in protection.policies if one.limits),
    }
    return {key: words for key, words in found.items() if words}


def _consistency(protection: Protection) -> str:
    """The usual patience goes without saying."""
    levels = f"{protection.want}, at least {protection.fallback}"
    usual = protection.quiescing == USUAL_QUIESCING
    return levels if usual else f"{levels}, {quiescing_words(protection.quiescing)}"


def _unless_silent(value: StrEnum, said: Iterable[StrEnum | None]) -> str:
    """What goes without saying is not said."""
    return value.value if any(one is not None for one in said) else ""


def _said(values: Iterable[tuple[str, Leaving]]) -> str:
    """What policies say of the restore points they leave behind; holding them goes without saying."""
    return "; ".join(f"{name}: {value}" for name, value in values if value is not Leaving.HOLD)


def limits_words(limits: PolicyLimits) -> str:
    """Such as "running 2, per_host 1"."""
    return ", ".join(
        f"{name} {number}"
        for name, number in (
            ("running", limits.running),
            ("per_host", limits.per_host),
            ("per_datastore", limits.per_datastore),
        )
        if number is not None
    )


def _disks(protection: Protection) -> str:
    """What every policy leaves out is left out."""
    each = [[term.text for term in policy.excluded_disks] for policy in protection.policies]
    if not all(each):
        return ""
    said = [f"{policy.name}: {', '.join(texts)}" for policy, texts in zip(protection.policies, each, strict=True)]
    return f"without {' and '.join(said)}"


def retention_words(retention: Retention) -> str:
    """Such as "keep_daily 14, keep_within 30 d, min_good 1, grace 1 d"."""
    if retention.empty:
        return "everything"
    rules = [f"keep_{rule} {number}" for rule, number in retention.counts]
    if retention.keep_within is not None:
        rules.append(f"keep_within {span(retention.keep_within)}")
    return ", ".join([*rules, f"min_good {retention.min_good}", f"grace {span(retention.grace)}"])


def _locked(retention: Retention) -> str:
    return f", lock {span(retention.lock)}" if retention.lock else ""


def trigger_words(trigger: Trigger) -> str:
    """Such as "vm.migrated or vm.relocated, settle 10 m, cooldown 6 h"."""
    times = (("settle", trigger.settle), ("spread", trigger.spread), ("cooldown", trigger.cooldown))
    globs = (("cause", trigger.cause), ("from", trigger.from_host), ("to", trigger.to_host))
    words = [
        " or ".join(sorted(trigger.on)),
        *(f"{name} {glob}" for name, glob in globs if glob),
        *([f"when {' '.join(trigger.when.text.split())}"] if trigger.when else []),
        *(f"{name} {span(length)}" for name, length in times if length),
        *(["at any time"] if trigger.any_time else []),
        *([trigger.action] if trigger.action != "backup" else []),
    ]
    return ", ".join(words)


def policy_line(policy: Policy) -> str:
    """A policy by name, priority and place."""
    return f"{policy.name} (priority {policy.priority}, {policy.source.file}:{policy.source.line})"
