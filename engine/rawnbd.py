"""The same for a disk behind an NBD address, read with several requests under way."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from connectors.disks import Whole
from connectors.nbd import open_nbd
from connectors.nbd_protocol import NbdAddress, parse_uri
from engine.copying import plan_copy
from engine.failures import BadInput
from engine.rawdisk import Advance, Begin, RawDisk, base_disk, disk_head, plan_changes, point_head, vm_of
from engine.streaming import stream_disk
from engine.threads import settled
from policies.facts import RestorePoint
from storage.repository import Repository

LANES = 8
"""Reads under way on one connection; memory is as many MiB."""

THREADS = 2


async def back_up_nbd(
    repository: Repository, raw: RawDisk, now: datetime, begin: Begin, advance: Advance
) -> RestorePoint:
    """Read an NBD export into a new restore point."""
    vm = vm_of(raw.name)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="ingest") as executor:
        async with open_nbd(_address(raw.source)) as reader:
            base = await settled(executor, repository.latest, vm) if raw.changed is not None else None
            changes = plan_changes(raw, base, reader.capacity_bytes)
            mapped = await reader.extents() if isinstance(changes, Whole) else None
            plan = plan_copy(changes, mapped, capacity_bytes=reader.capacity_bytes, block_bytes=repository.block_bytes)
            begin(raw.name, plan.read_bytes)
            with repository.new_point(point_head(raw, vm, now)) as pending:
                head = disk_head(raw, reader.capacity_bytes, changes, "nbd")
                ingest = pending.disk(head, base=base_disk(base, changes))
                await stream_disk(reader, ingest, plan, lanes=LANES, executor=executor, advance=advance)
                await settled(executor, ingest.finish)
                return await settled(executor, pending.commit)


def _address(source: str) -> NbdAddress:
    try:
        return parse_uri(source)
    except ValueError as error:
        named = re.sub("//[^/]*@", "//…@", source)  # a password may stand there
        raise BadInput(
            str(error), where=named, hint="nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH"
        ) from None
