"""One vCenter as the engine sees it: the parts of this package behind the engine's own protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from pyVmomi import vim

from connectors.diagnosis import Diagnosis
from connectors.disks import Changes, Extent
from connectors.gates import Gates
from connectors.hypervisor import (
    CreatedVm,
    Cursor,
    DatastoreSpace,
    EventBatch,
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
    TrackedBase,
    TrackingDoubt,
)
from connectors.vsphere import (
    cbt,
    diagnosing,
    discarding,
    hotadd,
    importing,
    janitor,
    overwriting,
    provision,
    transport,
    trials,
)
from connectors.vsphere.datastores import Datastores
from connectors.vsphere.events import FollowSettings, follow
from connectors.vsphere.export_lease import Leases
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.making import SnapshotSettings
from connectors.vsphere.method_switches import LockSettings
from connectors.vsphere.migration_lock import MIGRATION_LOCK, MigrationLocks
from connectors.vsphere.power_lock import POWER_LOCK, PowerLocks
from connectors.vsphere.proxy import own_vms
from connectors.vsphere.removal import consolidate
from connectors.vsphere.session import Session, SessionSettings
from connectors.vsphere.showing import Board
from connectors.vsphere.snapshot import hold_snapshot
from connectors.vsphere.stun import StunClock
from connectors.vsphere.tags import TagReader
from connectors.vsphere.tracking_defects import DEFECTS, Defect
from connectors.vsphere.transport_settings import TransportSettings
from connectors.vsphere.whereabouts import seen_again
from policies.facts import USUAL_QUIESCING, Address, Consistency, Disk, Quiescing, Vm


@dataclass(frozen=True, slots=True)
class VCenterSettings:
    """Everything that is configured about one vCenter."""

    session: SessionSettings
    transports: TransportSettings = field(default_factory=TransportSettings)
    snapshots: SnapshotSettings = field(default_factory=SnapshotSettings)
    events: FollowSettings = field(default_factory=FollowSettings)
    locks: LockSettings = field(default_factory=LockSettings)
    tags_every_seconds: float = 300.0
    defects: tuple[Defect, ...] = ()
    """More builds of ESXi whose change tracking is not believed."""


class VCenter:
    """One vCenter, logged in. Every method may raise a ConnectorError."""

    def __init__(self, session: Session, settings: VCenterSettings) -> None:
        self.session = session
        self.settings = settings
        self._tags = TagReader(settings.session, session.tls)
        self._inventory = Inventory(session, self._tags, tags_every=settings.tags_every_seconds)
        self._leases = Leases(session)
        self._locks = MigrationLocks(session, self._inventory, settings.locks)
        self._power = PowerLocks(session, self._inventory, settings.locks)
        self._board = Board(session, self._inventory)
        self._datastores = Datastores(session, self._inventory)

    @classmethod
    async def connect(cls, settings: VCenterSettings) -> Self:
        """Log in; raises LoginRefused or Unreachable."""
        return cls(await Session.open(settings.session), settings)

    @property
    def vcenter(self) -> str:
        """The vCenter's instance UUID."""
        return self.session.vcenter

    @property
    def board(self) -> Board:
        """What is shown of our work there."""
        return self._board

    async def clock(self) -> datetime:
        """vCenter's own time now."""
        return await self.session.call(self.session.now)

    async def inventory(self) -> Sequence[Vm]:
        """Every VM now, with provisional ids."""
        return list((await self._inventory.all()).values())

    async def vm(self, address: Address) -> Vm:
        """One VM re-read now; raises Gone when it is not there any more."""
        return await self._inventory.one(address.moref)

    async def predictions(self, vms: Sequence[Vm]) -> Mapping[tuple[str, int], transport.Prediction]:
        """By (moRef, disk key): the transport that a backup of the disk would use now. Changes nothing."""
        settings = self.settings.transports
        means = await transport.survey(self.session, settings, vms)
        return {
            (vm.address.moref, disk.key): transport.predict(means, vm, disk, settings.order)
            for vm in vms
            for disk in vm.disks
        }

    def watch(self) -> AsyncGenerator[InventoryUpdate, None]:
        """What changes in the inventory, for ever; after a lost login a complete update comes again."""
        return self._inventory.watch()

    def events(self, cursor: Cursor | None) -> AsyncGenerator[EventBatch, None]:
        """Events after the cursor in order, for ever; an empty batch now and then tells that it is alive."""
        return follow(self.session, cursor, self.settings.events)

    def kept_in_place(self, vm: Vm, *, run: str) -> AbstractAsyncContextManager[str]:
        """Nobody moves the VM meanwhile; yields why somebody may after all. See MigrationLocks.hold."""
        return self._locks.hold(vm, run)

    def snapshot(
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
    ) -> AbstractAsyncContextManager[Snapshot]:
        """A snapshot named after the run, removed on every way out. See hold_snapshot."""
        return hold_snapshot(
            self.session,
            self._inventory,
            vm,
            run=run,
            want=want,
            fallback=fallback,
            track=track,
            settings=self.settings.snapshots,
            quiescing=quiescing,
            about_to=about_to,
            doubted=doubted,
        )

    def stun_clock(self, vm: Vm) -> StunClock:
        """What tells how long the VM's guest stood still from now on."""
        return StunClock(self.session, vm)

    async def changes(
        self, snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase | None, *, distrust: str = ""
    ) -> Changes:
        """What changed on the disk since base; Whole with the reason on any doubt."""
        defects = (*DEFECTS, *self.settings.defects)
        return await cbt.changes(self.session, snapshot, disk, base, distrust=distrust, defects=defects)

    @asynccontextmanager
    async def open_disk(
        self, snapshot: Snapshot, disk: SnapshotDisk, *, transports: Sequence[str], run: str
    ) -> AsyncIterator[OpenDisk]:
        """The disk, open for reading by the first transport that works; closed and detached on every way out."""
        snapshot, disk = await seen_again(self.session, snapshot, disk)
        async with transport.open_disk(
            self.session,
            self._leases,
            snapshot,
            disk,
            transports=transports,
            run=run,
            settings=self.settings.transports,
        ) as opened:
            yield opened

    @property
    def gates(self) -> Gates:
        """What is limited in this vCenter, and who holds places or waits for them."""
        return self.settings.session.gates

    async def space(self, vm: Address | None = None) -> Sequence[DatastoreSpace]:
        """How full those are that a snapshot of the VM is written to; without a VM all, as vCenter shows them."""
        return await (self._datastores.of(vm.moref) if vm is not None else self._datastores.all())

    async def diagnose(self) -> Diagnosis:
        """What this vCenter is, and what the account may and can do in it. Changes nothing."""
        return await diagnosing.diagnose(self.session, self._inventory, self.settings.transports)

    async def consolidate(self, address: Address) -> None:
        """Merge deltas that no snapshot accounts for, if the VM has such."""
        vm = self.session.managed(vim.VirtualMachine, address.moref)
        await consolidate(self.session, vm, self.settings.snapshots.removal)

    async def leftovers(
        self, is_active: Callable[[str], bool], held: Collection[Address] = (), *, of: Address | None = None
    ) -> Sequence[Leftover]:
        """What dead runs of this engine left, in the order in which it is to be removed; see the engine's ports.

        VMs that nobody can move come first, as removing a snapshot may take hours; attached disks before snapshots and
        before trial VMs, whose disks they may be.
        """
        kept = [*await self._locks.leftovers(is_active, of=of), *await self._power.leftovers(of=of)]
        attached = await janitor.attached_leftovers(self.session, self.settings.transports, is_active, held)
        shown = await self._inventory.read_all(("name", "config.annotation")) if of is None else {}
        tried = await trials.trial_leftovers(self.session, shown, is_active)
        imported = await importing.import_leftovers(self.session, shown, is_active)
        snapshots = await janitor.snapshot_leftovers(self.session, self._inventory, is_active, of=of)
        return [*kept, *attached, *tried, *imported, *snapshots]

    async def remove(self, leftover: Leftover) -> None:
        """Take one left-over away. Disks of its run are detached before a snapshot goes. Idempotent."""
        transports = self.settings.transports
        if leftover.kind == MIGRATION_LOCK:
            await self._locks.remove(leftover)
            return
        if leftover.kind == POWER_LOCK:
            await self._power.remove(leftover)
            return
        if leftover.kind == trials.TRIAL_VM:
            await trials.remove_trial(self.session, leftover.vm.moref)
            return
        if leftover.kind == importing.IMPORTED_VM:
            await importing.remove_import(self.session, leftover.vm.moref)
            return
        if leftover.kind == hotadd.ATTACHED_DISK:
            await janitor.detach(self.session, transports, leftover)
            return
        for attached in await hotadd.attached_leftovers(self.session, transports, lambda run: run != leftover.run):
            await hotadd.detach_leftover(self.session, transports, attached)
        await janitor.remove_leftover(self.session, leftover, self.settings.snapshots.removal)

    async def create_vm(self, configuration: bytes, target: RestoreTarget) -> CreatedVm:
        """Make a powered-off VM with empty disks from a saved configuration, which nobody can switch on for now."""
        made = await provision.create_vm(self.session, self._tags, configuration, target)
        return await self._kept_off(made, "" if target.trial else target.point)

    async def discard_vm(self, vm: CreatedVm, *, run: str) -> None:
        """Remove a VM that this run has made and written nothing to. NotOurs for any other."""
        await discarding.discard_vm(self.session, vm.address.moref, run=run)

    async def unwritable(self, transports: Sequence[str]) -> Mapping[str, str]:
        """By transport: why no disk at all can be written by it now. Those that may serve are left out."""
        return await transport.unwritable(self.session, self.settings.transports, transports)

    def import_vm(
        self, configuration: bytes, target: RestoreTarget, mapped: Sequence[Sequence[Extent]]
    ) -> AbstractAsyncContextManager[importing.Import]:
        """A new VM whose disks are sent as streams, gone after the block unless it was completed. See hold_import."""
        return importing.hold_import(self.session, self._tags, configuration, target, mapped)

    async def finish_vm(self, vm: CreatedVm) -> None:
        """Everything is written: take away what marks the VM as half restored. Idempotent."""
        await overwriting.assert_still_ours(self.session, self.session.managed(vim.VirtualMachine, vm.address.moref))
        await self._power.let_on(vm.address.moref)
        await provision.finish_vm(self.session, vm.address.moref)

    def trial_vm(self, configuration: bytes, target: RestoreTarget) -> AbstractAsyncContextManager[CreatedVm]:
        """A trial VM with empty disks, removed on every way out. See trials.hold_trial."""
        return trials.hold_trial(self.session, self._tags, configuration, target)

    async def heartbeat(self, vm: CreatedVm, seconds: float) -> Heartbeat:
        """Switch a trial VM on, wait so long for its guest to show that it lives, and switch it off again."""
        return await trials.heartbeat(self.session, vm.address.moref, seconds)

    async def power_off(self, address: Address) -> None:
        """Switch a VM off at once, without asking its guest. Idempotent."""
        await overwriting.power_off(self.session, address.moref)

    async def take_over(
        self, address: Address, keys: Sequence[int], *, point: str, run: str, safety: bool, earlier: str = ""
    ) -> CreatedVm:
        """Make a VM that is there ready for these of its disks to be written. See overwriting.take_over."""
        taken = await overwriting.take_over(
            self.session, address.moref, keys, point=point, run=run, safety=safety, earlier=earlier
        )
        return await self._kept_off(taken, point)

    async def hand_back(self, vm: CreatedVm, *, keep_safety: bool) -> None:
        """Everything is written: take the marks and, unless it is to be kept, the snapshot for safety away."""
        removal = self.settings.snapshots.removal
        moref = vm.address.moref
        await overwriting.hand_back(
            self.session,
            moref,
            removal,
            safety=vm.safety,
            keep_safety=keep_safety,
            whole=lambda: self._power.let_on(moref),
        )

    async def half_restored(self, address: Address) -> bool:
        """Whether the VM carries the mark of a restore that is not over, of this engine or another."""
        return await overwriting.half_restored(self.session, address.moref)

    async def marked_vms(self, also: Collection[str]) -> Sequence[MarkedVm]:
        """The VMs that carry the mark of a restore, and whose notes say so or whose moRefs are these."""
        shown = await self._inventory.read_all(("config.annotation",))
        return await overwriting.marked_vms(self.session, shown, also)

    async def policy_for_disk(self, configuration: bytes, key: int, asked: Mapping[str, str]) -> StoragePolicy:
        """The storage policy that the saved VM's disk with this key had, by name. See provision.policy_for_disk."""
        return await provision.policy_for_disk(self.session, configuration, key, asked)

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
        """Give a VM that is taken over one more, empty disk, marked as the one for the disk of this label."""
        return await overwriting.add_empty_disk(
            self.session, address.moref, capacity_bytes, datastore, thin=thin, label=label, policy=policy
        )

    async def discard_disk(self, address: Address, *, run: str, uuid: str) -> None:
        """Remove the disk that this run has added to a VM and written nothing to. NotOurs for any other."""
        await discarding.discard_disk(self.session, address.moref, run=run, uuid=uuid)

    async def is_own(self, address: Address) -> bool:
        """Whether this engine runs in the VM, or attaches the disks of others to it."""
        return address.moref in await own_vms(self.session, self.settings.transports)

    def write_disk(
        self, vm: CreatedVm, index: int, *, transports: Sequence[str], run: str
    ) -> AbstractAsyncContextManager[OpenTarget]:
        """The index-th disk of a VM that we made, open for writing."""
        return transport.write_disk(
            self.session, vm, index, transports=transports, run=run, settings=self.settings.transports
        )

    async def _kept_off(self, vm: CreatedVm, point: str) -> CreatedVm:
        why = await self._power.keep_off(vm.address.moref, point) if point else ""
        return replace(vm, warnings=(*vm.warnings, why)) if why else vm

    async def aclose(self) -> None:
        """Log out and stop every thread of this connector."""
        await self._tags.aclose()
        await self.session.aclose()
