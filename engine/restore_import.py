"""A restore point becomes a new VM by vCenter's own import: every disk a stream, every byte checked, all or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from connectors.disks import BlockingWriter, Extent
from connectors.errors import ConnectorError
from connectors.hypervisor import RestoreTarget
from engine.disk_writing import Filling, pour
from engine.jobs import RunId
from engine.ports import Importing
from engine.restore import DiskWritten, Means, RestoredVm, disk_keys
from engine.streaming import first_of
from engine.threads import settled
from engine.ways import IMPORT
from policies.facts import PointId
from storage.repository import PointDetail, PointDisk

log = logging.getLogger("engine.restore")

DISKS_AT_ONCE = 4
"""Disks of one VM that are sent at a time; each has its stream, and `AHEAD` pieces in memory."""

AHEAD = 3

BEGIN_AGAIN = "an import does not go on: what is left of it is removed, and the same command begins again"


@dataclass(frozen=True, slots=True)
class Sent:
    """A disk to be sent, and where it has data."""

    label: str
    disk: PointDisk
    extents: Sequence[Extent]


async def restore_by_import(point: PointId, target: RestoreTarget, means: Means, *, run: RunId) -> RestoredVm:
    """Have a new VM made from a restore point. It cannot go on where it was cut off: the VM is gone then.

    Raises a ConnectorError or StorageError, never a group: TransportFailed or NotPermitted where there is no import.
    """
    pool = means.threads.repository
    detail = await settled(pool, means.repository.detail, point)
    configuration = await settled(pool, means.repository.configuration, point)
    if not configuration:
        raise ConnectorError(
            "the restore point holds no configuration of a VM", where=point, hint="restore its disks to files"
        )
    sent = await to_be_sent(detail, means)
    wanted = replace(target, disks=disk_keys(detail), point=point, run=run)
    async with means.hypervisor.import_vm(configuration, wanted, [one.extents for one in sent]) as importing:
        if len(importing.vm.disks) != len(sent):
            raise ConnectorError(f"{len(importing.vm.disks)} disks are made for {len(sent)}", where=target.name)
        log.info("VM is imported for a restore", extra={"vm": importing.vm.name, "point": point})
        try:
            written = await send(importing, sent, means)
            made = await importing.complete()
        except ConnectorError as error:
            error.hint = f"{error.hint}; {BEGIN_AGAIN}" if error.hint else BEGIN_AGAIN
            raise
    return RestoredVm(made, tuple(written), made.warnings)


async def to_be_sent(detail: PointDetail, means: Means) -> list[Sent]:
    """The disks of a restore point, in its order."""
    sent: list[Sent] = []
    for record in detail.disks:
        disk = await settled(means.threads.repository, means.repository.read_disk, detail.id, record.head.name)
        mapped = [Extent(offset, length) for offset, length in await settled(means.threads.long, disk.extents)]
        sent.append(Sent(record.head.name, disk, mapped))
    return sent


async def send(importing: Importing, sent: Sequence[Sent], means: Means) -> list[DiskWritten]:
    """Send all disks, some at a time; the first error, never a group."""
    slots = asyncio.Semaphore(DISKS_AT_ONCE)
    how = Filling(means.threads.copying, AHEAD, advance=means.advance)
    written = [0] * len(sent)

    async def one(index: int, disk: PointDisk, extents: Sequence[Extent]) -> None:
        async with slots, importing.disk(index) as opened:
            writer = cast(BlockingWriter, opened.writer)
            written[index] = await pour(disk, writer, extents, how, means.threads.long, opened.cut)

    try:
        async with asyncio.TaskGroup() as group:
            for index, each in enumerate(sent):
                group.create_task(one(index, each.disk, each.extents))
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return [
        DiskWritten(each.label, each.disk.capacity_bytes, done, IMPORT)
        for each, done in zip(sent, written, strict=True)
    ]
