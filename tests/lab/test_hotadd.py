"""Hot-add on the lab's vCenter: the right disk, read as it was frozen, detached on every way out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import ReadFailed, TransportFailed
from connectors.hypervisor import Snapshot
from connectors.vsphere import hotadd
from connectors.vsphere.hotadd import (
    ATTACHED_DISK,
    AttachRequest,
    attached_leftovers,
    detach_leftover,
    open_reader,
)
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.proxy import MARK_PREFIX, Mark, Slot, plain_uuid, read_proxy
from connectors.vsphere.transport_settings import AttachIntent, TransportSettings
from tests.lab.reaching import MIB, connected, contents, frozen_bytes, snapshotted, transport_settings
from tests.lab.vcenter import Lab

FreshLab = Callable[..., Lab]

PROXY = "app-02"


@pytest.fixture
def proxied(fresh_lab: FreshLab, tmp_path: Path) -> tuple[Lab, TransportSettings]:
    """A lab, and settings that make one of its VMs the proxy."""
    lab = fresh_lab(vms=3, disk_bytes=16 * MIB)
    return lab, transport_settings(lab, tmp_path, proxy=PROXY)


def request_for(snapshot: Snapshot, index: int = 0, **changes: Any) -> AttachRequest:
    """What to attach."""
    vm = snapshot.vm
    wanted = AttachRequest(vm.address.moref, vm.datacenter, snapshot.disks[index].disk, snapshot.run)
    return replace(wanted, **changes)


def proxy_disks(lab: Lab) -> list[str]:
    """The files of all disks of the proxy."""
    return [disk.file for disk in lab.vm(PROXY).disks]


async def marks(vcenter: VCenter, settings: TransportSettings) -> list[str]:
    """The runs whose disks the proxy says that it holds."""
    return [mark.run for mark in (await read_proxy(vcenter.session, settings)).marks]


async def test_the_disks_of_a_snapshot_are_read_as_they_were_frozen_while_the_guest_writes(
    proxied: tuple[Lab, TransportSettings],
) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        with lab.busy_guest("db-03"):
            for index, disk in enumerate(snapshot.disks):
                async with open_reader(vcenter.session, request_for(snapshot, index), settings) as reader:
                    assert await contents(reader) == frozen_bytes(lab, snapshot, disk.disk.key)
                    assert await marks(vcenter, settings) == ["run-1"]
                    assert disk.disk.file_name in proxy_disks(lab)
        assert await marks(vcenter, settings) == []
    assert proxy_disks(lab) == own
    assert list(lab.device_folder.iterdir()) == []
    assert lab.flat("db-03").exists()


async def test_a_disk_is_found_by_its_uuid_though_another_device_comes_first(
    proxied: tuple[Lab, TransportSettings],
) -> None:
    lab, settings = proxied
    lab.settings(device_delay_ms=200)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        wanted, other = (disk.disk for disk in snapshot.disks)
        there = asyncio.Event()
        told = replace(settings, on_intent=lambda intent: None if intent.done else there.set())

        async def read() -> bytes:
            async with open_reader(vcenter.session, request_for(snapshot), told) as reader:
                return await contents(reader)

        reading = asyncio.create_task(read())
        await there.wait()
        # A device of the same size: whoever takes the newest one, or counts places, reads this.
        (lab.device_folder / f"wwn-0x{plain_uuid(other.uuid)}").symlink_to(lab.flat("db-03", 1))
        assert await reading == frozen_bytes(lab, snapshot, wanted.key)
        assert frozen_bytes(lab, snapshot, wanted.key) != frozen_bytes(lab, snapshot, other.key)


def test_detaching_a_disk_never_asks_for_a_file_operation() -> None:
    mark = Mark("e", "r", "6000c293-1a2b-3c4d-5e6f-708192a3b4c5", "[ds] a/a.vmdk", Slot(1000, 1), datetime.now(UTC))
    device = vim.vm.device.VirtualDisk(key=2001, controllerKey=1000, unitNumber=1, capacityInKB=1)
    specs = [hotadd._detach_spec(mark, device), hotadd._attach_spec(mark, hotadd.READ_ONLY)]
    assert [change.fileOperation for spec in specs for change in spec.deviceChange] == [None, None]


async def test_what_a_policy_had_attached_is_found_though_the_configuration_names_no_hot_add(
    proxied: tuple[Lab, TransportSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotadd, "DETACH_TRIES", 1)
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        await _attach_and_forget(vcenter, lab, settings, snapshot)
        without = replace(settings, order=("nbd",), hotadd="never")
        (found,) = await attached_leftovers(vcenter.session, without, lambda _: False)
        await detach_leftover(vcenter.session, without, found)
        assert proxy_disks(lab) == own


async def test_several_disks_share_the_proxy_and_are_attached_one_by_one(
    proxied: tuple[Lab, TransportSettings],
) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with (
        connected(lab, settings) as vcenter,
        snapshotted(vcenter, lab, "db-03", "run-1") as first,
        snapshotted(vcenter, lab, "web-01", "run-2") as second,
    ):
        disks = [(first, 0), (first, 1), (second, 0)]
        together = asyncio.Barrier(len(disks))

        async def read(snapshot: Snapshot, index: int) -> bool:
            async with open_reader(vcenter.session, request_for(snapshot, index), settings) as reader:
                await together.wait()
                return await contents(reader) == frozen_bytes(lab, snapshot, snapshot.disks[index].disk.key)

        async with asyncio.TaskGroup() as group:
            readings = [group.create_task(read(*which)) for which in disks]
        assert all(reading.result() for reading in readings)
    assert proxy_disks(lab) == own


@pytest.mark.parametrize("moment", ["attaching", "waiting for the device", "reading"])
async def test_a_cancellation_leaves_no_attached_disk(proxied: tuple[Lab, TransportSettings], moment: str) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    if moment == "waiting for the device":
        lab.settings(device_delay_ms=60_000)
        settings = replace(settings, device_seconds=60.0)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        if moment == "attaching":
            lab.inject("ReconfigVM_Task", delay_seconds=0.5)
        there = asyncio.Event()
        told = replace(settings, on_intent=lambda intent: None if intent.done else there.set())

        async def hold() -> None:
            async with open_reader(vcenter.session, request_for(snapshot), told):
                there.set()
                await asyncio.Event().wait()

        if moment == "reading":
            told = settings
        task = asyncio.create_task(hold())
        await there.wait()
        if moment == "waiting for the device":
            await asyncio.to_thread(_wait_for_attached, lab, own)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await marks(vcenter, settings) == []
        assert proxy_disks(lab) == own


async def test_a_failing_reader_leaves_no_attached_disk(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        with pytest.raises(ReadFailed):
            async with open_reader(vcenter.session, request_for(snapshot), settings) as reader:
                reader.read_into(reader.capacity_bytes, memoryview(bytearray(512)))
    assert proxy_disks(lab) == own


async def test_an_attach_that_vcenter_refuses_is_a_failed_transport(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        lab.inject("ReconfigVM_Task", "FileLocked", in_task=True)
        with pytest.raises(TransportFailed, match=r"could not be attached.*in use"):
            async with open_reader(vcenter.session, request_for(snapshot), settings):
                pass
        assert await marks(vcenter, settings) == []
    assert proxy_disks(lab) == own


async def test_an_attach_whose_answer_is_lost_leaves_nothing_attached(
    proxied: tuple[Lab, TransportSettings],
) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        lab.inject("ReconfigVM_Task", drop=True)
        try:
            async with open_reader(vcenter.session, request_for(snapshot), settings) as reader:
                assert await contents(reader) == frozen_bytes(lab, snapshot, snapshot.disks[0].disk.key)
        except TransportFailed as exc:
            assert "could not be attached" in str(exc)
        assert await marks(vcenter, settings) == []
    assert proxy_disks(lab) == own


async def test_a_detach_that_fails_at_first_is_tried_again(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        async with open_reader(vcenter.session, request_for(snapshot), settings):
            lab.inject("ReconfigVM_Task", "FileLocked", in_task=True)
        assert await marks(vcenter, settings) == []
    assert proxy_disks(lab) == own


@pytest.mark.parametrize("trouble", ["sessions lost", "vCenter restarted"])
async def test_a_disk_is_detached_though_the_login_was_lost_meanwhile(
    proxied: tuple[Lab, TransportSettings], trouble: str
) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        async with open_reader(vcenter.session, request_for(snapshot), settings) as reader:
            await asyncio.to_thread(lab.kill_sessions if trouble == "sessions lost" else lab.restart)
            assert await contents(reader) == frozen_bytes(lab, snapshot, snapshot.disks[0].disk.key)
        assert await marks(vcenter, settings) == []
    assert proxy_disks(lab) == own


async def test_a_device_that_does_not_come_is_detached_again_and_explained(
    proxied: tuple[Lab, TransportSettings],
) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    lab.settings(device_delay_ms=60_000)
    settings = replace(settings, device_seconds=0.2)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        with pytest.raises(TransportFailed, match=r"disk\.EnableUUID"):
            async with open_reader(vcenter.session, request_for(snapshot), settings):
                pass
    assert proxy_disks(lab) == own


async def test_a_device_of_another_size_is_never_read(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        wrong = replace(snapshot.disks[0].disk, capacity_bytes=17 * MIB)
        with pytest.raises(TransportFailed, match=f"has {16 * MIB} bytes, the disk .* has {17 * MIB}"):
            async with open_reader(vcenter.session, request_for(snapshot, disk=wrong), settings):
                pass
    assert proxy_disks(lab) == own


async def test_a_device_that_is_there_before_its_disk_is_never_read(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    settings = replace(settings, device_seconds=0.1)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        stale = lab.device_folder / f"scsi-3{plain_uuid(snapshot.disks[0].disk.uuid)}"
        stale.symlink_to(lab.flat("web-01"))
        with pytest.raises(TransportFailed, match="before its disk is"):
            async with open_reader(vcenter.session, request_for(snapshot), settings):
                pass
        assert "ReconfigVM_Task" not in lab.calls()


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"proxy": "no such VM"}, "0 VMs are called"), ({"proxy": "vm-99999"}, "not there"), ({"proxy": ""}, "proxy")],
)
async def test_a_proxy_that_is_not_there_is_told(
    proxied: tuple[Lab, TransportSettings], changes: dict[str, Any], says: str
) -> None:
    lab, settings = proxied
    settings = replace(settings, **changes)
    async with connected(lab, settings) as vcenter:
        with pytest.raises(TransportFailed, match=says):
            await read_proxy(vcenter.session, settings)


async def test_the_proxy_is_found_by_uuid_moref_and_name(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    expected = lab.vm(PROXY)
    async with connected(lab, settings) as vcenter:
        for way in (expected.moref, expected.instance_uuid, expected.name):
            found = await read_proxy(vcenter.session, replace(settings, proxy=way))
            assert (found.moref, found.powered_on, found.datacenter) == (expected.moref, True, "DC0")


async def test_intents_are_told_before_and_after(proxied: tuple[Lab, TransportSettings]) -> None:
    lab, settings = proxied
    told: list[AttachIntent] = []
    settings = replace(settings, on_intent=told.append)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        async with open_reader(vcenter.session, request_for(snapshot), settings):
            assert [intent.done for intent in told] == [False]
        assert [intent.done for intent in told] == [False, True]
        assert told[0].file_name == snapshot.disks[0].disk.file_name
        assert (told[0].run, told[0].proxy_moref) == ("run-1", lab.vm(PROXY).moref)


async def test_what_a_killed_engine_left_attached_is_found_and_detached_and_nothing_else(
    proxied: tuple[Lab, TransportSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotadd, "DETACH_TRIES", 1)
    lab, settings = proxied
    own = proxy_disks(lab)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        disk = snapshot.disks[0].disk
        left = await _attach_and_forget(vcenter, lab, settings, snapshot)
        async with connected(lab, settings, engine_id="engine-2") as neighbour:
            assert await attached_leftovers(neighbour.session, settings, lambda _: False) == []
        assert await attached_leftovers(vcenter.session, settings, lambda run: run == "run-1") == []
        found = await attached_leftovers(vcenter.session, settings, lambda _: False)
        assert [(f.kind, f.run, f.name, f.vm_name) for f in found] == [(ATTACHED_DISK, "run-1", disk.file_name, PROXY)]
        assert left in proxy_disks(lab)
        for _ in range(2):
            await detach_leftover(vcenter.session, settings, found[0])
            assert proxy_disks(lab) == own
        assert await attached_leftovers(vcenter.session, settings, lambda _: False) == []
    assert lab.flat("db-03").exists()


async def test_a_disk_that_a_person_attached_to_the_proxy_is_left_alone(
    proxied: tuple[Lab, TransportSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotadd, "DETACH_TRIES", 1)
    lab, settings = proxied
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        left = await _attach_and_forget(vcenter, lab, settings, snapshot)
        await asyncio.to_thread(_forget_marks, lab)
        assert await attached_leftovers(vcenter.session, settings, lambda _: False) == []
        with pytest.raises(TransportFailed, match="already"):
            async with open_reader(vcenter.session, request_for(snapshot), settings):
                pass
        assert left in proxy_disks(lab)
        await asyncio.to_thread(_detach_by_hand, lab, left)


async def _attach_and_forget(vcenter: VCenter, lab: Lab, settings: TransportSettings, snapshot: Snapshot) -> str:
    """Attach a disk as a run does, and take the engine away: its detaching calls never reach vCenter."""
    file_name = snapshot.disks[0].disk.file_name
    async with connected(lab, settings) as doomed:
        with pytest.raises(TransportFailed, match="could not be detached"):
            async with open_reader(doomed.session, request_for(snapshot), settings):
                await asyncio.to_thread(lab.inject, "ReconfigVM_Task", "FileLocked", times=0, in_task=True)
    await asyncio.to_thread(lab.heal)
    return file_name


def _wait_for_attached(lab: Lab, own: list[str]) -> None:
    while proxy_disks(lab) == own:
        time.sleep(0.02)


def _forget_marks(lab: Lab) -> None:
    machine = lab.machine(PROXY)
    keys = {o.key for o in lab._act(lambda _: machine.config.extraConfig) if o.key.startswith(MARK_PREFIX)}
    lab.reconfigure(PROXY, extraConfig=[vim.option.OptionValue(key=key, value="") for key in keys])


def _detach_by_hand(lab: Lab, file_name: str) -> None:
    machine = lab.machine(PROXY)
    devices = lab._act(lambda _: machine.config.hardware.device)
    device = next(d for d in devices if getattr(d.backing, "fileName", "") == file_name)
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=device)
    lab.reconfigure(PROXY, deviceChange=[change])
