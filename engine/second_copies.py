"""Second copies of restore points, as policies ask for them: copied, retained and reclaimed by the engine on a timer.

A copy's repository is opened for each pass and closed again, so that a restore from it needs no engine.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from engine import maintenance, sections
from engine.copying import stop_if
from engine.parts import Parts
from engine.records import Audited
from engine.threads import interruptible, settled
from policies.facts import PointId, RestorePoint, VmId
from policies.policyset import PolicySet
from policies.protection import copies_of
from policies.units import counted
from storage.copies import CopyOutcome, copy_points, plan_copy
from storage.errors import StorageError
from storage.reclaim import SafetyAges
from storage.repository import Repository, open_repository

log = logging.getLogger("engine.copies")

UNKNOWN = "policies ask for it, and the configuration has no [copies.{}]"


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over a second copy did."""

    outcome: CopyOutcome
    expired: int
    freed_bytes: int

    def __str__(self) -> str:
        failed = f", {len(self.outcome.failed)} failed" if self.outcome.failed else ""
        return (
            f"{counted(len(self.outcome.copied), 'restore point')} copied, {self.outcome.there} there already{failed};"
            f" {self.expired} expired"
        )


def wanted(parts: Parts, name: str) -> list[PointId]:
    """The restore points that belong in a second copy."""
    policies, vms = parts.rulebook.in_force, parts.world.vms
    return [
        point.id
        for vm, points in parts.world.points.items()
        for point in points
        if not point.damaged and name in copies_of(policies, vms.get(vm), point)
    ]


def unknown(policies: PolicySet, known: dict[str, sections.Copy]) -> list[str]:
    """The second copies that policies name and the configuration does not have."""
    return sorted({name for policy in policies.policies for name in policy.copies} - known.keys())


async def copy_all(parts: Parts) -> str:
    """One pass over every second copy; the trouble of one keeps none of the others from its pass."""
    for name in unknown(parts.rulebook.in_force, parts.config.copies):
        parts.upkeep[f"copy {name}"] = UNKNOWN.format(name)
        log.error("second copy not made", extra={"copy": name, "why": UNKNOWN.format(name)})
    if not parts.world.inventory_known:
        return "waits until every vCenter's inventory is known"
    said = []
    for name, section in parts.config.copies.items():
        try:
            done = await _one(parts, name, section)
        except StorageError as error:
            parts.metrics.operation_finished("copy", "failed")
            parts.metrics.copy_lacks(name, max(1, len(wanted(parts, name))))  # nobody can tell what is there
            log.error("second copy failed", extra={"copy": name, "why": str(error)})
            said.append(f"{name} failed: {error}")
        else:
            parts.metrics.operation_finished("copy", "failed" if done.outcome.failed else "done")
            said.append(f"{name}: {done}")
    return "; ".join(said) or "no second copy is configured"


async def _one(parts: Parts, name: str, section: sections.Copy) -> Pass:
    points, stop = wanted(parts, name), threading.Event()
    target = await settled(parts.threads.long, _open, parts, section)
    try:

        def copy() -> CopyOutcome:
            plan = plan_copy(parts.repository, target, points)
            parts.metrics.copy_lacks(name, len(plan.missing))
            return copy_points(parts.repository, target, plan, now=parts.now, progress=lambda _: stop_if(stop))

        with parts.queue.using_repository():
            outcome = await interruptible(parts.threads.long, stop, copy)
        plan = await settled(parts.threads.long, plan_copy, parts.repository, target, points)
        parts.metrics.copy_lacks(name, len(plan.missing))
        expired = await _retain(parts, name, target)
        freed = await _reclaim(parts, name, target)
        if outcome.copied or freed:
            await settled(parts.threads.long, target.renew_locks, parts.now())
    finally:
        await settled(parts.threads.long, target.close)
    return Pass(outcome, expired, freed)


async def _retain(parts: Parts, name: str, target: Repository) -> int:
    """Retention in the copy, by the same policies and under the same guards; how many restore points expired."""
    if parts.sources.clock_doubt:
        return 0
    by_vm: dict[VmId, list[RestorePoint]] = {}
    for point in await settled(parts.threads.long, target.points):
        by_vm.setdefault(point.vm, []).append(point)
    run = await maintenance.plan_apart(
        by_vm,
        parts.world,
        parts.rulebook.in_force,
        parts.threads,
        now=parts.now(),
        max_expire=parts.config.maintenance.max_expire,
    )
    done = await maintenance.carry_out_run(run, target, parts.threads, parts.still_going, now=parts.now())
    entries = [Audited(parts.now(), f"copy {name}", "expire", one.point, one.reason) for one in done.expired]
    if entries:
        await settled(parts.threads.state, parts.state.audit, *entries)
    return len(entries)


async def _reclaim(parts: Parts, name: str, target: Repository) -> int:
    """Free what the copy no longer needs, as often as the repository's own."""
    now = parts.now()
    if parts.sources.clock_doubt or now < parts.copies_reclaimed.get(name, now) + parts.config.timers.reclaim:
        parts.copies_reclaimed.setdefault(name, now)
        return 0
    parts.copies_reclaimed[name] = now
    ages = SafetyAges(min_age=parts.config.maintenance.orphan_pack)
    plan = await maintenance.reclaim_plan(target, ages, parts.threads, now=parts.now())
    return (await maintenance.reclaim(target, plan, parts.threads, now=parts.now())).freed_bytes


def _open(parts: Parts, section: sections.Copy) -> Repository:
    passphrase = section.passphrase
    return open_repository(
        section.place(parts.config.state_dir),
        passphrase=passphrase.read if passphrase is not None else None,
        must_be_encrypted=passphrase is not None,
        now=parts.now,
        owner="the second copies of an engine",
    )
