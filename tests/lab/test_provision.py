"""A VM made again from the configuration that a snapshot told: the same hardware, identities of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import AlreadyThere, ConnectorError, Rejected
from connectors.hypervisor import RestoreTarget
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.vmspec import kept_options, read_configuration
from tests.lab.reaching import MIB, connected, snapshotted, transport_settings
from tests.lab.vcenter import Lab, Machine

FreshLab = Callable[..., Lab]


async def saved(vcenter: VCenter, lab: Lab, name: str) -> bytes:
    """The configuration that a snapshot of the VM tells."""
    async with snapshotted(vcenter, lab, name) as snapshot:
        return snapshot.configuration


def told(lab: Lab, name: str) -> Any:
    """The VM's configuration now."""
    machine = lab.machine(name)
    return lab._act(lambda _: machine.config)


def nics(config: Any) -> list[Any]:
    """Its network cards."""
    return [d for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard)]


async def test_the_new_vm_has_the_hardware_of_the_old_one_and_identities_of_its_own(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    keep = [vim.option.OptionValue(key=k, value=v) for k, v in (("svga.present", "TRUE"), ("guestinfo.x", "1"))]
    await asyncio.to_thread(
        lambda: lab.reconfigure("db-03", annotation="the books", numCPUs=2, memoryMB=256, extraConfig=keep)
    )
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "db-03")
        made = await vcenter.create_vm(configuration, RestoreTarget("db-03-new"))
    old, new = told(lab, "db-03"), told(lab, "db-03-new")
    assert (new.hardware.numCPU, new.hardware.memoryMB, new.annotation) == (2, 256, "the books")
    assert (new.guestId, new.firmware) == (old.guestId, old.firmware)
    assert new.uuid != old.uuid
    assert new.instanceUuid != old.instanceUuid
    assert not {nic.macAddress for nic in nics(new)} & {nic.macAddress for nic in nics(old)}
    assert len(nics(new)) == len(nics(old)) > 0
    assert [nic.connectable.startConnected for nic in nics(new)] == [False] * len(nics(new))
    options = {option.key: option.value for option in new.extraConfig}
    assert options.get("svga.present") == "TRUE"
    assert "guestinfo.x" not in options

    there = lab.vm("db-03-new")
    before = lab.vm("db-03")
    assert made.address.moref == there.moref
    assert there.power == "poweredOff" or there.power == "off"
    assert [d.capacity_bytes for d in made.disks] == [d.capacity_bytes for d in before.disks]
    assert [d.file for d in there.disks] == [d.file_name for d in made.disks]
    assert not {d.uuid for d in there.disks} & {d.uuid for d in before.disks}
    assert not {d.file for d in there.disks} & {d.file for d in before.disks}


async def test_disks_that_no_snapshot_holds_are_not_made_again(fresh_lab: FreshLab, tmp_path: Path) -> None:
    special = Machine(name="mixed", disks=(4 * MIB, 8 * MIB, 12 * MIB), independent=(1,))
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, extra=[special])
    async with (
        connected(lab, transport_settings(lab, tmp_path)) as vcenter,
        snapshotted(vcenter, lab, "mixed") as snapshot,
    ):
        made = await vcenter.create_vm(snapshot.configuration, RestoreTarget("mixed-new"))
        assert len(snapshot.unprotected) == 1
        assert [d.capacity_bytes for d in made.disks] == [d.disk.capacity_bytes for d in snapshot.disks]
    assert [d.capacity_bytes for d in made.disks] == [4 * MIB, 12 * MIB]


async def test_disks_that_were_left_out_are_not_made_again_and_the_others_come_in_the_asked_order(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    special = Machine(name="mixed", disks=(4 * MIB, 8 * MIB, 12 * MIB))
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, extra=[special])
    async with (
        connected(lab, transport_settings(lab, tmp_path)) as vcenter,
        snapshotted(vcenter, lab, "mixed") as snapshot,
    ):
        first, _, third = (one.disk.key for one in snapshot.disks)
        made = await vcenter.create_vm(snapshot.configuration, RestoreTarget("mixed-new", disks=(third, first)))
    assert [d.capacity_bytes for d in made.disks] == [12 * MIB, 4 * MIB]
    assert made.disks[1].key < made.disks[0].key, "numbered as in the saved VM"
    assert [d.capacity_bytes for d in lab.vm("mixed-new").disks] == [4 * MIB, 12 * MIB]


async def test_it_goes_where_it_is_told_to(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "web-01")
        target = RestoreTarget("placed", folder="/prod/db", resource_pool="gold", datastore="bulk-1")
        made = await vcenter.create_vm(configuration, target)
        vm = await vcenter.vm(made.address)
    assert (vm.folder, vm.resource_pool, vm.datastores) == ("/prod/db", "gold", ("bulk-1",))
    assert all(disk.file_name.startswith("[bulk-1] ") for disk in made.disks)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (RestoreTarget("x", datastore="slow-1"), ["datastore called slow-1", "bulk-1, fast-1"]),
        (RestoreTarget("x", folder="/prod/nothing"), ["no VM folder /prod/nothing", "there are: db, web"]),
        (RestoreTarget("x", resource_pool="silver"), ["no resource pool silver", "gold"]),
        (RestoreTarget("x", host="esx-99"), ["host called esx-99", "DC0_C0_H0"]),
        (RestoreTarget("x", network_map={"VM Network": "DMZ"}), ["no network DMZ", "VM Network"]),
        (RestoreTarget("web-01", folder="/prod/web"), ["web-01 is there already", "another name"]),
        (RestoreTarget(""), ["1 to 80 characters"]),
        (RestoreTarget("x" * 81), ["1 to 80 characters, not 81"]),
    ],
)
async def test_a_wrong_name_is_answered_with_those_that_are_there(
    fresh_lab: FreshLab, tmp_path: Path, target: RestoreTarget, says: list[str]
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    before = len(lab.vms())
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "web-01")
        with pytest.raises(Rejected) as caught:
            await vcenter.create_vm(configuration, target)
    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert len(lab.vms()) == before


async def test_a_name_with_what_vcenter_escapes_is_made_and_known_as_it_was_asked_for(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    target = RestoreTarget("web 1/2\\3 100%2f")
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "web-01")
        made = await vcenter.create_vm(configuration, target)
        assert (await vcenter.vm(made.address)).name == target.name
        with pytest.raises(AlreadyThere, match="is there already"):
            await vcenter.create_vm(configuration, target)


async def test_a_name_that_is_taken_meanwhile_is_told_alike(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "web-01")
        other = {"Name": "new", "Object": {"Type": "VirtualMachine", "Value": "vm-1"}}
        lab.inject("CreateVM_Task", "DuplicateName", in_task=True, fields=other)
        with pytest.raises(AlreadyThere, match="is there already"):
            await vcenter.create_vm(configuration, RestoreTarget("new"))


@pytest.mark.parametrize("configuration", [b"", b"{}", b"<a/>", b"\xff\xfe", b"<obj xmlns='urn:vim25'>"])
def test_what_is_no_configuration_is_refused(configuration: bytes) -> None:
    with pytest.raises(Rejected, match="not one of a VM"):
        read_configuration(configuration)


async def test_a_half_made_vm_is_removed_when_a_disk_cannot_be_made(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    names = {vm.name for vm in lab.vms()}
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "db-03")
        lab.inject("ReconfigVM_Task", "NoDiskSpace", in_task=True)
        with pytest.raises(ConnectorError):
            await vcenter.create_vm(configuration, RestoreTarget("half"))
    assert {vm.name for vm in lab.vms()} == names


@pytest.mark.parametrize("method", ["CreateVM_Task", "ReconfigVM_Task"])
async def test_a_cancellation_leaves_no_half_made_vm(fresh_lab: FreshLab, tmp_path: Path, method: str) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    names = {vm.name for vm in lab.vms()}
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "db-03")
        calls = lab.calls().get(method, 0)
        lab.inject(method, delay_seconds=0.5)
        making = asyncio.create_task(vcenter.create_vm(configuration, RestoreTarget("half")))
        await asyncio.to_thread(_wait_for_call, lab, method, calls)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    assert {vm.name for vm in lab.vms()} == names


async def test_the_same_vm_can_be_made_twice_under_two_names(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        configuration = await saved(vcenter, lab, "web-01")
        made = [await vcenter.create_vm(configuration, RestoreTarget(name)) for name in ("first", "second")]
    assert not {d.file_name for d in made[0].disks} & {d.file_name for d in made[1].disks}
    assert not {d.uuid for d in made[0].disks} & {d.uuid for d in made[1].disks}


def test_options_of_the_old_vm_s_files_identity_and_moment_are_dropped() -> None:
    dropped = (
        "ctkEnabled", "scsi0:0.ctkEnabled", "scsi0:1.fileName", "sata0:0.redo", "sched.swap.derivedName", "nvram",
        "vc.uuid", "uuid.bios", "migrate.hostLog", "vmotion.checkpointFBSize", "guestinfo.hostname",
        "backstay.attached.6000c29", "checkpoint.vmState", "replay.supported",
    )  # fmt: skip
    kept = ("ethernet0.pciSlotNumber", "disk.EnableUUID", "svga.present", "mynvram", "numa.nodeAffinity")
    options = [vim.option.OptionValue(key=key, value="1") for key in (*dropped, *kept)]
    assert tuple(option.key for option in kept_options(options)) == kept


def _wait_for_call(lab: Lab, method: str, calls: int) -> None:
    while lab.calls().get(method, 0) <= calls:
        pass
