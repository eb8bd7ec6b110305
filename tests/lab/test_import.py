"""VMs by NFC import: made whole from streams under a lease, or not at all; nothing is left on any way out."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest
from pyVmomi import vim

from connectors.disk_files import FileReader
from connectors.disks import BlockingWriter, Extent, merge, pieces
from connectors.errors import AlreadyThere, Busy, ConnectorError, NotPermitted, Rejected, TransportFailed, WriteFailed
from connectors.hypervisor import RestoreTarget, Snapshot
from connectors.vsphere import import_marks
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.importing import Import
from connectors.vsphere.optionmarks import WHOSE
from connectors.vsphere.upload import Upload
from engine.disk_writing import Filling, pour
from storage.repository import PointDisk
from tests.lab.connect import until
from tests.lab.reaching import MIB, connected, frozen_bytes, snapshotted, transport_settings
from tests.lab.vcenter import Lab, Machine, start_lab

PAIR = Machine(name="pair", disks=(40 * MIB, 8 * MIB))
TARGET = RestoreTarget("again", point="point-1", run="run-1")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with a running VM of two disks, the first with more than one grain table."""
    with start_lab(tmp_path_factory.mktemp("imports"), vms=0, extra=[PAIR]) as lab:
        yield lab


@pytest.fixture
def pair(started: Lab) -> Iterator[Lab]:
    """The lab, well-mannered again and without what a test has imported afterwards."""
    yield started
    started.heal()
    started.settings(lease_seconds=0)
    started.surroundings(user=started.user, denied=[])
    assert started.leases()["held"] == []
    for vm in started.vms():
        if vm.name != "pair":
            started.remove_vm(vm.name)


@asynccontextmanager
async def reached(lab: Lab, scratch: Path) -> AsyncIterator[tuple[VCenter, Snapshot]]:
    """A login and a snapshot of the VM, as if a restore point held it."""
    settings = transport_settings(lab, scratch, order=("export",))
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "pair") as snapshot:
        yield vcenter, snapshot


def mapped(lab: Lab, snapshot: Snapshot) -> list[list[Extent]]:
    """Where the frozen disks have data."""
    found = []
    for disk in snapshot.disks:
        with FileReader(lab.frozen_copy(snapshot.moref, disk.disk.key)) as reader:
            found.append(merge(reader.extents()))
    return found


async def sent(importing: Import, index: int, extents: list[Extent], data: bytes) -> None:
    """One disk, written as a restore writes it."""
    async with importing.disk(index) as opened:
        for piece in pieces(extents, MIB):
            view = memoryview(data)[piece.offset : piece.end]
            await asyncio.to_thread(opened.writer.write, piece.offset, view)


def ended(lab: Lab) -> Counter[str]:
    told = lab.leases()
    assert told.pop("held") == []
    return Counter(told)


def names(lab: Lab) -> list[str]:
    return sorted(vm.name for vm in lab.vms())


async def test_a_vm_is_imported_with_the_bytes_of_each_disk_and_its_marks_are_gone(pair: Lab, tmp_path: Path) -> None:
    before = await asyncio.to_thread(ended, pair)
    async with reached(pair, tmp_path) as (vcenter, snapshot):
        extents = mapped(pair, snapshot)
        async with vcenter.import_vm(snapshot.configuration, TARGET, extents) as importing:
            frozen = [frozen_bytes(pair, snapshot, disk.disk.key) for disk in snapshot.disks]
            await asyncio.gather(*(sent(importing, n, extents[n], frozen[n]) for n in (1, 0)))
            made = await importing.complete()
        assert [disk.capacity_bytes for disk in made.disks] == [40 * MIB, 8 * MIB]
        for found, wanted in zip(pair.vm("again").disks, frozen, strict=True):
            assert found.flat.read_bytes() == wanted
        assert await asyncio.to_thread(ended, pair) - before == Counter(completed=1)
        seen = await vcenter.vm(made.address)
        assert (seen.name, seen.power.value, await vcenter.half_restored(made.address)) == ("again", "off", False)
        assert [left.kind for left in await vcenter.leftovers(lambda run: False)] == ["snapshot"]


LITTLE = [[Extent(0, MIB)], [Extent(4 * MIB, 2 * 65536)]]


async def imported(vcenter: VCenter, snapshot: Snapshot, target: RestoreTarget = TARGET) -> Any:
    """A VM with a little data, made whole."""
    async with vcenter.import_vm(snapshot.configuration, target, LITTLE) as importing:
        for index, extents in enumerate(LITTLE):
            await sent(importing, index, extents, bytes(range(256)) * (40 * MIB // 256))
        return await importing.complete()


@pytest.mark.parametrize("trouble", ["privilege", "lease", "status", "cut", "forgotten", "name", "network"])
async def test_each_way_in_which_an_import_fails_is_a_sentence_and_leaves_neither_vm_nor_lease(
    pair: Lab, tmp_path: Path, trouble: str
) -> None:
    target, says = TARGET, ""
    kind: type[ConnectorError] = TransportFailed
    match trouble:
        case "privilege":
            pair.surroundings(user=pair.user, denied=["VApp.Import"])
            kind, says = NotPermitted, "the account lacks the privilege VApp.Import"
        case "lease":
            pair.inject("HttpNfcLease", "FileFault", text="no room", fields={"File": "[fast-1] x"})
            says = "vCenter does not import the VM: vCenter failed: FileFault"
        case "status":
            pair.inject("POST /nfc", "SystemError")
            kind, says = WriteFailed, r"refuses the disk \(HTTP 500"
        case "cut":
            pair.inject("POST /nfc", drop=True)
            kind, says = WriteFailed, "broke the import off"
        case "forgotten":
            pair.settings(lease_seconds=1)
            pair.inject("HttpNfcLeaseProgress", "Timedout")
            kind, says = WriteFailed, "vCenter has ended the lease"
        case "name":
            target, kind, says = RestoreTarget("pair", point="p", run="r"), AlreadyThere, "there already"
        case "network":
            target = RestoreTarget("again", network_map={"nowhere": "VM Network"}, point="p", run="r")
            kind, says = Rejected, "the VM was on no network nowhere"
    async with reached(pair, tmp_path) as (vcenter, snapshot):
        with pytest.raises(ConnectorError, match=says) as caught:
            async with vcenter.import_vm(snapshot.configuration, target, LITTLE) as importing:
                told = pair.calls().get("HttpNfcLeaseProgress", 0)
                if trouble == "forgotten":
                    await until(lambda: pair.calls().get("HttpNfcLeaseProgress", 0) > told)
                for index, extents in enumerate(LITTLE):
                    await sent(importing, index, extents, bytes(40 * MIB))
        assert isinstance(caught.value, kind)
        assert await asyncio.to_thread(names, pair) == ["pair"]
        assert (await asyncio.to_thread(pair.leases))["held"] == []


async def test_a_host_gets_no_disk_that_was_not_told_and_a_vm_is_whole_with_all_of_them(
    pair: Lab, tmp_path: Path
) -> None:
    async with reached(pair, tmp_path) as (vcenter, snapshot):
        for wrong, says in (
            ([Extent(0, MIB), Extent(8 * MIB, 65536)], "is not to be written at offset 8388608 now"),
            ([Extent(0, 65536)], "was not written at offset 65536"),
        ):
            with pytest.raises(WriteFailed, match=says):
                async with vcenter.import_vm(snapshot.configuration, TARGET, LITTLE) as importing:
                    await sent(importing, 0, wrong, bytes(40 * MIB))
        with pytest.raises(ConnectorError, match="1 of 2 disks were sent"):
            async with vcenter.import_vm(snapshot.configuration, TARGET, LITTLE) as importing:
                await sent(importing, 0, LITTLE[0], bytes(40 * MIB))
                await importing.complete()
        assert await asyncio.to_thread(names, pair) == ["pair"]


async def test_cancelling_while_a_vm_is_asked_for_and_while_a_disk_is_sent_leaves_nothing(
    pair: Lab, tmp_path: Path
) -> None:
    async with reached(pair, tmp_path) as (vcenter, snapshot):
        for moment in ("asked for", "getting ready", "sent"):
            reached_it = asyncio.Event()
            if moment == "asked for":
                await asyncio.to_thread(pair.inject, "ImportVApp", delay_seconds=0.3)
            if moment == "getting ready":
                await asyncio.to_thread(pair.inject, "HttpNfcLease", delay_seconds=0.3)

            async def send(reached_it: asyncio.Event = reached_it) -> None:
                begun = vcenter.import_vm(snapshot.configuration, TARGET, LITTLE)
                async with begun as importing, importing.disk(0) as opened:
                    await asyncio.to_thread(opened.writer.write, 0, memoryview(bytes(65536)))
                    reached_it.set()
                    await asyncio.Event().wait()

            called = (await asyncio.to_thread(pair.calls)).get("ImportVApp", 0)
            sending = asyncio.create_task(send())
            await until(lambda called=called: pair.calls().get("ImportVApp", 0) > called)  # type: ignore[misc]
            if moment == "sent":
                await reached_it.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert await asyncio.to_thread(names, pair) == ["pair"]
            assert (await asyncio.to_thread(pair.leases))["held"] == []


LONG = 3600.0
"""A host that zeroes a thick disk; no test waits for it."""


class Full:
    """A disk of a restore point, full of what no stream makes smaller."""

    capacity_bytes = 40 * MIB

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = random.Random(offset).randbytes(len(view))


@pytest.mark.parametrize("waits_for", ["the lease", "the answer", "room to send"])
async def test_a_cancel_while_a_host_zeroes_a_thick_disk_aborts_the_lease_and_waits_for_nothing_else(
    pair: Lab, tmp_path: Path, waits_for: str
) -> None:
    await asyncio.to_thread(
        pair.inject, "HttpNfcLease" if waits_for == "the lease" else "POST /nfc", delay_seconds=LONG
    )
    await asyncio.to_thread(pair.inject, "HttpNfcLeaseAbort", delay_seconds=1)
    before = await asyncio.to_thread(ended, pair)
    extents = LITTLE[0] if waits_for == "the answer" else [Extent(0, 40 * MIB)]
    taken: list[int] = []
    how = Filling(ThreadPoolExecutor(2), 2, advance=taken.append)

    async def restored() -> None:
        wanted = [extents, LITTLE[1]]
        async with vcenter.import_vm(snapshot.configuration, TARGET, wanted) as importing, importing.disk(0) as opened:
            writer = cast(BlockingWriter, opened.writer)
            await pour(cast(PointDisk, Full()), writer, extents, how, ThreadPoolExecutor(1), opened.cut)

    async with reached(pair, tmp_path) as (vcenter, snapshot):
        calls = await asyncio.to_thread(pair.calls)
        sign = "ImportVApp" if waits_for == "the lease" else "POST /nfc"
        restoring = asyncio.create_task(restored())
        await until(lambda: pair.calls().get(sign, 0) > calls.get(sign, 0))
        if waits_for == "room to send":
            seen = [-1]
            while seen[-1] != len(taken):  # until the host takes nothing more
                seen.append(len(taken))
                await asyncio.sleep(0.5)
        restoring.cancel()
        began = monotonic()
        with pytest.raises(asyncio.CancelledError):
            await restoring
        assert 0.9 < monotonic() - began < 15, "the abort is waited for, and nothing else"
        assert await asyncio.to_thread(ended, pair) - before == Counter(aborted=1)
        assert await asyncio.to_thread(names, pair) == ["pair"]
        await imported(vcenter, snapshot)
        assert await asyncio.to_thread(names, pair) == ["again", "pair"]


async def test_a_login_that_is_lost_while_disks_are_sent_costs_nothing_and_a_slow_host_keeps_no_thread_of_others(
    pair: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, answers, finish = threading.Event(), threading.Event(), Upload.finish

    def slowly(upload: Upload) -> None:
        waits.set()
        assert answers.wait(10)
        finish(upload)

    monkeypatch.setattr(Upload, "finish", slowly)
    async with reached(pair, tmp_path) as (vcenter, snapshot):
        async with vcenter.import_vm(snapshot.configuration, TARGET, LITTLE) as importing:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            sending = asyncio.create_task(sent(importing, 0, LITTLE[0], bytes(40 * MIB)))
            await until(waits.is_set)
            async with asyncio.timeout(5):
                await asyncio.to_thread(answers.set)
            await sending
            await asyncio.to_thread(pair.kill_sessions)
            await sent(importing, 1, LITTLE[1], bytes(40 * MIB))
            await importing.complete()
        assert await asyncio.to_thread(names, pair) == ["again", "pair"]


async def test_a_trial_vm_is_imported_read_back_out_of_an_export_and_gone(pair: Lab, tmp_path: Path) -> None:
    trial = replace(TARGET, name="backstay-rehearsal-pair-run-1", trial=True, cards=False)
    before = await asyncio.to_thread(ended, pair)
    data = bytes(range(256)) * (40 * MIB // 256)
    async with reached(pair, tmp_path) as (vcenter, snapshot):
        async with vcenter.import_vm(snapshot.configuration, trial, LITTLE) as importing:
            [left] = [one for one in await vcenter.leftovers(lambda run: False) if one.kind != "snapshot"]
            assert (left.kind, left.vm) == ("trial VM", importing.vm.address)
            for index, extents in enumerate(LITTLE):
                await sent(importing, index, extents, data)
            made = await importing.complete()
            assert made.address not in [vm.address for vm in await vcenter.inventory()]
            for index, extents in enumerate(LITTLE):
                async with importing.read_back(index) as opened:
                    found = memoryview(bytearray(8 * MIB))
                    await asyncio.to_thread(opened.reader.read_into, 0, found)
                for extent in extents:
                    assert found[extent.offset : extent.end] == data[extent.offset : extent.end]
                assert not any(found[6 * MIB :])
        assert await asyncio.to_thread(names, pair) == ["pair"]
        assert await asyncio.to_thread(ended, pair) - before == Counter(completed=3)


async def test_what_a_dead_import_left_is_known_removed_once_its_lease_is_over_and_nobodys_else(
    pair: Lab, tmp_path: Path
) -> None:
    await asyncio.to_thread(pair.settings, lease_seconds=1)
    async with reached(pair, tmp_path) as (vcenter, snapshot), connected(pair, vcenter.settings.transports) as after:
        dead = vcenter.import_vm(snapshot.configuration, TARGET, LITTLE)
        importing = await dead.__aenter__()
        [left] = [one for one in await after.leftovers(lambda run: False) if one.kind == "half-imported VM"]
        assert (left.vm, left.run) == (importing.vm.address, "run-1")
        assert await after.half_restored(left.vm), "so it is not backed up"
        filled = after.create_vm(snapshot.configuration, TARGET)
        for busy in (after.remove(left), imported(after, snapshot), filled):
            with pytest.raises(Busy):
                await busy
        for index, extents in enumerate(LITTLE):
            await sent(importing, index, extents, bytes(40 * MIB))
        await importing._lease.complete()  # and here it dies
        await asyncio.to_thread(pair.power_on, "again")
        assert [one.kind for one in await after.leftovers(lambda run: False)] == ["snapshot"]
        await asyncio.to_thread(pair.power_off, "again")
        # One of its disks was changed for that of another VM: deleted with it, that one would be lost.
        told = await after.session.properties(after.session.managed(vim.VirtualMachine, left.vm.moref), WHOSE)
        assert import_marks.kept_by_somebody(told, "engine-1") == ""
        disk: Any = [one for one in told["config.hardware.device"] if isinstance(one, vim.vm.device.VirtualDisk)][1]
        ours, disk.backing.fileName = disk.backing.fileName, "[fast-1] pair/pair.vmdk"
        assert "a disk that is not its own, [fast-1] pair/pair.vmdk" in import_marks.kept_by_somebody(told, "engine-1")
        disk.backing.fileName = "[slow-2] again-2/again-2.vmdk"
        assert "a disk that is not its own, [slow-2]" in import_marks.kept_by_somebody(told, "engine-1")
        disk.backing.fileName = ours.replace("fast-1", "slow-2")
        assert import_marks.kept_by_somebody(told, "engine-1") == "", "a restore may place a disk on another datastore"
        await after.remove(left)
        await after.remove(left)
        assert await asyncio.to_thread(names, pair) == ["pair"]
        await imported(after, snapshot)
        await dead.__aexit__(None, None, None)
        assert await asyncio.to_thread(names, pair) == ["again", "pair"]
