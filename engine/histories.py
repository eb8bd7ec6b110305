"""Two VM ids become one in the world in memory: which may, and what changes. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from engine.failures import BadInput, Declined, NotYet
from engine.identity import Book
from engine.jobs import Job, JobState
from engine.records import RunRow, VmRow
from engine.world import GONE, MISSED, World
from policies.facts import RestorePoint, VmId
from policies.units import clock


@dataclass(frozen=True, slots=True)
class Joining:
    """What a join changed, for the state; `undo` takes it back from the world."""

    row: VmRow
    run: RunRow
    fired: Mapping[tuple[str, str, VmId], datetime]
    jobs: tuple[Job, ...]
    undo: Callable[[], None]


def who_is_meant(world: World, old: str, new: str) -> tuple[VmId, VmId]:
    """The ids behind two names or ids. A name that both carry is the gone VM as old and the present one as new.

    A VM is found by a name of before, too, which its restore points still carry: as old where no VM that is gone was
    called so in the end, as new where no VM is called so at all. BadInput for one that is unknown or ambiguous.
    """
    return _one(world, old, gone=True), _one(world, new, gone=False)


def _one(world: World, name: str, *, gone: bool) -> VmId:
    if VmId(name) in world.rows or VmId(name) in world.points:
        return VmId(name)
    known = {vm for vm, row in world.rows.items() if row.traits.name == name}
    known |= {vm for vm, listed in world.points.items() if vm not in world.rows and listed[-1].vm_name == name}
    before = formerly(world, name) - known
    wanted = {vm for vm in known if (vm not in world.vms) == gone}
    found = sorted(wanted or (gone and before - world.vms.keys()) or known or before)
    if not found:
        raise BadInput(f"no VM is known as {name}", hint="see: backstay status, backstay sql 'SELECT * FROM vms'")
    if len(found) > 1:
        are = "were" if before >= set(found) else "are"
        several = "; ".join(_choice(world, vm) for vm in found)
        raise BadInput(f"{len(found)} VMs {are} called {name}: {several}", hint="name one by its id")
    return found[0]


def formerly(world: World, name: str) -> set[VmId]:
    """The VMs with a restore point of this name; they may be called otherwise since."""
    return {vm for vm, listed in world.points.items() if any(point.vm_name == name for point in listed)}


def _choice(world: World, vm: VmId) -> str:
    stands = "in the inventory" if vm in world.vms else "not in the inventory"
    newest = max((point.taken_at for point in world.points.get(vm, ())), default=None)
    last = f", newest restore point of {clock(newest, UTC)}" if newest is not None else ", no restore point"
    return f"{vm} ({_called(world, vm)}, {stands}{last})"


def check(world: World, old: VmId, new: VmId) -> None:
    """Declined when these two must not be joined, NotYet when nobody can tell now, BadInput when one is unknown."""
    for vm in (old, new):
        if vm not in world.rows and vm not in world.points:
            raise BadInput(f"no VM is known as {vm}", hint="see: backstay status")
    if old == new:
        raise Declined(f"{_called(world, old)} is one VM already, under one id", where=old)
    if not world.inventory_known:
        raise NotYet("the inventory is still being read", hint="try again in a moment")
    if old in world.vms and new in world.vms:
        raise Declined(
            f"{_called(world, old)} ({old}) and {_called(world, new)} ({new}) both stand in the inventory, so they are "
            "two VMs; each keeps its own history"
        )
    if old in world.vms:
        raise Declined(
            f"{_called(world, old)} ({old}) stands in the inventory and {_called(world, new)} ({new}) does not",
            hint=f"the one that stands there comes last: backstay vm relink {new} {old}",
        )
    if new not in world.vms:
        raise Declined(f"{_called(world, new)} ({new}) does not stand in the inventory, so nothing would go on")
    for vm in (old, new):
        if any(job.state is JobState.RUNNING for job in world.jobs.of(vm)):
            raise NotYet(f"work on {_called(world, vm)} is under way", where=vm, hint="try again when it has ended")


def _called(world: World, vm: VmId) -> str:
    row, points = world.rows.get(vm), world.points.get(vm, ())
    return row.traits.name if row is not None else points[-1].vm_name if points else vm


def together(world: World, old: VmId, new: VmId) -> tuple[RestorePoint, ...]:
    """The restore points of both as those of one VM, none of them expiring yet; oldest first."""
    both = [*world.points.get(old, ()), *world.points.get(new, ())]
    both.sort(key=lambda point: (point.taken_at, point.id))
    return tuple(replace(point, vm=old, expiring_since=None) for point in both)


def join(world: World, old: VmId, new: VmId, now: datetime) -> Joining:
    """The VM that stands in the inventory as `new` goes on as `old`. `check` has passed at this very moment."""
    tables: tuple[dict[VmId, Any], ...] = (
        world.rows, world.vms, world.runs, world.history, world.points, world.alerts,
    )  # fmt: skip
    before = [{vm: table[vm] for vm in (old, new) if vm in table} for table in tables]
    fired_before = {key: at for key, at in world.fired.items() if key[2] in (old, new)}
    jobs_before = {job.id: job for job in world.jobs.of(new)}
    # Work that was given up when the VM left must not keep the same slot's from being asked for again.
    over = {key: job for key, job in world.job_keys.items() if f":{old}:" in key and job not in world.jobs}

    points = together(world, old, new)
    row = _row(world.rows.get(old), world.rows[new], old, points, now)
    run = _run(world.runs.get(old, RunRow(old)), world.runs.get(new, RunRow(new)))
    seen = replace(world.vms[new], id=old)
    fired: dict[tuple[str, str, VmId], datetime] = {}
    for (policy, rule, _), at in sorted(fired_before.items(), key=lambda one: one[1]):
        fired[policy, rule, old] = at
    for table in tables:
        table.pop(old, None)
        table.pop(new, None)
    world.rows[old], world.vms[old], world.runs[old] = row, seen, run
    if points:
        world.points[old] = points
    world.fired = {**{key: at for key, at in world.fired.items() if key not in fired_before}, **fired}
    jobs = tuple(replace(job, vm=old) for job in jobs_before.values())
    world.jobs.update({job.id: job for job in jobs})
    world.job_keys = {key: job for key, job in world.job_keys.items() if key not in over}
    _number_again(world)
    world.refresh(old)

    def undo() -> None:
        for table, entries in zip(tables, before, strict=True):
            table.pop(old, None)
            table.update(entries)
        world.fired = {**{key: at for key, at in world.fired.items() if key not in fired}, **fired_before}
        for id, job in jobs_before.items():
            if id in world.jobs:
                world.jobs[id] = replace(world.jobs[id], vm=job.vm)
        world.job_keys = {**over, **world.job_keys}
        _number_again(world)

    return Joining(row, run, fired, jobs, undo)


def _number_again(world: World) -> None:
    world.book = Book((row.id, row.traits) for row in world.rows.values())


def _row(old: VmRow | None, new: VmRow, id: VmId, points: tuple[RestorePoint, ...], now: datetime) -> VmRow:
    """The traits and the look of the VM that stands there, under the id of the one that left."""
    seen = [row.first_seen for row in (old, new) if row is not None]
    accounted = {part: value for part, value in new.accounted.items() if part not in (GONE, MISSED)}
    # The events found by comparing are numbered per id for ever: no number may come twice.
    missed = max(int(row.accounted.get(MISSED, "0")) for row in (old, new) if row is not None)
    if missed:
        accounted[MISSED] = str(missed)
    first = min([*seen, *(point.taken_at for point in points[:1])], default=now)
    return VmRow(id, new.traits, accounted, first, left_at=None)


def _run(old: RunRow, new: RunRow) -> RunRow:
    """The successes of both; failures are those of the VM that stands there."""
    successes = [at for at in (old.last_success, new.last_success) if at is not None]
    attempts = [at for at in (old.last_attempt, new.last_attempt) if at is not None]
    return replace(new, vm=old.vm, last_success=max(successes, default=None), last_attempt=max(attempts, default=None))
