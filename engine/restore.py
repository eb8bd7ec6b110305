"""A restore point becomes a new VM: made from the saved configuration, its disks written, every byte checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from connectors.disks import Extent
from connectors.errors import ConnectorError, NoTransport
from connectors.hypervisor import CreatedVm, Fallback, RestoreTarget
from engine.copying import Advance
from engine.disk_writing import STRIDE_BYTES, Filling, fill
from engine.jobs import RunId
from engine.ports import Hypervisor
from engine.restore_journal import Journal, Progress, Restoring
from engine.threads import Threads, settled
from policies.facts import PointId
from storage.repository import PointDetail, Repository

log = logging.getLogger("engine.restore")

NEW_VM = "new VM"


@dataclass(frozen=True, slots=True)
class Means:
    """What a restore needs beside the restore point. `state_dir` takes its journal."""

    repository: Repository
    hypervisor: Hypervisor
    threads: Threads
    state_dir: Path
    transports: tuple[str, ...]
    lanes: int = 4
    stride_bytes: int = STRIDE_BYTES
    advance: Advance | None = None


@dataclass(frozen=True, slots=True)
class DiskWritten:
    """How one disk was written. `resumed_at` is the offset before which an earlier attempt had done everything."""

    label: str
    capacity_bytes: int
    written_bytes: int
    transport: str
    fallbacks: tuple[Fallback, ...] = ()
    compared: str = ""
    resumed_at: int = 0


@dataclass(frozen=True, slots=True)
class RestoredVm:
    """What was made or written over. It is powered off; nothing but its disks' bytes was checked."""

    vm: CreatedVm
    disks: tuple[DiskWritten, ...]
    warnings: tuple[str, ...] = ()

    @property
    def written_bytes(self) -> int:
        """Bytes that were written to all disks."""
        return sum(disk.written_bytes for disk in self.disks)


async def restore_vm(point: PointId, target: RestoreTarget, means: Means, *, run: RunId) -> RestoredVm:
    """Make a new VM from a restore point, or go on with the one that an interrupted restore of it has left.

    Raises a ConnectorError or StorageError, never a group. A VM that was made before that stays, marked as half
    restored: the same restore again goes on where it ended.
    """
    pool = means.threads.repository
    detail = await settled(pool, means.repository.detail, point)
    configuration = await settled(pool, means.repository.configuration, point)
    if not configuration:
        raise ConnectorError(
            "the restore point holds no configuration of a VM", where=point, hint="restore its disks to files"
        )
    keys = disk_keys(detail)
    made = await means.hypervisor.create_vm(configuration, replace(target, disks=keys, point=point, run=run))
    log.info("VM made for a restore", extra={"vm": made.name, "point": point, "resumed": made.resumed})
    if len(made.disks) != len(detail.disks):
        raise ConnectorError(f"{len(made.disks)} disks were made for {len(detail.disks)}", where=made.name)
    journal = Journal(means.state_dir, Restoring(NEW_VM, point, made.address.vcenter, made.address.moref, made.name))
    before = await settled(means.threads.long, journal.read)
    goes_on, doubt = resumption(made, before)
    await settled(means.threads.long, journal.begin, version=made.version, anew=not goes_on)
    written: list[DiskWritten] = []
    for index, record in enumerate(detail.disks):
        disk = await settled(pool, means.repository.read_disk, point, record.head.name)
        start = before.reached.get(index, 0) if before is not None and goes_on else 0
        mapped = [Extent(offset, length) for offset, length in await settled(means.threads.long, disk.extents)]
        # A fresh disk reads as zeros; one that somebody else may have written must be looked at everywhere.
        extents = [Extent(0, disk.capacity_bytes)] if doubt else behind(mapped, start)

        async def reached(offset: int, index: int = index) -> None:
            await settled(means.threads.long, journal.note, index, offset)

        how = Filling(means.threads.copying, means.lanes, bool(doubt), means.stride_bytes, means.advance)
        try:
            async with means.hypervisor.write_disk(made, index, transports=means.transports, run=run) as opened:
                done = await fill(disk, opened.writer, extents, how, reached)
        except NoTransport as error:
            if not written and not made.resumed:
                await _discarded(made, journal, means, run, error)
            raise
        written.append(
            DiskWritten(record.head.name, disk.capacity_bytes, done, opened.transport, opened.fallbacks, doubt, start)
        )
    await means.hypervisor.finish_vm(made)
    await settled(means.threads.long, journal.finish)
    return RestoredVm(made, tuple(written), made.warnings)


async def _discarded(made: CreatedVm, journal: Journal, means: Means, run: RunId, why: NoTransport) -> None:
    """A new VM whose disks are out of reach is of no use: take it away, or say that it stays."""
    try:
        await means.hypervisor.discard_vm(made, run=run)
    except ConnectorError as error:
        why.add_note(f"the VM {made.name} that was made could not be removed: {error}")
        log.warning("VM without content stays", extra={"vm": made.name, "why": str(error)})
        return
    await settled(means.threads.long, journal.finish)


def disk_keys(detail: PointDetail) -> tuple[int, ...]:
    """The device keys of the restore point's disks, in order; none where they are not known."""
    keys = tuple(record.head.key for record in detail.disks)
    return keys if 0 not in keys and len(set(keys)) == len(keys) else ()


def resumption(made: CreatedVm, before: Progress | None) -> tuple[bool, str]:
    """Whether the restore goes on where an earlier one ended, else why all of the disks is compared, if it is. Pure."""
    if made.other:
        return False, "another restore has written to it"
    if not made.resumed:
        return False, ""
    if before is None:
        return False, "how far the interrupted restore came is not known any more"
    if before.version != made.found_version:
        return False, "the VM was changed since the restore was interrupted"
    return True, ""


def behind(extents: list[Extent], start: int) -> list[Extent]:
    """The parts of the extents from this offset on."""
    return [Extent(max(e.offset, start), e.end - max(e.offset, start)) for e in extents if e.end > start]
