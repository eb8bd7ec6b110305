"""Second copies of restore points, as policies ask for them: copied, retained and reclaimed by the engine on a timer.

A copy's repository is opened for each pass and closed again, so that a restore from it needs no engine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from engine import maintenance, sections, vanished
from engine.copying import stop_if
from engine.failures import BadInput
from engine.parts import Parts
from engine.records import Audited
from engine.repositories import open_section
from engine.rulebook import standing_still
from engine.threads import interruptible, settled
from engine.world import by_vm
from policies.copied import lock_in, own_retention
from policies.facts import Facts, PointId, RestorePoint, VmId
from policies.keeping import rows_of, unkept
from policies.naming import unknown_copies
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.protection import copies_of
from policies.units import counted
from storage.copies import CopyOutcome, copy_points, plan_copy
from storage.errors import StorageError
from storage.reclaim import SafetyAges
from storage.repository import Repository

log = logging.getLogger("engine.copies")

UNUSABLE = (StorageError, BadInput)
"""Why a copy cannot be opened: its store, or what the configuration says of it, such as a secret that is gone."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over a second copy did. `unread` are repositories that could not be read, each with why."""

    outcome: CopyOutcome
    expired: int
    freed_bytes: int
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing that was to be copied failed."""
        return not (self.outcome.failed or self.unread)

    def __str__(self) -> str:
        failed = f", {len(self.outcome.failed)} failed" if self.outcome.failed else ""
        return (
            f"{counted(len(self.outcome.copied), 'restore point')} copied, {self.outcome.there} there already{failed};"
            f" {self.expired} expired"
            + "".join(f"; {name or 'the repository'} cannot be read: {why}" for name, why in self.unread.items())
        )


def wanted(policies: PolicySet, facts: Facts, name: str) -> list[RestorePoint]:
    """The restore points that policies want in a second copy. Takes a second for a million of them. Pure."""
    return [
        point
        for vm, points in facts.points.items()
        for point in points
        if not point.damaged and name in copies_of(policies, facts.vms.get(vm), point)
    ]


def worth_copying(
    points: Iterable[RestorePoint],
    there: Mapping[VmId, Sequence[RestorePoint]],
    retaining: Callable[[VmId, Sequence[RestorePoint]], Sequence[Policy]],
    copy: str,
    now: datetime,
) -> list[PointId]:
    """Those of the points that the copy has or would keep, beside what is there and each other. Pure.

    Only where a policy has rules for this copy does any stay away: it would be copied to be expired again.
    """
    found: list[PointId] = []
    for vm, several in by_vm(points).items():
        held = {point.id: point for point in there.get(vm, ())}
        together = [*held.values(), *(point for point in several if point.id not in held)]
        policies = retaining(vm, together)
        rows = rows_of(together)
        going: set[PointId] = set()
        if any(own_retention(policy, copy) is not None for policy in policies):
            going = {rows[position].point.id for position in unkept(rows, policies, now)}
        found += [point.id for point in several if point.id in held or point.id not in going]
    return found


async def copy_all(parts: Parts) -> str:
    """One pass over every second copy; the trouble of one keeps none of the others from its pass."""
    for name, why in unknown_copies(parts.rulebook.in_force, parts.config.copies).items():
        parts.upkeep[f"copy {name}"] = why
        log.error("second copy not made", extra={"copy": name, "why": why})
    if not parts.world.inventory_known:
        return "waits until every vCenter's inventory is known"
    async with parts.copies_busy:
        return "; ".join(await _all(parts)) or "no second copy is configured"


async def look(parts: Parts) -> None:
    """List every second copy, as a change of policies is planned with what is there; later passes list anew."""
    for name, section in parts.config.copies.items():
        async with parts.copies_busy:
            if name not in parts.world.unseen_copies:
                continue
            try:
                parts.world.set_copy(name, await settled(parts.threads.long, _listed, parts, section))
            except UNUSABLE as error:
                log.warning("second copy not listed", extra={"copy": name, "why": str(error)})


async def _all(parts: Parts) -> list[str]:
    said = []
    for name, section in parts.config.copies.items():
        try:
            done = await _one(parts, name, section)
        except UNUSABLE as error:
            parts.metrics.operation_finished("copy", "failed")
            facts = standing_still(parts.world.facts(parts.now()))
            lacks = await settled(parts.threads.long, wanted, parts.rulebook.in_force, facts, name)
            parts.metrics.repositories.copy_lacks(name, max(1, len(lacks)))  # nobody can tell what is there
            log.error("second copy failed", extra={"copy": name, "why": str(error)})
            said.append(f"{name} failed: {error}")
        else:
            parts.metrics.operation_finished("copy", "done" if done.whole else "failed")
            said.append(f"{name}: {done}")
    return said


async def _one(parts: Parts, name: str, section: sections.Copy) -> Pass:
    target = await settled(parts.threads.long, _open, parts, section)
    try:
        parts.world.set_copy(name, await settled(parts.threads.long, _by_vm, target))
        outcome, unread = await _copy(parts, name, target, [])
        if outcome.failed:  # what stayed away beside a better one that cannot be read may be needed now
            again, unread = await _copy(parts, name, target, [point for point, _ in outcome.failed])
            outcome = _joined(outcome, again, there=outcome.there, expired=outcome.expired)
        expired = await _retain(parts, name, target)
        freed = await _reclaim(parts, name, target)
        if outcome.copied or freed:
            await settled(parts.threads.long, target.renew_locks, parts.now())
        parts.world.set_copy(name, await settled(parts.threads.long, _by_vm, target))
    finally:
        await settled(parts.threads.long, target.close)
    return Pass(outcome, expired, freed, unread)


async def _copy(
    parts: Parts, name: str, target: Repository, without: Collection[PointId]
) -> tuple[CopyOutcome, Mapping[str, str]]:
    """Copy what belongs there and is not among those that cannot be read; also the repositories that were not read."""
    policies, stop, doubt = parts.rulebook.in_force, threading.Event(), bool(parts.sources.clock_doubt)
    facts = standing_still(parts.world.facts(parts.now()))

    def retaining(vm: VmId, points: Sequence[RestorePoint]) -> Sequence[Policy]:
        return policies.retaining(facts.vms.get(vm), points, removed=vm in facts.left, copy=name)

    def locks(points: Iterable[RestorePoint]) -> dict[PointId, datetime]:
        found = {}
        for point in points:
            vm = facts.vms.get(point.vm)
            if vm is not None and (lock := lock_in(policies.matching(vm), name)):
                found[point.id] = point.taken_at + lock
        return found

    def copy() -> tuple[CopyOutcome, Mapping[str, str]]:
        points = [point for point in wanted(policies, facts, name) if point.id not in without]
        wants = [point.id for point in points]
        if not doubt:  # whom to leave out depends on the time
            wants = worth_copying(points, facts.points_in(name), retaining, name, facts.now)
        home = {point.id: point.repository for point in points}
        done, lacking = _NOTHING, set[PointId]()
        unread: dict[str, str] = {}
        for name_of_source, source in parts.repositories.each():
            here = [point for point in wants if home[point] == name_of_source]
            try:
                plan = plan_copy(source, target, here)
                parts.metrics.repositories.copy_lacks(name, len(lacking) + len(plan.missing) + len(without))
                made = copy_points(
                    source,
                    target,
                    plan,
                    now=parts.now,
                    progress=lambda _: stop_if(stop),
                    locked_until=locks(plan.missing),
                )
                lacking |= {point.id for point in plan_copy(source, target, here).missing}
            except StorageError as error:
                if not name_of_source or _answers(source):
                    raise
                log.error("source of a second copy not read", extra={"repository": name_of_source, "why": str(error)})
                unread[name_of_source] = str(error)
                continue
            done = _joined(done, made, there=done.there + made.there, expired=done.expired + made.expired)
        has = target.point_ids()
        beyond = {point for point in wants if home[point] in unread or home[point] in parts.repositories.away}
        lacking |= beyond - has
        parts.copies_barred[name] = frozenset(wants) - has - lacking
        parts.metrics.repositories.copy_lacks(name, len(lacking) + len(without))
        return done, unread

    with parts.queue.using_repository(*(source for source, _ in parts.repositories.each())):
        return await interruptible(parts.threads.long, stop, copy)


def _answers(source: Repository) -> bool:
    try:
        source.points()
        source.point_ids()
    except StorageError:
        return False
    return True


_NOTHING = CopyOutcome((), 0, 0, 0, 0, ())


def _joined(first: CopyOutcome, second: CopyOutcome, *, there: int, expired: int) -> CopyOutcome:
    return CopyOutcome(
        copied=first.copied + second.copied,
        there=there,
        expired=expired,
        moved_bytes=first.moved_bytes + second.moved_bytes,
        stored_bytes=first.stored_bytes + second.stored_bytes,
        failed=first.failed + second.failed,
    )


async def _retain(parts: Parts, name: str, target: Repository) -> int:
    """Retention in the copy, by the same policies and under the same guards; how many restore points expired."""
    if parts.sources.clock_doubt:
        return 0
    parts.world.set_copy(name, await settled(parts.threads.long, _by_vm, target))
    run = await maintenance.plan_apart(
        parts.world.copies[name],
        parts.world,
        parts.rulebook.in_force,
        parts.threads,
        now=parts.now(),
        max_expire=parts.config.maintenance.max_expire,
        copy=name,
        gone=await vanished.expired_lately(parts, parts.now(), name),
    )
    parts.copies_refused.pop(name, None)
    if run.refusal:
        parts.copies_refused[name] = run.refusal
    going = partial(parts.still_going, copy=name)
    done = await maintenance.carry_out_run(run, target, parts.threads, going, now=parts.now())
    entries = [Audited(parts.now(), vanished.who_of(name), "expire", one.point, one.reason) for one in done.expired]
    if entries:
        await settled(parts.threads.state, parts.state.audit, *entries)
    return len(entries)


async def _reclaim(parts: Parts, name: str, target: Repository) -> int:
    """Free what the copy no longer needs, as often as the repository's own and in its hours."""
    now, hours = parts.now(), parts.config.hours_of(parts.config.copies.get(name))
    if not hours.is_open(now):
        parts.copies_reclaimed.setdefault(name, now)
        return 0
    if parts.sources.clock_doubt or now < parts.copies_reclaimed.get(name, now) + parts.config.timers.reclaim:
        parts.copies_reclaimed.setdefault(name, now)
        return 0
    parts.copies_reclaimed[name] = now
    ages = SafetyAges(min_age=parts.config.maintenance.orphan_pack)
    plan = await maintenance.reclaim_plan(target, ages, parts.threads, now=parts.now())
    outcome = await maintenance.reclaim(
        target, plan, parts.threads, now=parts.now(), go_on=lambda: hours.is_open(parts.now())
    )
    return outcome.freed_bytes


def _listed(parts: Parts, section: sections.Copy) -> Mapping[VmId, tuple[RestorePoint, ...]]:
    with _open(parts, section) as target:
        return _by_vm(target)


def _by_vm(target: Repository) -> Mapping[VmId, tuple[RestorePoint, ...]]:
    return by_vm(target.points())


def _open(parts: Parts, section: sections.Copy) -> Repository:
    return open_section(section, parts.config.state_dir, parts.now, "the second copies of an engine")
