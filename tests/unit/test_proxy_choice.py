"""What fits on a proxy, and the sentence that says why something does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import TransportFailed
from connectors.hypervisor import Fallback
from connectors.vsphere import guest_device
from connectors.vsphere.editions import judge
from connectors.vsphere.proxy import (
    Mark,
    Proxy,
    Slot,
    attached,
    free_slot,
    mark_value,
    plain_uuid,
    read_marks,
    refusal,
)
from connectors.vsphere.transport import Means, predict
from policies.facts import Address, Disk, Vm, VmId

UUID = "6000C293-1a2b-3c4d-5e6f-708192a3b4c5"
PLAIN = "6000c2931a2b3c4d5e6f708192a3b4c5"
DISK = Disk(2000, "Hard disk 1", 1 << 20, UUID, "ds1", "[ds1] vm/vm.vmdk", "persistent")


def controller(
    key: int, bus: int, kind: Any = vim.vm.device.ParaVirtualSCSIController, shared: str = "noSharing"
) -> Any:
    """A SCSI controller."""
    return kind(key=key, busNumber=bus, sharedBus=shared)


def disk(key: int, slot: Slot, file_name: str, uuid: str) -> Any:
    """A virtual disk on it."""
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file_name, diskMode="persistent", uuid=uuid)
    return vim.vm.device.VirtualDisk(
        key=key, controllerKey=slot.controller, unitNumber=slot.unit, backing=backing, capacityInKB=1024
    )


def proxy(devices: Sequence[Any] = (controller(1000, 0),)) -> Proxy:
    """A proxy that fits."""
    return Proxy("vm-9", "proxy", "dc", True, False, frozenset({"ds1"}), tuple(devices))


MARK = Mark("engine-1", "run-7", UUID, DISK.file_name, Slot(1000, 2), datetime(2026, 11, 22, tzinfo=UTC))
ON_VSAN = (controller(1000, 0), disk(2000, Slot(1000, 0), "[own] p/p.vmdk", "6000c2930000000000000000000000ff"))

ON_NFS = replace(proxy(), kinds={"ds1": "NFS"}, version="8.0.2", build=22_380_479, host="esx-1")


def why_not(given: Proxy, **changes: Any) -> str:
    """The refusal for DISK, with changes to the request."""
    request: dict[str, Any] = {"vm_moref": "vm-1", "datacenter": "dc", "encrypted": False, "disk": DISK}
    return refusal(given, **(request | changes))


def test_a_disk_that_fits_is_not_refused() -> None:
    assert why_not(proxy()) == ""


@pytest.mark.parametrize(
    ("given", "changes", "says"),
    [
        (proxy(), {"vm_moref": "vm-9"}, "belongs to the proxy itself"),
        (replace(proxy(), powered_on=False), {}, "not powered on"),
        (proxy(), {"disk": replace(DISK, controller="ide")}, "IDE"),
        (proxy(), {"disk": replace(DISK, uuid="")}, "no UUID"),
        (proxy(), {"disk": replace(DISK, unprotected="its mode is independent_persistent")}, "independent_persistent"),
        (proxy(), {"datacenter": "other"}, "is in datacenter dc, the disk in other"),
        (proxy(), {"disk": replace(DISK, datastore="ds2")}, "does not see datastore ds2"),
        (proxy(), {"encrypted": True}, "encrypted"),
        (
            proxy([controller(1000, 0), disk(1, Slot(1000, 3), "[ds1] clone/c.vmdk", PLAIN)]),
            {},
            "attached to the proxy",
        ),
        (proxy([]), {}, "no free place"),
        (replace(proxy(), tells_uuids=False), {}, "disk.EnableUUID = FALSE"),
        (replace(proxy(), edition=judge("never", "8.0.3", "")), {}, 'hotadd = "never"'),
        (replace(proxy(), edition=judge("auto", "5.0.0", "esx.standard.cpuPackage")), {}, "does not have hot-add"),
        (replace(proxy(), kinds={"ds1": "vsan"}), {}, "needs a proxy that lies on vSAN"),
        (
            replace(proxy(ON_VSAN), kinds={"ds1": "VMFS", "own": "vsan"}, version="6.7.0"),
            {},
            "lies on vSAN and its host runs ESXi 6.7.0",
        ),
        (ON_NFS, {"runs_on": "esx-2"}, "runs on esx-2, the proxy on esx-1 (ESXi 8.0.2): on NFS 3 the VM would stand"),
        (replace(ON_NFS, version="7.0.3", build=24_000_000), {"runs_on": "esx-2"}, "stand still for half a minute"),
    ],
)
def test_each_reason_against_hot_add_is_a_sentence(given: Proxy, changes: dict[str, Any], says: str) -> None:
    assert says in why_not(given, **changes)


@pytest.mark.parametrize(
    "given",
    [
        replace(proxy(), edition=judge("auto", "8.0.3", "esx.vcf")),
        replace(proxy(), edition=judge("always", "5.0.0", "esx.standard.cpuPackage")),
        replace(proxy(ON_VSAN), kinds={"ds1": "vsan", "own": "vsan"}, version="6.7.0"),
        replace(proxy(ON_VSAN), kinds={"ds1": "VMFS", "own": "vsan"}, version="8.0.3"),
        replace(proxy(ON_VSAN), kinds={"ds1": "NFS", "own": "VMFS"}, version="6.7.0"),
        replace(ON_NFS, kinds={"ds1": "NFS41"}),
        replace(ON_NFS, build=23_305_546),
        replace(ON_NFS, version="8.0.3", build=1),
        replace(ON_NFS, host="esx-2"),
        replace(ON_NFS, insisted=True),
    ],
    ids=[
        "unknown edition",
        "always",
        "both on vsan",
        "proxy on vsan since 7",
        "no vsan",
        "NFS 4.1",
        "8.0 U2b",
        "8.0 U3",
        "NFS 3 on the VM's own host",
        "NFS 3 and always",
    ],
)
def test_what_is_not_known_to_fail_is_tried(given: Proxy) -> None:
    assert why_not(given, runs_on="esx-2") == ""


def test_a_vm_that_is_off_does_not_stand_still_on_nfs() -> None:
    assert why_not(ON_NFS, runs_on="") == ""


def test_another_vm_s_disk_does_not_tell_where_the_proxy_lies() -> None:
    foreign = disk(2003, Slot(1000, 2), MARK.file_name, UUID)
    given = replace(proxy([controller(1000, 0), foreign]), kinds={"ds1": "vsan"}, marks=(MARK,))
    other = replace(DISK, uuid="6000c2930000000000000000000000aa")
    assert "needs a proxy that lies on vSAN" in why_not(given, disk=other)


def test_the_controller_s_own_place_is_never_chosen_and_the_last_one_is() -> None:
    full = [disk(i, Slot(1000, i), f"[ds1] p/{i}.vmdk", "") for i in range(16) if i != 7]
    assert free_slot([controller(1000, 0), *full]) is None
    assert free_slot([controller(1000, 0), *full[:-1]]) == Slot(1000, 15)
    assert free_slot([controller(1000, 0), *full[:7]]) == Slot(1000, 8)
    assert free_slot([controller(1000, 0), *full, controller(1001, 1)]) == Slot(1001, 0)


def test_paravirtual_controllers_come_first_and_shared_ones_never() -> None:
    logic = controller(1000, 0, vim.vm.device.VirtualLsiLogicController)
    shared = controller(1001, 1, shared="physicalSharing")
    assert free_slot([logic, shared]) == Slot(1000, 0)
    assert free_slot([logic, shared, controller(1002, 2)]) == Slot(1002, 0)


def option(key: str, value: str) -> Any:
    """One entry of extraConfig."""
    return vim.option.OptionValue(key=key, value=value)


def test_a_mark_comes_back_as_it_was_written() -> None:
    assert read_marks([option("other", "x"), option(MARK.key, mark_value(MARK))]) == (MARK,)


@pytest.mark.parametrize("value", ["", "{", "[]", '{"engine": "e"}', "null"])
def test_what_is_no_mark_is_left_alone(value: str) -> None:
    assert read_marks([option(MARK.key, value)]) == ()


def test_an_emptied_mark_counts_as_removed() -> None:
    assert read_marks([option(MARK.key, mark_value(MARK)), option(MARK.key, "")]) == ()


def test_only_the_marked_disk_is_ours_to_detach() -> None:
    ours = disk(2001, Slot(1000, 2), "[ds1] vm/vm-000001.vmdk", PLAIN)
    own = disk(2000, Slot(1000, 0), "[ds1] proxy/proxy.vmdk", "6000c2930000000000000000000000ff")
    same_file = disk(2002, Slot(1000, 3), DISK.file_name, UUID)
    in_our_place = disk(2003, Slot(1000, 2), "[ds1] other/o.vmdk", "6000c2930000000000000000000000aa")
    assert attached(proxy([own, ours]), MARK) is ours
    assert attached(proxy([own, same_file]), MARK) is same_file
    assert attached(proxy([own, in_our_place]), MARK) is None


VM = Vm(VmId("v"), Address("vc", "vm-1"), "web", datacenter="dc")


def test_a_forecast_names_the_transport_and_why_not_those_before_it() -> None:
    assert predict(Means(proxy(), ""), VM, DISK, ("hotadd", "nbd")).transport == "hotadd"
    other = predict(Means("this engine does not run in a VM of this vCenter", ""), VM, DISK, ("hotadd", "nbd"))
    assert other.transport == "nbd"
    assert other.fallbacks == (Fallback("hotadd", "this engine does not run in a VM of this vCenter"),)
    none = predict(Means(proxy([]), "nbdkit is not installed"), VM, DISK, ("hotadd", "nbd", "smb"))
    assert none.transport == ""
    assert [f.transport for f in none.fallbacks] == ["hotadd", "nbd", "smb"]
    assert "no transport 'smb'" in none.fallbacks[2].reason


async def test_a_device_is_found_by_either_name_of_its_uuid(tmp_path: Path) -> None:
    (tmp_path / "sda").write_bytes(b"")
    (tmp_path / f"scsi-3{PLAIN}").symlink_to("sda")
    assert await guest_device.appeared(tmp_path, plain_uuid(UUID), 0) == tmp_path / "sda"
    (tmp_path / f"wwn-0x{PLAIN}").symlink_to("sda")
    assert guest_device.present(tmp_path, plain_uuid(UUID)) == tmp_path / "sda"


async def test_two_devices_of_one_uuid_are_refused(tmp_path: Path) -> None:
    for name in guest_device.names(PLAIN):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(TransportFailed, match="two devices"):
        guest_device.present(tmp_path, PLAIN)


async def test_a_device_that_does_not_come_or_is_there_too_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportFailed, match="EnableUUID"):
        await guest_device.appeared(tmp_path, PLAIN, 0)
    (tmp_path / f"wwn-0x{PLAIN}").write_bytes(b"")
    with pytest.raises(TransportFailed, match="before its disk is"):
        await guest_device.vanished(tmp_path, PLAIN, 0)
