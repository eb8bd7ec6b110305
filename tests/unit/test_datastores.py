"""Which datastores a snapshot is written to."""

from __future__ import annotations

from pyVmomi import vim

from connectors.vsphere.datastores import written_to

DEVICE = vim.vm.device


def disk(file_name: str, mode: str = "persistent") -> vim.vm.device.VirtualDisk:
    backing = DEVICE.VirtualDisk.FlatVer2BackingInfo(fileName=file_name, diskMode=mode)
    return DEVICE.VirtualDisk(key=2000 + len(file_name), capacityInBytes=1 << 30, capacityInKB=1 << 20, backing=backing)


def image(file_name: str) -> vim.vm.device.VirtualCdrom:
    return DEVICE.VirtualCdrom(key=3000, backing=DEVICE.VirtualCdrom.IsoBackingInfo(fileName=file_name))


def test_a_full_datastore_of_images_keeps_no_vm_from_its_backup() -> None:
    files = vim.vm.FileInfo(vmPathName="[ssd-1] web/web.vmx", snapshotDirectory="[ssd-1] web")
    devices = [
        disk("[ssd-2] web/web.vmdk"),
        image("[images] debian.iso"),
        disk("[raw] web.vmdk", "independent_persistent"),
    ]
    assert written_to({"config.files": files, "config.hardware.device": devices}) == {"ssd-1", "ssd-2"}


def test_deltas_that_the_configuration_sends_elsewhere_are_looked_for_there() -> None:
    files = vim.vm.FileInfo(vmPathName="[ssd-1] web/web.vmx", snapshotDirectory="[deltas] web")
    told = {"config.files": files, "config.hardware.device": [disk("[ssd-1] web/web.vmdk")]}
    assert written_to(told) == {"ssd-1", "deltas"}


def test_a_vm_without_a_known_configuration_has_none() -> None:
    assert written_to({}) == frozenset()
