"""What a rule may look at: VMs, disks, events, restore points and the state of the world at one instant.

Values only. Nothing here reads a clock, a file or a network; `connectors` and `storage` share these types and
nothing else of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NewType

VmId = NewType("VmId", str)
"""Backstay's own id of a VM, minted at first sight; every vSphere identifier is only an alias of it."""

PointId = NewType("PointId", str)
"""The id of a restore point, unique in its repository and sortable by time."""


def instant_text(at: datetime) -> str:
    """An instant as every document for programs has it: RFC 3339 in UTC, with a "Z", no finer than what is known."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


class PowerState(StrEnum):
    """The power states that vSphere knows."""

    ON = "on"
    OFF = "off"
    SUSPENDED = "suspended"


class Consistency(StrEnum):
    """What a snapshot of a running guest guarantees, weakest first in `CONSISTENCY_ORDER`."""

    CRASH = "crash"
    FILESYSTEM = "filesystem"
    APPLICATION = "application"


CONSISTENCY_ORDER: tuple[Consistency, ...] = (
    Consistency.CRASH,
    Consistency.FILESYSTEM,
    Consistency.APPLICATION,
)


@dataclass(frozen=True, slots=True)
class Quiescing:
    """How patiently a guest is asked to hold still: how often again, how long between, and how long it may take."""

    retries: int = 2
    retry_wait: timedelta = timedelta(minutes=1)
    timeout: timedelta = timedelta(minutes=15)


USUAL_QUIESCING = Quiescing()
"""Where no policy says otherwise."""


class EventType(StrEnum):
    """Every kind of event that a policy can be asked about."""

    POWERED_ON = "vm.powered_on"
    POWERED_OFF = "vm.powered_off"
    SUSPENDED = "vm.suspended"
    MIGRATED = "vm.migrated"
    RELOCATED = "vm.relocated"
    CREATED = "vm.created"
    CLONED = "vm.cloned"
    REMOVED = "vm.removed"
    RECONFIGURED = "vm.reconfigured"
    RENAMED = "vm.renamed"
    REGISTERED = "vm.registered"
    RETAGGED = "vm.retagged"
    CLOCK = "clock"
    RECONCILED = "inventory.reconciled"
    BACKUP_REQUESTED = "backup.requested"
    HOLD_REQUESTED = "hold.requested"


VM_EVENT_TYPES: frozenset[EventType] = frozenset(t for t in EventType if t.value.startswith("vm."))
"""What can happen to a VM. A trigger in a policy may name all but the removal, which comes too late."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a VM is reached now: (vCenter instance UUID, moRef). Never an identity."""

    vcenter: str
    moref: str


@dataclass(frozen=True, slots=True)
class Disk:
    """One virtual disk as the inventory or a snapshot's configuration tells it.

    `unprotected` is empty when a snapshot holds the disk, else the sentence that says why it does not.
    """

    key: int
    label: str
    capacity_bytes: int
    uuid: str
    datastore: str
    file_name: str
    mode: str
    controller: str = "scsi"
    unprotected: str = ""


@dataclass(frozen=True, slots=True)
class ForeignSnapshot:
    """A snapshot that is not ours. `depth` counts the snapshots that it stands on, itself included."""

    name: str
    created_at: datetime
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM as the inventory knows it at one instant.

    `folder` is the path below the datacenter's VM folder, "/" for the root of it. `tags` holds
    "category=name". `refusal` is empty when the VM can be snapshotted, else why not. `reach` is the best consistency
    that a snapshot of it can be expected to have as it is now, None where that is not known, and `reach_why` why it is
    not more, or why it is that. `boot_time` is when it was started, None while it is off or where nobody tells;
    `clean_power_off` whether it was switched off in an orderly way, None while it is not off.
    """

    id: VmId
    address: Address
    name: str
    instance_uuid: str = ""
    bios_uuid: str = ""
    datacenter: str = ""
    folder: str = "/"
    cluster: str = ""
    host: str = ""
    resource_pool: str = ""
    datastores: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    attributes: Mapping[str, str] = field(default_factory=dict)
    power: PowerState = PowerState.OFF
    guest_os: str = ""
    tools_running: bool = False
    template: bool = False
    disks: tuple[Disk, ...] = ()
    tracking_enabled: bool = False
    tracking_supported: bool = True
    snapshots: tuple[ForeignSnapshot, ...] = ()
    own_snapshots: tuple[str, ...] = ()
    consolidation_needed: bool = False
    connected: bool = True
    change_version: str = ""
    refusal: str = ""
    reach: Consistency | None = None
    reach_why: str = ""
    boot_time: datetime | None = None
    clean_power_off: bool | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, normalised.

    `key` is unique for ever and the same on every delivery: the effect of a key happens once. `vm` is None
    until the engine has resolved `address` (or `vm_name`) to its own id. `at` is aware, UTC.
    """

    key: str
    type: EventType
    at: datetime
    source: str
    vm: VmId | None = None
    vm_name: str = ""
    address: Address | None = None
    cause: str = ""
    from_host: str = ""
    to_host: str = ""
    user: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """One VM at one time, as much of it as a rule or an operator's list needs.

    `consistency` is what was achieved. `damaged` means that a verification found a changed byte.
    `holds` are the reasons of open holds, `locked_until` the end of a lock. `repository` is the name of the further
    repository that it is in, "" in the first one.
    """

    id: PointId
    vm: VmId
    vm_name: str
    taken_at: datetime
    complete: bool = True
    consistency: Consistency = Consistency.CRASH
    damaged: bool = False
    holds: tuple[str, ...] = ()
    locked_until: datetime | None = None
    expiring_since: datetime | None = None
    policy: str = ""
    rule: str = ""
    reason: str = ""
    read_bytes: int = 0
    stored_bytes: int = 0
    disk_bytes: int = 0
    repository: str = ""


@dataclass(frozen=True, slots=True)
class VmHistory:
    """What the engine remembers of one VM's runs.

    `reading_on` is the host on which the VM stood when the run began that reads it now; empty when none does.
    `called_back` is how often in a row its run gave way to a move.
    """

    last_success: datetime | None = None
    last_good: datetime | None = None
    last_attempt: datetime | None = None
    last_failure: str = ""
    consecutive_failures: int = 0
    running: bool = False
    pending: bool = False
    reading_on: str = ""
    called_back: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that an evaluation may look at.

    `fired` maps (policy, rule, VM) to the last time that this trigger led to a backup, for cooldowns. `left` has the
    VMs that are known to have left the inventory, and when; one that is neither there nor in `vms` is unknown.
    `copies` has by name the restore points of second copies, `unseen_copies` those of which nobody knows them, and
    `unseen_repositories` further repositories of which nobody knows the restore points.
    """

    now: datetime
    vms: Mapping[VmId, Vm]
    history: Mapping[VmId, VmHistory] = field(default_factory=dict)
    points: Mapping[VmId, tuple[RestorePoint, ...]] = field(default_factory=dict)
    fired: Mapping[tuple[str, str, VmId], datetime] = field(default_factory=dict)
    left: Mapping[VmId, datetime] = field(default_factory=dict)
    copies: Mapping[str, Mapping[VmId, tuple[RestorePoint, ...]]] = field(default_factory=dict)
    unseen_copies: tuple[str, ...] = ()
    unseen_repositories: tuple[str, ...] = ()

    def points_in(self, copy: str) -> Mapping[VmId, tuple[RestorePoint, ...]]:
        """The restore points of a second copy, or of the first repository, which is ""."""
        return self.copies.get(copy, {}) if copy else self.points
