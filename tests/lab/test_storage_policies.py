"""Storage policies of VMs and disks: kept by name, set again on a new VM, and never in the way of a backup."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import SoapStubAdapter, pbm, vim

from connectors.disks import Extent
from connectors.errors import Rejected, TransportFailed
from connectors.hypervisor import CreatedVm, RestoreTarget, StoragePolicy
from connectors.kept_vm import pack, unpack
from connectors.vsphere.hypervisor import VCenter
from engine.commands import RestoreDisk
from policies.facts import Address
from tests.lab.process import client_context
from tests.lab.reaching import MIB, connected, snapshotted, transport_settings
from tests.lab.test_engine_end_to_end import config_for
from tests.lab.test_overwriting import ON_REQUEST, backed_up, known, restored
from tests.lab.vcenter import Lab, Machine
from tests.pipeline.running import engine_of

FreshLab = Callable[..., Lab]


@contextmanager
def profiles(lab: Lab) -> Iterator[Any]:
    """The lab's policy service as its administrator reaches it, by nothing of Backstay's."""
    with lab.session() as si:
        stub = SoapStubAdapter(
            host=lab.host, port=lab.port, version="pbm.version.version2", path="/pbm/sdk",
            sslContext=client_context(lab.ca_file), httpConnectionTimeout=60,
            requestContext={"vcSessionCookie": si._stub.cookie.split('"')[1] if '"' in si._stub.cookie
                            else si._stub.cookie.partition("=")[2].partition(";")[0]},
        )  # fmt: skip
        try:
            yield pbm.ServiceInstance("ServiceInstance", stub).RetrieveContent().profileManager
        finally:
            stub.DropConnections()


def make_policy(lab: Lab, name: str) -> str:
    """A policy of this name; its id."""
    metadata = pbm.capability.CapabilityMetadata.UniqueId(namespace="http://www.vmware.com/storage/tag", id="tier")
    value = pbm.capability.PropertyInstance(id="tier", value=name)
    rule = pbm.capability.CapabilityInstance(
        id=metadata, constraint=[pbm.capability.ConstraintInstance(propertyInstance=[value])]
    )
    spec = pbm.profile.CapabilityBasedProfileCreateSpec(
        name=name,
        category="REQUIREMENT",
        resourceType=pbm.profile.ResourceType(resourceType="STORAGE"),
        constraints=pbm.profile.SubProfileCapabilityConstraints(
            subProfiles=[pbm.profile.SubProfileCapabilityConstraints.SubProfile(name="rules", capability=[rule])]
        ),
    )
    with profiles(lab) as manager:
        return str(manager.Create(spec).uniqueId)


def remove_policy(lab: Lab, policy: str) -> None:
    with profiles(lab) as manager:
        manager.Delete([pbm.profile.ProfileId(uniqueId=policy)])


def policy_of(lab: Lab, name: str, disk: int = 0) -> str:
    """The id of the policy of a VM's home, or of its disk with this device key; "" for none."""
    kinds, moref = pbm.ServerObjectRef.ObjectType, lab.moref(name)
    kind, key = (kinds.virtualDiskId, f"{moref}:{disk}") if disk else (kinds.virtualMachine, moref)
    with profiles(lab) as manager:
        found = manager.QueryAssociatedProfile(pbm.ServerObjectRef(objectType=kind, key=key))
    return found[0].uniqueId if found else ""


def give(lab: Lab, name: str, home: str, disks: dict[int, str]) -> None:
    """Give a VM and its disks policies, as an administrator does."""

    def profile(policy: str) -> list[Any]:
        return [vim.vm.DefinedProfileSpec(profileId=policy)]

    devices = {device.key: device for device in lab.machine(name).config.hardware.device}
    changes = [
        vim.vm.device.VirtualDeviceSpec(operation="edit", device=devices[key], profile=profile(policy))
        for key, policy in disks.items()
    ]
    lab.reconfigure(name, vmProfile=profile(home), deviceChange=changes)


def of_policies(made: CreatedVm) -> list[str]:
    return [warning for warning in made.warnings if "storage polic" in warning]


def disk_keys(lab: Lab, name: str) -> list[int]:
    devices = lab.machine(name).config.hardware.device
    return sorted(device.key for device in devices if isinstance(device, vim.vm.device.VirtualDisk))


async def test_a_restore_point_names_storage_policies_and_a_new_vm_gets_them_again_by_name(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB, content=False)

    def people() -> tuple[str, str, list[int]]:
        gold, silver = make_policy(lab, "Gold"), make_policy(lab, "Silver")
        keys = disk_keys(lab, "db-03")
        give(lab, "db-03", gold, {keys[0]: silver})
        return gold, silver, keys

    gold, silver, (first, second) = await asyncio.to_thread(people)
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "db-03") as snapshot:
            configuration = snapshot.configuration
        summary = unpack(configuration).summary
        assert summary["storage_policy"] == "Gold"
        assert {d["key"]: d["storage_policy"] for d in summary["disks"]} == {first: "Silver", second: ""}
        assert "policies" not in summary["missing"]

        # Another vCenter has the same name under another id.
        await asyncio.to_thread(remove_policy, lab, gold)
        again = await asyncio.to_thread(make_policy, lab, "Gold")
        same = await vcenter.create_vm(configuration, RestoreTarget("same"))
        asked = {"Silver": "Gold"}
        mapped = await vcenter.create_vm(configuration, RestoreTarget("mapped", storage_policies=asked))
        assert (of_policies(same), of_policies(mapped)) == ([], [])
        for name, of_first in (("same", silver), ("mapped", again)):
            keys = await asyncio.to_thread(disk_keys, lab, name)
            told = [await asyncio.to_thread(policy_of, lab, name, key) for key in (0, *keys)]
            assert told == [again, of_first, ""]

        for wrong, why in (
            ({"Bronze": "Gold"}, "the VM had no storage policy Bronze.*it had: Gold, Silver"),
            ({"Gold": "Platinum"}, "there is no storage policy Platinum.*Silver"),
        ):
            with pytest.raises(Rejected, match=why):
                await vcenter.create_vm(configuration, RestoreTarget("wrong", storage_policies=wrong))
        await asyncio.to_thread(remove_policy, lab, again)
        lab.inject("ReconfigVM_Task", fault="InvalidArgument", times=1)
        lacking = await vcenter.create_vm(configuration, RestoreTarget("lacking"))
        absent, refused = of_policies(lacking)
        assert absent.startswith("without the storage policy Gold, which is not there")
        assert "is without the storage policy Silver, which vCenter refused" in refused
        assert len(lacking.disks) == 2
        trial = RestoreTarget("backstay-rehearsal-x", point="p", run="r", trial=True)
        assert of_policies(await vcenter.create_vm(configuration, trial)) == []
    assert "wrong" not in {vm.name for vm in lab.vms()}


async def test_a_policy_service_that_refuses_or_is_silent_costs_the_names_alone_and_is_not_asked_again_at_once(
    fresh_lab: FreshLab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)
    await asyncio.to_thread(lambda: give(lab, "web-01", make_policy(lab, "Gold"), {}))
    transports = transport_settings(lab, tmp_path)
    async with connected(lab, transports) as vcenter:
        lab.kill_sessions()
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
    assert unpack(configuration).summary["storage_policy"] == "Gold"
    lab.surroundings(user=lab.user, denied=["StorageProfile.View"])
    async with connected(lab, transports) as vcenter:
        for run in ("r1", "r2"):
            async with snapshotted(vcenter, lab, "web-01", run) as snapshot:
                summary = unpack(snapshot.configuration).summary
            assert "StorageProfile.View" in summary["missing"]["policies"]
            assert summary["storage_policy"] == ""
        told = [record for record in caplog.records if "storage policies are not known" in record.message]
        refused = lab.calls()["NoPermission PbmQueryAssociatedProfiles StorageProfile.View"]
        assert (len(told), refused) == (1, 1)
        made = await vcenter.create_vm(configuration, RestoreTarget("without"))
        [told_once] = of_policies(made)
        assert told_once.startswith("without its storage policies (Gold): the account lacks")
        target = RestoreTarget("mapped", storage_policies={"Gold": "Gold"})
        with pytest.raises(Rejected, match="no storage policy can be set"):
            await vcenter.create_vm(configuration, target)
    lab.surroundings(user=lab.user, denied=[])
    lab.inject("PbmQueryAssociatedProfiles", drop=True, times=2)
    async with connected(lab, transports) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        assert "the connection failed" in unpack(snapshot.configuration).summary["missing"]["policies"]


async def test_a_disk_that_is_added_to_a_vm_gets_the_storage_policy_that_it_had_or_the_one_that_is_asked_for(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=2, disk_bytes=4 * MIB)

    def people() -> tuple[str, str]:
        gold, silver = make_policy(lab, "Gold"), make_policy(lab, "Silver")
        give(lab, "web-01", gold, {disk_keys(lab, "web-01")[0]: silver})
        lab.power_off("app-02")
        return gold, silver

    gold, silver = await asyncio.to_thread(people)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01", "app-02")
        point = str((await backed_up(engine, "web-01"))["id"])

        async def added(*, asked: dict[str, str] | None = None) -> tuple[dict[str, Any], str]:
            report = await restored(engine, RestoreDisk(point, "app-02", storage_policies=asked or {}))
            keys = await asyncio.to_thread(disk_keys, lab, "app-02")
            return report, await asyncio.to_thread(policy_of, lab, "app-02", keys[-1])

        report, policy = await added()
        assert (report["state"], policy) == ("done", silver), report
        assert not [said for said in report["warnings"] if "storage polic" in said]
        assert (await added(asked={"Silver": "Gold"}))[1] == gold
        before = (len(lab.vm("app-02").disks), lab.calls()["ReconfigVM_Task"])
        for wrong, why in (({"Silver": "Tin"}, "no storage policy Tin"), ({"Gold": "Silver"}, "it had: Silver")):
            report, _ = await added(asked=wrong)
            assert why in str(report["sentence"])
        assert (len(lab.vm("app-02").disks), lab.calls()["ReconfigVM_Task"]) == before, (
            "refused before anything is made"
        )
        await asyncio.to_thread(remove_policy, lab, silver)
        report, policy = await added()
        assert policy == ""
        assert [said for said in report["warnings"] if "without the storage policy Silver, which is not there" in said]


async def test_a_disk_is_added_without_a_storage_policy_that_vcenter_refuses_and_that_is_told(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)
    gold = await asyncio.to_thread(make_policy, lab, "Gold")
    await asyncio.to_thread(lab.power_off, "web-01")
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        address = Address(vcenter.vcenter, lab.vm("web-01").moref)
        await vcenter.take_over(address, (), point="p1", run="r1", safety=False)
        lab.inject("ReconfigVM_Task", fault="InvalidArgument", times=1)
        policy = StoragePolicy(gold, "Gold")
        disk, lacking = await vcenter.add_disk(address, MIB, "fast-1", thin=True, label="Hard disk 1", policy=policy)
    assert lacking[0].startswith("the added disk is without the storage policy Gold, which vCenter refused")
    assert await asyncio.to_thread(policy_of, lab, "web-01", disk.key) == ""


async def test_a_trial_vm_gets_the_policies_that_encrypt_it_or_is_not_made(fresh_lab: FreshLab, tmp_path: Path) -> None:
    sealed = Machine(name="sealed", disks=(4 * MIB,), encrypted=True, content=False)
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False, extra=[sealed])

    def people() -> str:
        policy = make_policy(lab, "Sealing")
        give(lab, "sealed", policy, dict.fromkeys(disk_keys(lab, "sealed"), policy))
        return policy

    policy = await asyncio.to_thread(people)
    trial = RestoreTarget("backstay-rehearsal-x", point="p", run="r", trial=True)

    async def refused(vcenter: VCenter, configuration: bytes, why: str) -> None:
        with pytest.raises(Rejected, match=why):
            async with vcenter.trial_vm(configuration, trial):
                raise AssertionError("it lies in the clear")
        assert {vm.name for vm in lab.vms()} == {"web-01", "sealed"}

    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        async with snapshotted(vcenter, lab, "sealed") as snapshot:
            configuration = snapshot.configuration
        async with vcenter.trial_vm(configuration, trial) as made:
            told = [await asyncio.to_thread(policy_of, lab, made.name, one) for one in (0, made.disks[0].key)]
            assert told == [policy, policy]
        extents = [[Extent(0, MIB)]]
        with pytest.raises(TransportFailed, match="vCenter exports no encrypted VM"):
            async with vcenter.import_vm(configuration, trial, extents):
                raise AssertionError("nobody can compare it")
        lab.inject("ReconfigVM_Task", fault="InvalidArgument", times=1)
        await refused(vcenter, configuration, "InvalidArgument|refused")
        await asyncio.to_thread(remove_policy, lab, policy)
        await refused(vcenter, configuration, "would lie in the clear: without the storage policy Sealing")
        bare = replace(unpack(configuration), summary={})
        await refused(vcenter, pack(bare), "the restore point does not name the storage policy that encrypts it")
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        async with vcenter.trial_vm(configuration, trial) as made:
            assert await asyncio.to_thread(policy_of, lab, made.name) == ""
