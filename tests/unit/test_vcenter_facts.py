"""What a VM's properties are taken to mean: places, disks that a snapshot does not hold, and refusals."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pyVmomi import vim

from connectors.vsphere.consistency import Machine, expected
from connectors.vsphere.naming import read_mark, snapshot_description, snapshot_name, tree_nodes
from connectors.vsphere.quiesce import achieved, ladder
from connectors.vsphere.vmfacts import Places, disk_facts, vm_facts
from policies.facts import USUAL_QUIESCING, Address, Consistency, PowerState, Vm, VmId

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
FLAT = vim.vm.device.VirtualDisk.FlatVer2BackingInfo

PLACES = Places(
    {
        "datacenter-2": {"name": "Berlin", "parent": vim.Folder("group-d1")},
        "group-v3": {"name": "vm", "parent": vim.Datacenter("datacenter-2")},
        "group-v4": {"name": "Prod%2fEU", "parent": vim.Folder("group-v3")},
        "group-v5": {"name": "db", "parent": vim.Folder("group-v4")},
        "domain-c7": {"name": "gold-cluster", "parent": vim.Folder("group-h4")},
        "host-9": {"name": "esx-a", "parent": vim.ClusterComputeResource("domain-c7")},
        "resgroup-8": {"name": "Resources", "parent": vim.ClusterComputeResource("domain-c7")},
        "resgroup-20": {"name": "gold", "parent": vim.ResourcePool("resgroup-8")},
        "resgroup-v30": {
            "name": "shop",
            "parent": vim.ResourcePool("resgroup-20"),
            "parentFolder": vim.Folder("group-v4"),
        },
        "datastore-1": {"name": "fast-1"},
        "network-1": {"name": "VM Network"},
    },
    {101: "owner"},
)


def disk(key: int = 2000, mode: str = "persistent", backing: Any = None, controller: int = 1000) -> Any:
    file = backing or FLAT(fileName="[fast-1] a/a.vmdk", diskMode=mode, uuid="6000C29a")
    return vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=0,
        capacityInKB=2048,
        capacityInBytes=2048 * 1024,
        backing=file,
        deviceInfo=vim.Description(label=f"Hard disk {key - 1999}", summary=""),
    )


def controller(bus: str = "noSharing") -> Any:
    return vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus=bus)


def properties(**changes: Any) -> dict[str, Any]:
    told = {
        "name": "db%2f01",
        "parent": vim.Folder("group-v5"),
        "config.uuid": "42",
        "config.changeVersion": "2026",
        "config.hardware.device": [controller(), disk()],
        "runtime.host": vim.HostSystem("host-9"),
        "runtime.powerState": "poweredOn",
        "runtime.connectionState": "connected",
        "resourcePool": vim.ResourcePool("resgroup-20"),
        "datastore": [vim.Datastore("datastore-1")],
        "network": [vim.Network("network-1")],
        "guest.toolsRunningStatus": "guestToolsRunning",
    }
    return {
        k: v for k, v in (told | {name.replace("__", "."): v for name, v in changes.items()}).items() if v is not None
    }


def facts(**changes: Any) -> Vm:
    return vm_facts("vc", "vm-7", properties(**changes), PLACES, frozenset({"tier=gold"}), "e1")


def test_a_vm_knows_its_places_by_their_unescaped_names() -> None:
    vm = facts(customValue=[vim.CustomFieldsManager.StringValue(key=101, value="alice")])
    assert (vm.name, vm.folder, vm.datacenter) == ("db/01", "/Prod/EU/db", "Berlin")
    assert (vm.cluster, vm.host, vm.resource_pool) == ("gold-cluster", "esx-a", "gold")
    assert (vm.datastores, vm.networks) == (("fast-1",), ("VM Network",))
    assert vm.attributes == {"owner": "alice"}
    assert vm.tags == {"tier=gold"}
    assert vm.tools_running
    assert vm.refusal == ""


def test_a_vm_in_a_vapp_is_in_the_folder_of_the_vapp() -> None:
    vm = facts(parent=None, parentVApp=vim.VirtualApp("resgroup-v30"), resourcePool=vim.VirtualApp("resgroup-v30"))
    assert vm.folder == "/Prod/EU"
    assert vm.resource_pool == "gold/shop"


def test_a_vm_in_the_root_of_its_datacenter_has_the_folder_slash() -> None:
    assert facts(parent=vim.Folder("group-v3")).folder == "/"


@pytest.mark.parametrize(
    ("backing", "says"),
    [
        (FLAT(fileName="[a] b", diskMode="independent_persistent"), "independent"),
        (FLAT(fileName="[a] b", diskMode="independent_nonpersistent"), "independent"),
        (FLAT(fileName="[a] b", diskMode="persistent", sharing="sharingMultiWriter"), "multi-writer"),
        (
            vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
                fileName="[a] b", diskMode="persistent", compatibilityMode="physicalMode"
            ),
            "physical mode",
        ),
        (
            vim.vm.device.VirtualDisk.RawDiskVer2BackingInfo(descriptorFileName="[a] b", deviceName="/dev/x"),
            "raw device",
        ),
    ],
)
def test_a_disk_that_a_snapshot_does_not_hold_says_why(backing: Any, says: str) -> None:
    (found,) = disk_facts([controller(), disk(backing=backing)])
    assert says in found.unprotected
    assert found.file_name == "[a] b"
    assert found.datastore == "a"


def test_a_virtual_mode_raw_mapping_is_protected() -> None:
    mapping = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[a] b", diskMode="persistent", compatibilityMode="virtualMode"
    )
    assert disk_facts([controller(), disk(backing=mapping)])[0].unprotected == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config__template": True}, "template"),
        ({"runtime__connectionState": "inaccessible"}, "not accessible"),
        ({"runtime__connectionState": "disconnected"}, "disconnected"),
        ({"runtime__faultToleranceState": "running"}, "Fault Tolerance"),
        (
            {"runtime__question": vim.vm.QuestionInfo(id="1", text="msg: moved or copied?")},
            "moved or copied?",
        ),
        ({"config__hardware__device": [controller("physicalSharing"), disk()]}, "shared"),
        ({"config__uuid": None, "config__changeVersion": None}, "configuration"),
    ],
)
def test_a_vm_that_cannot_be_snapshotted_says_why(changes: dict[str, Any], says: str) -> None:
    assert says in facts(**changes).refusal


def test_an_independent_disk_refuses_nothing_while_there_is_another_disk() -> None:
    independent = disk(mode="independent_persistent")
    assert "holds none of its disks" in facts(config__hardware__device=[controller(), independent]).refusal
    independent.key += 1
    assert facts(config__hardware__device=[controller(), disk(), independent]).refusal == ""


def tree(name: str, description: str, *children: Any) -> Any:
    return vim.vm.SnapshotTree(
        snapshot=vim.vm.Snapshot(f"snapshot-{name}"),
        vm=vim.VirtualMachine("vm-7"),
        name=name,
        description=description,
        createTime=NOW,
        state="poweredOn",
        quiesced=False,
        id=1,
        replaySupported=False,
        childSnapshotList=list(children),
    )


def test_only_snapshots_with_this_engines_mark_are_its_own() -> None:
    ours = tree(snapshot_name("e1", "run-1"), snapshot_description("e1", "run-1", NOW))
    other = tree(snapshot_name("e2", "run-1"), snapshot_description("e2", "run-1", NOW))
    imitated = tree(snapshot_name("e1", "run-2"), "made by hand")
    human = tree("before the upgrade", "", ours, other, imitated)
    info = vim.vm.SnapshotInfo(rootSnapshotList=[human])
    vm = facts(snapshot=info)
    assert vm.own_snapshots == ("backstay-e1-run-1",)
    assert [s.name for s in vm.snapshots] == ["before the upgrade", "backstay-e2-run-1", "backstay-e1-run-2"]
    assert [n.depth for n in tree_nodes(info.rootSnapshotList)] == [1, 2, 2, 2]


@pytest.mark.parametrize("description", ["", "[1]", "not json", '{"engine": "e1"}', '{"engine": "e1", "run": "other"}'])
def test_a_name_without_a_description_that_agrees_is_no_mark(description: str) -> None:
    assert read_mark("backstay-e1-run-1", description) is None


def test_a_name_that_vsphere_would_escape_is_refused() -> None:
    with pytest.raises(ValueError, match="letters"):
        snapshot_name("e1", "100%")


def vm(power: PowerState = PowerState.ON, tools: bool = True, guest: str = "ubuntu64Guest") -> Vm:
    reach, why = expected(Machine(guest, power=power, tools_running=tools))
    return Vm(VmId("x"), Address("vc", "vm-7"), "db", power=power, tools_running=tools, reach=reach, reach_why=why)


APP, FS, CRASH = Consistency.APPLICATION, Consistency.FILESYSTEM, Consistency.CRASH


def levels(vm: Vm, want: Consistency, fallback: Consistency) -> list[Consistency]:
    return [step.best for step in ladder(vm, want, fallback, timeout=USUAL_QUIESCING.timeout).steps]


def test_the_ladder_goes_from_what_is_wanted_to_what_is_accepted() -> None:
    windows = vm(guest="windows2019srvNext_64Guest")
    assert levels(windows, APP, CRASH) == [APP, FS, CRASH]
    assert levels(windows, APP, FS) == [APP, FS]
    assert levels(vm(), APP, CRASH) == [FS, CRASH]
    assert levels(vm(tools=False), APP, CRASH) == [CRASH]
    assert levels(vm(power=PowerState.SUSPENDED), FS, CRASH) == [CRASH]
    assert levels(vm(), CRASH, CRASH) == [CRASH]


def test_a_level_out_of_reach_leaves_no_step_but_a_reason() -> None:
    found = ladder(vm(tools=False), APP, FS, timeout=USUAL_QUIESCING.timeout)
    assert found.steps == ()
    assert "Tools do not run" in found.reason


def test_what_vsphere_ignored_is_not_recorded_as_achieved() -> None:
    step = ladder(vm(), FS, CRASH, timeout=USUAL_QUIESCING.timeout).steps[0]
    (node,) = tree_nodes([tree("x", "")])
    level, why = achieved(step, vm(), node)
    assert level is CRASH
    assert "did not quiesce" in why
