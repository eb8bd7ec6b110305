"""A disk that a proxy VM attaches appears to the proxy's guest, and holds its snapshot until it is detached."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.lab.vcenter import Lab, Machine

PROXY = Machine(name="proxy", disks=(4 << 20,), content=False)


def attach(lab: Lab, file: str, mode: str = "independent_nonpersistent") -> Any:
    """The device as the proxy has it after the hot-add."""
    controller = next(
        d for d in lab.machine("proxy").config.hardware.device if isinstance(d, vim.vm.device.ParaVirtualSCSIController)
    )
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode=mode)
    disk = vim.vm.device.VirtualDisk(
        key=-101, controllerKey=controller.key, unitNumber=5, backing=backing, capacityInKB=0
    )
    lab.reconfigure("proxy", deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)])
    devices: list[Any] = lab.machine("proxy").config.hardware.device
    return next(d for d in devices if getattr(d.backing, "fileName", None) == file)


def detach(lab: Lab, device: Any) -> None:
    lab.reconfigure("proxy", deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="remove", device=device)])


def node(lab: Lab, uuid: str) -> Path:
    return lab.device_folder / f"wwn-0x{uuid.replace('-', '').lower()}"


def appears(path: Path) -> bool:
    deadline = time.monotonic() + 5
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_an_attached_snapshot_disk_appears_frozen_and_disappears_again(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 << 20, extra=[PROXY])
    lab.snapshot("web-01")
    frozen = lab.frozen("web-01")[0].disks[0]
    lab.write_random_grains("web-01", share=0.3)
    device = attach(lab, frozen.file)
    assert device.capacityInBytes == 8 << 20
    assert device.backing.uuid == frozen.uuid
    path = node(lab, frozen.uuid)
    assert appears(path)
    assert path.read_bytes() == frozen.image.read_bytes()
    detach(lab, device)
    assert not path.exists()
    assert not os.path.lexists(path)
    assert frozen.image.exists()


def test_a_snapshot_cannot_be_removed_while_its_disk_is_attached(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, extra=[PROXY])
    snapshot = lab.snapshot("web-01")
    device = attach(lab, lab.frozen("web-01")[0].disks[0].file)
    with pytest.raises(vim.fault.FileLocked):
        lab.remove_snapshot(snapshot)
    with pytest.raises(vim.fault.FileLocked):
        lab.relocate("web-01", "bulk-1")
    assert lab.vm("web-01").snapshots == (snapshot,)
    detach(lab, device)
    lab.remove_snapshot(snapshot)
    assert lab.vm("web-01").snapshots == ()


def test_a_disk_that_is_removed_with_destroy_is_deleted_for_its_owner_too(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, extra=[PROXY])
    lab.power_off("web-01")
    disk = lab.vm("web-01").disks[0]
    device = attach(lab, disk.file, "persistent")
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", fileOperation="destroy", device=device)
    lab.reconfigure("proxy", deviceChange=[change])
    assert not disk.flat.exists()


def test_the_disk_that_a_running_guest_writes_cannot_be_attached(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, extra=[PROXY])
    with pytest.raises(vim.fault.FileLocked):
        attach(lab, lab.vm("web-01").disks[0].file)


def test_a_powered_off_vm_s_disk_is_attached_for_writing(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, extra=[PROXY])
    lab.power_off("web-01")
    disk = lab.vm("web-01").disks[0]
    device = attach(lab, disk.file, "persistent")
    path = node(lab, disk.uuid)
    assert appears(path)
    with path.open("r+b") as opened:
        opened.write(b"restored")
    detach(lab, device)
    assert lab.read_guest("web-01", 0, 0, 8) == b"restored"
    assert lab.vm("web-01").disks[0].flat.exists()
