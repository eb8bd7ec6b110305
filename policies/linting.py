"""What a policy set says that its author hardly means. Warnings with a place; nothing here is an error. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import combinations

from policies.advice import Advice, Advise, adviser
from policies.advice_rehearsals import rehearsal_advice
from policies.advice_rules import retention_advice, trigger_advice
from policies.advice_timing import timing_advice
from policies.errors import quoted
from policies.facts import Facts
from policies.origins import Origins, Path
from policies.outranked import Ineffective, ineffective
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.protection import Protection, protection
from policies.reaching import outlook
from policies.termlogic import matches_nothing, taken_away, within
from policies.units import counted, span
from policies.weakening import goal_of

MOST_NAMED = 5
"""VMs named in one warning before it only counts."""

_SOME_DAY = datetime(2026, 1, 5, tzinfo=UTC)
"""Where nobody says which year is to come."""


def lint(policies: PolicySet, facts: Facts | None = None, now: datetime | None = None) -> tuple[Advice, ...]:
    """Warnings in the order of files and lines, about the year from `now` on.

    With an inventory, overlaps and policies that select nothing are found by what they select; without one only by
    how they are written.
    """
    origins = Origins(policies.texts)
    advisers = {policy: adviser(policy, origins) for policy in policies.policies}
    begin = (facts.now if facts is not None else _SOME_DAY) if now is None else now
    found = [advice for policy, advise in advisers.items() for advice in _alone(policy, advise, begin)]
    found += _unused(origins)
    outranked = dict(_outranked(policies, advisers))
    found += outranked.values()
    if facts is None or not facts.vms:
        found += _alike(policies, advisers)
    else:
        found += _by_inventory(policies, facts, advisers, {policy for policy, path in outranked if path in _TIMES})
    return tuple(sorted(set(found)))


_TIMES: tuple[Path, ...] = (("rpo",), ("schedule",))


def _alone(policy: Policy, advise: Advise, now: datetime) -> Iterable[Advice]:
    selection = policy.selection
    if not _selects(policy):
        yield advise(("select",), "selects nothing", 'write select.all = ["*"] for every VM')
    elif (pair := matches_nothing(selection)) is not None:
        what = f"selects nothing: no VM matches both {quoted(pair[0].text)} and {quoted(pair[1].text)}"
        yield advise(("select",), what, "remove one of them, or write them in any")
    elif (term := taken_away(selection)) is not None:
        what = f"excludes all that it selects by {quoted(term.text)}"
        yield advise(("select", "none"), what, "remove the term from none")
    if not policy.timing.scheduled and not policy.triggered:
        if policy.triggers:
            yield advise(("trigger",), "only holds or distrusts, and never backs anything up", "write rpo or schedule")
        else:
            yield advise((), "never backs anything up", "write rpo, schedule or a trigger")
    yield from timing_advice(policy.timing, advise, now)
    yield from retention_advice(policy, advise, now)
    yield from trigger_advice(policy, advise)
    yield from rehearsal_advice(policy, advise, now)


def _unused(origins: Origins) -> Iterable[Advice]:
    for name, source in origins.unused_templates():
        what = f"template {quoted(name)} is used by no policy"
        yield Advice(source.file, source.line, source.column, what, "remove it, or write it into a policy")


def _selects(policy: Policy) -> bool:
    return bool(policy.selection.all or policy.selection.any)


def _settings(policy: Policy) -> dict[Path, str]:
    """What of the policy only counts where no other of higher priority says it."""
    said: dict[Path, str] = {}
    if policy.timing.scheduled:
        said[("rpo",) if policy.timing.rpo is not None else ("schedule",)] = "when it backs up"
    if policy.says_consistency:
        said["consistency",] = "its consistency"
    if policy.transports:
        said["transports",] = "its transports"
    if policy.destination:
        said["destination",] = "where its restore points go"
    if policy.on_cbt_invalid is not None:
        said["on_cbt_invalid",] = "what a run does when change tracking is in doubt"
    if policy.tracking_sample is not None:
        said["tracking_sample",] = "how much of what change tracking calls unchanged is read again"
    if policy.on_migrate is not None:
        said["on_migrate",] = "what a run does when its VM moves"
    return said


def _outranked(policies: PolicySet, advisers: dict[Policy, Advise]) -> Iterable[tuple[tuple[Policy, Path], Advice]]:
    """Settings that never count, as a policy of higher priority selects all the VMs. What is a union always counts."""
    for higher, lower in combinations(policies.policies, 2):
        if higher.priority == lower.priority or not within(lower.selection, higher.selection):
            continue
        words = {_kind(path): word for path, word in _settings(higher).items()}
        for path, word in _settings(lower).items():
            if _kind(path) not in words:
                continue
            what = (
                f"never decides {word}: policy {quoted(higher.name)} of priority {higher.priority} selects all its "
                "VMs and decides (retention, triggers, copies and locks of both count)"
            )
            yield (lower, path), advisers[lower](path, what, f"write a priority above {higher.priority}, or remove it")


def _kind(path: Path) -> str:
    return "schedule" if path in _TIMES else str(path[0])


def _alike(policies: PolicySet, advisers: dict[Policy, Advise]) -> Iterable[Advice]:
    for first, second in combinations(policies.policies, 2):
        if not _compete(first, second):
            continue
        one, other = within(first.selection, second.selection), within(second.selection, first.selection)
        if one and other:
            yield _overlap(advisers[first], first, second, "all their VMs")
        elif one or other:
            inner = first if one else second
            yield _overlap(advisers[first], first, second, f"all VMs of policy {quoted(inner.name)}")


def _compete(first: Policy, second: Policy) -> bool:
    """Whether both say something, at one priority, about what only one can decide."""
    if first.priority != second.priority:
        return False
    both_scheduled = first.timing.scheduled and second.timing.scheduled and first.timing != second.timing
    levels = (first.want, first.fallback) != (second.want, second.fallback) and first.want and second.want
    ways = first.transports and second.transports and first.transports != second.transports
    return bool(both_scheduled or levels or ways or _part(first, second))


def _part(first: Policy, second: Policy) -> bool:
    return bool(first.destination and second.destination and first.destination != second.destination)


def _overlap(advise: Advise, first: Policy, second: Policy, shared: str) -> Advice:
    what = f"has priority {first.priority} like policy {quoted(second.name)} on {shared}: the stricter values count"
    if _part(first, second):
        what += f", and of their destinations {quoted(first.destination)}, as {quoted(first.name)} comes first by name"
    return advise(("priority",), what, "write different priorities")


def _by_inventory(
    policies: PolicySet, facts: Facts, advisers: dict[Policy, Advise], told: set[Policy]
) -> Iterable[Advice]:
    selected: Counter[Policy] = Counter()
    scheduling: Counter[Policy] = Counter()
    above: dict[Policy, set[str]] = {}
    shared: dict[tuple[Policy, Policy], list[str]] = {}
    alone: list[str] = []
    lost: dict[tuple[Policy, str, str], list[str]] = {}
    unreached: dict[Policy, list[str]] = {}
    for vm in facts.vms.values():
        effective = protection(policies, vm)
        selected.update(effective.policies)
        scheduling.update(effective.scheduling)
        for policy in effective.policies:
            above.setdefault(policy, set()).update(one.name for one in effective.scheduling)
        for one in ineffective(effective, vm):
            if (vain := _vain(one, effective, told)) is not None:
                lost.setdefault(vain, []).append(vm.name)
        ahead = outlook(effective, vm)
        if ahead is not None and not ahead.enough:
            asking = (one for one in effective.policies if one.fallback is effective.fallback)
            unreached.setdefault(next(asking), []).append(f"{vm.name} ({ahead.reached}: {ahead.why})")
        if not effective.policies and not vm.template:
            alone.append(vm.name)
        for pair in combinations(effective.policies, 2):
            if _compete(*pair):
                shared.setdefault(pair, []).append(vm.name)
    goalless = {policy for policy, setting, _ in lost if setting == "rpo"}
    for (policy, setting, what), names in lost.items():
        path, instead = _INSTEAD[setting]
        yield advisers[policy](path, what.format(_listed(names)), instead)
    for policy in policies.policies:
        advise, count = advisers[policy], selected[policy]
        if (
            not count
            and _selects(policy)
            and matches_nothing(policy.selection) is None
            and taken_away(policy.selection) is None
        ):
            yield advise(("select",), "selects no VM of the inventory", "correct its select or remove it")
        if count and policy.timing.scheduled and not scheduling[policy] and policy not in told | goalless:
            others = ", ".join(sorted(above[policy]))
            what = f"decides of none of its {counted(count, 'VM')} when to back it up: {others} of higher priority does"
            yield advise(next(iter(_settings(policy))), what, "write a higher priority, or remove the key")
    for (first, second), names in shared.items():
        yield _overlap(advisers[first], first, second, _listed(names))
    for policy, names in unreached.items():
        what = f"accepts no less than {policy.fallback} consistency, which cannot be reached by {_listed(names)}"
        yield advisers[policy](("consistency", "fallback"), what, "mend these VMs, or write a weaker fallback")
    if alone:
        verb, them = ("is", "it") if len(alone) == 1 else ("are", "them")
        yield Advice("", 0, 0, f"{_listed(alone)} {verb} selected by no policy", f"add a policy that selects {them}")


_INSTEAD: dict[str, tuple[Path, str]] = {
    "rpo": (("rpo",), "write the rpo there too, or a higher priority here"),
    "disks": (("disks", "exclude"), "write disks.exclude there too, or remove the term"),
}


def _vain(one: Ineffective, effective: Protection, told: set[Policy]) -> tuple[Policy, str, str] | None:
    """What is warned of, with a place for the names of VMs; None for what may well be meant."""
    names = " and ".join(quoted(policy.name) for policy in one.by).replace("{", "{{").replace("}", "}}")
    those = f"{'policy' if len(one.by) == 1 else 'policies'} {names}"
    if one.setting == "disks":
        term = quoted(one.value).replace("{", "{{").replace("}", "}}")
        verb = "keeps" if len(one.by) == 1 else "keep"
        return one.policy, "disks", f"leaves disks out by {term} without effect on {{}}: {those} {verb} them"
    if not one.weakens or one.policy in told:
        return None
    goal = goal_of(effective)
    has = f"an rpo of {span(goal)}" if goal is not None else "no rpo"
    verb, have = ("decides", "has") if len(one.by) == 1 else ("decide", "have")
    rank = f"of priority {one.by[0].priority} {verb} when and {have} {has}"
    mine = span(one.policy.timing.rpo) if one.policy.timing.rpo is not None else ""
    return one.policy, "rpo", f"has an rpo of {mine} that does not count for {{}}: {those} {rank}"


def _listed(names: list[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMED} more" if len(ordered) > MOST_NAMED else ""
    return ", ".join(ordered[:MOST_NAMED]) + more
