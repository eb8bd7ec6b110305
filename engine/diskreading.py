"""One disk of a run: the question what changed, the way to it, the copy, and what change tracking forgot to tell."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import cast

from connectors.disks import AsyncReader, BlockingReader, Changes, DiskReader, Extent, Incremental, Whole
from connectors.errors import ReadFailed, TrackingUnusable, TransportFailed
from connectors.hypervisor import Fallback, OpenDisk, Snapshot, SnapshotDisk, TrackedBase
from engine.attempts import Attempt, Means
from engine.comparing import Comparing
from engine.copying import Copied, Sink, copy_disk, plan_copy
from engine.jobs import Check, DiskOutcome
from engine.streaming import stream_disk
from engine.threads import interruptible, settled
from policies.policy import OnCbtInvalid
from storage.ingest import DiskIngest
from storage.repository import DiskHead, DiskStats, PendingPoint, PointDetail

log = logging.getLogger("engine.backup")

NOT_TO_BE_TRUSTED = frozenset({"distrusted", "tracking_off", "tracking_reset", "query_failed", "disk_changed"})
"""Kinds of full reads of a disk whose changes were tracked when the restore point was made that it builds on."""


@dataclass(frozen=True, slots=True)
class DiskRead:
    """One disk of a run, from the question what changed to its closed record."""

    attempt: Attempt
    means: Means
    snapshot: Snapshot
    disk: SnapshotDisk
    name: str
    latest: PointDetail | None
    pending: PendingPoint

    async def carry_out(self) -> DiskOutcome:
        """Read and store the disk as the policies want it; TrackingUnusable where they want no run without tracking."""
        base, pool = self._base(), self.means.threads.repository
        changes, claimed = await self._changes(base)
        kind = self._kind(base, changes)
        told = "incremental" if isinstance(changes, Incremental) else f"whole: {changes.reason}"
        parent = (self.latest.id, base.name) if base and self.latest and isinstance(changes, Incremental) else None
        ingest = await settled(pool, self.pending.disk, self._head(told), base=parent)
        comparing: Callable[[], Comparing | None] = _nothing_to_compare
        if isinstance(claimed, Incremental) and base and self.latest:
            before = await settled(pool, self.means.repository.read_disk, self.latest.id, base.name)
            comparing = partial(Comparing, ingest, before, claimed.extents)
        opened, fallbacks, copied, check = await self._read(changes, ingest, comparing)
        if isinstance(claimed, Whole):
            check = Check("impossible", f"not compared with change tracking, which gave no answer: {claimed.reason}")
        used = {
            "transport": opened.transport,
            "fallbacks": json.dumps([[f.transport, f.reason] for f in fallbacks]),
            **({"tracking_check": check.sentence} if check is not None else {}),
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
            whole=kind,
            dedup_bytes=stats.dedup_bytes,
            zero_bytes=max(0, copied.read_bytes - stats.new_bytes - stats.dedup_bytes),
            check=check,
        )

    async def _changes(self, base: DiskHead | None) -> tuple[Changes, Changes | None]:
        """What is to be read, and where all of it is read to be compared, what change tracking says."""
        attempt, began = self.attempt, monotonic()
        tracked = None if base is None else TrackedBase(base.change_id, base.uuid, base.capacity_bytes)
        compared = bool(attempt.distrust) and tracked is not None and attempt.on_cbt_invalid is OnCbtInvalid.VERIFY
        distrust = "" if compared else attempt.distrust
        changes = await self.means.hypervisor.changes(self.snapshot, self.disk, tracked, distrust=distrust)
        attempt.tally.lap("changes", began)
        if compared:
            return Whole(attempt.distrust), changes
        lost = base is not None and base.change_id and self._kind(base, changes) in NOT_TO_BE_TRUSTED
        if lost and isinstance(changes, Whole) and attempt.on_cbt_invalid is OnCbtInvalid.FAIL:
            raise TrackingUnusable(
                f"change tracking of {self.name} cannot be trusted: {changes.reason}; its policy has such a run fail",
                where=self.snapshot.vm.name,
                hint="find out why, then read everything once: backstay backup VM --full",
            )
        unanswered = lost and attempt.on_cbt_invalid is OnCbtInvalid.VERIFY
        return changes, changes if unanswered else None

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

    async def _read(
        self, changes: Changes, ingest: DiskIngest, comparing: Callable[[], Comparing | None]
    ) -> tuple[OpenDisk, tuple[Fallback, ...], Copied, Check | None]:
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
                    compared = comparing()
                    copied = await self._copy(opened, changes, compared or ingest)
                    began = tally.lap("read", began)
                tally.lap("close", began)
                check = await settled(self.means.threads.repository, compared.result) if compared else None
                return opened, (*broken, *opened.fallbacks), copied, check
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

    async def _copy(self, opened: OpenDisk, changes: Changes, sink: Sink) -> Copied:
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
                streamed, sink, plan, lanes=means.lanes, executor=means.threads.copying, advance=self._advance
            )
        stop = threading.Event()
        blocking = cast(BlockingReader, reader)

        def copy() -> Copied:
            return copy_disk(blocking, sink, plan, threads=means.copy_threads, advance=self._advance, stop=stop)

        return await interruptible(means.threads.long, stop, copy)

    def _advance(self, done: int) -> None:
        self.attempt.tally.advance(self.name, done)


def _nothing_to_compare() -> None:
    """Nothing is held against what change tracking says."""


def _streamed(reader: DiskReader) -> AsyncReader | None:
    """The reader if its reads are awaited."""
    return cast(AsyncReader, reader) if asyncio.iscoroutinefunction(reader.read_into) else None


def _mapped(reader: DiskReader) -> Iterable[Extent]:
    return list(cast(BlockingReader, reader).extents())
