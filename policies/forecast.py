"""The whole plan of a change: what the reload does, and what follows from it in the days to come. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from policies.changes import PointChange, ReloadPlan, VmChange
from policies.facts import Facts, Vm, VmId
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import Protection, due_of, protection, refusal_of
from policies.selection import Clause, match
from policies.snapshotload import SnapshotLoad, snapshot_load

DEFAULT_HORIZON = timedelta(days=30)
"""How far ahead expiries are told: the longest time that most people look back at a change."""


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
    """Everything that a change does, at `now`, with expiries up to `horizon`."""

    now: datetime
    horizon: timedelta
    reload: ReloadPlan
    runs: Mapping[VmId, NextRun]
    load: SnapshotLoad
    bytes: Bytes
    facts: Facts

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
            row["next_run_before"] = run.before.isoformat() if run.before is not None else None
            row["next_run_after"] = run.after.isoformat() if run.after is not None else None
            row["clauses"] = [
                {"policy": name, "list": one.list, "term": one.term, "matches": one.matches, "found": [*one.found]}
                for name, clauses in self.clauses(change)
                for one in clauses
            ]
        return {
            **found,
            "made_at": self.now.isoformat(),
            "horizon_days": self.horizon / timedelta(days=1),
            "expiring_up_to_horizon": len(self.expiring),
            "expiring_later": self.later,
            "bytes_freed": {"bytes": self.bytes.count, "exact": self.bytes.exact},
            "snapshot_load": self.load.as_json(),
        }


def plan(old: PolicySet, new: PolicySet, facts: Facts, horizon: timedelta = DEFAULT_HORIZON) -> ChangePlan:
    """What going from one policy set to the other does to each VM and each restore point of the facts."""
    reload = plan_reload(old, new, facts)
    return ChangePlan(
        now=facts.now,
        horizon=horizon,
        reload=reload,
        runs={change.vm: _next_run(old, new, change.vm, facts) for change in reload.vms},
        load=snapshot_load(old, new, facts),
        bytes=Bytes(stored_bytes(reload.expiring, facts.now + horizon), exact=False),
        facts=facts,
    )


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
