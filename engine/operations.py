"""The bodies of the tasks that operators submit: backup, restore, verify, reclaim. Each returns plain values."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from connectors.disk_files import is_nbd
from connectors.disks import Extent
from engine import further, maintenance
from engine.commands import BackUpDisk, BackUpVm, Reclaim, RestoreToFile, Verify
from engine.copying import stop_if
from engine.failures import BadInput, Exit, Kind, RemoteFailure, Verdict
from engine.file_restore import files_in, restore_to_file
from engine.inbox import Told
from engine.jobs import Abandoned, Done, Failed, JobId, Outcome
from engine.parts import Parts
from engine.plain import plain, point_row
from engine.rawdisk import RawDisk, back_up_file, vm_of
from engine.rawnbd import back_up_nbd
from engine.records import FULL_READ_ASKED
from engine.reports import plan_row, verify_row
from engine.tasks import Body, Watch
from engine.threads import interruptible, settled
from policies.decision import BackUp
from policies.facts import Event, EventType, PointId, RestorePoint, VmId
from storage.moments import legible
from storage.repository import PointDisk
from storage.verify import Bounds, Scope

PROGRESS_SECONDS = 0.5
"""How often the progress of a run is looked at for who follows it."""


def back_up_vm(parts: Parts, vm: VmId, asked: BackUpVm, who: str, request: str) -> Body:
    """A person's request goes the way of every event; the task waits for the job that it led to or joined."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        event = Event(
            key=f"api:{request}",
            type=EventType.BACKUP_REQUESTED,
            at=parts.now(),
            source="api",
            vm=vm,
            user=who,
            detail={"reason": legible(asked.reason)},
        )
        if asked.full:
            await settled(parts.threads.state, parts.state.distrust, vm, FULL_READ_ASKED, event.key, parts.now())
            parts.metrics.tracking_distrusted("asked")
        watch.say("waiting for its turn")
        rulings = await parts.inbox.put(Told(event))
        job = next((r.job for r in rulings if isinstance(r.decision, BackUp) and r.job is not None), None)
        if job is None:
            said = "; ".join(r.decision.reason for r in rulings) or "nothing was decided"
            raise BadInput(f"not backed up: {said}")
        outcome = await _outcome(parts, job, watch)
        while isinstance(outcome, Abandoned) and outcome.called_back:
            watch.say(outcome.reason)
            outcome = await _outcome(parts, job, watch)
        match outcome:
            case Done() as done:
                return await _made(parts, vm, done)
            case Failed() as failed:
                again = f"; it is tried again at {failed.retry_at:%H:%M:%S} UTC" if failed.retry_at else ""
                raise RemoteFailure(Verdict(Kind(failed.kind), Exit(failed.exit_code), failed.error + again))
            case Abandoned() as given_up:
                raise BadInput(f"not backed up: {given_up.reason}")

    return body


async def _outcome(parts: Parts, job: JobId, watch: Watch) -> Outcome:
    """Follow a job to the end of its next run."""
    follower = parts.crew.follow(job)
    while not follower.done():
        attempt = next((a for a in parts.crew.active.values() if a.job.id == job), None)
        if attempt is not None:
            watch.note = attempt.tally.stage
            watch.done, watch.total = sum(attempt.tally.done.values()), sum(attempt.tally.planned.values())
            watch.changed.set()
        await asyncio.wait({follower}, timeout=PROGRESS_SECONDS)
    return follower.result()


async def _made(parts: Parts, vm: VmId, done: Done) -> Mapping[str, Any]:
    listed = await settled(parts.threads.repository, parts.repositories.points, vm)
    return {
        **next((point_row(point) for point in listed if point.id == done.point), {}),
        "moved": done.moved,
        "placement": done.placement,
        "warnings": [*done.warnings, *done.remarks],
        "stuns": dict(done.stuns),
        "unprotected": [list(one) for one in done.unprotected],
        "disks": plain(done.disks),
        "exit_code": int(Exit.PARTIAL if done.lacking else Exit.DONE),
    }


def back_up_disk(parts: Parts, asked: BackUpDisk) -> Body:
    """A disk that is in no vCenter, read by the engine because it owns the repository."""
    name = parts.repositories.at(asked.repository)
    repository, known = parts.repositories.named(name), parts.world.points.get(vm_of(asked.name), ())
    changed = None if asked.changed is None else [Extent(offset, length) for offset, length in asked.changed]
    if known and known[-1].repository != name:
        changed = None  # they are since that one, and what is here is older
    raw = RawDisk(asked.source, asked.name, changed)

    async def body(watch: Watch) -> Mapping[str, Any]:
        begin, advance = _steps(watch)
        if is_nbd(asked.source):
            point = await back_up_nbd(repository, raw, parts.now(), begin, advance)
        else:
            stop = threading.Event()

            def step(done: int) -> None:
                stop_if(stop)
                advance(done)

            def work() -> RestorePoint:
                return back_up_file(repository, raw, parts.now(), begin, step)

            point = await interruptible(parts.threads.long, stop, work)
        point = replace(point, repository=name)
        parts.world.set_points(point.vm, [*parts.world.points.get(point.vm, ()), point])
        return point_row(point)

    return body


def restore_file(parts: Parts, point: PointId, asked: RestoreToFile) -> Body:
    """Disks of a restore point become files on the engine's host."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        home = await settled(parts.threads.repository, parts.repositories.home, point)
        detail = await settled(parts.threads.repository, home.detail, point)
        labels = [record.head.name for record in detail.disks]
        if asked.disk and asked.disk not in labels:
            raise BadInput(f"restore point {point} has no disk {asked.disk}", hint=f"it has: {', '.join(labels)}")
        chosen = [asked.disk] if asked.disk else labels
        targets = {chosen[0]: asked.target}
        if len(chosen) > 1:
            targets = await settled(parts.threads.long, files_in, asked.target, chosen, force=asked.force)
        results = []
        for label, target in targets.items():
            disk = await settled(parts.threads.repository, home.read_disk, point, label)
            begin, _ = _steps(watch)
            begin(f"{point} {label}", disk.record.mapped_bytes)

            written = await _write_file(parts, disk, target, asked.force, watch)
            results.append(
                {
                    "point": point,
                    "disk": label,
                    "target": str(target),
                    "capacity_bytes": disk.capacity_bytes,
                    "written_bytes": written,
                }
            )
        parts.metrics.operation_finished("restore", "done")
        return results[0] if len(results) == 1 else {"point": point, "disks": results}

    return body


async def _write_file(parts: Parts, disk: PointDisk, target: Path, force: bool, watch: Watch) -> int:
    stop = threading.Event()

    def progress(done: int) -> None:
        stop_if(stop)
        watch.done = done

    def work() -> int:
        return restore_to_file(disk, target, force=force, progress=progress)

    return await interruptible(parts.threads.long, stop, work)


def verify_repository(parts: Parts, points: list[PointId], asked: Verify) -> Body:
    """Read back and compare; the exit code tells of damage, or that time was up before all was read."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        watch.say("reading back")
        deadline = parts.now() + timedelta(seconds=asked.seconds) if asked.seconds is not None else None
        bounds = Bounds(Scope(asked.scope), timedelta(seconds=asked.reread_seconds), deadline, asked.anew)

        def planned(total: int) -> None:
            watch.note, watch.total, watch.done = "reading back", total, 0

        def progress(done: int) -> None:
            watch.done = max(watch.done, done)

        name = parts.repositories.at(asked.repository)
        if points and not asked.repository:  # of one repository, as a reading is
            home = await settled(parts.threads.repository, parts.repositories.home, points[0])
            name = parts.repositories.at(str(home.location))
        report = await further.read_back(parts, name, points, bounds=bounds, planned=planned, progress=progress)
        code = Exit.DAMAGED if not report.sound else Exit.DONE if report.complete else Exit.PARTIAL
        return {**verify_row(report), "exit_code": int(code)}

    return body


def reclaim_repository(parts: Parts, asked: Reclaim) -> Body:
    """Free what nothing needs, or only say what that would be."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        watch.say("looking for what nothing needs")
        age = None if asked.min_age_seconds is None else timedelta(seconds=asked.min_age_seconds)
        usual = parts.config.maintenance.orphan_pack
        ages = maintenance.safety(age, usual, agreed=asked.plan_only or asked.yes)
        repository = parts.repositories.named(parts.repositories.at(asked.repository))
        plan = await maintenance.reclaim_plan(repository, ages, parts.threads, now=parts.now())
        if asked.plan_only:
            return {**plan_row(plan), "exit_code": int(Exit.DONE if plan.idle else Exit.PARTIAL)}
        watch.say("freeing packs")
        outcome = await maintenance.reclaim(repository, plan, parts.threads, now=parts.now())
        parts.metrics.repositories.reclaimed(max(0, outcome.freed_bytes))
        parts.metrics.operation_finished("reclaim", "done")
        return {**plan_row(plan), "done": plain(outcome), "freed_bytes": outcome.freed_bytes}

    return body


def _steps(watch: Watch) -> tuple[Callable[[str, int], None], Callable[[int], None]]:
    lock = threading.Lock()

    def begin(note: str, total: int) -> None:
        watch.note, watch.total, watch.done = note, total, 0

    def advance(step: int) -> None:
        with lock:
            watch.done += step

    return begin, advance
