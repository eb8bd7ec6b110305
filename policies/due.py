"""What is due: a VM by its goals and times, and one that was never backed up. Pure.

`policies.evaluation` asks here for the clock and for a VM that is new; every answer has its sentence.
"""

from __future__ import annotations

from datetime import datetime

from policies.decision import BackUp, Decision, Skip
from policies.facts import Event, EventType, Facts, Vm, VmHistory
from policies.policy import Policy
from policies.protection import Protection, due_of, last_good, refusal_of
from policies.schedule import Due, blackout_words
from policies.sealing import maker
from policies.sentences import happened
from policies.units import clock, stamp

_NOTHING_KNOWN = VmHistory()
_TYPES = {one: one.value for one in EventType}
_make_backup = maker(BackUp)


def initial(effective: Protection, winner: Policy, vm: Vm, event: Event, facts: Facts) -> Decision:
    """Initial protection: a VM that was never backed up, under a policy with a goal, is due at once."""
    if last_good(vm.id, facts, effective.fallback) is not None:
        reason = f"{happened(event, vm)}; it has a good restore point and is due by its schedule"
        return Skip(vm.id, winner.name, "rpo", reason, event.key)
    pending = under_way(facts.history.get(vm.id, _NOTHING_KNOWN))
    if pending:
        return Skip(vm.id, winner.name, "rpo", f"{happened(event, vm)}; {pending}", event.key)
    found = due_of(effective, vm.id, facts)
    if found is None:
        reason = f"{happened(event, vm)}; {_unscheduled(effective, winner)}: it waits for its triggers"
        return Skip(vm.id, winner.name, "rpo", reason, event.key)
    policy, due = found
    if due.rule == "schedule" and due.at > facts.now:
        reason = f"{happened(event, vm)}; policy {policy.name} backs it up at {_at(due, policy, facts.now)}"
        return Skip(vm.id, policy.name, due.rule, reason, event.key)
    return _run_due(effective, policy, due, vm, event, facts, f"{happened(event, vm)}; ")


def scheduled(effective: Protection, vm: Vm, event: Event, facts: Facts, *, words: bool = True) -> BackUp | Skip:
    """What the clock, or a reconciliation, says about one VM; without `words` a backup does not say why."""
    winner = effective.winner
    if winner is None:
        return Skip(vm.id, "", "", f"no policy selects {vm.name}: it is not protected", event.key)
    if why := refusal_of(effective, vm):
        return Skip(vm.id, winner.name, "", f"{vm.name} cannot be backed up: {why}", event.key)
    found = due_of(effective, vm.id, facts, words=words)
    if found is None:
        reason = f"{_unscheduled(effective, winner)}: {vm.name} waits for its triggers"
        return Skip(vm.id, winner.name, "", reason, event.key)
    policy, due = found
    pending = under_way(facts.history.get(vm.id, _NOTHING_KNOWN))
    if pending:
        return Skip(vm.id, policy.name, due.rule, f"{vm.name}: {pending}", event.key)
    if due.at > facts.now:
        reason = f"{vm.name} is due at {_at(due, policy, facts.now)}: {due.why}"
        return Skip(vm.id, policy.name, due.rule, reason, event.key)
    return _run_due(effective, policy, due, vm, event, facts, f"{vm.name}: " if words else None)


def _unscheduled(effective: Protection, winner: Policy) -> str:
    if effective.scheduling:
        return f"the times of policy {effective.scheduling[0].name} are over"
    return f"policy {winner.name} has no rpo and no schedule"


def under_way(history: VmHistory) -> str:
    """Why the VM needs no other run now; "" when it has none."""
    if history.running:
        return "a backup is running"
    return "a backup is waiting in the queue" if history.pending else ""


def _at(due: Due, policy: Policy, now: datetime) -> str:
    return clock(due.at, policy.timing.zone, now)


def _run_due(
    effective: Protection, policy: Policy, due: Due, vm: Vm, event: Event, facts: Facts, opening_words: str | None
) -> BackUp:
    """`opening_words` begin the sentence; None makes none."""
    reason = ""
    if opening_words is not None:
        when = ""
        if due.at > facts.now:
            held = blackout_words(policy.timing, facts.now, facts.now)
            when = f", at {_at(due, policy, facts.now)}{'' if held else ' when its window opens'}"
        reason = f"{opening_words}{due.why}; policy {policy.name} backs it up{when}"
    return back_up(
        effective,
        policy,
        vm,
        due.rule,
        key=f"{policy.name}:{due.rule}:{vm.id}:{stamp(due.slot)}Z{_after_loss(effective, vm, facts)}",
        reason=reason,
        not_before=max(facts.now, due.at),
        deadline=due.deadline,
        event=event,
    )


def _after_loss(effective: Protection, vm: Vm, facts: Facts) -> str:
    """What tells the run that a slot needs once more: the restore point of its last run is gone, or not good."""
    known = facts.history.get(vm.id, _NOTHING_KNOWN)
    success, remembered = known.last_success, known.last_good
    if success is None or (remembered is not None and success <= remembered <= facts.now):
        return ""
    good = last_good(vm.id, facts, effective.fallback)
    return f":{stamp(success)}Z" if good is None or good < success else ""


def back_up(
    effective: Protection,
    policy: Policy | None,
    vm: Vm,
    rule: str,
    *,
    key: str,
    reason: str,
    not_before: datetime,
    deadline: datetime | None,
    event: Event,
) -> BackUp:
    """The run of a VM as its policies want it; without a policy one that somebody asked for."""
    return _make_backup(
        key,
        vm.id,
        policy.name if policy else "",
        rule,
        reason,
        not_before,
        deadline,
        effective.priority,
        effective.want,
        effective.fallback,
        effective.transports,
        policy.hash if policy else "",
        event.key,
        _TYPES[event.type],
        event.at,
        policy.source.commit if policy else "",
    )
