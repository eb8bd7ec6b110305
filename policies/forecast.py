"""The whole plan of a change: what the reload does, and what follows from it in the days to come. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from policies.changes import PointChange, ReloadPlan, VmChange
from policies.facts import Facts, PointId, Vm, VmId, instant_text
from policies.owed import owed
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import Protection, due_of, protection, refusal_of
from policies.reaching import Prospect, outlook
from policies.selection import Clause, match
from policies.snapshotload import SnapshotLoad, snapshot_load

DEFAULT_HORIZON = timedelta(days=30)
"""How far ahead expiries are told: the longest time that most people look back at a change."""


Levels = Mapping[str | None, int]
"""How many VMs are expected to reach which consistency; None counts those whose runs would fail."""


@dataclass(frozen=True, slots=True)
class NextRun:
    """When a VM is backed up next by itself, before and after; None is never."""

    before: datetime | None
    after: datetime | None


@dataclass(frozen=True, slots=True)
class Bytes:
    """What a repository gets back when exactly these points expire and it is reclaimed.

    Exact from the repository; else at most so much: chunks of a point that others refer to, too, stay.
    """

    count: int
    exact: bool


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """Everything that a change does, at `now`, with expiries up to `horizon`.

    `prospects` are the consistencies that runs of the VMs that change would reach as these are now, and `levels` how
    many VMs would reach which, before and after; None counts those whose runs would fail. `waiting` are restore
    points that would expire and that second copies lack which would keep them: retention waits for these.
    `not_configured` says what the new policies name and the configuration lacks, None where that is not known.
    """

    now: datetime
    horizon: timedelta
    reload: ReloadPlan
    runs: Mapping[VmId, NextRun]
    load: SnapshotLoad
    bytes: Bytes
    facts: Facts
    prospects: Mapping[VmId, Prospect] = field(default_factory=dict)
    levels: tuple[Levels, Levels] = ({}, {})
    waiting: Mapping[PointId, tuple[str, ...]] = field(default_factory=dict)
    not_configured: tuple[str, ...] | None = None

    @property
    def expiring(self) -> tuple[PointChange, ...]:
        """The restore points that would expire up to the horizon, in the order of their times."""
        end = self.now + self.horizon
        return tuple(sorted((one for one in self.reload.expiring if one.expires_at <= end), key=_when))

    @property
    def later(self) -> int:
        """How many more would expire after it."""
        return len(self.reload.expiring) - len(self.expiring)

    def clauses(self, change: VmChange) -> tuple[tuple[str, tuple[Clause, ...]], ...]:
        """For each policy that begins or ceases to select the VM, every clause that says so."""
        vm = self.facts.vms[change.vm]
        found = []
        for name in dict.fromkeys((*change.before, *change.after)):
            if (name in change.before) == (name in change.after):
                continue
            policy = self.reload.new.policy(name) or self.reload.old.policy(name)
            if policy is not None:
                found.append((name, match(policy, vm).clauses))
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """For `--json` and for the plan file."""
        found = self.reload.as_json()
        for row, change in zip(found["vms"], self.reload.vms, strict=True):
            run = self.runs[change.vm]
            row["next_run_before"] = instant_text(run.before) if run.before is not None else None
            row["next_run_after"] = instant_text(run.after) if run.after is not None else None
            row["expected_consistency"] = self.prospects[change.vm].as_json() if change.vm in self.prospects else None
            row["clauses"] = [
                {"policy": name, "list": one.list, "term": one.term, "matches": one.matches, "found": [*one.found]}
                for name, clauses in self.clauses(change)
                for one in clauses
            ]
        for row, going in zip(found["expiring"], self.reload.expiring, strict=True):
            row["waits_for"] = [*self.waiting.get(going.point, ())] if not going.copy else []
        before, after = ({level or "fails": many for level, many in one.items()} for one in self.levels)
        return {
            **found,
            "made_at": instant_text(self.now),
            "horizon_days": self.horizon / timedelta(days=1),
            "expiring_up_to_horizon": len(self.expiring),
            "expiring_later": self.later,
            "expiring_that_wait": len(self.waiting),
            "expected_consistency": {"before": before, "after": after},
            "bytes_freed": {"bytes": self.bytes.count, "exact": self.bytes.exact},
            "snapshot_load": self.load.as_json(),
            "not_configured": None if self.not_configured is None else [*self.not_configured],
        }


def plan(old: PolicySet, new: PolicySet, facts: Facts, horizon: timedelta = DEFAULT_HORIZON) -> ChangePlan:
    """What going from one policy set to the other does to each VM and each restore point of the facts."""
    reload = plan_reload(old, new, facts)
    prospects, levels = foreseen(old, new, facts, {change.vm for change in reload.vms})
    return ChangePlan(
        now=facts.now,
        horizon=horizon,
        reload=reload,
        runs={change.vm: _next_run(old, new, change.vm, facts) for change in reload.vms},
        load=snapshot_load(old, new, facts),
        bytes=Bytes(stored_bytes(reload.expiring, facts.now + horizon), exact=False),
        facts=facts,
        prospects=prospects,
        levels=levels,
        waiting=waiting(new, facts, reload.expiring),
    )


def foreseen(
    old: PolicySet, new: PolicySet, facts: Facts, changing: Collection[VmId]
) -> tuple[dict[VmId, Prospect], tuple[Levels, Levels]]:
    """What runs of the VMs that change would reach, and how many of all VMs reach which consistency."""
    prospects: dict[VmId, Prospect] = {}
    levels: tuple[Counter[str | None], Counter[str | None]] = (Counter(), Counter())
    for vm in facts.vms.values():
        if vm.reach is None:
            continue
        before, after = (outlook(protection(one, vm), vm) for one in (old, new))
        for counts, ahead in zip(levels, (before, after), strict=True):
            if ahead is not None:
                counts[ahead.reached.value if ahead.enough else None] += 1
        if vm.id in changing:
            prospects[vm.id] = Prospect(before, after)
    return prospects, levels


def waiting(policies: PolicySet, facts: Facts, expiring: Iterable[PointChange]) -> dict[PointId, tuple[str, ...]]:
    """Of what would expire in the first repository, what second copies lack that would keep it: see `policies.owed`."""
    going: dict[VmId, set[PointId]] = {}
    for one in expiring:
        if not one.copy:
            going.setdefault(one.vm, set()).add(one.point)
    found: dict[PointId, tuple[str, ...]] = {}
    for vm, points in going.items():
        found |= owed(vm, points, policies, facts, tuple(facts.copies), {})
    return found


def stored_bytes(expiring: Iterable[PointChange], end: datetime) -> int:
    """What was stored in the first repository for the points that expire up to an instant."""
    return sum(one.stored_bytes for one in expiring if one.expires_at <= end and not one.copy)


def _next_run(old: PolicySet, new: PolicySet, vm: VmId, facts: Facts) -> NextRun:
    seen = facts.vms[vm]
    before, after = (_next_start(protection(one, seen), seen, facts) for one in (old, new))
    return NextRun(before, after)


def _next_start(effective: Protection, vm: Vm, facts: Facts) -> datetime | None:
    found = due_of(effective, vm.id, facts) if not refusal_of(effective, vm) else None
    return max(found[1].at, facts.now) if found is not None else None


def _when(change: PointChange) -> tuple[datetime, str, datetime]:
    return (change.expires_at, change.name, change.taken_at)
