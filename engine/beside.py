"""A disk of a restore point becomes one more disk of a VM that is there.

Until its first byte is written nothing is lost by taking it away, so whatever goes wrong by then leaves the VM as it
was; after that the VM stays marked as half restored, and the same restore goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from connectors.cleanup import finish
from connectors.disks import Extent
from connectors.errors import Busy, Rejected, Unreachable
from connectors.hypervisor import CreatedVm, StoragePolicy
from engine.disk_writing import is_blank
from engine.jobs import RunId
from engine.overwrite import BESIDE, Pair, write_one
from engine.restore import Means, RestoredVm, resumption
from engine.restore_guard import assert_alone, assert_writable, undone
from engine.restore_journal import Journal, Progress, Restoring
from engine.threads import settled
from policies.facts import Disk, PointId, Vm
from storage.repository import DiskRecord

NONE: Mapping[str, str] = MappingProxyType({})

UNDO_SECONDS = 900.0
"""How long it may take to take an empty disk away and hand its VM back, which a cancellation waits for."""


@dataclass(slots=True)
class _Begun:
    """How far it has come. `here`: by this attempt, and no other before it. `made` is the disk's UUID, once known.

    `unanswered`: a disk may be there, or not yet.
    """

    here: bool
    made: str = ""
    written: bool = False
    unanswered: bool = False

    def writes(self) -> None:
        """The first byte, or another, is about to be written."""
        self.written = True


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which disk of which restore point, and how it is made."""

    point: PointId
    record: DiskRecord
    datastore: str
    policy: StoragePolicy
    thin: bool


async def restore_beside(
    point: PointId,
    record: DiskRecord,
    vm: Vm,
    datastore: str,
    means: Means,
    *,
    run: RunId,
    thin: bool = True,
    storage_policies: Mapping[str, str] = NONE,
) -> RestoredVm:
    """Give the VM one more disk with the bytes of this one, or go on with the one that an interrupted restore has made.

    `storage_policies` has the name of another policy for the one that the disk had. Raises as `overwrite` does. Change
    tracking of the other disks stays as good as it was.
    """
    threads, hypervisor = means.threads, means.hypervisor
    target = f"{vm.address.moref}/{record.head.name}"
    what, label = Restoring(BESIDE, point, vm.address.vcenter, target, vm.name), record.head.name
    await assert_writable(vm, means)
    await assert_alone(what, (), vm, means, ignored=BESIDE, same=lambda mark: (mark.point, mark.disk) == (point, label))
    configuration = await settled(threads.repository, means.repository.configuration, point)
    policy = await hypervisor.policy_for_disk(configuration, record.head.key, storage_policies)
    journal = Journal(means.state_dir, what)
    before = await settled(threads.long, journal.read)
    begun = _Begun(before is None and not await hypervisor.half_restored(vm.address))
    try:
        if before is None:
            await settled(threads.long, journal.begin, version="", anew=True)
        try:
            found = await hypervisor.take_over(vm.address, (), point=point, run=run, safety=False)
        except Rejected:
            if before is None:
                begun.here = False  # nothing was changed
                await settled(threads.long, journal.finish)
            raise
        disk = _Wanted(point, record, datastore, policy, thin)
        return await _added(found, disk, vm, means, journal, before, begun, run=run)
    except BaseException as failure:
        if begun.here and not begun.written and not begun.unanswered:
            as_found = CreatedVm(vm.address, vm.name, ())
            await finish(undone(as_found, journal, means, failure, run=run, made=begun.made), within=UNDO_SECONDS)
        raise


async def _added(
    found: CreatedVm,
    wanted: _Wanted,
    vm: Vm,
    means: Means,
    journal: Journal,
    before: Progress | None,
    begun: _Begun,
    *,
    run: RunId,
) -> RestoredVm:
    threads, hypervisor = means.threads, means.hypervisor
    point, record = wanted.point, wanted.record
    goes_on, doubt = resumption(found, before)
    warnings: list[str] = []
    made = before.made if before is not None and found.resumed else ""
    added = next((disk for disk in vm.disks if made and disk.uuid == made), None)
    if added is None:
        goes_on, doubt = False, ""
        added, said = await _of_the_mark(found, record, vm, means, run)
        warnings += [said] if said else []
    if added is None:
        size, label = record.head.capacity_bytes, record.head.name
        try:
            added, lacking = await hypervisor.add_disk(
                vm.address, size, wanted.datastore, thin=wanted.thin, label=label, policy=wanted.policy
            )
        except (Unreachable, Busy):
            begun.unanswered = True
            raise
        begun.made = added.uuid
        warnings += lacking
    await settled(threads.long, journal.begin, version="", anew=not goes_on, made=added.uuid)
    taken = await hypervisor.take_over(vm.address, (added.key,), point=point, run=run, safety=False)
    if taken.disks[0].uuid != added.uuid:
        raise Rejected(f"its disk {added.label} is another one now", where=vm.name)
    await settled(threads.long, journal.begin, version=taken.version, anew=not goes_on, made=added.uuid)
    disk = await settled(threads.repository, means.repository.read_disk, point, record.head.name)
    mapped = tuple(Extent(offset, length) for offset, length in await settled(threads.long, disk.extents))
    start = before.reached.get(0, 0) if before is not None and goes_on else 0
    pair = Pair(record, taken.disks[0], mapped)
    fresh = replace(taken, resumed=found.resumed)
    done = await write_one(
        0, pair, disk, fresh, means, journal, run=run, start=start, doubt=doubt, fresh=not doubt, writes=begun.writes
    )
    begun.written = True
    await hypervisor.hand_back(taken, keep_safety=False)
    await settled(threads.long, journal.finish)
    return RestoredVm(fresh, (done,), (f"{taken.disks[0].label} was added to {vm.name}", *warnings, *taken.warnings))


async def _of_the_mark(
    found: CreatedVm, record: DiskRecord, vm: Vm, means: Means, run: RunId
) -> tuple[Disk | None, str]:
    """The disk that an engine added and died before it noted which, and what to say of one that may be another's.

    The VM's mark tells its place alone, and disks change places: it is taken for ours where it has the size and holds
    nothing, so that nothing can be lost by writing to it.
    """
    disk = next((one for one in vm.disks if found.added and one.uuid == found.added), None)
    if disk is None:
        return None, ""
    said = f"{disk.label} stands where an interrupted restore of {found.added_for} had added a disk, and is left"
    if found.added_for != record.head.name or disk.capacity_bytes != record.head.capacity_bytes:
        return None, said
    async with means.hypervisor.write_disk(
        replace(found, disks=(disk,)), 0, transports=means.transports, run=run
    ) as opened:
        blank = await is_blank(opened.writer, means.threads.copying)
    return (disk, "") if blank else (None, f"{said}: it holds data")
