"""Why a VM is protected as it is, or not at all: every clause of every policy, who wins, when it is due, what stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.deciding import decided_by, due_words
from policies.decision import RetentionPlan
from policies.errors import printable
from policies.facts import Facts, Vm, VmHistory, instant_text
from policies.outranked import Ineffective, ineffective
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.protection import Protection, due_of, last_good, protection, refusal_of
from policies.reaching import Outlook, outlook
from policies.retention import plan_retention
from policies.schedule import Due
from policies.selection import Match, match
from policies.settings import policy_line, settings_of
from policies.units import clock, span

MOST_WITH_CLAUSES = 8
"""Of more policies that do not select a VM a person reads one line each, after all else."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that the policies say about one VM at one instant.

    `matches` has every policy, those that select the VM first. `origins` tell of each of `settings` which policy it
    comes from. `because` says why the next run is due when it is, `blocked` why nothing runs now although it is due,
    or ever. `kept` are policies that protect it only because a change is pending. `vain` is what its policies say that
    does not count. `copies` are its restore points in second copies.
    """

    vm: Vm
    matches: tuple[Match, ...]
    protection: Protection
    settings: dict[str, str]
    origins: dict[str, str]
    due: tuple[Policy, Due] | None
    because: str
    status: str
    blocked: tuple[str, ...]
    retention: RetentionPlan
    kept: tuple[str, ...]
    sources: dict[str, str]
    vain: tuple[Ineffective, ...] = ()
    outlook: Outlook | None = None
    copies: Mapping[str, RetentionPlan] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        due = None
        if self.due is not None:
            policy, one = self.due
            due = {
                "policy": policy.name,
                "rule": one.rule,
                "at": instant_text(one.at),
                "deadline": instant_text(one.deadline),
                "why": one.why,
                "because": self.because,
            }
        return {
            "vm": self.vm.id,
            "name": self.vm.name,
            "protected": bool(self.protection.policies),
            "status": self.status,
            "policies": [
                {
                    "policy": one.policy,
                    "source": self.sources[one.policy],
                    "selected": one.selected,
                    "why": one.why,
                    "clauses": [
                        {"list": c.list, "term": c.term, "matches": c.matches, "found": [*c.found]} for c in one.clauses
                    ],
                }
                for one in self.matches
            ],
            "winner": self.protection.winner.name if self.protection.winner else None,
            "settings": self.settings,
            "origins": self.origins,
            "does_not_count": [one.as_json() for one in self.vain],
            "consistency": self.outlook.as_json() if self.outlook is not None else None,
            "due": due,
            "blocked": [*self.blocked],
            "pending_change_keeps": [*self.kept],
            "points": _kept_as_json(self.retention),
            "copies": {copy: _kept_as_json(plan) for copy, plan in self.copies.items()},
        }

    def render(self) -> str:
        """For a person."""
        lines = [f"{self.vm.name}: {self.status}"]
        lines += [f"  because: {self.because}"] if self.because else []
        lines += [f"  blocked: {sentence}" for sentence in self.blocked]
        lines += [f"  pending change: {name} still applies until the change is confirmed" for name in self.kept]
        several = sum(not one.selected for one in self.matches) > MOST_WITH_CLAUSES
        for one in self.matches:
            if one.selected or not several:
                lines += ["", *self._selection(one)]
        if self.settings:
            lines += ["", "in effect:", *(self._setting(key, words) for key, words in self.settings.items())]
        lines += [f"  {one.sentence}" for one in self.vain]
        lines += [f"  a snapshot now would be {self.outlook.sentence}"] if self.outlook is not None else []
        for copy, plan in {"": self.retention, **self.copies}.items():
            if plan.keep or plan.expire:
                lines += ["", f"restore points in the copy {copy}:" if copy else "restore points:"]
            lines += [f"  {kept.point} stays: {'; '.join(kept.reasons)}" for kept in plan.keep]
            lines += [f"  {gone.point} expires: {gone.reason}" for gone in plan.expire]
        if several:
            refusing = [one for one in self.matches if not one.selected]
            lines += ["", "these policies do not select it (--json has their clauses):"]
            lines += [f"  {self.sources[one.policy]}: {one.why}" for one in refusing]
        return "\n".join(map(printable, lines)) + "\n"

    def _selection(self, one: Match) -> Iterator[str]:
        verb = "selects it" if one.selected else "does not select it"
        yield f"policy {self.sources[one.policy]} {verb}: {one.why}"
        for clause in one.clauses:
            sign = "✓" if clause.matches else "✗"
            found = ", ".join(value for value in clause.found if value) or "nothing"
            has = "" if clause.term == "*" else f"   (the VM has {found})"
            yield f"  {sign} {clause.list:<4} {clause.term}{has}"

    def _setting(self, key: str, words: str) -> str:
        said = f"  {key:<12} {words}"
        return said if len(self.protection.policies) == 1 else f"{said}   (from {self.origins[key]})"


def _kept_as_json(plan: RetentionPlan) -> list[dict[str, Any]]:
    return [
        *({"point": one.point, "keep": True, "reasons": [*one.reasons]} for one in plan.keep),
        *({"point": one.point, "keep": False, "reasons": [one.reason]} for one in plan.expire),
    ]


def explain(policies: PolicySet, vm: Vm, facts: Facts, waits: Sequence[str] = ()) -> Explanation:
    """Everything that decides about the VM; what happened to it lately is the engine's journal to add.

    `waits` is what the engine's queue says of its run, in place of what the facts tell.
    """
    effective = protection(policies, vm)
    matches = sorted((match(policy, vm) for policy in policies.policies), key=lambda one: not one.selected)
    found = due_of(effective, vm.id, facts)
    selecting = {one.policy for one in matches if one.selected}
    return Explanation(
        vm=vm,
        matches=tuple(matches),
        protection=effective,
        settings=settings_of(effective),
        origins=decided_by(effective),
        due=found,
        because=due_words(*found, effective, vm.id, facts) if found is not None and found[1].at > facts.now else "",
        status=_status(effective, found, vm, facts),
        blocked=tuple(_blocked(effective, vm, facts, waits)),
        retention=_retention(policies, vm, facts, ""),
        copies={copy: _retention(policies, vm, facts, copy) for copy in facts.copies},
        kept=tuple(policy.name for policy in policies.retaining(vm) if policy.name not in selecting),
        sources={policy.name: policy_line(policy) for policy in policies.policies},
        vain=ineffective(effective, vm),
        outlook=outlook(effective, vm),
    )


def _retention(policies: PolicySet, vm: Vm, facts: Facts, copy: str) -> RetentionPlan:
    points = facts.points_in(copy).get(vm.id, ())
    return plan_retention(vm.id, points, policies.retaining_of(vm.id, facts, copy), facts.now)


def _status(effective: Protection, found: tuple[Policy, Due] | None, vm: Vm, facts: Facts) -> str:
    winner = effective.winner
    if winner is None:
        return "not protected, no policy selects it"
    good = last_good(vm.id, facts, effective.fallback)
    age = f"last good restore point {span(facts.now - good)} ago" if good else "never backed up"
    if found is None:
        return f"protected by {winner.name}, {age}; it waits for its triggers"
    policy, due = found
    if due.at <= facts.now:
        return f"protected by {winner.name}, {age}; due now under {policy.name}: {due.why}"
    at = clock(due.at, policy.timing.zone, facts.now)
    return f"protected by {winner.name}, {age}; due at {at} under {policy.name}"


def _blocked(effective: Protection, vm: Vm, facts: Facts, waits: Sequence[str]) -> list[str]:
    blocked: list[str] = []
    history = facts.history.get(vm.id, VmHistory())
    if why := refusal_of(effective, vm):
        blocked.append(why)
    if not vm.connected:
        blocked.append("its host is not connected")
    if waits:
        blocked += waits
    elif history.running:
        blocked.append("a backup is running")
    elif history.pending:
        blocked.append("a backup is waiting in the queue")
    if history.last_failure and history.consecutive_failures:
        times = f"{history.consecutive_failures} times" if history.consecutive_failures > 1 else "once"
        blocked.append(f"the last runs failed {times}: {history.last_failure}")
    for policy in effective.policies:
        for trigger in policy.triggers:
            fired = facts.fired.get((policy.name, trigger.rule, vm.id))
            if fired is not None and fired <= facts.now < fired + trigger.cooldown:
                until = clock(fired + trigger.cooldown, policy.timing.zone, facts.now)
                blocked.append(f"{trigger.rule} of policy {policy.name} cools down until {until}")
    return blocked
