"""Which parts of a disk changed since the last restore point, asked to the disk's end, or why that is not known.

Every doubt ends in reading the whole disk: with deduplication that costs time, never space and never data.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from pyVmomi import vim, vmodl

from connectors.disks import Changes, Extent, Incremental, Whole, merge
from connectors.errors import Busy, ConnectorError, Gone, LoginRefused, NotPermitted, TrackingUnusable, Unreachable
from connectors.hypervisor import Snapshot, SnapshotDisk, TrackedBase
from connectors.vsphere.faults import fault_key
from connectors.vsphere.session import Session
from connectors.vsphere.tracking_defects import DEFECTS, Defect, known_defect, parse_build

TRIES = 3
RETRY_SECONDS = 1.0

_FILE_FAULTS = {
    "vim.hostd.vmsvc.cbt.noTrack": ("tracking_off", "change tracking is not active on the disk"),
    "vim.hostd.vmsvc.cbt.noEpoch": (
        "unknown_change_id",
        "change tracking does not know the time of the last restore point",
    ),
    "vim.hostd.vmsvc.cbt.cannotGetChanges": (
        "tracking_damaged",
        "the change tracking file is damaged or does not fit the disk",
    ),
}
"""By message key: the kind of why and the sentence."""

_DELTA = re.compile(r"-\d{6}\.vmdk$", re.ASCII)


async def changes(
    session: Session,
    snapshot: Snapshot,
    disk: SnapshotDisk,
    base: TrackedBase | None,
    *,
    distrust: str = "",
    defects: Sequence[Defect] = DEFECTS,
) -> Changes:
    """What changed on the disk between base and the snapshot; Whole with the reason on any doubt.

    Raises Gone when the snapshot is not there any more (the run is lost then), Unreachable when vCenter is not, and
    LoginRefused.
    """
    if base is None:
        return Whole(distrust or "there is no earlier restore point of this disk")
    if distrust:
        return Whole(distrust)
    if doubted := doubt(snapshot, disk, base, defects):
        return doubted
    try:
        return Incremental(tuple(await _extents(session, snapshot, disk, base.change_id)))
    except (Gone, Unreachable, LoginRefused):
        raise
    except _NotTold as error:
        return Whole(error.what, error.kind)
    except NotPermitted as error:
        return Whole(f"changes may not be asked for: {error.what}", "query_failed")
    except ConnectorError as error:
        return Whole(f"vSphere did not tell the changes: {error.what}", "query_failed")


def doubt(
    snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase, defects: Sequence[Defect] = DEFECTS
) -> Whole | None:
    """Why changes since base are not even asked for; None when they can be."""
    capacity = disk.disk.capacity_bytes
    if not disk.change_id:
        kind = "distrusted" if snapshot.doubted else ""
        return Whole(snapshot.tracking_reason or "changes of this disk are not tracked yet", kind)
    if not base.change_id:
        return Whole("changes were not tracked when the last restore point was made")
    if base.disk_uuid and disk.disk.uuid and base.disk_uuid != disk.disk.uuid:
        return Whole("it is another disk than the one in the last restore point", "disk_changed")
    if base.capacity_bytes != capacity:
        return Whole(f"its size changed from {base.capacity_bytes} to {capacity} bytes", "disk_changed")
    before, now = base.change_id.partition("/")[::2], disk.change_id.partition("/")[::2]
    if before[0] != now[0]:
        return Whole("change tracking was reset since the last restore point", "tracking_reset")
    if before[1].isdecimal() and now[1].isdecimal() and int(now[1]) < int(before[1]):
        return Whole("the disk is older than the last restore point: it was reverted to a snapshot", "reverted")
    if base.file_name and base_file(base.file_name) != base_file(disk.disk.file_name):
        return Whole(
            f"its files were moved from {base_file(base.file_name)} to {base_file(disk.disk.file_name)}", "relocated"
        )
    for host in (snapshot.host_build, base.host_build):
        if reason := known_defect(defects, parse_build(host), capacity):
            return Whole(reason, "known_defect")
    return None


def base_file(name: str) -> str:
    """The file that a disk began with: snapshots put deltas such as "web-000001.vmdk" on top of it."""
    return _DELTA.sub(".vmdk", name)


class _NotTold(TrackingUnusable):
    """vSphere did not tell what changed; `kind` is the kind of why, for counting."""

    def __init__(self, what: str, kind: str) -> None:
        super().__init__(what)
        self.kind = kind


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
        raise _NotTold(
            f"vSphere answered for {page.startOffset}+{page.length} when asked for changes from {offset} on",
            "query_failed",
        )
    extents = [Extent(area.start, area.length) for area in page.changedArea or ()]
    for extent in extents:
        if extent.offset < offset or extent.length < 0 or extent.end > capacity:
            raise _NotTold(
                f"vSphere told of a change at {extent.offset}+{extent.length}, outside what was asked", "query_failed"
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
            kind, reason, passing = _meaning(error)
            if not reason:
                raise
            if not passing or attempt == TRIES:
                raise _NotTold(reason, kind) from error
            await asyncio.sleep(RETRY_SECONDS)
    raise AssertionError("unreachable")


def _meaning(error: ConnectorError) -> tuple[str, str, bool]:
    """Why changes cannot be told, as a kind and a sentence, and whether that may pass; empty for any other error."""
    fault = error.__cause__
    if isinstance(fault, vim.fault.FileFault):
        if known := _FILE_FAULTS.get(fault_key(fault)):
            return *known, False
        return "tracking_damaged", f"the change tracking file cannot be read: {error.what}", True
    if isinstance(fault, vmodl.fault.InvalidArgument):
        if str(fault.invalidProperty).rpartition(".")[2] == "changeId":
            return "unknown_change_id", "vSphere does not know the change id of the last restore point", False
        return "query_failed", f"vSphere refused the question for changes: {error.what}", False
    if isinstance(fault, vmodl.fault.SystemError):
        return "query_failed", f"vSphere failed to tell the changes: {error.what}", True
    if isinstance(fault, (vmodl.fault.MethodNotFound, vmodl.fault.NotSupported)):
        return "tracking_unsupported", "this vSphere does not tell changes", False
    if isinstance(error, Busy):
        return "query_failed", f"vSphere did not tell the changes: {error.what}", True
    return "", "", False
