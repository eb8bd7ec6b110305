"""One event and the facts in, decisions out. Pure, total and deterministic: the same arguments give the same answer.

Every event gets at least one decision, a `Skip` when nothing is to be done, and every decision a sentence. Events
are hints: the engine re-reads the VM before it evaluates, and `clock` finds what an event missed.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from policies.conditions import Answer, Condition
from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Requeue, Retire, Skip
from policies.due import back_up, initial, scheduled
from policies.facts import Event, EventType, Facts, PowerState, Vm, VmHistory, VmId
from policies.policy import OnMigrate, Policy, Trigger
from policies.policyset import PolicySet
from policies.protection import Protection, last_good, protection, refusal_of
from policies.schedule import blackout_words, latest_start, opening
from policies.sentences import asked, happened, name_of
from policies.spreading import delay
from policies.terms import glob_matches
from policies.units import clock, span

_FIRST_SIGHT = {EventType.CREATED, EventType.CLONED, EventType.REGISTERED}
_SWEEPS = {EventType.CLOCK, EventType.RECONCILED}
_NOTHING_KNOWN = VmHistory()
_UNCONDITIONAL = Answer(True)

CALLED_BACK_AT_MOST = 3
"""So often in a row a run gives way to moves of its VM; the next one goes on, or a VM that always moves had none."""

GIVES_WAY = timedelta(seconds=30)
"""How long a run waits that gave way to a move: the next may follow at once."""


def evaluate(policies: PolicySet, event: Event, facts: Facts) -> tuple[Decision, ...]:
    """What to do about one event.

    `clock` and `inventory.reconciled` ask for every VM of the facts, each giving one `BackUp` or `Skip`. All others
    are about `event.vm`, which the caller has resolved; without it the answer is a `Skip` that says so.
    See `unsafe` for which events distrust change tracking. `hold.requested`
    and `backup.requested` take their sentence's reason from `event.detail["reason"]`.
    """
    if event.type in _SWEEPS:
        return tuple(scheduled(protection(policies, vm), vm, event, facts) for vm in facts.vms.values())
    if event.vm is None:
        return (Skip(None, "", "", f"no VM is known as {name_of(event, None)}: nothing to do", event.key),)
    vm = facts.vms.get(event.vm)
    if event.type is EventType.HOLD_REQUESTED:
        return (HoldPoints(event.vm, happened(event, vm), event.key), *_after_hold(policies, vm, event, facts))
    if event.type is EventType.REMOVED:
        return (_retired(event.vm, vm, event),)
    if vm is None:
        reason = f"{name_of(event, None)} is not in the inventory any more: nothing to do"
        return (Skip(event.vm, "", "", reason, event.key),)
    if event.type is EventType.BACKUP_REQUESTED:
        return (_requested(policies, vm, event, facts),)
    return (*_distrust(vm, event), *_moved(policies, vm, event, facts), *_triggered(policies, vm, event, facts))


def _retired(vm_id: VmId, vm: Vm | None, event: Event) -> Decision:
    return Retire(vm_id, f"{happened(event, vm)}; its jobs stop and its restore points stay", event.key)


def _distrust(vm: Vm, event: Event) -> tuple[Decision, ...]:
    if not unsafe(vm, event):
        return ()
    what = happened(event, vm)
    if under := under_a_snapshot(vm, event):
        reason = (
            f"{what} while the VM has a snapshot of somebody else ({under}); its disks are read in full until change "
            "tracking was reset with no snapshot there"
        )
        return (DistrustTracking(vm.id, reason, event.key, reset=True),)
    return (DistrustTracking(vm.id, f"{what}; the next backup reads its disks in full", event.key),)


def under_a_snapshot(vm: Vm, event: Event) -> str:
    """The snapshot of somebody else that stood when change tracking was switched on; empty where none did.

    What it tells is too little for ever then. A snapshot that was made since is that of another backup product, say,
    which switched it on for itself.
    """
    if event.type is not EventType.RECONFIGURED or event.detail.get("tracking") != "on":
        return ""
    return next((one.name for one in vm.snapshots if one.created_at <= event.at), "")


def unsafe(vm: Vm, event: Event) -> bool:
    """Whether change tracking may have missed something by what happened.

    A VM that was powered off hard may have lost what tracking held in memory, and so may one whose host failed (KB
    320557); a power-off that no event told, or that was not an orderly one, is taken for one of these. Tracking that
    was switched off has a gap, and what is switched on under a snapshot tells too little for ever.
    """
    detail = event.detail
    match event.type:
        case EventType.RELOCATED | EventType.REGISTERED:
            return True
        case EventType.RECONFIGURED:
            return bool(detail.get("disks") or detail.get("tracking") == "off" or under_a_snapshot(vm, event))
        case EventType.POWERED_OFF:
            seen = event.cause in ("manual", "ha") or detail.get("found_by") == "reconcile"
            return seen or (vm.power is PowerState.OFF and vm.clean_power_off is False)
        case EventType.POWERED_ON:
            return event.cause == "ha"
        case _:
            return False


def _moved(policies: PolicySet, vm: Vm, event: Event, facts: Facts) -> tuple[Decision, ...]:
    """What a move to another host means for a run that reads the VM; one from before it began means nothing."""
    history = facts.history.get(vm.id, _NOTHING_KNOWN)
    if event.type is not EventType.MIGRATED or not history.reading_on or event.to_host == history.reading_on:
        return ()
    effective = protection(policies, vm)
    if effective.on_migrate is not OnMigrate.REQUEUE:
        return ()
    what = f"{happened(event, vm)} while it was backed up"
    name = next(policy.name for policy in effective.policies if policy.on_migrate is OnMigrate.REQUEUE)
    if history.called_back >= CALLED_BACK_AT_MOST:
        reason = f"{what}; its run gave way {history.called_back} times in a row, so that this one goes on"
        return (Skip(vm.id, name, "on_migrate", reason, event.key),)
    return (
        Requeue(vm.id, name, "on_migrate", f"{what}; policy {name} has its run give way and wait again", event.key),
    )


def _requested(policies: PolicySet, vm: Vm, event: Event, facts: Facts) -> Decision:
    effective = protection(policies, vm)
    winner = effective.winner
    if why := refusal_of(effective, vm):
        return Skip(vm.id, winner.name if winner else "", "request", f"{asked(event)}, but {why}", event.key)
    return back_up(
        effective,
        winner,
        vm,
        "request",
        key=f"request:{vm.id}:{event.key}",
        reason=f"{asked(event)} to back {vm.name} up now",
        not_before=facts.now,
        deadline=facts.now,
        event=event,
    )


def _after_hold(policies: PolicySet, vm: Vm | None, event: Event, facts: Facts) -> tuple[Decision, ...]:
    """What the triggers say that name a hold; one that asks for a backup does so although the hold itself is done."""
    if not any(event.type in trigger.on for policy in policies.policies for trigger in policy.triggers):
        return ()
    if vm is None:
        reason = f"{happened(event, vm)}; it is not in the inventory, so no trigger can back it up"
        return (Skip(event.vm, "", "", reason, event.key),)
    return _triggered(policies, vm, event, facts)


def _triggered(policies: PolicySet, vm: Vm, event: Event, facts: Facts) -> tuple[Decision, ...]:
    """At most one run for the event: the first trigger that may fire, by priority; the others are covered by it."""
    effective = protection(policies, vm)
    winner = effective.winner
    if winner is None:
        return (Skip(vm.id, "", "", f"{happened(event, vm)}; no policy selects it", event.key),)
    naming = [
        (policy, trigger)
        for policy in effective.policies
        for trigger in policy.triggers
        if event.type in trigger.on and _fits(trigger, event)
    ]
    if not naming and event.type not in _FIRST_SIGHT:
        return (Skip(vm.id, winner.name, "", _no_trigger(effective, event, vm), event.key),)
    said: list[Decision] = []
    refusal = refusal_of(effective, vm)
    if refusal:
        naming = [(policy, trigger) for policy, trigger in naming if trigger.action != "backup"]
        said.append(Skip(vm.id, winner.name, "", f"{happened(event, vm)}, but {refusal}", event.key))
    chosen: BackUp | None = None
    for policy, trigger in naming:
        if chosen is not None and trigger.action == "backup":
            reason = f"{happened(event, vm)}; the run of policy {chosen.policy}, {chosen.rule}, covers this trigger"
            said.append(Skip(vm.id, policy.name, trigger.rule, reason, event.key))
            continue
        decision = _fire(effective, policy, trigger, vm, event, facts)
        chosen = decision if isinstance(decision, BackUp) else chosen
        said.append(decision)
    if event.type in _FIRST_SIGHT and chosen is None and not refusal:
        said.append(initial(effective, winner, vm, event, facts))
    return tuple(said)


def _fits(trigger: Trigger, event: Event) -> bool:
    return (
        (not trigger.cause or glob_matches(trigger.cause, event.cause))
        and (not trigger.from_host or glob_matches(trigger.from_host, event.from_host))
        and (not trigger.to_host or glob_matches(trigger.to_host, event.to_host))
    )


def _no_trigger(effective: Protection, event: Event, vm: Vm) -> str:
    names = ", ".join(policy.name for policy in effective.policies)
    noun = "policy" if len(effective.policies) == 1 else "policies"
    tracking = "; change tracking stays trusted" if event.type is EventType.MIGRATED else ""
    return f"{happened(event, vm)}; no trigger of {noun} {names} asks for a backup then{tracking}"


def _fire(
    effective: Protection, policy: Policy, trigger: Trigger, vm: Vm, event: Event, facts: Facts
) -> BackUp | HoldPoints | DistrustTracking | Skip:
    """What one trigger that names the event makes of it."""
    now, zone = facts.now, policy.timing.zone
    what = happened(event, vm)
    fired = facts.fired.get((policy.name, trigger.rule, vm.id))
    if fired is not None and fired <= now < fired + trigger.cooldown:
        did = {
            "backup": "backed it up",
            "hold": "held its restore points",
            "distrust": "distrusted its change tracking",
        }
        reason = (
            f"{what}; policy {policy.name} {did[trigger.action]} after such an event at "
            f"{clock(fired, zone, now)} and cools down until {clock(fired + trigger.cooldown, zone, now)}"
        )
        return Skip(vm.id, policy.name, trigger.rule, reason, event.key)
    answer = _answer(effective, trigger.when, vm, event, facts)
    if not answer.holds:
        reason = f"{what}; the condition of policy {policy.name}, {trigger.rule}, does not hold"
        return Skip(vm.id, policy.name, trigger.rule, reason, event.key)
    doubt = f"; nobody can tell whether its condition holds, so it counts as true: {answer.trouble}"
    doubt = doubt if answer.trouble else ""
    match trigger.action:
        case "hold":
            reason = f"{what}; policy {policy.name} holds its restore points{doubt}"
            return HoldPoints(vm.id, reason, event.key, policy.name, trigger.rule)
        case "distrust":
            reason = f"{what}; policy {policy.name} does not trust its change tracking: the next backup reads in full"
            return DistrustTracking(vm.id, reason + doubt, event.key, policy.name, trigger.rule)
    start, waits = _start(effective, policy, trigger, vm, event, facts)
    when = f"at {clock(start, zone, now)}" if start > now else "now"
    return back_up(
        effective,
        policy,
        vm,
        trigger.rule,
        key=f"{policy.name}:{trigger.rule}:{vm.id}:{event.key}",
        reason=f"{what}; policy {policy.name} backs up after {event.type}, {when}{waits}{doubt}",
        not_before=start,
        deadline=_finish(policy, start, _goal(effective, vm.id, facts, start)),
        event=event,
    )


def _answer(effective: Protection, when: Condition | None, vm: Vm, event: Event, facts: Facts) -> Answer:
    if when is None:
        return _UNCONDITIONAL
    history = facts.history.get(vm.id, _NOTHING_KNOWN)
    return when.ask(
        vm,
        event,
        facts.now,
        last_good=last_good(vm.id, facts, effective.fallback),
        last_attempt=history.last_attempt,
        failures=history.consecutive_failures,
    )


def _start(
    effective: Protection, policy: Policy, trigger: Trigger, vm: Vm, event: Event, facts: Facts
) -> tuple[datetime, str]:
    """When the run of a trigger starts, and in words why not at once."""
    settled = max(facts.now, event.at + trigger.settle)
    start = opening(policy.timing, settled, any_time=trigger.any_time)
    waits = [f"after settling {span(trigger.settle)}"] if trigger.settle else []
    if start > settled:
        held = blackout_words(policy.timing, settled, facts.now)
        waits.append(f"after {held}" if held else "when its window opens")
    if trigger.spread:
        until = _goal(effective, vm.id, facts, start) or start + trigger.spread
        until = latest_start(policy.timing, start, until, any_time=trigger.any_time)
        put_off = delay(trigger.spread, start, until, policy.name, trigger.rule, vm.id)
        start += put_off
        waits += [f"{span(put_off)} for the spread"] if put_off else []
    return start, f" {' and '.join(waits)}" if waits else ""


def _finish(policy: Policy, start: datetime, goal: datetime | None) -> datetime | None:
    within = policy.timing.finish_within
    return goal if within is None else min(start + within, goal or start + within)


def _goal(effective: Protection, vm: VmId, facts: Facts, start: datetime) -> datetime | None:
    """By when a triggered run should be done: when the strictest goal would be missed."""
    goals = [policy.timing.rpo for policy in effective.scheduling if policy.timing.rpo is not None]
    if not goals:
        return None
    good = last_good(vm, facts, effective.fallback)
    return max(start, good + min(goals)) if good is not None else start
