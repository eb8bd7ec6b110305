"""A small hypervisor whose disks are files: a fake behind `engine.ports.Hypervisor` for tests of the engine alone.

Guests write through `write`; snapshots are copies; changed extents are kept per write. The real vCenter behaviour
is tested against the lab.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from connectors.disk_files import FileReader, FileWriter
from connectors.disks import Changes, DiskReader, Extent, Incremental, Whole, merge
from connectors.errors import (
    Busy,
    ConnectorError,
    Gone,
    NoTransport,
    ReadFailed,
    Rejected,
    TransportFailed,
    Unconsolidated,
)
from connectors.gates import Gates
from connectors.hypervisor import (
    CreatedVm,
    Cursor,
    DatastoreSpace,
    EventBatch,
    Fallback,
    Heartbeat,
    InventoryUpdate,
    Leftover,
    MarkedVm,
    OpenDisk,
    OpenTarget,
    RestoreTarget,
    Snapshot,
    SnapshotDisk,
    StoragePolicy,
    Stuns,
    TrackedBase,
    TrackingDoubt,
)
from policies.facts import (
    USUAL_QUIESCING,
    Address,
    Consistency,
    Disk,
    Event,
    EventType,
    PowerState,
    Quiescing,
    Vm,
    VmId,
)
from tests.pipeline.board_in_memory import BoardInMemory
from tests.pipeline.import_in_memory import ImportInMemory

MIB = 1 << 20


@dataclass(slots=True)
class Guest:
    """One VM: its inventory entry, its disk files and what was written to each."""

    vm: Vm
    files: dict[int, Path]
    writes: dict[int, list[Extent]] = field(default_factory=dict)
    tracking: str = "52 de"


class AwaitedReader:
    """A file reader whose reads are awaited, as over a connection."""

    def __init__(self, reader: FileReader, on_read: Callable[[int], None]) -> None:
        self.capacity_bytes = reader.capacity_bytes
        self._reader = reader
        self._on_read = on_read

    async def extents(self) -> list[Extent]:
        return self._reader.extents()

    async def read_into(self, offset: int, view: memoryview) -> None:
        await asyncio.sleep(0)
        self._on_read(offset)
        self._reader.read_into(offset, view)


class ThreadedReader:
    """A file reader that tells of each read, as a hot-added device is read."""

    def __init__(self, reader: FileReader, on_read: Callable[[int], None]) -> None:
        self.capacity_bytes = reader.capacity_bytes
        self._reader = reader
        self._on_read = on_read

    def extents(self) -> list[Extent]:
        return self._reader.extents()

    def read_into(self, offset: int, view: memoryview) -> None:
        self._on_read(offset)
        self._reader.read_into(offset, view)


class ForwardReader(ThreadedReader):
    """One that does not go back, as an export does not, and does not know where there is nothing."""

    def __init__(self, reader: FileReader, on_read: Callable[[int], None]) -> None:
        super().__init__(reader, on_read)
        self._at = 0

    def extents(self) -> list[Extent]:
        return [Extent(0, self.capacity_bytes)]

    def read_into(self, offset: int, view: memoryview) -> None:
        if offset < self._at:
            raise ReadFailed(f"offset {offset} went by")
        super().read_into(offset, view)
        self._at = offset + len(view)


class ClockInMemory:
    """Knows of stuns what the hypervisor was told of them and has done since."""

    def __init__(self, hypervisor: HypervisorInMemory, name: str) -> None:
        self._hypervisor = hypervisor
        self._name = name
        self._seen: int | None = None

    async def look(self) -> Stuns | None:
        await asyncio.sleep(0)
        log, stood = self._hypervisor.log, self._hypervisor.stood_still
        begin, self._seen = self._seen, len(log)
        if begin is None or not stood:
            return None
        happened = {"creation": f"snapshot {self._name}", "removal": f"remove snapshot {self._name}"}
        return Stuns(tuple(s for when, told in happened.items() if told in log[begin:] for s in stood.get(when, ())))


class HypervisorInMemory:
    """See the module. Attributes named `fail_…`, `before_…` and `on_…` make it misbehave."""

    def __init__(self, directory: Path, vcenter: str = "vc-1") -> None:
        self.directory = directory
        self._vcenter = vcenter
        self.guests: dict[Address, Guest] = {}
        self.snapshots: dict[Address, dict[str, str]] = {}
        self.events_out: asyncio.Queue[Event] = asyncio.Queue()
        self.log: list[str] = []
        self.sent: list[Event] = []
        self.fail_transports: set[str] = set()
        self.fail_removal: ConnectorError | None = None
        self.fail_letting_go: ConnectorError | None = None
        self.movable = ""
        self.kept_by_other = ""
        self.kept: dict[Address, str] = {}
        self.fail_vm: ConnectorError | None = None
        self.ahead = timedelta(0)
        self.on_read: Callable[[str, int], None] = lambda transport, offset: None
        self.before_snapshot: Callable[[], None] = lambda: None
        self.before_copy: Callable[[Vm], None] = lambda vm: None
        self.created: list[Path] = []
        self._changed = asyncio.Event()
        self._number = 0
        self.asked_to_make: tuple[int, ...] = ()
        self.asked_to_quiesce = USUAL_QUIESCING
        self.slow_snapshot = ""
        self.stood_still: dict[str, tuple[float, ...]] = {}
        """For how long each guest does, at the "creation" of a snapshot and at its "removal"; else it is not known."""
        self.achieves: tuple[Consistency, str] | None = None
        self.half_restored_vms: dict[Address, tuple[str, str]] = {}
        self.unreadable: set[Address] = set()
        self.added: dict[Address, tuple[str, str]] = {}
        self.own: set[Address] = set()
        self.marked_by = "test_engine"
        self.free: dict[str, int] = {}
        """Free bytes of datastores of 1 TiB; half of it where nothing is said."""
        self.fail_space: ConnectorError | None = None
        self.leave_deltas = 0
        """So many removals leave deltas that have to be consolidated."""
        self.fail_consolidation: ConnectorError | None = None
        self._gates = Gates()
        self.board = BoardInMemory()
        self.trials: dict[Address, str] = {}
        """The run of each trial VM; no inventory tells of these."""
        self.cannot_write: dict[str, str] = {}
        """By way, "import" among them: why no disk can be written by it, as is known beforehand."""
        self.cannot_open: dict[str, str] = {}
        """By way: why it does not open a disk for writing, as is seen then."""
        self.on_import: Callable[[int], None] = lambda offset: None
        self.lifeless = ""
        self.on_trial: Callable[[Vm], None] = lambda vm: None
        self.keep_trials = False
        """The end of a trial leaves it, as a kill would."""

    @property
    def vcenter(self) -> str:
        return self._vcenter

    @property
    def gates(self) -> Gates:
        return self._gates

    # what tests do

    def add(self, name: str, *, disks: int = 1, mib: int = 4, host: str = "esx-1", data: bytes | None = None) -> Vm:
        self._number += 1
        number = self._number
        address = Address(self._vcenter, f"vm-{number}")
        described, files = [], {}
        for index in range(disks):
            key = 2000 + index
            path = self.directory / f"{name}-{number}-{index}.raw"
            with path.open("wb") as file:
                file.truncate(mib * MIB)
                file.write(data if data is not None else os.urandom(MIB))
            files[key] = path
            described.append(
                Disk(
                    key=key, label=f"Hard disk {index + 1}", capacity_bytes=mib * MIB, uuid=f"6000C29-{number}-{index}",
                    datastore="ds-1", file_name=str(path), mode="persistent",
                )
            )  # fmt: skip
        vm = Vm(
            id=VmId(f"provisional-{number}"), address=address, name=name, instance_uuid=f"instance-{number}",
            bios_uuid=f"bios-{number}", host=host, datastores=("ds-1",), power=PowerState.ON, tools_running=True,
            disks=tuple(described), tracking_enabled=True,
        )  # fmt: skip
        self.guests[address] = Guest(vm, files, {key: [] for key in files})
        self._changed.set()
        return vm

    def write(self, vm: Vm, offset: int, data: bytes, disk: int = 0) -> None:
        guest = self.guests[vm.address]
        key = sorted(guest.files)[disk]
        with guest.files[key].open("r+b") as file:
            file.seek(offset)
            file.write(data)
        guest.writes[key].append(Extent(offset, len(data)))

    def set(self, vm: Vm, **changes: object) -> Vm:
        guest = self.guests[vm.address]
        guest.vm = replace(guest.vm, **changes)  # type: ignore[arg-type]
        self._changed.set()
        return guest.vm

    def remove_vm(self, vm: Vm) -> None:
        del self.guests[vm.address]
        self._changed.set()

    def post(
        self, vm: Vm, kind: EventType, *, cause: str = "", from_host: str = "", to_host: str = "", **detail: str
    ) -> Event:
        number = len(self.sent) + 1
        event = Event(
            key=f"vc:{self._vcenter}:{number}", type=kind, at=datetime.now(UTC), source=self._vcenter,
            vm_name=vm.name, address=vm.address, cause=cause, from_host=from_host, to_host=to_host,
            detail=detail,
        )  # fmt: skip
        self.sent.append(event)
        self.events_out.put_nowait(event)
        return event

    def tell_watchers(self) -> None:
        self._changed.set()

    def disk_file(self, vm: Vm, disk: int = 0) -> Path:
        guest = self.guests[vm.address]
        return guest.files[sorted(guest.files)[disk]]

    # the port

    async def clock(self) -> datetime:
        if self.fail_vm is not None:
            raise self.fail_vm
        return datetime.now(UTC) + self.ahead

    async def inventory(self) -> Sequence[Vm]:
        return [guest.vm for address, guest in self.guests.items() if address not in self.trials]

    async def vm(self, address: Address) -> Vm:
        if self.fail_vm is not None:
            raise self.fail_vm
        guest = self.guests.get(address)
        if guest is None or address in self.trials:
            raise Gone("the VM is not there any more", where=address.moref)
        return replace(guest.vm, own_snapshots=tuple(self.snapshots.get(address, {})))

    async def watch(self) -> AsyncIterator[InventoryUpdate]:
        shown: dict[Address, Vm] = {}
        complete = True
        while True:
            self._changed.clear()
            now = {address: guest.vm for address, guest in self.guests.items() if address not in self.trials}
            yield InventoryUpdate(
                present=tuple(vm for address, vm in now.items() if shown.get(address) != vm),
                left=tuple(address for address in shown if address not in now),
                complete=complete,
            )
            shown, complete = now, False
            await self._changed.wait()

    async def events(self, cursor: Cursor | None) -> AsyncIterator[EventBatch]:
        reached = cursor.key if cursor is not None else 0
        for event in [e for e in self.sent if int(e.key.rpartition(":")[2]) > reached]:
            self.events_out.put_nowait(event)
        delivered: set[str] = set()
        while True:
            batch: list[Event] = []
            while not self.events_out.empty():
                event = self.events_out.get_nowait()
                if event.key not in delivered:
                    delivered.add(event.key)
                    batch.append(event)
            if batch:
                reached = int(batch[-1].key.rpartition(":")[2])
            yield EventBatch(tuple(batch), Cursor(self._vcenter, datetime.now(UTC), reached))
            try:
                async with asyncio.timeout(0.05):
                    event = await self.events_out.get()
                    self.events_out.put_nowait(event)
            except TimeoutError:
                continue

    @asynccontextmanager
    async def kept_in_place(self, vm: Vm, *, run: str) -> AsyncIterator[str]:
        if self.kept_by_other:
            raise Busy(f"another product, {self.kept_by_other}, keeps the VM in its place")
        if self.movable:
            yield self.movable
            return
        self.kept[vm.address] = run
        self.log.append(f"keep {vm.name}")
        try:
            yield ""
        finally:
            self.log.append(f"let go {vm.name}")
            if self.fail_letting_go is None:
                del self.kept[vm.address]
        if self.fail_letting_go is not None:
            raise self.fail_letting_go

    @asynccontextmanager
    async def snapshot(
        self,
        vm: Vm,
        *,
        run: str,
        want: Consistency,
        fallback: Consistency,
        track: bool,
        quiescing: Quiescing = USUAL_QUIESCING,
        about_to: Callable[[], None] = lambda: None,
        doubted: TrackingDoubt | None = None,
    ) -> AsyncIterator[Snapshot]:
        guest = self.guests.get(vm.address)
        if guest is None:
            raise Gone("the VM is not there any more", where=vm.name)
        self.before_snapshot()
        about_to()
        doubted = self._reset(guest) if doubted is not None and not guest.vm.snapshots else doubted
        name = f"backstay-{run}"
        folder = self.directory / name
        folder.mkdir()
        for key, path in guest.files.items():
            shutil.copyfile(path, folder / str(key))
        self.snapshots.setdefault(vm.address, {})[name] = run
        self.log.append(f"snapshot {vm.name}")
        self.asked_to_quiesce = quiescing
        level, why = self.achieves or (want, "")
        disks = tuple(
            SnapshotDisk(disk, "" if doubted else f"{guest.tracking}/{len(guest.writes[disk.key])}")
            for disk in guest.vm.disks if not disk.unprotected
        )  # fmt: skip
        try:
            yield Snapshot(
                moref=name, name=name, run=run, vm=guest.vm, taken_at=datetime.now(UTC), consistency=level,
                consistency_reason=why, disks=disks, unprotected=tuple(d for d in guest.vm.disks if d.unprotected),
                configuration=b"configuration of " + vm.name.encode(), made_in_seconds=0.1, slow=self.slow_snapshot,
                tracking_reason=doubted.reason if doubted else "", doubted=doubted,
            )  # fmt: skip
        finally:
            self.log.append(f"remove snapshot {vm.name}")
            if self.fail_removal is None:
                self.snapshots.get(vm.address, {}).pop(name, None)
                shutil.rmtree(folder)
        if self.fail_removal is not None:
            raise self.fail_removal
        if self.leave_deltas:
            self.leave_deltas -= 1
            self.set(guest.vm, consolidation_needed=True)
            try:
                await self.consolidate(vm.address)
            except ConnectorError as error:
                raise Unconsolidated(f"the disks could not be consolidated: {error.what}", where=vm.name) from error

    def _reset(self, guest: Guest) -> TrackingDoubt | None:
        """Change tracking is switched off in one run and on again in the next."""
        if guest.vm.tracking_enabled:
            self.set(guest.vm, tracking_enabled=False)
            return TrackingDoubt("it is being reset")
        self.set(guest.vm, tracking_enabled=True)
        guest.tracking = f"{guest.tracking} anew"
        return None

    def stun_clock(self, vm: Vm) -> ClockInMemory:
        return ClockInMemory(self, vm.name)

    async def changes(
        self, snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase | None, *, distrust: str = ""
    ) -> Changes:
        if base is None:
            return Whole("there is no base")
        if distrust:
            return Whole(distrust)
        if not disk.change_id:
            return Whole(snapshot.tracking_reason, "distrusted")
        if not base.change_id:
            return Whole("changes were not tracked when the last restore point was made")
        before, _, since = base.change_id.rpartition("/")
        now, _, until = disk.change_id.rpartition("/")
        if base.capacity_bytes != disk.disk.capacity_bytes:
            return Whole("its size changed", "disk_changed")
        if before != now:
            return Whole("change tracking was started again", "tracking_reset")
        if int(until) < int(since):
            return Whole("it was reverted to a snapshot", "reverted")
        guest = self.guests[snapshot.vm.address]
        return Incremental(tuple(merge(guest.writes[disk.disk.key][int(since) : int(until)])))

    @asynccontextmanager
    async def open_disk(
        self, snapshot: Snapshot, disk: SnapshotDisk, *, transports: Sequence[str], run: str
    ) -> AsyncIterator[OpenDisk]:
        fallbacks: list[Fallback] = []
        for transport in transports:
            if transport in self.fail_transports:
                fallbacks.append(Fallback(transport, "it is broken"))
                continue
            self.before_copy(snapshot.vm)
            self.log.append(f"open {transport}")
            with FileReader(self.directory / snapshot.name / str(disk.disk.key)) as file:

                def on_read(offset: int, transport: str = transport) -> None:
                    self.on_read(transport, offset)

                kinds: dict[str, Callable[..., DiskReader]] = {"nbd": AwaitedReader, "export": ForwardReader}
                reader = kinds.get(transport, ThreadedReader)(file, on_read)
                try:
                    yield OpenDisk(reader, transport, tuple(fallbacks), sequential=transport == "export")
                finally:
                    self.log.append(f"close {transport}")
            return
        raise TransportFailed("no transport works", where=disk.disk.label)

    async def space(self, vm: Address | None = None) -> Sequence[DatastoreSpace]:
        if self.fail_space is not None:
            raise self.fail_space
        guests = [self.guests[vm]] if vm is not None else self.guests.values()
        names = sorted({name for guest in guests for name in guest.vm.datastores})
        return [DatastoreSpace(name, 1 << 40, self.free.get(name, 1 << 39)) for name in names]

    async def consolidate(self, address: Address) -> None:
        guest = self.guests.get(address)
        if guest is None or not guest.vm.consolidation_needed:
            return
        if self.fail_consolidation is not None:
            raise self.fail_consolidation
        self.log.append(f"consolidate {guest.vm.name}")
        self.set(guest.vm, consolidation_needed=False)

    async def leftovers(
        self, is_active: Callable[[str], bool], held: Collection[Address] = (), *, of: Address | None = None
    ) -> Sequence[Leftover]:
        kept = [
            Leftover("migration lock", address, self.guests[address].vm.name, "moves", run)
            for address, run in self.kept.items()
            if not is_active(run) and of in (None, address)
        ]
        tried = [
            Leftover("trial VM", address, self.guests[address].vm.name, self.guests[address].vm.name, run)
            for address, run in self.trials.items()
            if not is_active(run)
        ]
        return [*kept, *tried] + [
            Leftover("snapshot", address, self.guests[address].vm.name, name, run)
            for address, standing in self.snapshots.items()
            for name, run in standing.items()
            if not is_active(run) and of in (None, address)
        ]

    async def remove(self, leftover: Leftover) -> None:
        if leftover.kind == "migration lock":
            self.kept.pop(leftover.vm, None)
            return
        if leftover.kind == "trial VM":
            self.trials.pop(leftover.vm, None)
            self.guests.pop(leftover.vm, None)
            self.log.append("janitor removes a trial VM")
            return
        self.snapshots.get(leftover.vm, {}).pop(leftover.name, None)
        self.log.append(f"janitor removes {leftover.name}")

    async def create_vm(self, configuration: bytes, target: RestoreTarget) -> CreatedVm:
        self.asked_to_make = target.disks
        for address, (name, point) in self.half_restored_vms.items():
            if name == target.name and point == target.point:
                made = self.guests[address].vm
                return CreatedVm(address, name, made.disks, resumed=True, version=made.change_version)
        vm = self.add(target.name, disks=len(target.disks) or 1, data=b"")
        self.half_restored_vms[vm.address] = (target.name, target.point)
        return CreatedVm(vm.address, vm.name, vm.disks, identity="UUIDs and MAC addresses of its own")

    async def discard_vm(self, vm: CreatedVm, *, run: str) -> None:
        self.half_restored_vms.pop(vm.address, None)
        self.guests.pop(vm.address, None)
        self.log.append(f"discard {vm.name}")

    async def unwritable(self, transports: Sequence[str]) -> Mapping[str, str]:
        return {way: self.cannot_write[way] for way in transports if way in self.cannot_write}

    @asynccontextmanager
    async def import_vm(
        self, configuration: bytes, target: RestoreTarget, mapped: Sequence[Sequence[Extent]]
    ) -> AsyncIterator[ImportInMemory]:
        if "import" in self.cannot_write:
            raise TransportFailed(self.cannot_write["import"])
        vm = self.add(target.name, disks=len(mapped), data=b"")
        self.half_restored_vms[vm.address] = (target.name, target.point)
        asked = target.disks or tuple(range(len(mapped)))
        disks = tuple(vm.disks[sorted(asked).index(key)] for key in asked)
        files = [self.guests[vm.address].files[disk.key] for disk in disks]
        importing = ImportInMemory(CreatedVm(vm.address, vm.name, disks), files, mapped, self.on_import)
        try:
            yield importing
        finally:
            self.half_restored_vms.pop(vm.address, None)
            if target.trial or not importing.whole:
                del self.guests[vm.address]
            self.log.append(f"import {'complete' if importing.whole else 'aborted'}")

    async def finish_vm(self, vm: CreatedVm) -> None:
        self.half_restored_vms.pop(vm.address, None)

    @asynccontextmanager
    async def trial_vm(self, configuration: bytes, target: RestoreTarget) -> AsyncIterator[CreatedVm]:
        address = Address(self._vcenter, f"vm-{self._number + 1}")
        self.trials[address] = target.run
        vm = self.add(target.name, disks=len(target.disks) or 1, data=b"")
        assert vm.address == address
        self.log.append(f"trial {target.name}")
        self.on_trial(vm)
        try:
            yield CreatedVm(vm.address, vm.name, vm.disks, identity="UUIDs and MAC addresses of its own")
        finally:
            if not self.keep_trials:
                del self.trials[address], self.guests[address]
                self.log.append("trial removed")

    async def heartbeat(self, vm: CreatedVm, seconds: float) -> Heartbeat:
        self.log.append("heartbeat")
        return Heartbeat(seconds if self.lifeless else 0.1, self.lifeless)

    async def power_off(self, address: Address) -> None:
        self.set(self.guests[address].vm, power=PowerState.OFF)

    async def take_over(
        self, address: Address, keys: Sequence[int], *, point: str, run: str, safety: bool, earlier: str = ""
    ) -> CreatedVm:
        vm = (await self.vm(address)) if address in self.guests else None
        if vm is None:
            raise Gone("the VM is not there any more", where=address.moref)
        if vm.power is not PowerState.OFF:
            raise Rejected("it is not powered off", where=vm.name)
        if vm.own_snapshots or vm.snapshots:
            raise Rejected("it has snapshots, above which nothing may be written", where=vm.name)
        mark = self.half_restored_vms.get(address)
        resumed = mark == (vm.name, point)
        self.half_restored_vms[address] = (vm.name, point)
        by_key = {disk.key: disk for disk in vm.disks}
        kept = f"backstay-safety-{run}" if safety else ""
        self.log.append(f"take over {vm.name} {kept}".strip())
        version = vm.change_version
        disks = tuple(by_key[key] for key in keys)
        other = mark is not None and not resumed
        for_disk, added = self.added.get(address, ("", "")) if resumed else ("", "")
        return CreatedVm(
            address, vm.name, disks, resumed=resumed, version=version, found_version=version, safety=kept, other=other,
            added_for=for_disk, added=added,
        )  # fmt: skip

    async def hand_back(self, vm: CreatedVm, *, keep_safety: bool) -> None:
        self.half_restored_vms.pop(vm.address, None)
        self.added.pop(vm.address, None)
        self.log.append(f"hand back {vm.name}")

    async def half_restored(self, address: Address) -> bool:
        if address in self.unreadable:
            raise Busy("vCenter does not show its configuration now", where=address.moref)
        return address in self.half_restored_vms

    async def marked_vms(self, also: Collection[str]) -> Sequence[MarkedVm]:
        return [
            MarkedVm(
                address, self.guests[address].vm.name, point, self.marked_by, disk=self.added.get(address, ("", ""))[0]
            )
            for address, (_, point) in self.half_restored_vms.items()
            if address in self.guests and address not in self.unreadable
        ]

    async def is_own(self, address: Address) -> bool:
        return address in self.own

    async def policy_for_disk(self, configuration: bytes, key: int, asked: Mapping[str, str]) -> StoragePolicy:
        return StoragePolicy()

    async def add_disk(
        self,
        address: Address,
        capacity_bytes: int,
        datastore: str,
        *,
        thin: bool,
        label: str,
        policy: StoragePolicy,
    ) -> tuple[Disk, tuple[str, ...]]:
        guest = self.guests[address]
        key = max(guest.files, default=1999) + 1
        path = self.directory / f"{guest.vm.name}-{key}.raw"
        with path.open("wb") as file:
            file.truncate(capacity_bytes)
        added = Disk(
            key=key, label=f"Hard disk {key - 1999}", capacity_bytes=capacity_bytes, uuid=f"6000C29-added-{key}",
            datastore=datastore, file_name=str(path), mode="persistent",
        )  # fmt: skip
        self.added[address] = (label, added.uuid)
        guest.files[key], guest.writes[key] = path, []
        self.set(guest.vm, disks=(*guest.vm.disks, added))
        return added, policy.lacking

    async def discard_disk(self, address: Address, *, run: str, uuid: str) -> None:
        _, added = self.added.pop(address, ("", ""))
        assert uuid in ("", added)
        vm = self.guests[address].vm
        self.set(vm, disks=tuple(disk for disk in vm.disks if disk.uuid != added))
        self.log.append(f"discard disk {added}".rstrip())

    @asynccontextmanager
    async def write_disk(
        self, vm: CreatedVm, index: int, *, transports: Sequence[str], run: str
    ) -> AsyncIterator[OpenTarget]:
        if reasons := [(way, self.cannot_open[way]) for way in transports if way in self.cannot_open]:
            raise NoTransport.because(reasons)
        with FileWriter(self.guests[vm.address].files[vm.disks[index].key]) as writer:
            yield OpenTarget(writer, "nbd")

    async def aclose(self) -> None:
        self.log.append("closed")


def broken_after(count: int, transport: str, error: type[ReadFailed] = ReadFailed) -> Callable[[str, int], None]:
    """An `on_read` that fails once this transport has read so many pieces."""
    left = count

    def on_read(used: str, offset: int) -> None:
        nonlocal left
        if used == transport:
            left -= 1
            if left < 0:
                raise error("the connection broke", where=f"{transport} at {offset}")

    return on_read
