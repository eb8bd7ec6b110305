"""Disks over HTTPS from their datastore: the snapshot's bytes from cut-off answers, and a reason for each refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from connectors.errors import ReadFailed, TransportFailed
from connectors.hypervisor import OpenDisk, Snapshot
from connectors.vsphere import datastore_https
from connectors.vsphere.datastore_https import FolderReader
from connectors.vsphere.hypervisor import VCenter
from tests.lab.reaching import MIB, connected, contents, frozen_bytes, snapshotted, transport_settings
from tests.lab.vcenter import Lab, Machine

FreshLab = Callable[..., Lab]
ARCHIVE = Machine(name="archive", disks=(8 * MIB,), power="off")


@pytest.fixture
def archive(fresh_lab: FreshLab) -> Lab:
    """A lab with a running VM, web-01, and one that is off."""
    return fresh_lab(vms=1, disk_bytes=4 * MIB, extra=[ARCHIVE])


@asynccontextmanager
async def held(lab: Lab, scratch: Path, name: str = "archive") -> AsyncIterator[tuple[VCenter, Snapshot]]:
    """A login and a snapshot of the VM."""
    settings = transport_settings(lab, scratch, order=("https",))
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, name) as snapshot:
        yield vcenter, snapshot


@asynccontextmanager
async def opened(vcenter: VCenter, snapshot: Snapshot) -> AsyncIterator[OpenDisk]:
    """Its first disk, over HTTPS alone."""
    async with vcenter.open_disk(snapshot, snapshot.disks[0], transports=("https",), run="run-1") as disk:
        yield disk


async def test_the_disk_of_a_powered_off_vm_is_read_as_it_was_frozen(archive: Lab, tmp_path: Path) -> None:
    async with held(archive, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot) as disk:
        assert (disk.transport, disk.fallbacks) == ("https", ())
        assert isinstance(disk.reader, FolderReader)
        assert await contents(disk.reader) == frozen_bytes(archive, snapshot, snapshot.disks[0].disk.key)


async def test_an_answer_that_is_cut_off_goes_on_where_it_ended(archive: Lab, tmp_path: Path) -> None:
    async with held(archive, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot) as disk:
        await asyncio.to_thread(archive.inject, "GET /folder", times=3, drop=True)
        assert await contents(disk.reader) == frozen_bytes(archive, snapshot, snapshot.disks[0].disk.key)


async def test_a_login_that_is_lost_while_a_disk_is_read_is_renewed(archive: Lab, tmp_path: Path) -> None:
    async with held(archive, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot) as disk:
        await asyncio.to_thread(archive.kill_sessions)
        assert await contents(disk.reader) == frozen_bytes(archive, snapshot, snapshot.disks[0].disk.key)


async def test_answers_that_never_bring_anything_are_a_failed_read_at_their_offset(
    archive: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held(archive, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot) as disk:
        assert isinstance(disk.reader, FolderReader)
        monkeypatch.setattr(datastore_https.Connections, "get", lambda *_: (0, -1))
        with pytest.raises(ReadFailed, match=f"no answer to 4 requests at offset {MIB}"):
            disk.reader.read_into(MIB, memoryview(bytearray(512)))


async def test_a_vm_that_starts_while_its_disk_is_read_fails_the_read(archive: Lab, tmp_path: Path) -> None:
    async with held(archive, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot) as disk:
        await asyncio.to_thread(archive.power_on, "archive")
        with pytest.raises(ReadFailed, match="HTTP 403"):
            await contents(disk.reader)
        with pytest.raises(TransportFailed, match="not powered off"):
            async with opened(vcenter, snapshot):
                pass
        await asyncio.to_thread(archive.power_off, "archive")


@pytest.mark.parametrize("trouble", ["running", "vsan", "chain", "privilege", "size", "sparse"])
async def test_each_reason_against_https_is_a_sentence(archive: Lab, tmp_path: Path, trouble: str) -> None:
    name, says = "archive", ""
    flat = archive.flat("archive")
    descriptor = flat.with_name(flat.name.replace("-flat", ""))
    match trouble:
        case "running":
            name, says = "web-01", "the VM is not powered off"
        case "vsan":
            archive.surroundings(datastore=archive.vm("archive").datastore, kind="vsan")
            says = "is vsan: only on VMFS and NFS"
        case "chain":
            archive.snapshot("archive", "before the patch")
            says = "a chain of files"
        case "privilege":
            archive.surroundings(user=archive.user, denied=["Datastore.FileManagement"])
            says = "HTTP 403 Forbidden"
        case "size":
            descriptor.write_text(descriptor.read_text().replace(f"RW {8 * MIB // 512}", "RW 512"))
            says = "its descriptor tells of 262144"
        case "sparse":
            descriptor.write_text(descriptor.read_text().replace(" VMFS ", " SESPARSE "))
            says = "no flat disk (1 extents: SESPARSE)"
    async with held(archive, tmp_path, name) as (vcenter, snapshot):
        with pytest.raises(TransportFailed) as caught:
            async with opened(vcenter, snapshot):
                pass
        assert says in str(caught.value)


async def test_https_is_taken_where_neither_hot_add_nor_nbd_works_and_their_reasons_are_kept(
    archive: Lab, tmp_path: Path
) -> None:
    settings = transport_settings(
        archive, tmp_path, proxy="gone", nbdkit="no-such-nbdkit", order=("hotadd", "nbd", "https")
    )
    async with connected(archive, settings) as vcenter, snapshotted(vcenter, archive, "archive") as snapshot:
        vms = {vm.name: vm for vm in await vcenter.inventory()}
        foreseen = await vcenter.predictions(list(vms.values()))
        assert foreseen[vms["archive"].address.moref, snapshot.disks[0].disk.key].transport == "https"
        running = vms["web-01"]
        assert foreseen[running.address.moref, running.disks[0].key].transport == ""
        async with vcenter.open_disk(snapshot, snapshot.disks[0], transports=(), run="run-1") as disk:
            assert disk.transport == "https"
            assert [fallback.transport for fallback in disk.fallbacks] == ["hotadd", "nbd"]
