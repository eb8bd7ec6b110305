"""One disk of a run: the question what changed, the way to it, the copy, and what change tracking forgot to tell."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import cast

from connectors.disks import AsyncReader, BlockingReader, Changes, DiskReader, Extent, Incremental, Whole
from connectors.errors import Gone, ReadFailed, TrackingUnusable, TransportFailed
from connectors.hypervisor import Fallback, OpenDisk, Snapshot, SnapshotDisk, TrackedBase
from engine import tracking_doubts
from engine.attempts import Attempt, Means, TrackingLied
from engine.comparing import Comparing
from engine.copying import Advance, Copied, CopyPlan, Sink, copy_disk, plan_copy
from engine.jobs import LIED, Check, DiskOutcome, Sampled
from engine.leases import DISK
from engine.sampling import Sample, sample_size
from engine.streaming import stream_disk
from engine.threads import interruptible, settled
from engine.ways import left_after
from policies.policy import OnCbtInvalid
from storage.errors import StorageError
from storage.ingest import DiskIngest
from storage.repository import DiskHead, DiskStats, PendingPoint, PointDetail

log = logging.getLogger("engine.backup")

NOT_TO_BE_TRUSTED = frozenset(
    {
        "distrusted", "tracking_off", "tracking_reset", "tracking_damaged", "unknown_change_id", "query_failed",
        "disk_changed", "reverted", "relocated", "known_defect",
    }
)  # fmt: skip
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
        base = self._base()
        changes, claimed = await self._changes(base)
        sampled: Sampled | None = None
        found = await self._read(changes, claimed, base, sampling=isinstance(changes, Incremental))
        if isinstance(found, Sampled):
            sampled, claimed, changes = found, changes, self._lied(found)
            found = await self._read(changes, claimed, base, sampling=False)
            assert not isinstance(found, Sampled)
        check, ingest, changes = found.check, found.ingest, found.changes
        if isinstance(claimed, Whole):
            check = Check("impossible", f"not compared with change tracking, which gave no answer: {claimed.reason}")
        sampled = sampled or found.sampled
        used = {
            "changes": _told(changes),
            "transport": found.opened.transport,
            "fallbacks": json.dumps([[f.transport, f.reason] for f in found.fallbacks]),
            **({"tracking_check": check.sentence} if check is not None else {}),
            **({"tracking_sampled_blocks": str(sampled.blocks)} if sampled is not None else {}),
        }
        if sampled is not None and sampled.differ:
            used[tracking_doubts.LIE_KEPT_AS] = _told(changes).removeprefix("whole: ")
        ingest.head = replace(ingest.head, attributes={**ingest.head.attributes, **used})
        stats: DiskStats = await settled(self.means.threads.repository, ingest.finish)
        return DiskOutcome(
            label=self.name,
            capacity_bytes=self.disk.disk.capacity_bytes,
            read_bytes=found.copied.read_bytes,
            new_bytes=stats.new_bytes,
            stored_bytes=stats.stored_bytes,
            transport=found.opened.transport,
            fallbacks=tuple(f"{f.transport}: {f.reason}" for f in found.fallbacks),
            changes=_told(changes),
            whole=self._kind(base, changes),
            dedup_bytes=stats.dedup_bytes,
            zero_bytes=max(0, found.copied.read_bytes - stats.new_bytes - stats.dedup_bytes),
            check=check,
            sampled=sampled,
        )

    def _lied(self, sampled: Sampled) -> Whole:
        """What to do when a sample differs: all of the disk is read, unless the policies want no run then."""
        reason = (
            f"change tracking called {sampled.differ} of {sampled.blocks} blocks unchanged that had changed "
            "when a sample was read again"
        )
        log.error("change tracking lied", extra={"vm": self.snapshot.vm.name, "disk": self.name, "why": reason})
        if self.attempt.on_cbt_invalid is OnCbtInvalid.FAIL:
            raise TrackingLied(
                f"{self.name}: {reason}; its policy has such a run fail",
                where=self.snapshot.vm.name,
                hint="find out why, then read everything once: backstay backup VM --full",
                sampled=sampled,
            )
        return Whole(reason, LIED)

    async def _changes(self, base: DiskHead | None) -> tuple[Changes, Changes | None]:
        """What is to be read, and where all of it is read to be compared, what change tracking says."""
        attempt, began = self.attempt, monotonic()
        tracked = None if base is None else _tracked(base)
        compared = bool(attempt.distrust) and tracked is not None and attempt.on_cbt_invalid is OnCbtInvalid.VERIFY
        distrust = "" if compared else tracking_doubts.with_reset(attempt.distrust, self.snapshot)
        try:
            changes = await self.means.hypervisor.changes(self.snapshot, self.disk, tracked, distrust=distrust)
        except Gone as error:
            raise ReadFailed(
                "somebody removed the snapshot, or reverted the VM, while it was backed up", where=self.snapshot.vm.name
            ) from error
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
        if changes.kind:
            return changes.kind
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
                "host_build": self.snapshot.host_build,
            },
        )

    async def _read(
        self, changes: Changes, claimed: Changes | None, base: DiskHead | None, *, sampling: bool
    ) -> _Read | Sampled:
        """Copy the disk; when the way to it breaks, again from the start by the ways that are left.

        With `sampling`, blocks that change tracking calls unchanged are held against the last restore point before
        anything is written; where one differs that is the answer, and nothing is copied.
        """
        ways = self.attempt.job.transports or self.means.transports
        none: tuple[Fallback, ...] = ()
        broken = none
        pool = self.means.threads.repository
        ingest: DiskIngest | None = None
        sampled: Sampled | None = None
        while True:
            used, refusals = "", none
            began, tally = monotonic(), self.attempt.tally
            try:
                async with self.means.hypervisor.open_disk(
                    self.snapshot, self.disk, transports=ways, run=self.attempt.run
                ) as opened:
                    used, refusals = opened.transport, opened.fallbacks
                    began = tally.lap("open", began)
                    self._measure(opened)
                    # It stays so for the ways that are left: what is stored now does not build on the last point.
                    changes = _as_it_comes(changes) if opened.sequential else changes
                    if sampling and sampled is None and isinstance(changes, Incremental):
                        sampled = await self._sample(opened, changes, base)
                        if sampled is not None and sampled.differ:
                            return sampled
                    ingest = ingest or await self._ingest(changes, base)
                    compared = await self._comparing(claimed, base, ingest)
                    with tally.leases.hold(DISK, self.name, opened.transport):
                        copied = await self._copy(opened, changes, compared or ingest)
                    began = tally.lap("read", began)
                tally.lap("close", began)
                check = await settled(pool, compared.result) if compared else None
                return _Read(opened, (*broken, *opened.fallbacks), copied, check, ingest, sampled, changes)
            except (TransportFailed, ReadFailed) as error:
                left = left_after(ways, used, [one.transport for one in broken]) if used else ()
                if not left:
                    raise
                broken, ways = (*broken, *refusals, Fallback(used, str(error))), left
                log.warning(
                    "disk starts again on another way",
                    extra={"vm": self.snapshot.vm.name, "disk": self.name, "failed": used, "why": str(error)},
                )

    async def _ingest(self, changes: Changes, base: DiskHead | None) -> DiskIngest:
        parent = (self.latest.id, base.name) if base and self.latest and isinstance(changes, Incremental) else None
        return await settled(self.means.threads.repository, self.pending.disk, self._head(_told(changes)), base=parent)

    async def _comparing(self, claimed: Changes | None, base: DiskHead | None, ingest: DiskIngest) -> Comparing | None:
        """What holds everything that is read against what change tracking claims, where that is wanted."""
        if not (isinstance(claimed, Incremental) and base and self.latest):
            return None
        before = await settled(
            self.means.threads.repository, self.means.repository.read_disk, self.latest.id, base.name
        )
        return Comparing(ingest, before, claimed.extents)

    async def _sample(self, opened: OpenDisk, told: Incremental, base: DiskHead | None) -> Sampled | None:
        """Read some of what change tracking calls unchanged, and compare; None where that is not wanted."""
        count = sample_size(self.attempt.sample, self.disk.disk.capacity_bytes // self.means.repository.block_bytes)
        if not (count and base and self.latest):
            return None
        pool, seed = self.means.threads.repository, f"{self.attempt.run}:{self.name}"
        try:
            before = await settled(pool, self.means.repository.read_disk, self.latest.id, base.name)
        except StorageError as error:
            return Sampled(reason=str(error))
        sample = await settled(pool, partial(Sample, before, told.extents, seed=seed, count=count))
        await self._through(opened, sample, sample.plan, _nobody_counts)
        return sample.result()

    def _measure(self, opened: OpenDisk) -> None:
        if opened.reader.capacity_bytes < self.disk.disk.capacity_bytes:
            raise TransportFailed(
                f"{opened.transport} shows {opened.reader.capacity_bytes} bytes of a disk of "
                f"{self.disk.disk.capacity_bytes}",
                where=self.name,
            )

    async def _copy(self, opened: OpenDisk, changes: Changes, sink: Sink) -> Copied:
        reader, means = opened.reader, self.means
        mapped: Iterable[Extent] | None = None
        if isinstance(changes, Whole):
            streamed = _streamed(reader)
            mapped = await streamed.extents() if streamed else await settled(means.threads.long, _mapped, reader)
        plan = plan_copy(
            changes,
            mapped,
            capacity_bytes=self.disk.disk.capacity_bytes,
            block_bytes=means.repository.block_bytes,
        )
        self.attempt.tally.planned[self.name] = plan.read_bytes
        self.attempt.tally.done[self.name] = 0
        copied = await self._through(opened, sink, plan, self._advance)
        if (done := self.attempt.tally.done[self.name]) != plan.read_bytes:
            raise ReadFailed(f"{done} of {plan.read_bytes} bytes were read", where=self.name)
        return copied

    async def _through(self, opened: OpenDisk, sink: Sink, plan: CopyPlan, advance: Advance) -> Copied:
        """Carry a plan out the way that suits the reader."""
        means, reader = self.means, opened.reader
        threads = 1 if opened.sequential else means.copy_threads
        if (streamed := _streamed(reader)) is not None:
            return await stream_disk(
                streamed, sink, plan, lanes=means.lanes, executor=means.threads.copying, advance=advance
            )
        stop = threading.Event()
        blocking = cast(BlockingReader, reader)

        def copy() -> Copied:
            return copy_disk(blocking, sink, plan, threads=threads, advance=advance, stop=stop)

        return await interruptible(means.threads.long, stop, copy)

    def _advance(self, done: int) -> None:
        self.attempt.tally.advance(self.name, done)


@dataclass(frozen=True, slots=True)
class _Read:
    """A disk that was read, and the way that was taken to it."""

    opened: OpenDisk
    fallbacks: tuple[Fallback, ...]
    copied: Copied
    check: Check | None
    ingest: DiskIngest
    sampled: Sampled | None
    changes: Changes


def _tracked(base: DiskHead) -> TrackedBase:
    return TrackedBase(
        base.change_id,
        base.uuid,
        base.capacity_bytes,
        base.attributes.get("file_name", ""),
        base.attributes.get("host_build", ""),
    )


def _as_it_comes(changes: Changes) -> Whole:
    """All of a disk that comes by as one stream: what change tracking calls unchanged comes by as well."""
    return changes if isinstance(changes, Whole) else Whole("an export brings all of a disk", "exported")


def _told(changes: Changes) -> str:
    return "incremental" if isinstance(changes, Incremental) else f"whole: {changes.reason}"


def _nobody_counts(done: int) -> None:
    """What a sample reads is no part of the disk's progress."""


def _streamed(reader: DiskReader) -> AsyncReader | None:
    """The reader if its reads are awaited."""
    return cast(AsyncReader, reader) if asyncio.iscoroutinefunction(reader.read_into) else None


def _mapped(reader: DiskReader) -> Iterable[Extent]:
    return list(cast(BlockingReader, reader).extents())
