"""What an engine does by itself for all its repositories, one after the other: the trouble of one stops none.

The engine's own, without a name, is `engine.upkeep`'s; here are the further ones, and retention, which is planned for
all of them together.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from engine import maintenance, overview, rereading
from engine.maintenance import Retained, RetentionRun
from engine.parts import Parts, Verified
from engine.threads import settled
from metrics.labels import VerifyState
from policies.facts import PointId
from storage.errors import StorageError
from storage.reclaim import SafetyAges
from storage.repository import Repository
from storage.verify import Bounds, Scope, VerifyReport

log = logging.getLogger("engine.further")


async def retain(parts: Parts, run: RetentionRun, now: datetime) -> Retained:
    """Carry a run of retention out in every repository; what is in one that is away stays for the next run.

    What is in another repository lets a restore point expire only if it is there: where that one does not answer, or
    has lost it, the point is planned without it.
    """
    if not (parts.repositories.more or parts.repositories.away):
        return await maintenance.carry_out_run(run, parts.repository, parts.threads, parts.still_going, now=now)
    homes = {point.id: point.repository for points in parts.world.points.values() for point in points}
    there = await settled(parts.threads.repository, parts.repositories.there)
    done, trouble = Retained((), ()), None
    for name, repository in [*parts.repositories.each()]:
        here = maintenance.part_of(run, {point for point, home in homes.items() if home == name})
        going = partial(parts.still_going, repository=name, there=there)
        try:
            one = await maintenance.carry_out_run(here, repository, parts.threads, going, now=now)
        except StorageError as error:
            log.error("retention failed", extra={"repository": name, "why": str(error)})
            trouble = error
        else:
            done = Retained(done.expired + one.expired, done.marked + one.marked, done.refused + one.refused)
    if trouble is not None and not (done.expired or done.marked):
        raise trouble
    return done


async def _each(parts: Parts, what: str, work: Callable[[str, Repository], Awaitable[str]], only: str) -> str:
    said = []
    for name, repository in sorted(parts.repositories.more.items()):
        if only not in ("", name):
            continue
        try:
            said.append(f"{name}: {await work(name, repository)}")
        except StorageError as error:
            parts.metrics.operation_finished(what, "failed")
            log.error("maintenance failed", extra={"what": what, "repository": name, "why": str(error)})
            said.append(f"{name} failed: {error}")
    said += [f"{name} is away" for name in sorted(parts.repositories.away) if only in ("", name)]
    return "; ".join(said) or "there is no further repository"


async def reclaim(parts: Parts, only: str = "") -> str:
    """Condemn and free what the further repositories, or only this one, do not need any more."""
    if parts.sources.clock_doubt:
        return f"waits: {parts.sources.clock_doubt}"

    async def one(name: str, repository: Repository) -> str:
        if repository.append_only:
            return "left to the user who owns the repository"
        hours = parts.config.reclaim_hours(name)
        if not hours.is_open(parts.now()):
            return "waits for its window"
        ages = SafetyAges(min_age=parts.config.maintenance.orphan_pack)
        plan = await maintenance.reclaim_plan(repository, ages, parts.threads, now=parts.now())
        with parts.queue.using_repository(name):
            outcome = await maintenance.reclaim(
                repository, plan, parts.threads, now=parts.now(), go_on=lambda: hours.is_open(parts.now())
            )
        parts.metrics.repositories.reclaimed(max(0, outcome.freed_bytes))
        parts.metrics.operation_finished("reclaim", "done")
        if repository.locking is not None:
            await settled(parts.threads.long, repository.renew_locks, parts.now())
        return f"{outcome.freed_bytes} bytes freed, {outcome.condemned} condemned"

    return await _each(parts, "reclaim", one, only)


async def verify(parts: Parts, only: str = "") -> str:
    """Read back what was not read for a while in the further repositories, or only this one, in their windows."""

    async def one(name: str, repository: Repository) -> str:
        hours = parts.config.verify_hours(name)
        if not hours.is_open(parts.now()):
            return "waits for its window"
        deadline = hours.closes(parts.now())
        sooner = await rereading.to_begin_with(parts, deadline, name)
        bounds = Bounds(Scope.INCREMENTAL, parts.config.maintenance.reread, deadline, sooner=sooner)
        report = await read_back(parts, name, bounds=bounds)
        return f"{report.checked_bytes} bytes read, {len(report.damaged)} damaged"

    return await _each(parts, "verify", one, only)


async def read_back(
    parts: Parts,
    name: str = "",
    points: Sequence[PointId] = (),
    *,
    bounds: Bounds | None = None,
    planned: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Read one repository back, or only these restore points of it; remember and show what all of it came to.

    The engine's own is the one without a name.
    """
    before = found = verified_of(parts, name)
    if not points:
        _remember(parts, name, replace(before, state=VerifyState.RUNNING))
    try:
        with parts.queue.using_repository(name):
            report = await maintenance.verify_points(
                parts.repositories.named(name),
                parts.threads,
                now=parts.now(),
                points=points or None,
                bounds=bounds,
                planned=planned,
                progress=progress,
            )
        found = judged(report, before, parts.now())
    except StorageError:
        found = replace(before, state=VerifyState.FAILED)
        raise
    finally:
        if not points:
            _remember(parts, name, found)
    parts.metrics.operation_finished("verify", "done" if report.sound else "failed")
    if not report.sound:
        told = {"objects": len(report.damaged), "vms": ", ".join(report.vms)}
        log.error("damage found", extra={"repository": name or None, **told})
    await parts.crew.list_all_points()
    await rereading.look(parts, anew=True)
    await overview.publish_repository(parts)
    return report


def verified_of(parts: Parts, name: str) -> Verified:
    """What is known of a repository from the last verification of all of it."""
    return parts.verified_further.get(name, Verified()) if name else parts.verified


def _remember(parts: Parts, name: str, verified: Verified) -> None:
    if name:
        parts.verified_further[name] = verified
    else:
        parts.verified = verified


def judged(report: VerifyReport, before: Verified, now: datetime) -> Verified:
    """What is known of a repository after a verification of all of it."""
    since, left = report.read_back_since, report.left_bytes
    if not report.sound:
        return Verified(VerifyState.DAMAGED, before.at, len(report.damaged), since, left)
    if report.complete:
        return Verified(VerifyState.OK, now, 0, since)
    if before.state is VerifyState.DAMAGED:  # what was damaged may not have been read again
        return Verified(before.state, before.at, before.damaged, since, left)
    return Verified(VerifyState.OK, before.at, 0, since, left)
