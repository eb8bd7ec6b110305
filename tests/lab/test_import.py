"""VMs by NFC import: made whole from streams under a lease, or not at all; nothing is left on any way out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.disk_files import FileReader
from connectors.disks import Extent, merge, pieces
from connectors.errors import Busy, ConnectorError, NotPermitted, Rejected, TransportFailed, WriteFailed
from connectors.hypervisor import RestoreTarget, Snapshot
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.importing import Import
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
