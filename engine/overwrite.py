"""Writing a restore point over a VM that is there: all of it in place, or one disk over another.

Only blocks that differ are written. Which these may be is told by change tracking since the newest restore point and by
the maps of the two restore points; where tracking cannot be trusted every block is read and compared.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from connectors.disks import Extent, Incremental, Whole, align, merge, total
from connectors.errors import NoTransport, Rejected
from connectors.hypervisor import CreatedVm, TrackedBase
from engine.disk_writing import Filling, fill
from engine.failures import Declined
from engine.jobs import RunId
from engine.restore import DiskWritten, Means, RestoredVm, behind, resumption
from engine.restore_guard import as_it_was, assert_alone, assert_writable
from engine.restore_journal import Journal, Restoring
from engine.threads import settled
from engine.tracking_doubts import known_doubt
from policies.facts import Consistency, Disk, PointId, PowerState, RestorePoint, Vm
from storage.repository import DiskRecord, PointDetail, PointDisk

log = logging.getLogger("engine.restore")

IN_PLACE = "in place"
OVER_DISK = "over a disk"
BESIDE = "as a further disk"

ROOM_SHARE = 1.1
"""Free space on a datastore for what a restore writes above a snapshot, and for what describes it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A disk of the restore point and the VM's disk that it is written to. `extents` is None for all of it, and why."""

    record: DiskRecord
    disk: Disk
    extents: tuple[Extent, ...] | None = None
    why_all: str = ""

    @property
    def at_most_bytes(self) -> int:
        """What may be written."""
        return self.disk.capacity_bytes if self.extents is None else total(self.extents)


@dataclass(frozen=True, slots=True)
class Overwrite:
    """What a person asked for. `discard`: without a snapshot for safety, also what was never backed up is given up."""

    kind: str
    point: PointId
    safety: bool = True
    keep_safety: bool = False
    discard: bool = False


def matched(detail: PointDetail, vm: Vm) -> list[Pair]:
    """The VM's disks for those of the restore point, by their UUIDs alone: labels and places change hands. Pure.

    Rejected when one is not there any more, or cannot hold what was on it.
    """
    by_uuid = {disk.uuid: disk for disk in vm.disks if disk.uuid}
    pairs: list[Pair] = []
    for record in detail.disks:
        disk = by_uuid.get(record.head.uuid) if record.head.uuid else None
        if disk is None:
            raise Rejected(
                f"its disk {record.head.name} is not the one of the restore point, or not there any more",
                where=vm.name,
                hint="restore to a new VM, or that disk alone with --disk",
            )
        pairs.append(checked(record, disk, vm))
    return pairs


def checked(record: DiskRecord, disk: Disk, vm: Vm) -> Pair:
    """The pair, if the disk can be written over. Pure."""
    if disk.unprotected:
        raise Rejected(f"{disk.label} cannot be written over: {disk.unprotected}", where=vm.name)
    if disk.capacity_bytes != record.head.capacity_bytes:
        raise Rejected(
            f"{disk.label} has {disk.capacity_bytes} bytes, in the restore point {record.head.capacity_bytes}",
            where=vm.name,
            hint="restore to a new VM, or that disk alone as a further one",
        )
    return Pair(record, disk)


async def overwrite(
    asked: Overwrite,
    vm: Vm,
    pairs: Sequence[Pair],
    means: Means,
    *,
    run: RunId,
    distrust: str,
    newest: RestorePoint | None,
    distrusted: Callable[[], Awaitable[None]],
) -> RestoredVm:
    """Write the disks of a restore point over those of the VM.

    `distrust` is why change tracking may lie since the VM's newest restore point, empty when nothing is known against
    it, and `newest` is that one, wherever it is kept; `distrusted` is told, before the
    first write, that from now on it does. Raises Rejected or Declined with nothing changed, else a ConnectorError or
    StorageError, the VM then marked as half restored: the same restore again goes on.
    """
    threads, hypervisor = means.threads, means.hypervisor
    what = Restoring(asked.kind, asked.point, vm.address.vcenter, _target(asked, vm, pairs), vm.name)
    keys = [pair.disk.key for pair in pairs]
    await assert_writable(vm, means)
    await assert_alone(
        what,
        keys,
        vm,
        means,
        ignored=BESIDE,
        same=lambda mark: asked.kind == IN_PLACE and not mark.disk and mark.point == asked.point,
    )
    journal = Journal(means.state_dir, what)
    before = await settled(threads.long, journal.read)
    earlier = before.wanted_by if before is not None else ""
    if before is not None and not earlier and not await hypervisor.half_restored(vm.address):
        # It was reverted, or made whole by hand: what the journal says is of then.
        await settled(threads.long, journal.finish)
        before = None
    looked: str | None = None
    if vm.power is PowerState.OFF and not vm.snapshots and (before is None or earlier):
        before = None
        pairs, since, looked = await _looked_at(
            asked.point, vm, pairs, means, run=run, distrust=distrust, latest=newest
        )
        _guard(asked, vm, since)
        if asked.safety:
            await _room(vm, pairs, means)
    else:
        # Or it is not fit for it, which is told below.
        pairs = [replace(pair, why_all="an earlier restore was interrupted") for pair in pairs]
    await distrusted()
    await settled(threads.long, journal.intend, run)
    try:
        taken = await hypervisor.take_over(
            vm.address, keys, point=asked.point, run=run, safety=asked.safety, earlier=earlier
        )
    except Rejected:
        if before is None:
            await settled(threads.long, journal.finish)
        raise
    goes_on, doubt = resumption(taken, before)
    if looked is not None and taken.found_version != looked:
        doubt = "the VM was changed after it was looked at"
        if not asked.safety and not asked.discard:
            await hypervisor.hand_back(taken, keep_safety=True)
            await settled(threads.long, journal.finish)
            _guard(asked, vm, doubt)
    await settled(threads.long, journal.begin, version=taken.version, anew=not goes_on)
    written: list[DiskWritten] = []
    for index, pair in enumerate(pairs):
        disk = await settled(threads.repository, means.repository.read_disk, asked.point, pair.record.head.name)
        start = before.reached.get(index, 0) if before is not None and goes_on else 0
        try:
            written.append(await write_one(index, pair, disk, taken, means, journal, run=run, start=start, doubt=doubt))
        except NoTransport as error:
            if not (written or before is not None or taken.resumed or taken.other):
                await as_it_was(taken, journal, means, error)
            raise
    await hypervisor.hand_back(taken, keep_safety=asked.keep_safety)
    await settled(threads.long, journal.finish)
    warnings = ["its configuration and NVRAM are as they were before: only its disks were restored", *taken.warnings]
    if untouched := [d.label for d in vm.disks if d.key not in keys]:
        warnings.append(f"left as they were: {', '.join(untouched)}")
    if taken.safety and asked.keep_safety:
        warnings.append(f"the state before is in its snapshot {taken.safety}, until that is removed")
    return RestoredVm(taken, tuple(written), tuple(warnings))


async def write_one(
    index: int,
    pair: Pair,
    disk: PointDisk,
    taken: CreatedVm,
    means: Means,
    journal: Journal,
    *,
    run: RunId,
    start: int,
    doubt: str,
    fresh: bool = False,
    writes: Callable[[], None] = lambda: None,
) -> DiskWritten:
    """Write a disk from `start` on; all of it, compared, where there is a `doubt`. `writes` hears of each write first.

    A `fresh` disk holds nothing, so that nothing is compared.
    """
    whole = pair.extents is None or bool(doubt)
    extents = [Extent(0, disk.capacity_bytes)] if whole else list(pair.extents or ())

    async def reached(offset: int) -> None:
        await settled(means.threads.long, journal.note, index, offset)

    how = Filling(means.threads.copying, means.lanes, not fresh, means.stride_bytes, means.advance, writes)
    async with means.hypervisor.write_disk(taken, index, transports=means.transports, run=run) as opened:
        done = await fill(disk, opened.writer, behind(extents, start), how, reached)
    compared = doubt or pair.why_all if whole else ""
    log.info(
        "disk written over", extra={"vm": taken.name, "disk": pair.disk.label, "bytes": done, "compared": compared}
    )
    return DiskWritten(
        pair.record.head.name, disk.capacity_bytes, done, opened.transport, opened.fallbacks, compared, start
    )


def _target(asked: Overwrite, vm: Vm, pairs: Sequence[Pair]) -> str:
    if asked.kind == IN_PLACE:
        return vm.address.moref
    return "/".join((vm.address.moref, *(f"{pair.record.head.name}/{pair.disk.key}" for pair in pairs)))


async def _looked_at(
    point: PointId,
    vm: Vm,
    pairs: Sequence[Pair],
    means: Means,
    *,
    run: RunId,
    distrust: str,
    latest: RestorePoint | None,
) -> tuple[list[Pair], str, str]:
    """Where the VM's disks may differ from the restore point, what of them was never backed up ("" for nothing), and
    the VM's version when that was so.
    """
    newest = await settled(means.threads.repository, means.repository.latest, vm.id)
    heads = {record.head.uuid: record for record in newest.disks} if newest is not None else {}
    doubted = known_doubt("", newest)
    distrust = distrust or (doubted.reason if doubted is not None else "")
    found: list[Pair] = []
    since: list[str] = []
    crash = Consistency.CRASH
    version_of = means.hypervisor.vm
    async with means.hypervisor.snapshot(vm, run=run, want=crash, fallback=crash, track=False) as snapshot:
        first = (await version_of(vm.address)).change_version
        seen = {one.disk.uuid: one for one in snapshot.disks}
        for pair in pairs:
            base, now = heads.get(pair.disk.uuid), seen.get(pair.disk.uuid)
            if newest is not None and (latest is None or latest.id != newest.id):
                # What is known against tracking counts from the newest on; before it there may have been more.
                changes: Incremental | Whole = Whole("the newest restore point cannot be built on from here")
            elif newest is None or base is None or now is None:
                changes = Whole("it is not in the newest restore point")
            else:
                tracked = TrackedBase(base.head.change_id, base.head.uuid, base.head.capacity_bytes)
                changes = await means.hypervisor.changes(snapshot, now, tracked, distrust=distrust)
            if isinstance(changes, Whole) or newest is None or base is None:
                reason = changes.reason if isinstance(changes, Whole) else ""
                since.append(f"{pair.disk.label}: what changed since is not known: {reason}")
                found.append(Pair(pair.record, pair.disk, None, reason))
                continue
            if changes.extents:
                since.append(f"{pair.disk.label}: {total(changes.extents)} bytes since {newest.id}")
            found.append(await _differing(point, pair, newest, base, changes.extents, means))
        changed = (await version_of(vm.address)).change_version != first
    if changed:
        # Switched on and off again, it has written what no answer of then tells.
        reason = "the VM was changed while it was looked at"
        found = [Pair(pair.record, pair.disk, None, reason) for pair in pairs]
        since.append(reason)
    return found, "; ".join(since), (await version_of(vm.address)).change_version


async def _differing(
    point: PointId, pair: Pair, newest: PointDetail, base: DiskRecord, changed: Sequence[Extent], means: Means
) -> Pair:
    pool, repository = means.threads.repository, means.repository
    wanted = await settled(pool, repository.read_disk, point, pair.record.head.name)
    known = await settled(pool, repository.read_disk, newest.id, base.head.name)
    try:
        maps = await settled(means.threads.long, wanted.differing, known)
    except ValueError as error:
        return Pair(pair.record, pair.disk, None, str(error))
    grown = align(changed, wanted.block_bytes, wanted.capacity_bytes)
    extents = merge([*grown, *(Extent(offset, length) for offset, length in maps)])
    return Pair(pair.record, pair.disk, tuple(extents))


def _guard(asked: Overwrite, vm: Vm, since: str) -> None:
    if not asked.safety and since and not asked.discard:
        raise Declined(
            f"without a snapshot for safety this would be lost: {since}",
            where=vm.name,
            hint="back the VM up first, or give that up with --discard",
        )


async def _room(vm: Vm, pairs: Sequence[Pair], means: Means) -> None:
    """Rejected when what is written above a snapshot for safety may fill a datastore."""
    spaces = {space.name: space for space in await means.hypervisor.space(vm.address)}
    needed: dict[str, int] = {}
    for pair in pairs:
        needed[pair.disk.datastore] = needed.get(pair.disk.datastore, 0) + pair.at_most_bytes
    for name, size in needed.items():
        space = spaces.get(name)
        if space is not None and space.free_bytes < size * ROOM_SHARE:
            raise Rejected(
                f"datastore {name} has {space.free_bytes} bytes free; a restore may write {size} above a snapshot",
                where=vm.name,
                hint="make room, or back the VM up and restore with --without-safety",
            )
