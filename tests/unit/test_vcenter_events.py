"""What becomes of vCenter's events: class by class, and key by key."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pyVmomi import vim

from connectors.vsphere.eventfacts import event_key, normalise
from policies.facts import Address, EventType

VC = "9c0f6d1e-vc"
AT = datetime(2026, 11, 22, 10, 0, 0, 250_000, tzinfo=UTC)


def post(kind: str, *, at: datetime = AT, key: int = 42, ds: str = "ds-1", **more: Any) -> Any:
    event = getattr(vim.event, kind)()
    event.key, event.chainId, event.createdTime, event.userName = key, key, at, more.pop("user", "alice")
    event.vm = vim.event.VmEventArgument(name="db%2f01", vm=vim.VirtualMachine("vm-7"))
    event.host = host("esx-b", "host-2")
    event.ds = datastore(ds)
    for name, value in more.items():
        setattr(event, name, value)
    return event


def task(kind: str) -> Any:
    return post("TaskEvent", info=vim.TaskInfo(descriptionId=kind))


def host(name: str, moref: str) -> Any:
    return vim.event.HostEventArgument(name=name, host=vim.HostSystem(moref))


def datastore(moref: str) -> Any:
    return vim.event.DatastoreEventArgument(name=f"name-of-{moref}", datastore=vim.Datastore(moref))


FROM = {"sourceHost": host("esx-a", "host-1"), "sourceDatastore": datastore("ds-1")}
ELSEWHERE = {"sourceHost": host("esx-a", "host-1"), "sourceDatastore": datastore("ds-9")}


@pytest.mark.parametrize(
    ("event", "kind", "cause"),
    [
        (post("DrsVmMigratedEvent", **FROM), EventType.MIGRATED, "drs"),
        (post("VmMigratedEvent", **FROM), EventType.MIGRATED, "manual"),
        (post("VmMigratedEvent", **ELSEWHERE), EventType.RELOCATED, "manual"),
        (post("DrsVmMigratedEvent", **ELSEWHERE), EventType.RELOCATED, "drs"),
        (post("VmRelocatedEvent", **ELSEWHERE), EventType.RELOCATED, "manual"),
        (post("VmRelocatedEvent", **FROM), EventType.MIGRATED, "manual"),
        (post("VmPoweredOnEvent"), EventType.POWERED_ON, "manual"),
        (post("DrsVmPoweredOnEvent"), EventType.POWERED_ON, "drs"),
        (
            post("VmRestartedOnAlternateHostEvent", sourceHost=host("esx-a", "host-1")),
            EventType.POWERED_ON,
            "ha",
        ),
        (post("VmPoweredOffEvent"), EventType.POWERED_OFF, "manual"),
        (post("VmPoweredOffEvent", user=""), EventType.POWERED_OFF, "guest"),
        (post("VmPowerOffOnIsolationEvent"), EventType.POWERED_OFF, "ha"),
        (post("VmSuspendedEvent"), EventType.SUSPENDED, "manual"),
        (post("VmCreatedEvent"), EventType.CREATED, "manual"),
        (post("VmDeployedEvent"), EventType.CREATED, "template"),
        (post("VmClonedEvent"), EventType.CLONED, "manual"),
        (post("VmRemovedEvent"), EventType.REMOVED, "manual"),
        (post("VmReconfiguredEvent"), EventType.RECONFIGURED, "manual"),
        (post("VmReloadFromPathEvent"), EventType.RECONFIGURED, "reload"),
        (post("VmUpgradeCompleteEvent"), EventType.RECONFIGURED, "hardware upgrade"),
        (task("VirtualMachine.revertToCurrentSnapshot"), EventType.RECONFIGURED, "revert"),
        (task("vm.Snapshot.revert"), EventType.RECONFIGURED, "revert"),
        (post("VmRenamedEvent", oldName="a", newName="b"), EventType.RENAMED, "manual"),
        (post("VmRegisteredEvent"), EventType.REGISTERED, "manual"),
        (post("VmDiscoveredEvent"), EventType.REGISTERED, "discovered"),
        (post("VmEmigratingEvent"), EventType.RECONFIGURED, "emigrating"),
    ],
)
def test_each_class_becomes_its_type_and_cause(event: Any, kind: EventType, cause: str) -> None:
    ours = normalise(VC, event)
    assert ours is not None
    assert (ours.type, ours.cause) == (kind, cause)


def test_other_tasks_are_no_events_of_ours() -> None:
    assert normalise(VC, task("VirtualMachine.createSnapshot")) is None


def device(operation: str, key: int = 2001, mode: str = "persistent", label: str = "Hard disk 2") -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode=mode)
    disk = vim.vm.device.VirtualDisk(key=key, backing=backing)
    if label:
        disk.deviceInfo = vim.Description(label=label, summary="")
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=disk)


def reconfigured(*changes: Any, modified: str = "", tracking: bool | None = None) -> Any:
    spec = vim.vm.ConfigSpec(deviceChange=list(changes), changeTrackingEnabled=tracking)
    told = vim.event.ChangesInfoEventArgument(modified=modified, added="", deleted="")
    return post("VmReconfiguredEvent", configSpec=spec, configChanges=told)


@pytest.mark.parametrize(
    ("event", "disks", "tracking"),
    [
        (reconfigured(), "", ""),
        (reconfigured(device("add")), "Hard disk 2 added", ""),
        (reconfigured(device("remove"), device("add", -1, label="")), "Hard disk 2 removed, disk -1 added", ""),
        (reconfigured(device("edit")), "Hard disk 2 changed", ""),
        (
            reconfigured(device("edit"), modified="config.hardware.device(2001).capacityInKB: 1024 -> 2048; "),
            "Hard disk 2 extended",
            "",
        ),
        (reconfigured(device("add", mode="independent_nonpersistent")), "", ""),
        (
            reconfigured(vim.vm.device.VirtualDeviceSpec(operation="add", device=vim.vm.device.VirtualCdrom(key=3))),
            "",
            "",
        ),
        (reconfigured(tracking=True), "", "on"),
        (reconfigured(tracking=False), "", "off"),
        (task("vm.Snapshot.revert"), "it was reverted to a snapshot", ""),
        (post("VmReloadFromPathEvent"), "its configuration was loaded again from a file", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_reconfiguration_tells_what_it_did_to_disks_and_tracking(event: Any, disks: str, tracking: str) -> None:
    ours = normalise(VC, event)
    assert ours is not None
    assert (ours.detail.get("disks", ""), ours.detail.get("tracking", "")) == (disks, tracking)


def test_a_migration_tells_who_moved_what_from_where_to_where() -> None:
    ours = normalise(VC, post("VmMigratedEvent", **ELSEWHERE))
    assert ours is not None
    assert ours.address == Address(VC, "vm-7")
    assert ours.vm_name == "db/01"
    assert (ours.from_host, ours.to_host, ours.user, ours.at) == ("esx-a", "esx-b", "alice", AT)
    assert ours.detail["from_datastore"] == "name-of-ds-9"
    assert ours.detail["to_datastore"] == "name-of-ds-1"


@pytest.mark.parametrize(
    "kind",
    [
        "VmBeingMigratedEvent",
        "VmStartingEvent",
        "VmFailedMigrateEvent",
        "VmBeingHotMigratedEvent",
        "VmMacAssignedEvent",
    ],
)
def test_what_only_begins_or_failed_is_no_event_of_ours(kind: str) -> None:
    assert normalise(VC, post(kind)) is None


def test_an_event_without_a_vm_is_none_of_ours() -> None:
    event = post("VmPoweredOnEvent")
    event.vm = None
    assert normalise(VC, event) is None


def test_a_key_that_is_used_again_after_a_restored_database_is_another_key() -> None:
    before = post("VmPoweredOnEvent")
    after = post("VmPoweredOnEvent", at=AT.replace(hour=14))
    assert event_key(VC, before) != event_key(VC, after)


def test_a_key_does_not_depend_on_the_fraction_of_the_second_nor_on_the_zone_it_is_told_in() -> None:
    live = post("VmPoweredOnEvent")
    later = post("VmPoweredOnEvent", at=AT.replace(microsecond=0, tzinfo=None))
    assert event_key(VC, live) == event_key(VC, later)
