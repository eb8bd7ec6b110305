"""One VM becomes one restore point: snapshot, changes, copy, clean up, commit, in that order.

The change ids reach the manifest, and with it the next run, only when the commit succeeds. Whatever fails before
abandons the restore point; readers are closed and hot-added disks detached before the snapshot goes, on every way
out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic

from connectors.errors import ConnectorError, ReadFailed, TransportFailed, Unconsolidated
from connectors.hypervisor import Snapshot, SnapshotDisk
from engine import starts, stuns, tracking_doubts
from engine.attempts import Attempt, CalledBack, Means
from engine.diskchoice import leaving_out, names_of
from engine.diskreading import DiskRead
from engine.jobs import DiskOutcome, Done
from engine.leases import SNAPSHOT
from engine.plain import show_time
from engine.ports import Hypervisor, StunClock
from engine.streaming import first_of
from engine.threads import settled
from engine.tracking_doubts import doubting, known_doubt
from policies.facts import RestorePoint, Vm, VmId
from storage.errors import Damaged
from storage.repository import PendingPoint, PointDetail, PointHead

log = logging.getLogger("engine.backup")


async def back_up(attempt: Attempt, means: Means) -> Done:
    """Make a restore point of the VM as it is now.

    Raises a ConnectorError, StorageError or CalledBack, never a group. When it raises, there is no restore point, and
    nothing is left in vCenter unless removing it is what failed.
    """
    job, vm, run, tally = attempt.job, attempt.vm, attempt.run, attempt.tally
    began = monotonic()

    def stage(name: str) -> None:
        nonlocal began
        # The disks, side by side, each add their own steps of the reading.
        began = monotonic() if tally.stage == "read" else tally.lap(tally.stage, began)
        tally.stage = name

    read_through = False
    warnings: list[str] = []
    async with AsyncExitStack() as held:
        held.enter_context(means.room.promise(run))
        points = await settled(means.threads.repository, means.repository.points, vm.id)
        await means.room.check(means.hypervisor, vm, run, points, whole=bool(attempt.distrust))
        started = monotonic()
        clock = means.hypervisor.stun_clock(vm)
        await clock.look()
        try:
            async with means.hypervisor.snapshot(
                vm,
                run=run,
                want=job.consistency,
                fallback=job.fallback,
                track=vm.tracking_supported,
                quiescing=attempt.quiescing,
                about_to=attempt.about_to,
                doubted=known_doubt(attempt.to_reset, attempt.before) if attempt.resets else None,
            ) as whole:
                held.enter_context(tally.leases.hold(SNAPSHOT, whole.name))
                await _note_stuns(attempt, clock, stuns.CREATION)
                snapshot = leaving_out(whole, attempt.left_out)
                if snapshot.slow:
                    log.warning("snapshot took long", extra={"vm": vm.name, "run": run, "why": snapshot.slow})
                if not snapshot.disks:
                    raise ConnectorError(
                        "no disk of this VM is held by a snapshot",
                        where=vm.name,
                        hint="; ".join(f"{d.label}: {d.unprotected}" for d in snapshot.unprotected),
                    )
                stage("read")
                latest = await newest_point(means, vm.id)
                snapshot = doubting(snapshot, latest)
                pending = await held.enter_async_context(_pending(means, _head(attempt, snapshot, means.engine)))
                disks = await _copy_unless_moved(attempt, means, snapshot, latest, pending)
                attempt.was_read()
                for disk in snapshot.unprotected:
                    pending.unprotected(disk.label, disk.unprotected)
                await settled(means.threads.repository, pending.configuration, snapshot.configuration)
                moved, relocated = await _still_there(snapshot, vm, means.hypervisor)
                if relocated and any(disk.changes == "incremental" for disk in disks):
                    # Nobody can tell whether the changes were those before the move or those after it.
                    raise _given_way(attempt, relocated)
                read_through = True
                await clock.look()  # what lay between, such as a vMotion, is neither
                stage("release")
        except ConnectorError as error:
            if not read_through:
                raise
            # Everything was read while the snapshot stood: the restore point is good, and the janitor finds the rest.
            what = "its disks are not merged" if isinstance(error, Unconsolidated) else "it could not be removed"
            warnings.append(f"the snapshot is left to the janitor, as {what} yet: {error}")
            log.warning("snapshot left for the janitor", extra={"vm": vm.name, "run": run, "why": str(error)})
        await _note_stuns(attempt, clock, stuns.REMOVAL)
        pending.remember(stuns.kept_with_point(tally.stuns))
        stage("commit")
        point: RestorePoint = await settled(means.threads.repository, pending.commit)
        stage("done")
        read, spent = sum(disk.read_bytes for disk in disks), monotonic() - started
        means.room.took(vm.id, read, tally.seconds.get("read", 0.0), spent)
    return Done(
        point=point.id,
        vm=vm.id,
        taken_at=snapshot.taken_at,
        consistency=snapshot.consistency,
        disks=tuple(disks),
        unprotected=tuple((d.label, d.unprotected) for d in snapshot.unprotected),
        left_out=tuple(d.label for d in snapshot.unprotected if attempt.left_out(d)),
        warnings=tuple(warnings),
        remarks=(*((snapshot.slow,) if snapshot.slow else ()), *stuns.remarks(tally.stuns)),
        stuns={when: stuns.figures(stood) for when, stood in tally.stuns.items()},
        moved=moved,
        relocated=relocated,
    )


async def newest_point(means: Means, vm: VmId) -> PointDetail | None:
    """The restore point to build on; none, rather than no backup, when it turns out to be damaged."""
    try:
        return await settled(means.threads.repository, means.repository.latest, vm)
    except Damaged as error:
        log.error("newest restore point is damaged, reading in full", extra={"vm": vm, "why": str(error)})
        return None


def _head(attempt: Attempt, snapshot: Snapshot, engine: str) -> PointHead:
    job, vm = attempt.job, attempt.vm
    return PointHead(
        vm=vm.id,
        vm_name=snapshot.vm.name,
        taken_at=snapshot.taken_at,
        aliases={
            "vcenter": vm.address.vcenter,
            "moref": vm.address.moref,
            "instance_uuid": vm.instance_uuid,
            "bios_uuid": vm.bios_uuid,
        },
        consistency=snapshot.consistency,
        locked_until=snapshot.taken_at + attempt.lock if attempt.lock else None,
        attributes={
            "policy": job.policy,
            "rule": job.rule,
            "policy_hash": job.policy_hash,
            "reason": job.reason,
            "event_key": job.event_key,
            "event_type": job.event_type,
            "event_at": show_time(job.event_at) if job.event_at else "",
            "policy_commit": job.policy_commit,
            "consistency_wanted": job.consistency.value,
            "consistency_reason": snapshot.consistency_reason,
            **({"placement": attempt.placement} if attempt.placement else {}),
            **tracking_doubts.kept_with_point(snapshot.doubted),
            **starts.kept_with_point(snapshot.vm),
            "snapshot_seconds": f"{snapshot.made_in_seconds:.1f}",
            "host": snapshot.vm.host,
            "run": attempt.run,
            "engine": engine,
        },
    )


async def _note_stuns(attempt: Attempt, clock: StunClock, when: str) -> None:
    """Remember how long the guest stood still just now. A guest that runs does so each time: no line tells nothing."""
    stood = await clock.look()
    if stood is None or not stood.seconds:
        return
    attempt.tally.stuns[when] = stood
    level = logging.WARNING if stood.longest > stuns.LONG_SECONDS else logging.INFO
    told = {"vm": attempt.vm.name, "run": attempt.run, "when": when, **stuns.figures(stood)}
    log.log(level, "guest stood still", extra=told)


@asynccontextmanager
async def _pending(means: Means, head: PointHead) -> AsyncIterator[PendingPoint]:
    """The restore point to be; abandoned in a thread on every way out but the commit."""
    pool = means.threads.repository
    pending = await settled(pool, means.repository.new_point, head)
    await settled(pool, pending.__enter__)
    try:
        yield pending
    finally:
        # It knows itself whether it was committed; the error goes on its own way.
        await settled(pool, pending.__exit__, None, None, None)


async def _copy_unless_moved(
    attempt: Attempt, means: Means, snapshot: Snapshot, latest: PointDetail | None, pending: PendingPoint
) -> list[DiskOutcome]:
    """Copy the disks; CalledBack when they cannot be read any more because they lie elsewhere now."""
    try:
        return await _copy_disks(attempt, means, snapshot, latest, pending)
    except (TransportFailed, ReadFailed) as error:
        try:
            relocated = _relocated(snapshot, await means.hypervisor.vm(attempt.vm.address))
        except ConnectorError:
            relocated = ""
        if not (relocated and attempt.gives_way):
            raise
        raise _given_way(attempt, relocated) from error


def _given_way(attempt: Attempt, relocated: str) -> Exception:
    reason = f"{attempt.vm.name} was moved to other storage while it was backed up ({relocated})"
    if attempt.gives_way:
        return CalledBack(f"{reason}; its run gives way and waits again", distrust=reason)
    return ReadFailed(reason, where=attempt.vm.name)


def _relocated(snapshot: Snapshot, after: Vm) -> str:
    """From where to where disks of the snapshot have gone, such as "ssd-1 -> ssd-2"; empty when none has.

    What is written while the snapshot stands may lie elsewhere than the disk itself, without any move.
    """
    now = {disk.uuid: disk.datastore for disk in after.disks if disk.uuid}
    gone = {
        f"{was} -> {there}"
        for was, there in ((one.disk.datastore, now.get(one.disk.uuid, "")) for one in snapshot.disks)
        if there and there != was and (was not in after.datastores or there not in snapshot.vm.datastores)
    }
    return ", ".join(sorted(gone))


async def _still_there(snapshot: Snapshot, vm: Vm, hypervisor: Hypervisor) -> tuple[str, str]:
    """Where VM and storage moved during the read, empty when not; raises when its snapshot went away meanwhile."""
    after = await hypervisor.vm(vm.address)
    if snapshot.name not in after.own_snapshots:
        raise ReadFailed(
            "the snapshot was removed or reverted while its disks were read, so what was read is not to be trusted",
            where=vm.name,
        )
    moved = f"{snapshot.vm.host} -> {after.host}" if after.host != snapshot.vm.host else ""
    return moved, _relocated(snapshot, after)


async def _copy_disks(
    attempt: Attempt, means: Means, snapshot: Snapshot, latest: PointDetail | None, pending: PendingPoint
) -> list[DiskOutcome]:
    slots = asyncio.Semaphore(means.disks_per_vm)
    outcomes: dict[int, DiskOutcome] = {}
    names = names_of(snapshot.disks)

    async def one(index: int, disk: SnapshotDisk) -> None:
        async with slots:
            reading = DiskRead(attempt, means, snapshot, disk, names[index], latest, pending)
            outcomes[index] = await reading.carry_out()

    try:
        async with asyncio.TaskGroup() as group:
            watchers = [
                group.create_task(attempt.recall.heard()),
                group.create_task(means.room.watch(means.hypervisor, snapshot.vm)),
            ]
            await asyncio.wait([group.create_task(one(index, disk)) for index, disk in enumerate(snapshot.disks)])
            for watcher in watchers:
                watcher.cancel()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return [outcomes[index] for index in range(len(snapshot.disks))]
