"""A restore point becomes a new VM: made from the saved configuration, its disks written, every byte checked."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import cast

from connectors.disks import AsyncWriter, BlockingWriter, Extent, pieces
from connectors.errors import ConnectorError
from connectors.hypervisor import CreatedVm, RestoreTarget
from engine.copying import PIECE_BYTES, Advance, Shared
from engine.jobs import RunId
from engine.ports import Hypervisor
from engine.streaming import first_of
from engine.threads import Threads, settled
from policies.facts import PointId
from storage.repository import PointDisk, Repository

log = logging.getLogger("engine.restore")


@dataclass(frozen=True, slots=True)
class RestoredVm:
    """What was made. It is powered off; nothing but its disks' bytes was checked."""

    vm: CreatedVm
    written_bytes: int


async def restore_vm(
    repository: Repository,
    point: PointId,
    hypervisor: Hypervisor,
    target: RestoreTarget,
    threads: Threads,
    *,
    run: RunId,
    transports: tuple[str, ...],
    lanes: int = 4,
    advance: Advance | None = None,
) -> RestoredVm:
    """Make a new VM from a restore point.

    Raises a ConnectorError or StorageError, never a group; a VM that was made before stays, as its name tells, for
    the operator to look at or remove.
    """
    pool = threads.repository
    detail = await settled(pool, repository.detail, point)
    configuration = await settled(pool, repository.configuration, point)
    if not configuration:
        raise ConnectorError(
            "the restore point holds no configuration of a VM", where=point, hint="restore its disks to files"
        )
    keys = tuple(record.head.key for record in detail.disks)
    known = 0 not in keys and len(set(keys)) == len(keys)
    made = await hypervisor.create_vm(configuration, replace(target, disks=keys if known else ()))
    log.info("VM made for a restore", extra={"vm": made.name, "point": point})
    if len(made.disks) != len(detail.disks):
        raise ConnectorError(f"{len(made.disks)} disks were made for {len(detail.disks)}", where=made.name)
    written = 0
    for index, record in enumerate(detail.disks):
        disk = await settled(pool, repository.read_disk, point, record.head.name)
        async with hypervisor.write_disk(made, index, transports=transports, run=run) as writer:
            written += await _write(disk, writer, threads, lanes, advance)
    return RestoredVm(made, written)


async def _write(
    disk: PointDisk, writer: BlockingWriter | AsyncWriter, threads: Threads, lanes: int, advance: Advance | None
) -> int:
    """Fill a fresh disk, which reads as zeros: only mapped parts are written."""
    if writer.capacity_bytes < disk.capacity_bytes:
        raise ConnectorError(f"the new disk holds {writer.capacity_bytes} bytes of {disk.capacity_bytes}")
    extents = [Extent(offset, length) for offset, length in await settled(threads.long, disk.extents)]
    work = Shared(pieces(extents, PIECE_BYTES))
    awaited = asyncio.iscoroutinefunction(writer.write)

    async def lane() -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        while (piece := work.take()) is not None:
            view = buffer[: piece.length]
            await settled(threads.copying, disk.read_into, piece.offset, view)
            if awaited:
                await cast(AsyncWriter, writer).write(piece.offset, view)
            else:
                await _blocking(threads.copying, cast(BlockingWriter, writer), piece.offset, view)
            if advance is not None:
                advance(piece.length)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    if awaited:
        await cast(AsyncWriter, writer).flush()
    else:
        await settled(threads.long, cast(BlockingWriter, writer).flush)
    return sum(extent.length for extent in extents)


async def _blocking(executor: Executor, writer: BlockingWriter, offset: int, view: memoryview) -> None:
    await settled(executor, writer.write, offset, view)
