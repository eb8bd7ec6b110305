"""A plan in words: short, sorted, and VMs that change in the same way as one line. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from policies.changes import Kind, PointChange, ReloadPlan, VmChange
from policies.errors import printable
from policies.facts import VmId
from policies.forecast import ChangePlan, NextRun
from policies.snapshotload import Peak, SnapshotLoad
from policies.units import clock, counted, span

_KINDS: tuple[tuple[Kind, str], ...] = (
    ("loses", "Would lose protection"),
    ("gains", "Gain protection"),
    ("changes", "Change"),
)

_PLURAL = (
    ("loses ", "lose ", 1),
    ("gains ", "gain ", 1),
    ("its schedule", "their schedule", 1),
    ("selects it", "selects them", 0),
    ("back it up", "back them up", 0),
)

_TIMING = ("loses", "gains", "policy", "no longer by", "also by", "rpo", "schedule", "window")
"""Beginnings of differences that may change when a VM is backed up next."""

NAMES_SHOWN = 3
POLICIES_SHOWN = 12
GROUPS_SHOWN = 20
DATASTORES_SHOWN = 5
WINDOWS_SHOWN = 5

_DELETIONS = (
    "The times include locks and the grace. Retention refuses a run that would take more than guard.max_expire_share "
    "of all restore points; reclaim frees bytes after its safety age only."
)


def reload_words(plan: ReloadPlan, *, everything: bool = False) -> str:
    """What a reload does, for a person. With everything, each VM and restore point has a line of its own."""
    if plan.empty:
        return "Nothing changes.\n"
    lines = [
        *_policies(plan),
        *_guard(plan),
        *_vms(plan.vms, {}, None, everything),
        *_points(plan.expiring, everything),
    ]
    if plan.refusals:
        lines += ["", "Refused by a guard:", *(f"  {sentence}" for sentence in plan.refusals)]
    if any(change.looser for change in plan.guard) and not (plan.losing or plan.expiring):
        lines += [
            "",
            "What adds protection is in force. The rest is pending: the stricter guard counts until plan "
            f"{plan.id} is confirmed with",
            f"`backstay policy apply {plan.id} --override-guard`.",
        ]
    elif plan.pending:
        override = " --override-guard" if plan.refusals else ""
        lines += [
            "",
            "What adds protection is in force. The rest is pending: the old policies go on protecting these VMs",
            f"and keeping these restore points until plan {plan.id} is confirmed with "
            f"`backstay policy apply {plan.id}{override}`.",
        ]
    return "\n".join(map(printable, lines)).lstrip("\n") + "\n"


def taken_away(plan: ReloadPlan) -> tuple[str, ...]:
    """What waits for confirmation, grouped: a few sentences however many VMs and restore points it is about."""
    losing = [_group_words(part, group) for part, group in _by_part(plan.losing)]
    points = [_points_words(group) for group in _point_groups(plan.expiring)]
    return tuple([*_first(losing, "change"), *_first(points, "rule"), *plan.refusals])


def _first(sentences: list[str], noun: str) -> list[str]:
    rest = len(sentences) - GROUPS_SHOWN
    return [*sentences[:GROUPS_SHOWN], f"and {rest} more {noun}s"] if rest > 0 else sentences


def plan_words(plan: ChangePlan, *, everything: bool = False, size: Callable[[int], str] = str) -> str:
    """What a change would do, for a person; `size` shows a number of bytes."""
    reload = plan.reload
    if reload.empty:
        return "\n".join(map(printable, ["Nothing changes.", *_not_configured(plan)])) + "\n"
    lines = [*_policies(reload), *_guard(reload), *_not_configured(plan)]
    lines += _vms(reload.vms, plan.runs, plan, everything)
    lines += _points(plan.expiring, everything, span(plan.horizon))
    if plan.expiring:
        what = "Bytes that reclaim frees then" if plan.bytes.exact else "Bytes that reclaim frees then, at most"
        apart = " (second copies are not counted)" if any(one.copy for one in plan.expiring) else ""
        lines += [f"  {what}: {size(plan.bytes.count)}{apart}", f"  {_DELETIONS}"]
    lines += _waiting(plan)
    if plan.later:
        lines += ["", f"After that: {counted(plan.later, 'restore point')} more would expire."]
    lines += [*_prospects(plan, everything), *_load(plan.load)]
    lines += [*_verdicts(reload), *_failing(plan)]
    return "\n".join(map(printable, lines)).lstrip("\n") + "\n"


def _policies(plan: ReloadPlan) -> list[str]:
    return [
        f"{title}: {_names(names, POLICIES_SHOWN)}"
        for title, names in (
            ("Policies added", plan.added),
            ("Policies removed", plan.removed),
            ("Policies changed", plan.changed),
        )
        if names
    ]


def _guard(plan: ReloadPlan) -> list[str]:
    """The limits that change, looser ones first."""
    limits = sorted(plan.guard, key=lambda change: not change.looser)
    return [f"Guard, {'looser' if change.looser else 'stricter'}: {change}" for change in limits]


def _not_configured(plan: ChangePlan) -> list[str]:
    """The names that stand for nothing: what is sent or copied there is sent and copied nowhere."""
    if not plan.not_configured:
        return []
    return ["", "Not in the configuration:", *(f"  {sentence}" for sentence in plan.not_configured)]


def _vms(
    changes: Sequence[VmChange], runs: Mapping[VmId, NextRun], plan: ChangePlan | None, everything: bool
) -> Iterator[str]:
    for kind, title in _KINDS:
        mine = sorted((change for change in changes if change.kind == kind), key=lambda change: change.name)
        if kind == "changes":
            less = [replace(one, what=", ".join(one.weaker), parts=one.weaker) for one in mine if one.weaker]
            yield from _section("Weaker", less, runs, plan, everything)
            mine = [_rest(one) for one in mine if len(one.weaker) < len(one.parts)]
        yield from _section(title, mine, runs, plan, everything)


def _rest(change: VmChange) -> VmChange:
    """What changes besides what gets weaker."""
    parts = tuple(part for part in change.parts if part not in change.weaker)
    return replace(change, what=", ".join(parts), parts=parts) if change.weaker else change


def _section(
    title: str, mine: Sequence[VmChange], runs: Mapping[VmId, NextRun], plan: ChangePlan | None, everything: bool
) -> Iterator[str]:
    if mine:
        yield from ("", f"{title}: {counted(len(mine), 'VM')}")
        groups = [(change.what, [change]) for change in mine] if everything else _by_part(mine)
        for number, (part, group) in enumerate(groups):
            if number == GROUPS_SHOWN and not everything:
                rest = {change.vm for _, later in groups[number:] for change in later}
                yield f"  and {counted(len(rest), 'VM')} in {len(groups) - number} other ways; --all lists each"
                break
            yield f"  {_group_words(part, group)}"
            told = [runs[change.vm] for change in group if change.vm in runs]
            if told and part.startswith(_TIMING) and (words := _runs(told, plan.now if plan else None)):
                yield f"    {words}"
            if everything:
                yield from _each(group[0], plan)


def _by_part(changes: Sequence[VmChange]) -> list[tuple[str, list[VmChange]]]:
    """VMs by what changes for them; one with several differences is in several groups. The largest first."""
    groups: dict[str, list[VmChange]] = {}
    for change in changes:
        for part in change.parts or (change.what,):
            groups.setdefault(part, []).append(change)
    return sorted(groups.items(), key=lambda one: -len(one[1]))


def _group_words(part: str, group: Sequence[VmChange]) -> str:
    first = group[0]
    if len(group) == 1:
        return f"{first.name}: {part}" if first.kind == "changes" else first.sentence
    what = part
    for one, several, most in _PLURAL:
        what = what.replace(one, several, most or -1)
    colon = ":" if first.kind == "changes" else ""
    held = sum(len(change.points) for change in group)
    stays = f"; their {counted(held, 'restore point')} would stay" if held and not first.after else ""
    return f"{counted(len(group), 'VM')} ({_names(change.name for change in group)}){colon} {what}{stays}"


def _each(change: VmChange, plan: ChangePlan | None) -> Iterator[str]:
    if plan is not None:
        for name, clauses in plan.clauses(change):
            for clause in clauses:
                found = ", ".join(value for value in clause.found if value) or "nothing"
                has = "" if clause.term == "*" else f"   (the VM has {found})"
                yield f"    {'✓' if clause.matches else '✗'} {name}: {clause.list} {clause.term}{has}"
        if (ahead := plan.prospects.get(change.vm)) is not None:
            yield f"    expected consistency: {ahead.words}"
    for point in change.points:
        yield f"    restore point {point}"


def _runs(told: Sequence[NextRun], now: datetime | None) -> str:
    before, after = _between([one.before for one in told], now), _between([one.after for one in told], now)
    return f"next run: {before} → {after}" if before != after else ""


def _between(instants: Iterable[datetime | None], now: datetime | None) -> str:
    known = sorted(at for at in instants if at is not None)
    if not known:
        return "never by itself"
    first, last = (_at(at, now) for at in (known[0], known[-1]))
    return first if first == last else f"{first} to {last}"


def _at(at: datetime, now: datetime | None) -> str:
    return "now" if at == now else clock(at, UTC)


def _points(changes: Sequence[PointChange], everything: bool, horizon: str = "") -> Iterator[str]:
    if not changes:
        return
    within = f" within {horizon}" if horizon else ""
    yield from ("", f"Would expire{within}: {counted(len(changes), 'restore point')}")
    if everything:
        yield from (f"  {change.sentence}" for change in changes)
        return
    groups = _point_groups(changes)
    for number, group in enumerate(groups):
        if number == GROUPS_SHOWN:
            rest = sum(map(len, groups[number:]))
            yield f"  and {counted(rest, 'restore point')} kept by {len(groups) - number} other rules; --all lists each"
            break
        yield f"  {_points_words(group)}"


def _point_groups(changes: Sequence[PointChange]) -> list[list[PointChange]]:
    """Restore points by where they are and what keeps them until now. The largest group first."""
    groups: dict[tuple[str, str, bool], list[PointChange]] = {}
    for change in changes:
        groups.setdefault((change.copy, _rule(change), change.instead_of is not None), []).append(change)
    return sorted(groups.values(), key=lambda group: -len(group))


def _points_words(group: Sequence[PointChange]) -> str:
    if len(group) == 1:
        return group[0].sentence
    names = sorted({change.name for change in group})
    when = _between([change.expires_at for change in group], None)
    taken = f"{min(c.taken_at for c in group):%Y-%m-%d} to {max(c.taken_at for c in group):%Y-%m-%d}"
    sooner = ", sooner than before" if group[0].instead_of is not None else ""
    return (
        f"{counted(len(group), 'restore point')}{group[0].where} of {counted(len(names), 'VM')} ({_names(names)}), "
        f"taken {taken}, "
        f"on {when}{sooner}; kept until now: {_rule(group[0])}"
    )


def _rule(change: PointChange) -> str:
    """What keeps it, without its place among others: "policy gold: keep_daily"."""
    words = change.kept.split()
    if len(words) > 3 and words[-2] == "of" and words[-3].isdigit():
        return " ".join(words[:-3])
    return change.kept


def _waiting(plan: ChangePlan) -> Iterator[str]:
    """Which of what expires up to the horizon goes to second copies first."""
    groups: dict[tuple[str, ...], int] = {}
    for one in plan.expiring:
        if not one.copy and (copies := plan.waiting.get(one.point)):
            groups[copies] = groups.get(copies, 0) + 1
    for copies, number in sorted(groups.items()):
        where = f"the {'copy' if len(copies) == 1 else 'copies'} {', '.join(copies)}"
        wait, lacks = ("waits", "lacks it") if number == 1 else ("wait", "lacks them")
        lacks = lacks if len(copies) == 1 else lacks.replace("lacks", "lack")
        yield f"  {number} of them {wait} for {where}, which {lacks}, until maintenance.copy_wait is over."


def _prospects(plan: ChangePlan, everything: bool) -> Iterator[str]:
    """What runs of the VMs that change would reach otherwise than before; those that would fail first."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for change in sorted(plan.reload.vms, key=lambda one: one.name):
        ahead = plan.prospects.get(change.vm)
        if ahead is not None and ahead.changes:
            fails = ahead.after is not None and not ahead.after.enough
            groups.setdefault((not fails, ahead.words), []).append(change.name)
    if not groups:
        return
    yield from ("", "Consistency that runs would reach, as the VMs are now:")
    ordered = sorted(groups.items(), key=lambda one: (one[0][0], -len(one[1]), one[0][1]))
    for number, ((_, words), names) in enumerate(ordered):
        if number == GROUPS_SHOWN and not everything:
            rest = sum(len(later) for _, later in ordered[number:])
            yield f"  and {counted(rest, 'VM')} in {len(ordered) - number} other ways; --all lists each"
            return
        if everything:
            yield from (f"  {name}: {words}" for name in names)
        else:
            yield f"  {names[0] if len(names) == 1 else f'{len(names)} VMs ({_names(names)})'}: {words}"


def _load(load: SnapshotLoad) -> Iterator[str]:
    rows = [(load.peaks(name), name) for name in load.datastores]
    changed = [(peaks, name) for peaks, name in rows if peaks[0].starts != peaks[1].starts]
    total_before, total_after = load.peaks("")
    runs_before, runs_after = load.runs
    if not changed and runs_before == runs_after:
        return
    yield ""
    yield f"Scheduled runs in the next 7 days, if all succeed (an estimate): {runs_before} → {runs_after}"
    if changed or total_before.starts != total_after.starts:
        yield "Snapshots that they open in the fullest hour:"
    if total_before.starts != total_after.starts:
        yield f"  all datastores: {_peaks(total_before, total_after)}"
    changed.sort(key=lambda one: (one[0][0].starts - one[0][1].starts, one[1]))
    for (before, after), name in changed[:DATASTORES_SHOWN]:
        yield f"  {name}: {_peaks(before, after)}"
    if len(changed) > DATASTORES_SHOWN:
        yield f"  and {len(changed) - DATASTORES_SHOWN} more datastores; --json has the hours of each"
    yield from _openings(load)


def _openings(load: SnapshotLoad) -> Iterator[str]:
    """The windows whose fullest opening changes, each with the datastore that changes most."""
    windows: dict[str, list[tuple[int, str, Peak, Peak]]] = {}
    for window, datastore, before, after in load.openings():
        if before.starts != after.starts:
            windows.setdefault(window, []).append((before.starts - after.starts, datastore, before, after))
    if windows:
        yield "Snapshots in the fullest opening of a window:"
    for number, (window, rows) in enumerate(sorted(windows.items())):
        if number == WINDOWS_SHOWN:
            yield f"  and {len(windows) - WINDOWS_SHOWN} more windows; --json has each"
            return
        told = [one for one in rows if not one[1]] + sorted(one for one in rows if one[1])[:1]
        words = [f"{one[1] or 'all datastores'} {one[2].starts} → {one[3].starts}" for one in told]
        at = max(told[0][2:], key=lambda peak: peak.starts).at
        yield f"  {window}: {', '.join(words)}, in the one from {clock(at, UTC)}"


def _peaks(before: Peak, after: Peak) -> str:
    at = after.at if after.starts else before.at
    return f"{before.starts} → {after.starts}, in the hour from {clock(at, UTC)}"


def _verdicts(plan: ReloadPlan) -> Iterator[str]:
    yield ""
    if plan.refusals:
        yield "Refused by a guard:"
        yield from (f"  {sentence}" for sentence in plan.refusals)
        yield f"Plan {plan.id}: takes effect only with `backstay policy apply` and --override-guard."
    elif plan.pending:
        yield f"Plan {plan.id}: no guard refuses it; what it takes away waits for `backstay policy apply`."
    elif plan.weakened:
        yield f"Plan {plan.id}: no VM loses protection, so it takes effect at once, also what gets weaker."
    else:
        yield f"Plan {plan.id}: takes nothing away, so it takes effect at once."


def _failing(plan: ChangePlan) -> Iterator[str]:
    """A policy that asks for more than a VM can reach protects it in words alone."""
    failing = [one for one in plan.prospects.values() if one.after is not None and not one.after.enough]
    newly = [one for one in failing if one.before is None or one.before.enough]
    if newly:
        yield f"But the runs of {counted(len(newly), 'VM')} would fail: no snapshot is as consistent as is asked."


def _names(names: Iterable[str], most: int = NAMES_SHOWN) -> str:
    known = [*names]
    shown = ", ".join(known[:most])
    return f"{shown} and {len(known) - most} more" if len(known) > most else shown
