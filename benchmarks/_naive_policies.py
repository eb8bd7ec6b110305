"""What policies decide about one event, written a second time and plainly: no index, nothing remembered.

Only what synthetic policies and events use: selection by each term of each policy, triggers with settle, cooldown and
windows. `benchmarks.policies` compares each answer with the engine's own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from datetime import datetime

from policies.facts import Event, EventType, Vm, VmId
from policies.policy import Policy, Trigger
from policies.terms import Term
from policies.windows import next_open

Said = tuple[str, str, str, datetime | None]
"""Kind of decision, policy, rule, and when a backup starts."""

_PLAIN = {
    "name": lambda vm: [vm.name],
    "host": lambda vm: [vm.host],
    "cluster": lambda vm: [vm.cluster],
    "tag": lambda vm: list(vm.tags),
}


def naive_decisions(
    policies: Sequence[Policy], event: Event, vm: Vm, fired: Mapping[tuple[str, str, VmId], datetime], now: datetime
) -> list[Said]:
    """The decisions about an event of a VM, policies in the order of their precedence."""
    hard = event.type is EventType.POWERED_OFF and event.cause == "manual"  # what tracking held may be lost
    doubts: list[Said] = [("DistrustTracking", "", "", None)] if hard else []
    return [*doubts, *_of_triggers(policies, event, vm, fired, now)]


def _of_triggers(
    policies: Sequence[Policy], event: Event, vm: Vm, fired: Mapping[tuple[str, str, VmId], datetime], now: datetime
) -> list[Said]:
    selecting = [policy for policy in policies if _selects(policy, vm)]
    if not selecting:
        return [("Skip", "", "", None)]
    wanted = [(policy, trigger) for policy in selecting for trigger in policy.triggers if event.type in trigger.on]
    if not wanted:
        return [("Skip", selecting[0].name, "", None)]
    said: list[Said] = []
    for policy, trigger in wanted:
        last = fired.get((policy.name, trigger.rule, vm.id))
        cools = last is not None and last <= now < last + trigger.cooldown
        if cools or any(kind == "BackUp" for kind, _, _, _ in said):
            said.append(("Skip", policy.name, trigger.rule, None))
        else:
            said.append(("BackUp", policy.name, trigger.rule, _start(policy, trigger, event, now)))
    return said


def _start(policy: Policy, trigger: Trigger, event: Event, now: datetime) -> datetime:
    settled = max(now, event.at + trigger.settle)
    return settled if trigger.any_time else next_open(policy.timing.windows, policy.timing.zone, settled)


def _selects(policy: Policy, vm: Vm) -> bool:
    chosen = policy.selection
    if any(_holds(term, vm) for term in chosen.none) or not (chosen.all or chosen.any):
        return False
    return all(_holds(term, vm) for term in chosen.all) and (
        not chosen.any or any(_holds(term, vm) for term in chosen.any)
    )


def _holds(term: Term, vm: Vm) -> bool:
    if term.text == "*":
        return True
    name, _, glob = term.text.partition(":")
    glob = glob.lower()
    if name == "folder":
        folder = vm.folder.lower()
        above = glob.removesuffix("/**")
        return folder == above or folder.startswith(f"{above}/")
    return any(fnmatch.fnmatchcase(value.lower(), glob) for value in _PLAIN[name](vm))
