"""The values that pass between the engine and any hypervisor connector. No behaviour, no vSphere types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from connectors.disks import DiskReader, DiskWriter
from policies.facts import Address, Consistency, Disk, Event, Vm


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to where events of one vCenter were handled.

    `seen` are the keys inside the overlap window before `at`, so that a repeated read delivers none twice.
    """

    vcenter: str
    at: datetime
    key: int
    seen: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events in order, the cursor to persist *after* they are handled, and why a reconcile is due, if it is."""

    events: tuple[Event, ...]
    cursor: Cursor
    gap: str = ""


@dataclass(frozen=True, slots=True)
class InventoryUpdate:
    """What changed in the inventory. `complete` marks the first update that holds every VM.

    VMs carry a provisional id; the engine replaces it by its own.
    """

    present: tuple[Vm, ...]
    left: tuple[Address, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class TrackedBase:
    """What the last committed restore point remembers of a disk, for the next query of changes.

    `file_name` is where the disk lay, `host_build` what its host ran; empty where that was not remembered.
    """

    change_id: str
    disk_uuid: str
    capacity_bytes: int
    file_name: str = ""
    host_build: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """A disk as the snapshot's own configuration tells it, with the change id to commit."""

    disk: Disk
    change_id: str


@dataclass(frozen=True, slots=True)
class TrackingDoubt:
    """Why nothing that change tracking tells of a VM is believed before it was reset with no snapshot present.

    `identities` are those of the tracking that is meant, the parts of change ids before the slash; a reset gives
    others. Empty where they are not known.
    """

    reason: str
    identities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of ours, held for as long as its context is open.

    `consistency` is what was achieved, `consistency_reason` why it is not more. `configuration` is the typed VM
    configuration of the same instant, serialised by the connector and given back to it on restore.
    `tracking_reason` says why changed block tracking is off, where it is; `host_build` is what the host runs. vCenter
    took `made_in_seconds` to make it; `slow` warns of that where it was long. With `doubted` no disk has a change id,
    and the next run is to be told of it.
    """

    moref: str
    name: str
    run: str
    vm: Vm
    taken_at: datetime
    consistency: Consistency
    consistency_reason: str
    disks: tuple[SnapshotDisk, ...]
    unprotected: tuple[Disk, ...]
    configuration: bytes
    tracking_reason: str = ""
    made_in_seconds: float = 0.0
    slow: str = ""
    host_build: str = ""
    doubted: TrackingDoubt | None = None


@dataclass(frozen=True, slots=True)
class Stuns:
    """Each time that a guest stood still between two looks, in seconds. None at all is no news that it did not."""

    seconds: tuple[float, ...] = ()

    @property
    def longest(self) -> float:
        """The longest one."""
        return max(self.seconds, default=0.0)

    @property
    def total(self) -> float:
        """All of them together."""
        return sum(self.seconds)


@dataclass(frozen=True, slots=True)
class Fallback:
    """A transport that was tried or considered and not used, and why."""

    transport: str
    reason: str


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A disk of a snapshot, open for reading, with the way that was taken to it.

    With `sequential` the whole disk comes by once, from its beginning: it is read forward, by one thread.
    """

    reader: DiskReader
    transport: str
    fallbacks: tuple[Fallback, ...] = ()
    sequential: bool = False


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """A disk of a VM that is restored, open for writing, with the way that was taken to it.

    `cut` has a write that waits in a thread fail at once, where that can be, and every later one.
    """

    writer: DiskWriter
    transport: str
    fallbacks: tuple[Fallback, ...] = ()
    cut: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class StoragePolicy:
    """What a disk that is to be added gets: the policy's id and name, "" for the datastore's default, and why that."""

    id: str = ""
    name: str = ""
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of ours that a dead run left in vCenter: a snapshot, or a hot-added disk."""

    kind: str
    vm: Address
    vm_name: str
    name: str
    run: str
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MarkedVm:
    """A VM that says itself that it is half restored: from which restore point, and by which engine.

    `safety` names the snapshot of what was there before, where the VM is written over, and `disk` the restore point's
    disk that was added to it.
    """

    address: Address
    name: str
    point: str
    engine: str
    safety: str = ""
    disk: str = ""


@dataclass(frozen=True, slots=True)
class DatastoreSpace:
    """How full a datastore is. Names are unique within a datacenter alone."""

    name: str
    capacity_bytes: int
    free_bytes: int


TRIAL_PREFIX = "backstay-rehearsal-"
"""How the names of trial VMs begin."""


class Identity(StrEnum):
    """Which UUIDs and MAC addresses a restored VM gets.

    AUTO: those of the original, where the original is gone and nobody else has one of them; else new ones. KEEP: those
    of the original, or no VM at all. NEW: new ones.
    """

    AUTO = "auto"
    KEEP = "keep"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class RestoreTarget:
    """How and where a VM is made again. Empty fields take what the restore point remembers.

    `disks` are the device keys of those that the restore point holds, in its order; empty means that it holds all
    which a snapshot can hold. `disk_datastores` puts single disks elsewhere, by device key. `connect` says whether
    network cards are connected at power-on; None leaves that to the identity: as they were for the original's, not
    at all for a new one. With `cards` false the VM gets no network card. `storage_policies` gives what had a policy
    another one, by their names. `point` and `run` are written on the VM until its restore is finished. A `trial` VM is
    made for a rehearsal and removed again.
    """

    name: str
    folder: str = ""
    resource_pool: str = ""
    datastore: str = ""
    host: str = ""
    network_map: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[int, ...] = ()
    disk_datastores: Mapping[int, str] = field(default_factory=dict)
    identity: Identity = Identity.AUTO
    connect: bool | None = None
    cards: bool = True
    point: str = ""
    run: str = ""
    trial: bool = False
    storage_policies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a VM that was switched on showed of its guest after so long. `why` is empty when the guest lives."""

    seconds: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class CreatedVm:
    """A VM whose disks a restore writes: powered off, its disks in the order of the restore point's disks.

    `identity` says whose UUIDs and MAC addresses it has, and why. `warnings` are what it lacks of the original.
    `resumed` when an earlier, interrupted restore of the same restore point had made it. `version` changes whenever
    something but this restore changes the VM, its being switched on included; `found_version` is what it was when an
    earlier restore's VM was found. `safety` names the snapshot above which
    its disks are written, if there is one. `other` when it was half restored from another point, or by another engine.
    `added` is the UUID of the disk that an interrupted restore of the restore point's disk `added_for` has added.
    """

    address: Address
    name: str
    disks: tuple[Disk, ...]
    identity: str = ""
    warnings: tuple[str, ...] = ()
    resumed: bool = False
    version: str = ""
    found_version: str = ""
    safety: str = ""
    other: bool = False
    added_for: str = ""
    added: str = ""
