"""What a restore point keeps of a VM beside its disks: typed configuration, NVRAM, and a summary that people read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import AlreadyThere, Rejected
from connectors.hypervisor import Identity, RestoreTarget
from connectors.kept_vm import KeptVm, pack, unpack
from connectors.vsphere.vmspec import read_configuration
from tests.lab.reaching import MIB, connected, snapshotted, transport_settings
from tests.lab.test_provision import nics, told
from tests.lab.vcenter import Lab, Machine

FreshLab = Callable[..., Lab]


def nvram_file(lab: Lab, name: str) -> Path:
    """Where the lab keeps the VM's NVRAM."""
    vm = lab.vm(name)
    return lab.root / "datastores" / vm.datastore / name / f"{name}.nvram"


async def test_a_snapshot_carries_configuration_nvram_and_summary(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB, tracking=True)
    nvram = bytes(range(256)) * 300
    nvram_file(lab, "db-03").write_bytes(nvram)

    def people() -> None:
        lab.tag("db-03", "tier", "gold")
        lab.set_attribute("db-03", "owner", "ledger")

    await asyncio.to_thread(people)
    async with (
        connected(lab, transport_settings(lab, tmp_path)) as vcenter,
        snapshotted(vcenter, lab, "db-03") as snapshot,
    ):
        held = unpack(snapshot.configuration)
        facts = snapshot.vm
    assert held.nvram == nvram, held.summary["missing"]
    assert read_configuration(snapshot.configuration).instanceUuid == facts.instance_uuid
    told = held.summary
    assert (told["name"], told["folder"], told["datacenter"]) == ("db-03", "/prod/db", "DC0")
    assert (told["resource_pool"], told["tags"], told["attributes"]) == ("gold", ["tier=gold"], {"owner": "ledger"})
    assert told["missing"] == {}
    assert [d["label"] for d in told["disks"]] == [d.disk.label for d in snapshot.disks]
    assert [d["change_id"] for d in told["disks"]] == [d.change_id for d in snapshot.disks]
    places = [(d["controller"], d["bus"], d["unit"]) for d in told["disks"]]
    assert len(set(places)) == 2
    assert places[0][0].endswith("Controller")
    [card] = told["cards"]
    assert card["network"] in facts.networks
    assert card["mac"].count(":") == 5


async def test_nvram_that_is_not_there_is_told_and_fails_nothing(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, extra=[Machine(name="other", disks=(4 * MIB,))])
    nvram_file(lab, "web-01").unlink()
    async with (
        connected(lab, transport_settings(lab, tmp_path)) as vcenter,
        snapshotted(vcenter, lab, "web-01") as snapshot,
    ):
        held = unpack(snapshot.configuration)
    assert held.nvram == b""
    assert "web-01.nvram: it is not there" in held.summary["missing"]["nvram"]


async def test_what_is_kept_comes_back_with_a_new_vm(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    nvram = bytes(range(256)) * 300
    nvram_file(lab, "db-03").write_bytes(nvram)

    def people() -> None:
        lab.tag("db-03", "tier", "gold")
        lab.set_attribute("db-03", "owner", "ledger")
        lab.reconfigure("db-03", annotation="the books")

    await asyncio.to_thread(people)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "db-03") as snapshot:
            configuration = snapshot.configuration
        made = await vcenter.create_vm(configuration, RestoreTarget("db-03-new", point="p1", run="r1"))
        vm = await vcenter.vm(made.address)
        half = told(lab, "db-03-new")
        await vcenter.finish_vm(made)
    assert (set(vm.tags), dict(vm.attributes), vm.folder, vm.resource_pool) == (
        {"tier=gold"}, {"owner": "ledger"}, "/prod/db", "gold",
    )  # fmt: skip
    assert made.warnings == ()
    assert nvram_file(lab, "db-03-new").read_bytes() == nvram
    assert half.annotation.startswith("HALF RESTORED by Backstay from p1")
    whole = told(lab, "db-03-new")
    assert whole.annotation == "the books"
    assert not [o for o in whole.extraConfig if o.key.startswith("backstay.")]


async def test_what_is_not_there_any_more_is_told(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "db-03") as snapshot:
            held = unpack(snapshot.configuration)
        gone = {"folder": "/old", "resource_pool": "old", "tags": ["a=b"], "attributes": {"c": "d"}}
        kept = pack(KeptVm(held.configuration, b"", {**held.summary, **gone, "missing": {"nvram": "no right to it"}}))
        made = await vcenter.create_vm(kept, RestoreTarget("new"))
    said = "; ".join(made.warnings)
    for words in ("folder /old", "pool old", "the tag a=b", "attribute c", "NVRAM of the original: no right to it"):
        assert words in said


async def test_a_lost_vm_gets_its_identity_back_and_a_copy_beside_it_does_not(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    old = told(lab, "web-01")
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        beside = await vcenter.create_vm(configuration, RestoreTarget("beside"))
        with pytest.raises(Rejected, match="web-01 has its BIOS UUID"):
            await vcenter.create_vm(configuration, RestoreTarget("twin", identity=Identity.KEEP))
        await asyncio.to_thread(lab.remove_vm, "web-01")
        made = await vcenter.create_vm(configuration, RestoreTarget("web-01"))
        again = await vcenter.create_vm(configuration, RestoreTarget("third"))
        new = await vcenter.create_vm(configuration, RestoreTarget("fourth", identity=Identity.NEW, connect=True))
        alone = await vcenter.create_vm(configuration, RestoreTarget("fifth", cards=False))
    assert "web-01 has its BIOS UUID" in beside.identity
    back = told(lab, "web-01")
    assert (back.uuid, back.instanceUuid) == (old.uuid, old.instanceUuid)
    [was], [card] = nics(old), nics(back)
    assert (card.macAddress, card.connectable.startConnected) == (was.macAddress, was.connectable.startConnected)
    assert made.identity.startswith("UUIDs and MAC addresses of the original")
    for name in ("beside", "third", "fourth"):
        other = told(lab, name)
        assert other.uuid != old.uuid
        assert other.instanceUuid != old.instanceUuid
        assert nics(other)[0].macAddress != was.macAddress
    assert [nics(told(lab, name))[0].connectable.startConnected for name in ("third", "fourth")] == [False, True]
    assert "web-01 has its" in again.identity
    assert new.identity == "UUIDs and MAC addresses of its own"
    assert nics(told(lab, "fifth")) == []
    assert any("no network" in one for one in alone.warnings)


async def test_a_mac_address_that_somebody_has_is_not_given_twice(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=2, disk_bytes=4 * MIB)
    [card] = nics(told(lab, "web-01"))
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        await asyncio.to_thread(lab.remove_vm, "web-01")

        def take() -> None:
            [other] = nics(told(lab, "app-02"))
            other.macAddress = card.macAddress.upper()
            edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=other)
            lab.reconfigure("app-02", deviceChange=[edit])

        await asyncio.to_thread(take)
        made = await vcenter.create_vm(configuration, RestoreTarget("web-01"))
    assert f"app-02 has its MAC address {card.macAddress}" in made.identity


async def test_a_network_that_the_vm_was_not_on_is_refused_in_a_mapping(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
            [network] = snapshot.vm.networks
        target = RestoreTarget("new", network_map={"Old Net": network})
        with pytest.raises(Rejected, match=f"was on no network Old Net.*it was on: {network}"):
            await vcenter.create_vm(configuration, target)


async def test_each_disk_goes_to_its_own_datastore(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "db-03") as snapshot:
            keys = [d.disk.key for d in snapshot.disks]
            configuration = snapshot.configuration
        target = RestoreTarget("spread", datastore="fast-1", disk_datastores={keys[1]: "bulk-1"})
        made = await vcenter.create_vm(configuration, target)
        wrong = replace(target, name="other", disk_datastores={keys[1]: "none-1"})
        with pytest.raises(Rejected, match="no datastore called none-1"):
            await vcenter.create_vm(configuration, wrong)
    assert [d.datastore for d in made.disks] == ["fast-1", "bulk-1"]


async def test_what_an_interrupted_restore_left_is_taken_up_and_nothing_else_is(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "db-03") as snapshot:
            configuration = snapshot.configuration
        target = RestoreTarget("again", point="p1", run="r1")
        made = await vcenter.create_vm(configuration, target)
        resumed = await vcenter.create_vm(configuration, replace(target, run="r2"))
        assert (resumed.address, resumed.disks, resumed.resumed) == (made.address, made.disks, True)
        with pytest.raises(AlreadyThere, match="is there already"):
            await vcenter.create_vm(configuration, replace(target, point="p2"))
        await vcenter.finish_vm(made)
        with pytest.raises(AlreadyThere, match="is there already"):
            await vcenter.create_vm(configuration, target)


async def test_a_distributed_port_group_is_found_again_by_its_name_not_by_its_key(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    group = lab.find(vim.dvs.DistributedVirtualPortgroup, "DC0_DVPG0")

    def connect() -> Any:
        [card] = nics(told(lab, "web-01"))
        key, switch = lab._act(lambda _: (group.key, group.config.distributedVirtualSwitch.uuid))
        port = vim.dvs.PortConnection(switchUuid=switch, portgroupKey=key)
        card.backing = vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port)
        edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
        lab.reconfigure("web-01", deviceChange=[edit])
        return key

    key = await asyncio.to_thread(connect)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            held = unpack(snapshot.configuration)
        [card] = held.summary["cards"]
        assert (card["network"], card["portgroup_key"]) == ("DC0_DVPG0", key)
        # In another vCenter the old key may be another group's: the name decides.
        elsewhere = KeptVm(held.configuration.replace(key.encode(), b"dvportgroup-9999"), b"", held.summary)
        made = await vcenter.create_vm(pack(elsewhere), RestoreTarget("again"))
    [new] = nics(told(lab, made.name))
    assert new.backing.port.portgroupKey == key
