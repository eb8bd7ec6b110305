"""What the engine needs from the outside. `engine.service` and `engine.connecting` alone know who provides it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

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
    Stuns,
    TrackedBase,
    TrackingDoubt,
)
from connectors.shown import Note, Put, Wanted
from policies.facts import USUAL_QUIESCING, Address, Consistency, Disk, Quiescing, Vm


class Board(Protocol):
    """What is shown of our work in one vCenter. Every method may raise a ConnectorError; none is needed for a run."""

    async def prepare(self, wanted: Wanted) -> dict[str, str]:
        """Make what showing needs. By "attributes", "events" and "tasks", why it cannot be shown, where it cannot."""
        ...

    async def labels(self) -> dict[str, dict[str, str]]:
        """What our attributes say now, by moRef and name; VMs without any are left out."""
        ...

    async def label(self, vm: Address, name: str, value: str) -> None:
        """Set one of our attributes of a VM."""
        ...

    async def post(self, note: Note) -> None:
        """Post an event at a VM."""
        ...

    async def begin(self, vm: Address, run: str, text: str) -> str:
        """Show that a run begins; the task."""
        ...

    async def progress(self, task: str, percent: int) -> None:
        """Show how far the run is. Gone or Rejected when the task has ended."""
        ...

    async def end(self, task: str, error: str = "") -> None:
        """Show that the run is over, with an error or without. Gone or Rejected when it is already."""
        ...

    async def unfinished(self, is_dead: Callable[[str], bool]) -> list[str]:
        """Tasks of this engine that are shown as running though their run is dead."""
        ...

    async def there(self) -> Put:
        """What there is of ours, of whichever engine."""
        ...

    async def clean(self) -> None:
        """Take everything of ours away, of whichever engine. Idempotent."""
        ...


class Importing(Protocol):
    """A new VM that is whole when `complete` has ended, and not there otherwise."""

    @property
    def vm(self) -> CreatedVm:
        """What is being made."""
        ...

    def disk(self, index: int) -> AbstractAsyncContextManager[OpenTarget]:
        """The index-th disk, by a BlockingWriter that takes what was told beforehand, in the order of the disk."""
        ...

    async def complete(self) -> CreatedVm:
        """Every disk is sent: the VM is whole."""
        ...

    def read_back(self, index: int) -> AbstractAsyncContextManager[OpenDisk]:
        """The index-th disk of the VM that is whole, read forward, by one thread."""
        ...


class StunClock(Protocol):
    """Tells how long the guest of one VM stood still. It raises no ConnectorError and takes a few seconds at most."""

    async def look(self) -> Stuns | None:
        """The stuns since the last look; None at the first one, and where they cannot be told."""
        ...


class Hypervisor(Protocol):
    """One vCenter, logged in. Every method may raise a ConnectorError."""

    @property
    def board(self) -> Board:
        """What is shown of our work there."""
        ...

    @property
    def vcenter(self) -> str:
        """The vCenter's instance UUID."""
        ...

    async def clock(self) -> datetime:
        """vCenter's own time now, aware."""
        ...

    async def inventory(self) -> Sequence[Vm]:
        """Every VM now, with provisional ids."""
        ...

    async def vm(self, address: Address) -> Vm:
        """One VM re-read now; raises Gone when it is not there any more."""
        ...

    def watch(self) -> AsyncIterator[InventoryUpdate]:
        """What changes in the inventory, for ever; re-logins are its own business, then `complete` comes again."""
        ...

    def events(self, cursor: Cursor | None) -> AsyncIterator[EventBatch]:
        """Events after the cursor in order, for ever; an empty batch now and then tells that it is alive."""
        ...

    def kept_in_place(self, vm: Vm, *, run: str) -> AbstractAsyncContextManager[str]:
        """Nobody moves the VM meanwhile; yields why somebody may after all, empty when nobody can.

        Busy, with nothing changed, while another product keeps it, as that may let it go at any time.
        Given back on every way out, a cancellation while it is taken included; what a crash leaves is a left-over.
        """
        ...

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
        """A snapshot named after the run; removed on every way out, a cancellation during creation included.

        With track, changed block tracking is enabled first where that is safe, and where it is `doubted` reset: that
        may take this run and the next one, and the snapshot says whether it is doubted still. `quiescing` says how
        patiently the guest is asked to hold still before a weaker level is tried. `about_to` is called before each time
        that vSphere is asked for the snapshot, which may be long after the call: what it raises ends the attempt, and
        nothing is made.
        """
        ...

    def stun_clock(self, vm: Vm) -> StunClock:
        """A clock of the VM's stuns, at which nobody has looked yet."""
        ...

    async def changes(
        self, snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase | None, *, distrust: str = ""
    ) -> Changes:
        """What changed on the disk since base, asked up to the disk's end; Whole with the reason on any doubt."""
        ...

    def open_disk(
        self, snapshot: Snapshot, disk: SnapshotDisk, *, transports: Sequence[str], run: str
    ) -> AbstractAsyncContextManager[OpenDisk]:
        """The disk, open for reading by the first transport that works; closed and detached on every way out."""
        ...

    @property
    def gates(self) -> Gates:
        """What is limited in this vCenter, and who holds places or waits for them."""
        ...

    async def space(self, vm: Address | None = None) -> Sequence[DatastoreSpace]:
        """How full those are that a snapshot of the VM is written to; without a VM all of them, as vCenter shows them.

        Those that are not accessible, or that the account may not see, are left out.
        """
        ...

    async def consolidate(self, address: Address) -> None:
        """Merge deltas that no snapshot accounts for, if the VM has such. Raises when they cannot be merged."""
        ...

    async def leftovers(
        self, is_active: Callable[[str], bool], held: Collection[Address] = (), *, of: Address | None = None
    ) -> Sequence[Leftover]:
        """Snapshots and hot-added disks of this engine whose run is_active denies.

        `held` are VMs to which disks were to be attached: the proxy of then may be another than that of now. With `of`
        what stands on that VM, and every attached disk, as its disks may be among them: no other VM is looked at.
        """
        ...

    async def remove(self, leftover: Leftover) -> None:
        """Take one left-over away: detach first, then remove. Idempotent."""
        ...

    async def create_vm(self, configuration: bytes, target: RestoreTarget) -> CreatedVm:
        """Make a powered-off VM with empty disks from a saved configuration, or take up the half-restored one."""
        ...

    async def discard_vm(self, vm: CreatedVm, *, run: str) -> None:
        """Remove a VM that this run has made and written nothing to. NotOurs for any other."""
        ...

    async def unwritable(self, transports: Sequence[str]) -> Mapping[str, str]:
        """By transport: why no disk at all can be written by it now. Those that may serve are left out."""
        ...

    def import_vm(
        self, configuration: bytes, target: RestoreTarget, mapped: Sequence[Sequence[Extent]]
    ) -> AbstractAsyncContextManager[Importing]:
        """Have a VM made from streams, without a transport to its disks; gone after the block unless completed.

        `mapped` are the extents that will be written to each disk. TransportFailed or NotPermitted, with nothing made,
        where that does not work here. It cannot go on where it was cut off; what a crash leaves is a left-over. A
        trial VM is gone after the block, whatever happens; NotOurs then when somebody has made it his.
        """
        ...

    async def finish_vm(self, vm: CreatedVm) -> None:
        """Everything is written: take away what marks the VM as half restored. Idempotent."""
        ...

    def trial_vm(self, configuration: bytes, target: RestoreTarget) -> AbstractAsyncContextManager[CreatedVm]:
        """A VM with empty disks for a rehearsal, which no inventory tells of; gone after the block, whatever happens.

        NotOurs at the end when somebody has made it his; what a crash leaves is a left-over.
        """
        ...

    async def heartbeat(self, vm: CreatedVm, seconds: float) -> Heartbeat:
        """Switch a trial VM on, wait so long for its guest to show that it lives, and switch it off again."""
        ...

    async def power_off(self, address: Address) -> None:
        """Switch a VM off at once, without asking its guest. Idempotent."""
        ...

    async def take_over(
        self, address: Address, keys: Sequence[int], *, point: str, run: str, safety: bool, earlier: str = ""
    ) -> CreatedVm:
        """Make a VM that is there ready for these of its disks to be written, with a snapshot for safety if asked.

        Rejected, with nothing changed, when it is not off or has other snapshots. Until `hand_back` it is marked.
        `earlier` is the run that may have made the snapshot for safety and died before it marked the VM.
        """
        ...

    async def hand_back(self, vm: CreatedVm, *, keep_safety: bool) -> None:
        """Everything is written: take the marks and, unless it is to be kept, the snapshot for safety away."""
        ...

    async def half_restored(self, address: Address) -> bool:
        """Whether the VM carries the mark of a restore that is not over, of this engine or another."""
        ...

    async def marked_vms(self, also: Collection[str]) -> Sequence[MarkedVm]:
        """The VMs that carry the mark of a restore that is not over, of whichever engine.

        Found by the warning in their notes; `also` are moRefs to look at though these say nothing.
        """
        ...

    async def policy_for_disk(self, configuration: bytes, key: int, asked: Mapping[str, str]) -> StoragePolicy:
        """The storage policy that the saved VM's disk with this key had, by name, as this vCenter has it.

        `asked` has other names for remembered ones; Rejected for one of them that is not there.
        """
        ...

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
        """Give a VM that is taken over one more, empty disk, marked with it as the one for the disk of this label.

        Where vCenter refuses the policy it has none, which is told besides.
        """
        ...

    async def discard_disk(self, address: Address, *, run: str, uuid: str) -> None:
        """Remove the disk that this run has added to a VM and written nothing to; "" where its UUID is not known.

        Idempotent; NotOurs for any other disk.
        """
        ...

    async def is_own(self, address: Address) -> bool:
        """Whether this engine runs in the VM, or attaches the disks of others to it."""
        ...

    def write_disk(
        self, vm: CreatedVm, index: int, *, transports: Sequence[str], run: str
    ) -> AbstractAsyncContextManager[OpenTarget]:
        """The index-th disk of a VM that we made, open for writing."""
        ...

    async def aclose(self) -> None:
        """Log out and stop every thread and process of this connector."""
        ...


class BusMessage(Protocol):
    """One message of the bus, not yet acknowledged."""

    @property
    def subject(self) -> str:
        """Where it was published."""
        ...

    @property
    def key(self) -> str:
        """The same on every delivery."""
        ...

    @property
    def data(self) -> bytes:
        """The payload, untrusted."""
        ...

    async def done(self) -> None:
        """Acknowledge and wait until the server has it. Only after the journal write."""
        ...

    async def refuse(self, reason: str) -> None:
        """Never deliver it again; it goes to the dead-letter subject with the reason."""
        ...


class Bus(Protocol):
    """The message bus, connected."""

    def messages(self) -> AsyncIterator[BusMessage]:
        """Events and commands, at least once each, for ever; reconnects are its own business."""
        ...

    async def publish(self, subject: str, data: bytes, *, key: str) -> None:
        """Publish once per key."""
        ...

    async def aclose(self) -> None:
        """Disconnect."""
        ...
