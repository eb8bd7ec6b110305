"""One VM becomes one restore point: snapshot, changes, copy, clean up, commit, in that order.

The change ids reach the manifest, and with it the next run, only when the commit succeeds. Whatever fails before
abandons the restore point; readers are closed and hot-added disks detached before the snapshot goes, on every way
out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import cast

from connectors.disks import AsyncReader, BlockingReader, Changes, DiskReader, Extent, Incremental, Whole
from connectors.errors import ConnectorError, ReadFailed, TransportFailed
from connectors.hypervisor import Fallback, OpenDisk, Snapshot, SnapshotDisk, TrackedBase
from engine.copying import Copied, copy_disk, plan_copy
from engine.diskchoice import leaving_out, names_of
from engine.jobs import DiskOutcome, Done, Job, RunId
from engine.plain import show_time
from engine.ports import Hypervisor
from engine.streaming import first_of, stream_disk
from engine.threads import Threads, interruptible, settled
from policies.facts import Disk, RestorePoint, Vm
from storage.errors import Damaged
from storage.ingest import DiskIngest
from storage.repository import DiskHead, DiskStats, PendingPoint, PointDetail, PointHead, Repository

log = logging.getLogger("engine.backup")

DEFAULT_TRANSPORTS = ("hotadd", "nbd")


@dataclass(slots=True)
class Tally:
    """How far a run is, in bytes per disk label; read by the status while the run goes on."""

    stage: str = "snapshot"
    planned: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lap(self, step: str, began: float) -> float:
        """A step that began at this time of `monotonic` is over; the time now. From the event loop."""
        now = monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - began
        return now

    def advance(self, label: str, done: int) -> None:
        """So many more bytes of the plan are done; from any thread."""
        with self.lock:
            self.done[label] = self.done.get(label, 0) + done


@dataclass(frozen=True, slots=True)
class Means:
    """What a run works with. Memory of reading is `disks_per_vm * lanes` pieces of 1 MiB."""

    hypervisor: Hypervisor
    repository: Repository
    threads: Threads
    engine: str
    transports: tuple[str, ...] = DEFAULT_TRANSPORTS
    disks_per_vm: int = 2
    lanes: int = 4
    copy_threads: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a backup job. `distrust` is why change tracking may lie, empty when nothing is known against it.

    Nobody can expire the restore point for as long as `lock` says. `left_out` tells why the policies want a disk left
    out, "" when they do not.
    """

    job: Job
    vm: Vm
    run: RunId
    distrust: str = ""
    tally: Tally = field(default_factory=Tally)
    lock: timedelta = timedelta()
    left_out: Callable[[Disk], str] = lambda disk: ""


async def back_up(attempt: Attempt, means: Means) -> Done:
    """Make a restore point of the VM as it is now.

    Raises a ConnectorError or StorageError, never a group. When it raises, there is no restore point, and nothing
    is left in vCenter unless removing it is what failed.
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
        try:
            async with means.hypervisor.snapshot(
                vm, run=run, want=job.consistency, fallback=job.fallback, track=vm.tracking_supported
            ) as whole:
                snapshot = leaving_out(whole, attempt.left_out)
                if not snapshot.disks:
                    raise ConnectorError(
                        "no disk of this VM is held by a snapshot",
                        where=vm.name,
                        hint="; ".join(f"{d.label}: {d.unprotected}" for d in snapshot.unprotected),
                    )
                stage("read")
                latest = await _latest(means, vm)
                pending = await held.enter_async_context(_pending(means, _head(attempt, snapshot, means.engine)))
                disks = await _copy_disks(attempt, means, snapshot, latest, pending)
                for disk in snapshot.unprotected:
                    pending.unprotected(disk.label, disk.unprotected)
                await settled(means.threads.repository, pending.configuration, snapshot.configuration)
                moved = await _still_there(snapshot, vm, means.hypervisor)
                read_through = True
                stage("release")
        except ConnectorError as error:
            if not read_through:
                raise
            # Everything was read while the snapshot stood: the restore point is good, and the janitor finds the rest.
            warnings.append(f"the snapshot could not be removed yet: {error}")
            log.warning("snapshot left for the janitor", extra={"vm": vm.name, "run": run, "why": str(error)})
        stage("commit")
        point: RestorePoint = await settled(means.threads.repository, pending.commit)
        stage("done")
    return Done(
        point=point.id,
        vm=vm.id,
        taken_at=snapshot.taken_at,
        consistency=snapshot.consistency,
        disks=tuple(disks),
        unprotected=tuple((d.label, d.unprotected) for d in snapshot.unprotected),
        left_out=tuple(d.label for d in snapshot.unprotected[len(whole.unprotected) :]),
        warnings=tuple(warnings),
        moved=moved,
    )


async def _latest(means: Means, vm: Vm) -> PointDetail | None:
    """The restore point to build on; none, rather than no backup, when it turns out to be damaged."""
    try:
        return await settled(means.threads.repository, means.repository.latest, vm.id)
    except Damaged as error:
        log.error("newest restore point is damaged, reading in full", extra={"vm": vm.name, "why": str(error)})
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
            "host": snapshot.vm.host,
            "run": attempt.run,
            "engine": engine,
        },
    )


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


async def _still_there(snapshot: Snapshot, vm: Vm, hypervisor: Hypervisor) -> str:
    """Where the VM moved during the read, empty when it did not; raises when its snapshot went away meanwhile."""
    after = await hypervisor.vm(vm.address)
    if snapshot.name not in after.own_snapshots:
        raise ReadFailed(
            "the snapshot was removed or reverted while its disks were read, so what was read is not to be trusted",
            where=vm.name,
        )
    return f"{snapshot.vm.host} -> {after.host}" if after.host != snapshot.vm.host else ""


async def _copy_disks(
    attempt: Attempt, means: Means, snapshot: Snapshot, latest: PointDetail | None, pending: PendingPoint
) -> list[DiskOutcome]:
    slots = asyncio.Semaphore(means.disks_per_vm)
    outcomes: dict[int, DiskOutcome] = {}
    names = names_of(snapshot.disks)

    async def one(index: int, disk: SnapshotDisk) -> None:
        async with slots:
            reading = _DiskRead(attempt, means, snapshot, disk, names[index], latest, pending)
            outcomes[index] = await reading.carry_out()

    try:
        async with asyncio.TaskGroup() as group:
            for index, disk in enumerate(snapshot.disks):
                group.create_task(one(index, disk))
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return [outcomes[index] for index in range(len(snapshot.disks))]


@dataclass(frozen=True, slots=True)
class _DiskRead:
    """One disk of a run, from the question what changed to its closed record."""

    attempt: Attempt
    means: Means
    snapshot: Snapshot
    disk: SnapshotDisk
    name: str
    latest: PointDetail | None
    pending: PendingPoint

    async def carry_out(self) -> DiskOutcome:
        base = self._base()
        tracked = None if base is None else TrackedBase(base.change_id, base.uuid, base.capacity_bytes)
        hypervisor, pool = self.means.hypervisor, self.means.threads.repository
        began = monotonic()
        changes = await hypervisor.changes(self.snapshot, self.disk, tracked, distrust=self.attempt.distrust)
        self.attempt.tally.lap("changes", began)
        told = "incremental" if isinstance(changes, Incremental) else f"whole: {changes.reason}"
        parent = (self.latest.id, base.name) if base and self.latest and isinstance(changes, Incremental) else None
        ingest = await settled(pool, self.pending.disk, self._head(told), base=parent)
        opened, fallbacks, copied = await self._read(changes, ingest)
        used = {
            "transport": opened.transport,
            "fallbacks": json.dumps([[f.transport, f.reason] for f in fallbacks]),
        }
        ingest.head = replace(ingest.head, attributes={**ingest.head.attributes, **used})
        stats: DiskStats = await settled(pool, ingest.finish)
        return DiskOutcome(
            label=self.name,
            capacity_bytes=self.disk.disk.capacity_bytes,
            read_bytes=copied.read_bytes,
            new_bytes=stats.new_bytes,
            stored_bytes=stats.stored_bytes,
            transport=opened.transport,
            fallbacks=tuple(f"{f.transport}: {f.reason}" for f in fallbacks),
            changes=told,
            whole=self._kind(base, changes),
            dedup_bytes=stats.dedup_bytes,
            zero_bytes=max(0, copied.read_bytes - stats.new_bytes - stats.dedup_bytes),
        )

    def _kind(self, base: DiskHead | None, changes: Changes) -> str:
        """Why the disk was read in full, as a word that can be counted."""
        if isinstance(changes, Incremental):
            return ""
        if self.latest is None:
            return "first"
        if base is None:
            return "no_base"
        if self.attempt.distrust:
            return "distrusted"
        if not self.disk.change_id and not self.attempt.vm.tracking_supported:
            return "tracking_unsupported"
        if not (self.disk.change_id and base.change_id):
            return "tracking_off"
        if base.capacity_bytes != self.disk.disk.capacity_bytes:
            return "disk_changed"
        reset = base.change_id.partition("/")[0] != self.disk.change_id.partition("/")[0]
        return "tracking_reset" if reset else "query_failed"

    def _base(self) -> DiskHead | None:
        """The same disk in the newest restore point, by uuid alone: labels and places change hands."""
        uuid = self.disk.disk.uuid
        if self.latest is None or not uuid:
            return None
        found = [record.head for record in self.latest.disks if record.head.uuid == uuid]
        return found[0] if len(found) == 1 else None

    def _head(self, changes: str) -> DiskHead:
        disk = self.disk.disk
        return DiskHead(
            name=self.name,
            capacity_bytes=disk.capacity_bytes,
            uuid=disk.uuid,
            change_id=self.disk.change_id,
            key=disk.key,
            attributes={
                "changes": changes,
                "mode": disk.mode,
                "controller": disk.controller,
                "file_name": disk.file_name,
                "datastore": disk.datastore,
            },
        )

    async def _read(self, changes: Changes, ingest: DiskIngest) -> tuple[OpenDisk, tuple[Fallback, ...], Copied]:
        """Copy the disk; when the way to it breaks, once more from the start by the ways that are left."""
        ways = self.attempt.job.transports or self.means.transports
        broken: tuple[Fallback, ...] = ()
        while True:
            used = ""
            began, tally = monotonic(), self.attempt.tally
            try:
                async with self.means.hypervisor.open_disk(
                    self.snapshot, self.disk, transports=ways, run=self.attempt.run
                ) as opened:
                    used = opened.transport
                    began = tally.lap("open", began)
                    copied = await self._copy(opened, changes, ingest)
                    began = tally.lap("read", began)
                tally.lap("close", began)
                return opened, (*broken, *opened.fallbacks), copied
            except (TransportFailed, ReadFailed) as error:
                # The same way once more where it is the only one: after a move a new opening asks for the new host.
                if not used or broken:
                    raise
                broken = (Fallback(used, str(error)),)
                ways = tuple(w for w in ways if w != used) or ways
                log.warning(
                    "disk starts again on another way",
                    extra={"vm": self.snapshot.vm.name, "disk": self.name, "failed": used, "why": str(error)},
                )

    async def _copy(self, opened: OpenDisk, changes: Changes, ingest: DiskIngest) -> Copied:
        reader, means = opened.reader, self.means
        streamed = _streamed(reader)
        if reader.capacity_bytes < self.disk.disk.capacity_bytes:
            raise TransportFailed(
                f"{opened.transport} shows {reader.capacity_bytes} bytes of a disk of {self.disk.disk.capacity_bytes}",
                where=self.name,
            )
        mapped: Iterable[Extent] | None = None
        if isinstance(changes, Whole):
            mapped = await streamed.extents() if streamed else await settled(means.threads.long, _mapped, reader)
        plan = plan_copy(
            changes,
            mapped,
            capacity_bytes=self.disk.disk.capacity_bytes,
            block_bytes=means.repository.block_bytes,
        )
        self.attempt.tally.planned[self.name] = plan.read_bytes
        self.attempt.tally.done[self.name] = 0
        if streamed is not None:
            return await stream_disk(
                streamed, ingest, plan, lanes=means.lanes, executor=means.threads.copying, advance=self._advance
            )
        stop = threading.Event()
        blocking = cast(BlockingReader, reader)

        def copy() -> Copied:
            return copy_disk(blocking, ingest, plan, threads=means.copy_threads, advance=self._advance, stop=stop)

        return await interruptible(means.threads.long, stop, copy)

    def _advance(self, done: int) -> None:
        self.attempt.tally.advance(self.name, done)


def _streamed(reader: DiskReader) -> AsyncReader | None:
    """The reader if its reads are awaited."""
    return cast(AsyncReader, reader) if asyncio.iscoroutinefunction(reader.read_into) else None


def _mapped(reader: DiskReader) -> Iterable[Extent]:
    return list(cast(BlockingReader, reader).extents())
