"""Disks by NFC export: the snapshot's bytes out of a stream, leases given back on every way out, each doubt told."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import ReadFailed, TransportFailed
from connectors.hypervisor import OpenDisk, Snapshot
from connectors.vsphere import export
from connectors.vsphere.export import Download, place
from connectors.vsphere.export_lease import Leases
from connectors.vsphere.hypervisor import VCenter
from policies.facts import Address
from tests.lab.connect import until
from tests.lab.reaching import MIB, connected, contents, frozen_bytes, snapshotted, transport_settings
from tests.lab.vcenter import Lab, Machine, start_lab

FreshLab = Callable[..., Lab]
PAIR = Machine(name="pair", disks=(40 * MIB, 8 * MIB))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with a running VM of two disks, the first with more than one grain table."""
    with start_lab(tmp_path_factory.mktemp("exports"), vms=0, extra=[PAIR]) as lab:
        yield lab


@pytest.fixture
def pair(started: Lab) -> Iterator[Lab]:
    """The lab, well-mannered again afterwards."""
    yield started
    started.heal()
    started.settings(lease_seconds=0)
    started.surroundings(user=started.user, denied=[])


def ended(lab: Lab) -> Counter[str]:
    """How leases have ended so far; none is held."""
    told = lab.leases()
    assert told.pop("held") == []
    return Counter(told)


@asynccontextmanager
async def held(lab: Lab, scratch: Path, **changes: Any) -> AsyncIterator[tuple[VCenter, Snapshot]]:
    """A login and a snapshot of the VM."""
    settings = transport_settings(lab, scratch, order=("export",), **changes)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "pair") as snapshot:
        yield vcenter, snapshot


@asynccontextmanager
async def opened(vcenter: VCenter, snapshot: Snapshot, index: int = 0) -> AsyncIterator[OpenDisk]:
    """One of its disks, by export alone."""
    async with vcenter.open_disk(snapshot, snapshot.disks[index], transports=("export",), run="run-1") as disk:
        yield disk


async def test_both_disks_of_a_running_vm_are_read_as_they_were_frozen_under_one_lease(
    pair: Lab, tmp_path: Path
) -> None:
    before = ended(pair)
    async with held(pair, tmp_path) as (vcenter, snapshot):
        with pair.busy_guest("pair"):
            async with opened(vcenter, snapshot) as first, opened(vcenter, snapshot, 1) as second:
                assert (first.transport, first.fallbacks, first.sequential) == ("export", (), True)
                assert len((await asyncio.to_thread(pair.leases))["held"]) == 1
                read = await asyncio.gather(contents(first.reader), contents(second.reader))
        for found, disk in zip(read, snapshot.disks, strict=True):
            assert found == frozen_bytes(pair, snapshot, disk.disk.key)
        assert await asyncio.to_thread(ended, pair) - before == Counter(completed=1)


async def test_a_stream_that_is_cut_off_is_a_failed_read_and_its_lease_is_aborted(pair: Lab, tmp_path: Path) -> None:
    before = ended(pair)
    async with held(pair, tmp_path) as (vcenter, snapshot):
        await asyncio.to_thread(pair.inject, "GET /nfc", drop=True)
        with pytest.raises(ReadFailed, match="cut off at byte"):
            async with opened(vcenter, snapshot) as disk:
                await contents(disk.reader)
        async with opened(vcenter, snapshot) as disk:
            assert await contents(disk.reader) == frozen_bytes(pair, snapshot, snapshot.disks[0].disk.key)
        assert await asyncio.to_thread(ended, pair) - before == Counter(aborted=1, completed=1)


async def test_a_stream_goes_forward_and_says_so_to_who_would_go_back(pair: Lab, tmp_path: Path) -> None:
    async with held(pair, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot, 1) as disk:
        piece = memoryview(bytearray(4096))
        frozen = frozen_bytes(pair, snapshot, snapshot.disks[1].disk.key)
        for offset in (0, 3 * MIB + 512, 8 * MIB - 4096):
            await asyncio.to_thread(disk.reader.read_into, offset, piece)
            assert piece == frozen[offset : offset + 4096]
        with pytest.raises(ReadFailed, match="the stream stands at 8388608"):
            await asyncio.to_thread(disk.reader.read_into, 0, piece)


async def test_a_lease_is_kept_alive_while_a_disk_is_slow_and_nobody_moves_its_vm(pair: Lab, tmp_path: Path) -> None:
    before = ended(pair)
    await asyncio.to_thread(pair.settings, lease_seconds=1)
    async with held(pair, tmp_path) as (vcenter, snapshot):
        await asyncio.to_thread(pair.inject, "GET /nfc", delay_seconds=1.2)
        async with opened(vcenter, snapshot, 1) as disk:
            with pytest.raises(RuntimeError, match="are being exported"):
                await asyncio.to_thread(pair.drs_move, "pair")
            assert await contents(disk.reader) == frozen_bytes(pair, snapshot, snapshot.disks[1].disk.key)
        await asyncio.to_thread(pair.drs_move, "pair")
        assert await asyncio.to_thread(ended, pair) - before == Counter(completed=1)


async def test_a_lease_that_nobody_tells_of_progress_ends_and_lets_the_vm_go(pair: Lab, tmp_path: Path) -> None:
    """What a killed engine leaves, and one whose answer was lost."""
    before = ended(pair)
    await asyncio.to_thread(pair.settings, lease_seconds=1)
    async with held(pair, tmp_path) as (vcenter, snapshot):
        await asyncio.to_thread(pair.inject, "ExportSnapshot", drop=True)
        for says in ("the connection failed", "the object is in use"):
            with pytest.raises(TransportFailed, match=says):
                async with opened(vcenter, snapshot):
                    pass
        assert len((await asyncio.to_thread(pair.leases))["held"]) == 1
        await until(lambda: not pair.leases()["held"])
        assert await asyncio.to_thread(ended, pair) - before == Counter(timed_out=1)
        async with opened(vcenter, snapshot, 1) as disk:
            assert await contents(disk.reader) == frozen_bytes(pair, snapshot, snapshot.disks[1].disk.key)


async def test_a_lease_that_vcenter_ends_fails_its_reads_and_the_next_opening_gets_another(
    pair: Lab, tmp_path: Path
) -> None:
    await asyncio.to_thread(pair.settings, lease_seconds=1)
    async with held(pair, tmp_path) as (vcenter, snapshot):
        await asyncio.to_thread(pair.inject, "HttpNfcLeaseProgress", "Timedout")
        told = (await asyncio.to_thread(pair.calls)).get("HttpNfcLeaseProgress", 0)
        async with opened(vcenter, snapshot) as disk:
            await until(lambda: pair.calls().get("HttpNfcLeaseProgress", 0) > told)
            with pytest.raises(ReadFailed, match="vCenter has ended the lease"):
                for offset in range(0, 40 * MIB, MIB):
                    await asyncio.to_thread(disk.reader.read_into, offset, memoryview(bytearray(MIB)))
                    await asyncio.sleep(0.01)
        async with opened(vcenter, snapshot, 1) as disk:
            assert await contents(disk.reader) == frozen_bytes(pair, snapshot, snapshot.disks[1].disk.key)


@pytest.mark.parametrize("trouble", ["lease", "privilege", "status", "size", "place"])
async def test_each_reason_against_an_export_is_a_sentence_and_no_lease_is_left(
    pair: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    disk = 0
    match trouble:
        case "lease":
            pair.inject("HttpNfcLease", "FileFault", text="a file is missing", fields={"File": "[fast-1] x"})
            says = "vCenter does not export the VM: vCenter failed: FileFault"
        case "privilege":
            pair.surroundings(user=pair.user, denied=["VApp.Export"])
            says = "the account lacks the privilege VApp.Export"
        case "status":
            pair.inject("GET /nfc", "SystemError")
            says = "refuses the disk (HTTP 500"
        case "size":
            disk = 1
            monkeypatch.setattr(export, "place", lambda key: ("scsi", 0, 1) if ":0" in key else None)
            says = "the stream is of a disk of 41943040 bytes, the disk has 8388608"
        case "place":
            monkeypatch.setattr(export, "place", lambda key: None)
            says = "vCenter exports other disks (/vm-"
    async with held(pair, tmp_path) as (vcenter, snapshot):
        with pytest.raises(TransportFailed) as caught:
            async with opened(vcenter, snapshot, disk):
                pass
        assert says in str(caught.value)
        assert (await asyncio.to_thread(pair.leases))["held"] == []


async def test_cancelling_while_a_lease_is_asked_for_and_while_a_disk_is_read_gives_it_back(
    pair: Lab, tmp_path: Path
) -> None:
    before = ended(pair)
    async with held(pair, tmp_path) as (vcenter, snapshot):
        for moment in ("asked for", "getting ready", "read"):
            reached = asyncio.Event()
            if moment == "asked for":
                await asyncio.to_thread(pair.inject, "ExportSnapshot", delay_seconds=0.3)
            if moment == "getting ready":
                await asyncio.to_thread(pair.inject, "HttpNfcLease", delay_seconds=0.3)

            async def read(reached: asyncio.Event = reached) -> None:
                async with opened(vcenter, snapshot) as disk:
                    await asyncio.to_thread(disk.reader.read_into, 0, memoryview(bytearray(MIB)))
                    reached.set()
                    await asyncio.Event().wait()

            called = (await asyncio.to_thread(pair.calls)).get("ExportSnapshot", 0)
            reading = asyncio.create_task(read())
            await until(lambda called=called: pair.calls().get("ExportSnapshot", 0) > called)  # type: ignore[misc]
            if moment == "read":
                await reached.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert (await asyncio.to_thread(pair.leases))["held"] == []
        assert await asyncio.to_thread(ended, pair) - before == Counter(aborted=3)


async def test_a_login_that_is_lost_meanwhile_neither_ends_the_stream_nor_leaves_the_lease(
    pair: Lab, tmp_path: Path
) -> None:
    async with held(pair, tmp_path) as (vcenter, snapshot), opened(vcenter, snapshot, 1) as disk:
        await asyncio.to_thread(pair.kill_sessions)
        assert await contents(disk.reader) == frozen_bytes(pair, snapshot, snapshot.disks[1].disk.key)
    assert (await asyncio.to_thread(pair.leases))["held"] == []


async def test_with_vcenters_certificate_pinned_another_host_is_verified_by_its_thumbprint_alone(
    pair: Lab, tmp_path: Path
) -> None:
    async with held(pair, tmp_path) as (vcenter, _):
        session = vcenter.session
        elsewhere = f"https://localhost:{pair.port}/nfc/none/disk-0.vmdk"
        pinned: Any = type("Pinned", (), {"settings": session.settings, "tls": ssl.create_default_context()})()
        pinned.tls.check_hostname = False
        with pytest.raises(TransportFailed, match="vCenter tells no thumbprint of it"):
            Download(pinned, elsewhere, "", "here")
        other = "AA:" * 19 + "AA"
        for login, thumbprint, says in (
            (pinned, pair.thumbprint, "HTTP 404"),
            (pinned, other, "shows another certificate"),
            (session, other, "shows another certificate"),
        ):
            reach = Download(login, elsewhere, thumbprint, "here")
            with closing(reach), pytest.raises(TransportFailed, match=says):
                await asyncio.to_thread(reach.begin)
        plain = f"http://localhost:{pair.port}/nfc/none/disk-0.vmdk"
        with pytest.raises(TransportFailed, match="no HTTPS address"):
            Download(session, plain, pair.thumbprint, "here")


async def test_export_is_taken_where_neither_hot_add_nor_nbd_works_and_not_for_encrypted_vms(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    sealed = Machine(name="sealed", disks=(8 * MIB,), encrypted=True)
    lab = fresh_lab(vms=0, extra=[replace(PAIR, disks=(8 * MIB,)), sealed])
    settings = transport_settings(lab, tmp_path, proxy="gone", nbdkit="no-such-nbdkit")
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "pair") as snapshot:
        vms = {vm.name: vm for vm in await vcenter.inventory()}
        foreseen = await vcenter.predictions(list(vms.values()))
        assert foreseen[vms["pair"].address.moref, snapshot.disks[0].disk.key].transport == "export"
        refused = foreseen[vms["sealed"].address.moref, vms["sealed"].disks[0].key]
        reasons = {fallback.transport: fallback.reason for fallback in refused.fallbacks}
        assert (refused.transport, "does not export encrypted VMs" in reasons["export"]) == ("", True)
        async with vcenter.open_disk(snapshot, snapshot.disks[0], transports=(), run="run-1") as disk:
            assert disk.transport == "export"
            assert [fallback.transport for fallback in disk.fallbacks] == ["hotadd", "nbd"]
        vm = await vcenter.vm(Address(vcenter.vcenter, lab.vm("sealed").moref))
        async with snapshotted(vcenter, lab, vm.name) as other:
            with pytest.raises(TransportFailed, match="does not export encrypted VMs"):
                async with opened(vcenter, other):
                    pass


async def test_qemu_reads_what_the_lab_exports(pair: Lab, tmp_path: Path) -> None:
    async with held(pair, tmp_path) as (vcenter, snapshot):
        session, stream, raw = vcenter.session, tmp_path / "disk.vmdk", tmp_path / "disk.raw"
        async with Leases(session).hold(session.managed(vim.vm.Snapshot, snapshot.moref)) as lease:
            [url] = [url for url in lease.urls if place(url.key) == ("scsi", 0, 0)]
            with closing(Download(session, url.url, url.sslThumbprint, "here")) as download:
                await asyncio.to_thread(download.begin)
                pieces = iter(lambda: download.read(MIB), b"")
                stream.write_bytes(b"".join(await asyncio.to_thread(list, pieces)))
        words = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(stream), str(raw)]
        await asyncio.to_thread(subprocess.run, words, check=True, timeout=60)
        assert raw.read_bytes() == frozen_bytes(pair, snapshot, snapshot.disks[0].disk.key)
