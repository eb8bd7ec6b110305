"""A VM, its files or the proxy move at any point of a run: what is committed is what the lab froze, or nothing is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from connectors.disks import AsyncReader, BlockingReader, DiskReader, Extent
from connectors.hypervisor import OpenDisk, Snapshot, SnapshotDisk
from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from engine.attempts import Attempt, CalledBack, Means
from engine.backup import back_up
from engine.jobs import Done, Job, JobId, JobKind, RunId
from engine.threads import Threads
from policies.facts import Address, VmId
from storage.repository import Repository, create, open_repository
from tests.lab.connect import QUICK_SNAPSHOTS, session_settings
from tests.lab.reaching import transport_settings
from tests.lab.vcenter import MIB, Lab, Machine, start_lab
from tests.pipeline.running import now

VM, PROXY = "twin", "proxy"
VM_OF_TWO_DISKS = Machine(name=VM, disks=(4 * MIB, 4 * MIB), tracking=True)
THE_PROXY = Machine(name=PROXY, disks=(MIB,), datastore="bulk-1", content=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with start_lab(
        tmp_path_factory.mktemp("moves"), vms=0, tracking=True,
        extra=[VM_OF_TWO_DISKS, THE_PROXY],
    ) as running:  # fmt: skip
        yield running


class Slow:
    """A reader, of either kind, that tells of its first read."""

    def __init__(self, reader: DiskReader, first: Callable[[], None]) -> None:
        self.capacity_bytes = reader.capacity_bytes
        self.reader, self.first, self.told = reader, first, False

    def tell(self) -> None:
        if not self.told:
            self.told = True
            self.first()


class SlowBlocking(Slow):
    def extents(self) -> Sequence[Extent]:
        return list(cast(BlockingReader, self.reader).extents())

    def read_into(self, offset: int, view: memoryview) -> None:
        self.tell()
        cast(BlockingReader, self.reader).read_into(offset, view)


class SlowAwaited(Slow):
    async def extents(self) -> Sequence[Extent]:
        return await cast(AsyncReader, self.reader).extents()

    async def read_into(self, offset: int, view: memoryview) -> None:
        await asyncio.to_thread(self.tell)
        await cast(AsyncReader, self.reader).read_into(offset, view)


class Moving(VCenter):
    """A vCenter in which something happens before the nth disk is opened, or at its first read."""

    opened = 0
    before: Callable[[int], None] = staticmethod(lambda number: None)
    reading: Callable[[int], None] = staticmethod(lambda number: None)

    @asynccontextmanager
    async def open_disk(
        self, snapshot: Snapshot, disk: SnapshotDisk, *, transports: Sequence[str], run: str
    ) -> AsyncIterator[OpenDisk]:
        self.opened += 1
        number = self.opened
        await asyncio.to_thread(self.before, number)
        async with super().open_disk(snapshot, disk, transports=transports, run=run) as found:
            kind = SlowAwaited if asyncio.iscoroutinefunction(found.reader.read_into) else SlowBlocking
            yield replace(found, reader=cast(DiskReader, kind(found.reader, lambda: self.reading(number))))


@dataclass
class Bench:
    lab: Lab
    vcenter: Moving
    means: Means
    repository: Repository
    runs: int = 0
    order: list[str] = field(default_factory=list)

    async def back_up(self, *transports: str) -> Done:
        self.runs += 1
        moref = (await asyncio.to_thread(self.lab.vm, VM)).moref
        vm = replace(await self.vcenter.vm(Address(self.vcenter.vcenter, moref)), id=VmId("id"))
        job = Job(
            id=JobId("j"), key="k", kind=JobKind.BACKUP, vm=vm.id, policy="gold", rule="rpo", reason="it was time",
            created_at=now(), not_before=now(), transports=transports,
        )  # fmt: skip
        self.vcenter.opened = 0
        return await back_up(Attempt(job, vm, RunId(f"run-{self.runs}")), self.means)

    def is_as_frozen(self, done: Done) -> bool:
        kept = self.lab.frozen(VM)[-1].disks
        for record, frozen in zip(self.repository.detail(done.point).disks, kept, strict=True):
            source = self.repository.read_disk(done.point, record.head.name)
            data = bytearray(source.capacity_bytes)
            source.read_into(0, memoryview(data))
            if data != frozen.image.read_bytes():
                return False
        return not self.lab.vm(VM).snapshots and len(self.lab.vm(PROXY).disks) == 1


@pytest.fixture
async def bench(lab: Lab, tmp_path: Path) -> AsyncIterator[Bench]:
    create(tmp_path / "repo", now=now())
    transports = transport_settings(lab, tmp_path, order=("hotadd", "nbd"), proxy=PROXY)
    vcenter = await Moving.connect(VCenterSettings(session_settings(lab), transports, QUICK_SNAPSHOTS))
    threads = Threads()
    try:
        with open_repository(tmp_path / "repo", now=now) as repository:
            means = Means(vcenter, repository, threads, "e1", disks_per_vm=1)
            yield Bench(lab, vcenter, means, repository)
    finally:
        await vcenter.aclose()
        await asyncio.to_thread(threads.close)
        await asyncio.to_thread(lab.relocate, VM, "fast-1")


def once(at: int, act: Callable[[], object]) -> Callable[[int], None]:
    """Act when it is the turn of the disk with this number."""

    def turn(number: int) -> None:
        if number == at:
            act()

    return turn


def nbdkits() -> list[int]:
    """The nbdkits that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            name = (entry / "comm").read_text().strip()
        except (OSError, ValueError):
            continue
        if name == "nbdkit" and int(parent) == os.getpid() and state != "Z":
            found.append(int(entry.name))
    return found


async def test_files_that_move_before_and_between_disks_are_read_where_they_are(bench: Bench, lab: Lab) -> None:
    bench.vcenter.before = once(1, lambda: lab.relocate(VM, "bulk-1"))
    done = await bench.back_up("nbd")
    assert (done.relocated, bench.is_as_frozen(done)) == ("fast-1 -> bulk-1", True)
    assert all(disk.fallbacks == () for disk in done.disks)
    bench.vcenter.before = once(2, lambda: lab.relocate_disk(VM, 1, "fast-1"))
    lab.write_random_grains(VM, 0, share=0.2, seed=1)
    done = await bench.back_up("nbd")
    assert (done.relocated, bench.is_as_frozen(done)) == ("bulk-1 -> fast-1", True)


async def test_files_that_move_while_changes_are_read_lead_to_no_restore_point(bench: Bench, lab: Lab) -> None:
    await bench.back_up("nbd")
    lab.write_random_grains(VM, 0, share=0.2, seed=2)
    bench.vcenter.before = once(1, lambda: lab.relocate(VM, "bulk-1"))
    with pytest.raises(CalledBack, match="moved to other storage"):
        await bench.back_up("nbd")
    assert len(bench.repository.points()) == 1
    assert not lab.vm(VM).snapshots
    bench.vcenter.before = once(0, lambda: None)
    done = await bench.back_up("nbd")
    assert {disk.changes.partition(":")[0] for disk in done.disks} == {"whole"}
    assert bench.is_as_frozen(done)


async def test_a_move_to_another_host_with_an_nbdkit_that_dies_of_it_is_read_from_there(bench: Bench, lab: Lab) -> None:
    def move() -> None:
        lab.drs_move(VM)
        for pid in nbdkits():
            os.kill(pid, signal.SIGKILL)

    bench.vcenter.reading = once(1, move)
    was = lab.vm(VM).host
    done = await bench.back_up("nbd")
    assert done.moved == f"{was} -> {lab.vm(VM).host}"
    assert [len(disk.fallbacks) for disk in done.disks] == [1, 0]
    assert bench.is_as_frozen(done)


async def test_a_vm_that_drs_moves_while_its_disk_is_attached_is_read_on(bench: Bench, lab: Lab) -> None:
    bench.vcenter.reading = once(1, lambda: lab.drs_move(VM))
    done = await bench.back_up("hotadd", "nbd")
    assert [disk.transport for disk in done.disks] == ["hotadd", "hotadd"]
    assert done.moved
    assert bench.is_as_frozen(done)


async def test_a_proxy_that_moves_is_asked_anew_which_datastores_it_reaches(bench: Bench, lab: Lab) -> None:
    hosts = {host.name for host in lab.machine(PROXY).runtime.host.parent.host}
    near, away = sorted(hosts - {lab.vm(PROXY).host})
    lab.hide_datastore("fast-1", away)

    def move() -> None:
        with pytest.raises(RuntimeError, match="CannotAccessVmDisk"):
            lab.drs_move(PROXY, away)
        lab.drs_move(PROXY, near)

    bench.vcenter.reading = once(1, move)
    bench.vcenter.before = once(2, lambda: lab.drs_move(PROXY, away))
    done = await bench.back_up("hotadd", "nbd")
    assert [disk.transport for disk in done.disks] == ["hotadd", "nbd"]
    assert "fast-1" in done.disks[1].fallbacks[0]
    assert bench.is_as_frozen(done)
