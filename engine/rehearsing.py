"""One rehearsal: a restore point becomes a trial VM, which is read back and compared, and its guest may start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from connectors.disks import AsyncReader, BlockingReader, DiskReader, DiskWriter, Extent, pieces
from connectors.errors import ConnectorError, NoRoom, NotOurs
from connectors.hypervisor import CreatedVm, DatastoreSpace, Fallback, Heartbeat, Identity, RestoreTarget
from engine.copying import PIECE_BYTES, Shared
from engine.disk_writing import GRAIN_BYTES, Filling, differing, fill
from engine.headroom import Marks
from engine.jobs import RunId
from engine.ports import Importing
from engine.restore import Means, disk_keys
from engine.restore_import import Sent, send, to_be_sent
from engine.restore_ways import by_first
from engine.streaming import first_of
from engine.threads import settled
from engine.units import show_size
from engine.ways import in_writing
from policies.facts import PowerState, Vm
from storage.repository import PointDetail, PointDisk

LONGEST_NAME = 80
"""Characters that vCenter takes for a VM's name."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How one rehearsal is done. `seconds` is how long a heartbeat is waited for; None for none, and `why_none`."""

    datastore: str = ""
    pool: str = ""
    seconds: float | None = None
    why_none: str = ""


@dataclass(frozen=True, slots=True)
class DiskTried:
    """A disk that was restored into a trial VM and read back."""

    label: str
    capacity_bytes: int
    compared_bytes: int
    differing_bytes: int
    transport: str
    fallbacks: tuple[Fallback, ...] = ()


@dataclass(frozen=True, slots=True)
class Tried:
    """What a rehearsal came to, its trial VM being gone by now."""

    trial: str
    disks: tuple[DiskTried, ...]
    heartbeat: Heartbeat | None = None
    warnings: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every byte that was read back is the one of the restore point."""
        return not any(disk.differing_bytes for disk in self.disks)

    @property
    def why(self) -> str:
        """Why the rehearsal did not pass; empty when it did."""
        wrong = [f"{d.label} differs in {show_size(d.differing_bytes)}" for d in self.disks if d.differing_bytes]
        if wrong:
            return f"what was restored is not what was read back: {', '.join(wrong)}"
        if self.heartbeat is not None and self.heartbeat.why:
            return f"no sign of life from its guest within {self.heartbeat.seconds:.0f} s: {self.heartbeat.why}"
        return ""


def trial_name(prefix: str, vm: str, run: str) -> str:
    """A name that no other trial VM has and that tells people which VM is tried."""
    shown = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in vm)
    return f"{prefix}{shown[: LONGEST_NAME - len(prefix) - len(run) - 1]}-{run}"


def heartbeat_of(wanted: bool, vm: Vm | None) -> str:
    """Why no heartbeat is waited for; empty when one is."""
    if not wanted:
        return "none was asked for"
    if vm is not None and vm.power is PowerState.ON and not vm.tools_running:
        return f"{vm.name} itself runs no VMware Tools"
    return ""


def place(spaces: Sequence[DatastoreSpace], named: str, own: Sequence[str], needed: int, marks: Marks) -> str:
    """Where a trial VM that needs so many bytes goes: the datastore that is named, or of the VM's own the roomiest.

    Raises NoRoom. Empty where nothing is known of any of them; vCenter then says what it has.
    """
    known: dict[str, DatastoreSpace] = {}
    for space in sorted(spaces, key=lambda one: one.free_bytes, reverse=True):
        known[space.name] = space  # of two with one name, in two datacenters, the one with less room
    candidates = [known[name] for name in ([named] if named else own) if name in known]
    if not candidates:
        return named
    best = max(candidates, key=lambda one: one.free_bytes - _kept_free(one, marks))
    wanted = max(marks.free.of(best.capacity_bytes), marks.low.of(best.capacity_bytes) + needed)
    if best.free_bytes < wanted:
        raise NoRoom(
            f"datastore {best.name} has {show_size(best.free_bytes)} free; {show_size(wanted)} must be for a trial VM"
            f" of {show_size(needed)}",
            hint="name another datastore in rehearse.datastore, or make room",
        )
    return best.name


def _kept_free(space: DatastoreSpace, marks: Marks) -> int:
    return max(marks.free.of(space.capacity_bytes), marks.low.of(space.capacity_bytes))


async def rehearse_point(
    detail: PointDetail, configuration: bytes, name: str, ways: Ways, means: Means, *, run: RunId
) -> Tried:
    """Restore into a trial VM, compare, and wait for its guest where that is wanted; the trial VM is gone then.

    Raises a ConnectorError, or a StorageError such as Damaged when a byte of the restore point is not intact; never a
    group. That somebody has made the trial VM his meanwhile is a warning.
    """
    target = RestoreTarget(
        name=name,
        resource_pool=ways.pool,
        datastore=ways.datastore,
        disks=disk_keys(detail),
        identity=Identity.NEW,
        connect=False,
        cards=False,
        point=detail.id,
        run=run,
        trial=True,
    )
    tried: list[Tried] = []

    async def filled(step: tuple[str, ...]) -> Tried:
        async with means.hypervisor.trial_vm(configuration, target) as made:
            tried.append(await _tried(detail, made, ways, replace(means, transports=step), run))
        return tried[-1]

    async def imported() -> Tried:
        sent = await to_be_sent(detail, means)
        async with means.hypervisor.import_vm(configuration, target, [one.extents for one in sent]) as importing:
            tried.append(await _imported(importing, sent, ways, means))
        return tried[-1]

    try:
        done, refused = await by_first(in_writing(means.transports), name, means.hypervisor, filled, imported)
    except NotOurs as error:
        if not tried:
            raise
        return replace(tried[-1], warnings=(*tried[-1].warnings, str(error)))
    return replace(done, disks=tuple(replace(disk, fallbacks=(*refused, *disk.fallbacks)) for disk in done.disks))


async def _tried(detail: PointDetail, made: CreatedVm, ways: Ways, means: Means, run: RunId) -> Tried:
    disks: list[DiskTried] = []
    if len(made.disks) != len(detail.disks):
        raise ConnectorError(f"{len(made.disks)} disks were made for {len(detail.disks)}", where=made.name)
    for index, record in enumerate(detail.disks):
        disk = await settled(means.threads.repository, means.repository.read_disk, detail.id, record.head.name)
        extents = [Extent(offset, length) for offset, length in await settled(means.threads.long, disk.extents)]
        how = Filling(means.threads.copying, means.lanes, False, means.stride_bytes, means.advance)
        async with means.hypervisor.write_disk(made, index, transports=means.transports, run=run) as opened:
            await fill(disk, opened.writer, extents, how, _reached)
        # Opened anew, so that what is compared was on the storage.
        async with means.hypervisor.write_disk(made, index, transports=means.transports, run=run) as opened:
            wrong = await compared(disk, opened.writer, extents, how)
        size = sum(extent.length for extent in extents)
        disks.append(DiskTried(record.head.name, disk.capacity_bytes, size, wrong, opened.transport, opened.fallbacks))
    return await _alive(Tried(made.name, tuple(disks), None, made.warnings), made, ways, means)


async def _imported(importing: Importing, sent: Sequence[Sent], ways: Ways, means: Means) -> Tried:
    """As _tried, for a trial VM that is imported: what was sent is read back out of an export of it."""
    written = await send(importing, sent, means)
    made = await importing.complete()
    how = Filling(means.threads.copying, 1, advance=means.advance)
    disks: list[DiskTried] = []
    for index, (each, disk) in enumerate(zip(sent, written, strict=True)):
        async with importing.read_back(index) as opened:
            # A stream is read in its order, by one lane.
            wrong = await compared(each.disk, opened.reader, each.extents, how)
        size = sum(extent.length for extent in each.extents)
        disks.append(DiskTried(each.label, disk.capacity_bytes, size, wrong, disk.transport))
    return await _alive(Tried(made.name, tuple(disks), None, made.warnings), made, ways, means)


async def _alive(tried: Tried, made: CreatedVm, ways: Ways, means: Means) -> Tried:
    """Wait for the guest's sign of life where one is wanted, and its disks are the same."""
    if ways.seconds is not None and tried.same:
        tried = replace(tried, heartbeat=await means.hypervisor.heartbeat(made, ways.seconds))
    return tried


async def compared(disk: PointDisk, target: DiskReader | DiskWriter, extents: Sequence[Extent], how: Filling) -> int:
    """Read these extents of the target back; the bytes that differ, in pieces of the grain, from the restore point.

    The restore point's own bytes are checked against their hashes as they are read: Damaged when they are not intact.
    """
    work = Shared(pieces(extents, PIECE_BYTES))
    wrong = 0

    async def lane() -> None:
        nonlocal wrong
        wanted, there = memoryview(bytearray(PIECE_BYTES)), memoryview(bytearray(PIECE_BYTES))
        while (piece := work.take()) is not None:
            view, now = wanted[: piece.length], there[: piece.length]
            await settled(how.executor, disk.read_into, piece.offset, view)
            if asyncio.iscoroutinefunction(target.read_into):
                await cast(AsyncReader, target).read_into(piece.offset, now)
            else:
                await settled(how.executor, cast(BlockingReader, target).read_into, piece.offset, now)
            parts = await settled(how.executor, differing, view, now, GRAIN_BYTES)
            wrong += sum(end - start for start, end in parts)
            if how.advance is not None:
                how.advance(piece.length)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, how.lanes)):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return wrong


async def _reached(offset: int) -> None:
    """A trial VM is never gone on with."""
