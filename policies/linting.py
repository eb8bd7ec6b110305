"""What a policy set says that its author hardly means. Warnings with a place; nothing here is an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations

from policies.errors import quoted
from policies.facts import Facts
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.units import span
from policies.windows import longest_closed

MOST_NAMED = 5
"""VMs named in one warning before it only counts."""

_SOME_WEEK = datetime(2024, 1, 17, tzinfo=UTC)
"""A week without a change of clocks, to measure windows in."""


@dataclass(frozen=True, slots=True, order=True)
class Advice:
    """One thing to look at. `file` is "" when it is about the VMs rather than about a policy."""

    file: str
    line: int
    column: int
    what: str
    instead: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.file else ""
        return f"{place}{self.what}, {self.instead}"


def lint(policies: PolicySet, facts: Facts | None = None) -> tuple[Advice, ...]:
    """Warnings in the order of files and lines.

    With an inventory, overlaps and policies that select nothing are found by what they select; without one only by
    how they are written.
    """
    found = [advice for policy in policies.policies for advice in _alone(policy)]
    if facts is None or not facts.vms:
        found += _alike(policies)
    else:
        found += _by_inventory(policies, facts)
    return tuple(sorted(set(found)))


def _advise(policy: Policy, what: str, instead: str) -> Advice:
    source = policy.source
    return Advice(source.file, source.line, source.column, f"policy {quoted(policy.name)} {what}", instead)


def _alone(policy: Policy) -> Iterable[Advice]:
    timing, retention = policy.timing, policy.retention
    if not _selects(policy):
        yield _advise(policy, "selects nothing", 'write select.all = ["*"] for every VM')
    elif _excludes_all(policy):
        yield _advise(policy, "excludes all that it selects", "remove the term from none")
    if not timing.scheduled and not policy.triggered:
        yield _advise(policy, "never backs anything up", "write rpo, schedule or a trigger")
    if timing.rpo is not None and (closed := longest_closed(timing.windows, timing.zone, _SOME_WEEK)) > timing.rpo:
        what = f"has an rpo of {span(timing.rpo)}, but its windows stay closed for up to {span(closed)}"
        yield _advise(policy, what, "write a longer rpo or more windows")
    if retention.empty:
        yield _advise(policy, "has no retention rule and keeps everything", "write keep_daily = 14 or the like")
    elif timing.rpo is not None and not retention.counts and (retention.keep_within or timing.rpo) < timing.rpo:
        yield _advise(policy, f"keeps restore points for less than its rpo of {span(timing.rpo)}", "keep them longer")


def _selects(policy: Policy) -> bool:
    return bool(policy.selection.all or policy.selection.any)


def _excludes_all(policy: Policy) -> bool:
    selection = policy.selection
    never = {term.text for term in selection.none}
    needed = {term.text for term in selection.all}
    some = {term.text for term in selection.any}
    return "*" in never or bool(never & needed) or bool(some and some <= never)


def _alike(policies: PolicySet) -> Iterable[Advice]:
    for first, second in combinations(policies.policies, 2):
        same = [
            {term.text for term in terms[0]} == {term.text for term in terms[1]}
            for terms in (
                (first.selection.all, second.selection.all),
                (first.selection.any, second.selection.any),
                (first.selection.none, second.selection.none),
            )
        ]
        if all(same) and _selects(first) and _compete(first, second):
            yield _overlap(first, second, "all their VMs")


def _compete(first: Policy, second: Policy) -> bool:
    """Whether both say something, at one priority, about what only one can decide."""
    if first.priority != second.priority:
        return False
    both_scheduled = first.timing.scheduled and second.timing.scheduled and first.timing != second.timing
    levels = (first.want, first.fallback) != (second.want, second.fallback) and first.want and second.want
    ways = first.transports and second.transports and first.transports != second.transports
    return bool(both_scheduled or levels or ways)


def _overlap(first: Policy, second: Policy, shared: str) -> Advice:
    what = f"has priority {first.priority} like policy {quoted(second.name)} on {shared}: the stricter values count"
    return _advise(first, what, "write different priorities")


def _by_inventory(policies: PolicySet, facts: Facts) -> Iterable[Advice]:
    selected: Counter[Policy] = Counter()
    shared: dict[tuple[Policy, Policy], list[str]] = {}
    alone: list[str] = []
    for vm in facts.vms.values():
        matching = policies.matching(vm)
        selected.update(matching)
        if not matching and not vm.template:
            alone.append(vm.name)
        for pair in combinations(matching, 2):
            if _compete(*pair):
                shared.setdefault(pair, []).append(vm.name)
    for policy in policies.policies:
        if not selected[policy] and _selects(policy) and not _excludes_all(policy):
            yield _advise(policy, "selects no VM of the inventory", "correct its select or remove it")
    for (first, second), names in shared.items():
        yield _overlap(first, second, _listed(names))
    if alone:
        verb = "is" if len(alone) == 1 else "are"
        yield Advice("", 0, 0, f"{_listed(alone)} {verb} selected by no policy", "add a policy that selects them")


def _listed(names: list[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMED} more" if len(ordered) > MOST_NAMED else ""
    return ", ".join(ordered[:MOST_NAMED]) + more
