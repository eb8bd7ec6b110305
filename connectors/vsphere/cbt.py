"""Which parts of a disk changed since the last restore point, asked to the disk's end, or why that is not known.

Every doubt ends in reading the whole disk: with deduplication that costs time, never space and never data.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pyVmomi import vim, vmodl

from connectors.disks import Changes, Extent, Incremental, Whole, merge
from connectors.errors import ConnectorError, Gone, NotPermitted, TrackingUnusable, Unreachable
from connectors.hypervisor import Snapshot, SnapshotDisk, TrackedBase
from connectors.vsphere.faults import fault_key
from connectors.vsphere.session import Session

TRIES = 3
RETRY_SECONDS = 1.0

_FILE_FAULTS = {
    "vim.hostd.vmsvc.cbt.noTrack": "change tracking is not active on the disk",
    "vim.hostd.vmsvc.cbt.noEpoch": "change tracking does not know the time of the last restore point",
    "vim.hostd.vmsvc.cbt.cannotGetChanges": "the change tracking file is damaged or does not fit the disk",
}


async def changes(
    session: Session, snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase | None, *, distrust: str = ""
) -> Changes:
    """What changed on the disk between base and the snapshot; Whole with the reason on any doubt.

    Raises Gone when the snapshot is not there any more (the run is lost then), Unreachable when vCenter is not.
    """
    if base is None:
        return Whole(distrust or "there is no earlier restore point of this disk")
    if reason := distrust or doubt(snapshot, disk, base):
        return Whole(reason)
    try:
        return Incremental(tuple(await _extents(session, snapshot, disk, base.change_id)))
    except (Gone, Unreachable):
        raise
    except TrackingUnusable as error:
        return Whole(error.what)
    except NotPermitted as error:
        return Whole(f"changes may not be asked for: {error.what}")


def doubt(snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase) -> str:
    """Why changes since base are not even asked for; empty when they can be."""
    if not disk.change_id:
        return snapshot.tracking_reason or "changes of this disk are not tracked yet"
    if not base.change_id:
        return "changes were not tracked when the last restore point was made"
    if base.disk_uuid and disk.disk.uuid and base.disk_uuid != disk.disk.uuid:
        return "it is another disk than the one in the last restore point"
    if base.capacity_bytes != disk.disk.capacity_bytes:
        return f"its size changed from {base.capacity_bytes} to {disk.disk.capacity_bytes} bytes"
    before, now = _parts(base.change_id), _parts(disk.change_id)
    if before[0] != now[0]:
        return "change tracking was reset since the last restore point"
    if before[1].isdecimal() and now[1].isdecimal() and int(now[1]) < int(before[1]):
        return "the disk is older than the last restore point: it was reverted to a snapshot"
    return ""


async def _extents(session: Session, snapshot: Snapshot, disk: SnapshotDisk, since: str) -> list[Extent]:
    capacity = disk.disk.capacity_bytes
    found: list[Extent] = []
    offset = 0
    while offset < capacity:
        page = await _page(session, snapshot, disk.disk.key, offset, since)
        found.extend(checked(page, offset, capacity))
        offset += page.length
    return merge(found)


def checked(page: Any, offset: int, capacity: int) -> list[Extent]:
    """The extents of one answer; raises TrackingUnusable when it does not fit what was asked."""
    if page.startOffset != offset or page.length <= 0:
        raise TrackingUnusable(
            f"vSphere answered for {page.startOffset}+{page.length} when asked for changes from {offset} on"
        )
    extents = [Extent(area.start, area.length) for area in page.changedArea or ()]
    for extent in extents:
        if extent.offset < offset or extent.length < 0 or extent.end > capacity:
            raise TrackingUnusable(
                f"vSphere told of a change at {extent.offset}+{extent.length}, outside what was asked"
            )
    return extents


async def _page(session: Session, snapshot: Snapshot, key: int, offset: int, since: str) -> Any:
    """One answer, asked for again where the fault may pass; TrackingUnusable when it does not."""
    vm = session.managed(vim.VirtualMachine, snapshot.vm.address.moref)
    held = session.managed(vim.vm.Snapshot, snapshot.moref)
    for attempt in range(1, TRIES + 1):
        try:
            return await session.call(vm.QueryChangedDiskAreas, held, key, offset, since)
        except ConnectorError as error:
            reason, passing = _meaning(error)
            if not reason:
                raise
            if not passing or attempt == TRIES:
                raise TrackingUnusable(reason) from error
            await asyncio.sleep(RETRY_SECONDS)
    raise AssertionError("unreachable")


def _meaning(error: ConnectorError) -> tuple[str, bool]:
    """Why changes cannot be told, and whether that may pass; no reason when the error is not about tracking."""
    fault = error.__cause__
    if isinstance(fault, vim.fault.FileFault):
        known = _FILE_FAULTS.get(fault_key(fault))
        return (known, False) if known else (f"the change tracking file cannot be read: {error.what}", True)
    if isinstance(fault, vmodl.fault.InvalidArgument):
        if str(fault.invalidProperty).rpartition(".")[2] == "changeId":
            return "vSphere does not know the change id of the last restore point", False
        return "", False
    if isinstance(fault, vmodl.fault.SystemError):
        return f"vSphere failed to tell the changes: {error.what}", True
    if isinstance(fault, (vmodl.fault.MethodNotFound, vmodl.fault.NotSupported)):
        return "this vSphere does not tell changes", False
    return "", False


def _parts(change: str) -> tuple[str, str]:
    tracking, _, sequence = change.partition("/")
    return tracking, sequence
