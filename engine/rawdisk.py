"""A disk that is in no vCenter becomes a restore point: what `disk backup` does, here or inside an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from connectors.disk_files import FileReader
from connectors.disks import Changes, Extent, Incremental, Whole, merge
from engine.copying import copy_disk, plan_copy
from engine.extentlist import check_fit
from engine.failures import BadInput
from policies.facts import Consistency, PointId, RestorePoint, VmId
from storage.moments import legible
from storage.repository import DiskHead, PointDetail, PointHead, Repository

DISK_NAME = "disk"
"""The label of the only disk of such a restore point."""

Begin = Callable[[str, int], None]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class RawDisk:
    """What is backed up: the source as it was named, its own name, and what changed since its last restore point."""

    source: str
    name: str
    changed: Sequence[Extent] | None = None


def vm_of(name: str) -> VmId:
    """The id under which the restore points of a raw disk are kept; BadInput for a name that none can have."""
    if not name or len(name) > 255 or not name.isprintable() or name != name.strip():
        raise BadInput("this is not a possible name", where="--name", hint="1 to 255 printable characters")
    return VmId(f"disk:{name}")


def plan_changes(raw: RawDisk, base: PointDetail | None, capacity_bytes: int) -> Changes:
    """What is read: what was named since the base, and what the disk has grown by; all of it without a base."""
    if raw.changed is None:
        return Whole("no list of changes was given")
    check_fit(list(raw.changed), capacity_bytes, "changed extents")
    if base is None or len(base.disks) != 1:
        return Whole(f"there is no earlier restore point of {raw.name} to build on")
    before = base.disks[0].head.capacity_bytes
    grown = [Extent(before, capacity_bytes - before)] if capacity_bytes > before else []
    return Incremental(tuple(merge([*raw.changed, *grown])))


def back_up_file(repository: Repository, raw: RawDisk, now: datetime, begin: Begin, advance: Advance) -> RestorePoint:
    """Read a file or block device into a new restore point. Blocking."""
    vm = vm_of(raw.name)
    source = Path(raw.source)
    if source.exists() and not (source.is_file() or source.is_block_device()):
        raise BadInput("is neither a file nor a block device", where=raw.source or "an empty name")
    with FileReader(source) as reader:
        base = repository.latest(vm) if raw.changed is not None else None
        changes = plan_changes(raw, base, reader.capacity_bytes)
        mapped = reader.extents() if isinstance(changes, Whole) else None
        plan = plan_copy(changes, mapped, capacity_bytes=reader.capacity_bytes, block_bytes=repository.block_bytes)
        begin(raw.name, plan.read_bytes)
        with repository.new_point(point_head(raw, vm, now)) as pending:
            head = disk_head(raw, reader.capacity_bytes, changes, "file")
            ingest = pending.disk(head, base=base_disk(base, changes))
            copy_disk(reader, ingest, plan, advance=advance)
            ingest.finish()
            return pending.commit()


def point_head(raw: RawDisk, vm: VmId, now: datetime) -> PointHead:
    """The restore point before its data is read. Nobody froze the source, so it promises no more than a crash does."""
    return PointHead(vm, raw.name, now, consistency=Consistency.CRASH, attributes={"reason": "disk backup"})


def disk_head(raw: RawDisk, capacity_bytes: int, changes: Changes, transport: str) -> DiskHead:
    """The disk with how it was read."""
    how = "incremental" if isinstance(changes, Incremental) else f"whole: {changes.reason}"
    attributes = {"transport": transport, "changes": how, "file_name": legible(raw.source)}
    return DiskHead(DISK_NAME, capacity_bytes, attributes=attributes)


def base_disk(base: PointDetail | None, changes: Changes) -> tuple[PointId, str] | None:
    """What an incremental builds on."""
    if base is None or not isinstance(changes, Incremental):
        return None
    return base.id, base.disks[0].head.name
