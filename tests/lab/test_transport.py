"""Each disk by the first transport that works, with the reason for each that did not; and back again for a restore."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.disk_files import FileReader, FileWriter
from connectors.errors import ReadFailed, TransportFailed
from connectors.gates import connection
from connectors.hypervisor import CreatedVm, RestoreTarget
from connectors.nbd import NbdDisk
from connectors.vsphere import transport
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.transport_settings import HotAddWish
from tests.lab.reaching import (
    MIB,
    connected,
    contents,
    frozen_bytes,
    nbdkit_children,
    snapshotted,
    transport_settings,
)
from tests.lab.vcenter import Lab, Machine

FreshLab = Callable[..., Lab]
PROXY = "app-02"


async def test_hot_add_is_taken_where_it_works(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=8 * MIB)
    settings = transport_settings(lab, tmp_path, proxy=PROXY)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        for disk in snapshot.disks:
            async with vcenter.open_disk(snapshot, disk, transports=(), run="run-1") as opened:
                assert (opened.transport, opened.fallbacks) == ("hotadd", ())
                assert isinstance(opened.reader, FileReader)
                assert nbdkit_children() == []
                assert await contents(opened.reader) == frozen_bytes(lab, snapshot, disk.disk.key)


@pytest.mark.parametrize(
    "trouble",
    [
        "no proxy",
        "datastore not seen",
        "refused by vCenter",
        "no device",
        "proxy itself",
        "edition without hot-add",
        "switched off",
        "no privilege",
        "NFS 3",
    ],
)
async def test_nbd_is_taken_where_hot_add_fails_and_the_reason_is_recorded(
    fresh_lab: FreshLab, tmp_path: Path, trouble: str
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=8 * MIB)
    settings = transport_settings(lab, tmp_path, proxy=PROXY, device_seconds=0.2)
    name, says = "db-03", ""
    match trouble:
        case "no proxy":
            settings, says = replace(settings, proxy="gone"), "0 VMs are called gone"
        case "datastore not seen":
            lab.hide_datastore("fast-1", lab.vm(PROXY).host)
            says = f"the host of the proxy {PROXY} does not see datastore fast-1"
        case "refused by vCenter":
            lab.inject("ReconfigVM_Task", "FileLocked", in_task=True, vm=lab.vm(PROXY).moref)
            says = "could not be attached"
        case "no device":
            lab.settings(device_delay_ms=60_000)
            says = "no device with the UUID"
        case "edition without hot-add":
            lab.surroundings(edition="esx.standard.cpuPackage", version="5.0.0")
            says = "vSphere 5.0.0 Standard does not have hot-add (VDDK 5.0 release notes, licensing)"
        case "switched off":
            settings, says = replace(settings, hotadd="never"), 'the configuration says hotadd = "never"'
        case "no privilege":
            lab.surroundings(user=lab.user, denied=["VirtualMachine.Config.AddExistingDisk"])
            says = "VirtualMachine.Config.AddExistingDisk"
        case "NFS 3":
            lab.surroundings(datastore=lab.vm("db-03").datastore, kind="NFS", version="7.0.3")
            if lab.vm("db-03").host == lab.vm(PROXY).host:
                lab.drs_move("db-03")
            says = f"runs on {lab.vm('db-03').host}, the proxy on {lab.vm(PROXY).host} (ESXi 7.0.3): on NFS 3"
        case _:
            name, says = PROXY, "belongs to the proxy itself"
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, name) as snapshot:
        disk = snapshot.disks[0]
        async with vcenter.open_disk(snapshot, disk, transports=("hotadd", "nbd"), run="run-1") as opened:
            assert opened.transport == "nbd"
            assert [fallback.transport for fallback in opened.fallbacks] == ["hotadd"]
            assert says in opened.fallbacks[0].reason
            assert isinstance(opened.reader, NbdDisk)
            assert await contents(opened.reader) == frozen_bytes(lab, snapshot, disk.disk.key)
    assert nbdkit_children() == []
    assert [disk.file for disk in lab.vm(PROXY).disks] == [f"[{lab.vm(PROXY).datastore}] {PROXY}/{PROXY}.vmdk"]


@pytest.mark.parametrize("way", ["hotadd", "nbd"])
async def test_a_vm_that_moves_while_its_disk_is_read_is_read_as_it_was_frozen(
    fresh_lab: FreshLab, tmp_path: Path, way: str
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=8 * MIB)
    settings = transport_settings(lab, tmp_path, proxy=PROXY)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        disk = snapshot.disks[0]
        async with vcenter.open_disk(snapshot, disk, transports=(way,), run="run-1") as opened:
            before = await contents(opened.reader)
            await asyncio.to_thread(lab.drs_move, "db-03")
            assert await contents(opened.reader) == before == frozen_bytes(lab, snapshot, disk.disk.key)


@pytest.mark.parametrize(
    ("wish", "edition", "version"), [("auto", "esx.vcf.core", "8.0.3"), ("always", "esx.standard.cpuPackage", "5.0.0")]
)
async def test_hot_add_is_tried_where_its_edition_is_not_known_or_does_not_matter(
    fresh_lab: FreshLab, tmp_path: Path, wish: HotAddWish, edition: str, version: str
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB)
    lab.surroundings(edition=edition, version=version)
    settings = transport_settings(lab, tmp_path, proxy=PROXY, hotadd=wish)
    async with (
        connected(lab, settings) as vcenter,
        snapshotted(vcenter, lab, "db-03") as snapshot,
        vcenter.open_disk(snapshot, snapshot.disks[0], transports=(), run="run-1") as opened,
    ):
        assert opened.transport == "hotadd"


async def test_where_no_transport_works_every_reason_is_told(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    settings = transport_settings(lab, tmp_path, proxy="gone", nbdkit="no-such-nbdkit")
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        with pytest.raises(TransportFailed) as caught:
            async with vcenter.open_disk(snapshot, snapshot.disks[0], transports=("hotadd", "nbd", "san"), run="r"):
                pass
    for reason in ("hotadd: ", "0 VMs are called gone", "nbd: ", "not installed", "no transport 'san'"):
        assert reason in str(caught.value)


async def test_a_failure_while_reading_is_not_taken_for_a_failed_transport(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        (lab.root / "nbd-faults.json").write_text(json.dumps({"error_at": MIB, "times": 9}))
        with pytest.raises(ReadFailed, match=f"offset {MIB}"):
            async with vcenter.open_disk(snapshot, snapshot.disks[0], transports=("nbd",), run="run-1") as opened:
                assert isinstance(opened.reader, NbdDisk)
                await opened.reader.read_into(MIB, memoryview(bytearray(65536)))


async def test_a_forecast_agrees_with_what_is_then_done(fresh_lab: FreshLab, tmp_path: Path) -> None:
    secret = Machine(name="secret", disks=(4 * MIB,), encrypted=True)
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB, extra=[secret])
    settings = transport_settings(lab, tmp_path, proxy=PROXY)
    async with connected(lab, settings) as vcenter:
        vms = await vcenter.inventory()
        means = await transport.survey(vcenter.session, settings, vms)
        assert (
            "is encrypted and the proxy"
            in transport.predict(means, next(vm for vm in vms if vm.name == "secret"), vms[0].disks[0], ("hotadd",))
            .fallbacks[0]
            .reason
        )
        for vm in vms:
            async with snapshotted(vcenter, lab, vm.name) as snapshot:
                for disk in snapshot.disks:
                    forecast = transport.predict(means, vm, disk.disk, settings.order)
                    async with vcenter.open_disk(snapshot, disk, transports=settings.order, run="run-1") as opened:
                        assert opened.transport == forecast.transport
                        assert [f.transport for f in opened.fallbacks] == [f.transport for f in forecast.fallbacks]


async def restore(vcenter: VCenter, made: CreatedVm, images: list[bytes], transports: tuple[str, ...]) -> list[str]:
    """Write the images to the disks of the VM; how each was written."""
    ways = []
    for index, image in enumerate(images):
        view = memoryview(bytearray(image))
        async with vcenter.write_disk(made, index, transports=transports, run="restore-1") as opened:
            writer = opened.writer
            for offset in range(0, len(view), MIB):
                piece = view[offset : offset + MIB]
                if isinstance(writer, NbdDisk):
                    await writer.write(offset, piece)
                else:
                    assert isinstance(writer, FileWriter)
                    await asyncio.to_thread(writer.write, offset, piece)
            ways.append(opened.transport)
    return ways


def differences(left: Path, right: Path) -> str:
    """What qemu-img finds different between two raw images; empty when they are identical."""
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(left), str(right)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("way", ["hotadd", "nbd"])
async def test_a_restored_vm_holds_what_the_snapshot_held(fresh_lab: FreshLab, tmp_path: Path, way: str) -> None:
    lab = fresh_lab(vms=3, disk_bytes=8 * MIB)
    settings = transport_settings(lab, tmp_path, proxy=PROXY)
    async with connected(lab, settings) as vcenter:
        async with snapshotted(vcenter, lab, "db-03") as snapshot:
            images = [frozen_bytes(lab, snapshot, disk.disk.key) for disk in snapshot.disks]
            frozen = [lab.frozen_copy(snapshot.moref, disk.disk.key) for disk in snapshot.disks]
            made = await vcenter.create_vm(snapshot.configuration, RestoreTarget("db-03-restored"))
        assert await restore(vcenter, made, images, (way,)) == [way, way]
    restored = lab.vm("db-03-restored")
    assert [disk.capacity_bytes for disk in restored.disks] == [len(image) for image in images]
    for disk, image in zip(restored.disks, frozen, strict=True):
        assert await asyncio.to_thread(differences, image, disk.flat) == ""
    assert nbdkit_children() == []
    assert len(lab.vm(PROXY).disks) == 1


async def test_a_running_vm_or_one_with_a_snapshot_is_never_written(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=2, disk_bytes=4 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter:
        (vm,) = [vm for vm in await vcenter.inventory() if vm.name == "web-01"]
        running = CreatedVm(vm.address, vm.name, vm.disks)
        with pytest.raises(TransportFailed, match="not powered off"):
            async with vcenter.write_disk(running, 0, transports=("nbd",), run="r"):
                pass
        await asyncio.to_thread(lab.power_off, "web-01")
        await asyncio.to_thread(lab.snapshot, "web-01")
        with pytest.raises(TransportFailed, match="has a snapshot"):
            async with vcenter.write_disk(running, 0, transports=("nbd",), run="r"):
                pass


async def test_no_more_disks_of_a_host_are_read_over_the_network_than_its_gate_lets_through(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disks_per_vm=2, disk_bytes=2 * MIB, content=False)
    settings = transport_settings(lab, tmp_path, order=("nbd",), libdir=str(lab.root))
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        vcenter.gates.limits = replace(vcenter.gates.limits, connections_per_host=1)
        opened: list[int] = []

        async def read(number: int) -> None:
            disk = snapshot.disks[number]
            async with vcenter.open_disk(snapshot, disk, transports=("nbd",), run="run-1"):
                opened.append(number)
                assert len(vcenter.gates.held) == 1
                assert vcenter.gates.held[0].gates == connection(snapshot.vm.host)

        async with asyncio.TaskGroup() as group:
            group.create_task(read(0))
            group.create_task(read(1))
        assert sorted(opened) == [0, 1]
        assert vcenter.gates.held == vcenter.gates.waiting == ()
