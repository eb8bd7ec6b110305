"""The session ends between any two calls of a backup: no snapshot is made twice, nothing stays, and the data is right.

The lab numbers the calls of one backup, by hot-add or by NBD with the VM kept in its place, and ends the session
before each in turn, which is after the one before; of the calls that change vCenter each is also carried out, and the
session ends with its answer lost. What stands in vCenter is read by plain pyVmomi of another account, what was frozen
is the lab's own copy.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from connectors.vsphere.hypervisor import VCenter
from engine.attempts import Attempt, Means
from engine.inplace import back_up_in_place
from engine.jobs import Done, Job, JobId, JobKind, RunId
from engine.threads import Threads
from policies.facts import Address, Consistency, VmId
from policies.policy import OnMigrate
from storage.repository import Repository, create, open_repository
from tests.lab.connect import connected
from tests.lab.reaching import transport_settings
from tests.lab.vcenter import MIB, Lab

GRAIN = 64 << 10
CHANGES = ("CreateSnapshotEx_Task", "ReconfigVM_Task", "RemoveSnapshot_Task", "DisableMethods", "EnableMethods")


@dataclass
class Backups:
    """One VM that is backed up again and again, and the proxy to which its disk is attached."""

    lab: Lab
    vcenter: VCenter
    repository: Repository
    means: Means
    on_migrate: OnMigrate = OnMigrate.FINISH
    was_read: Callable[[], None] = lambda: None
    runs: int = 0

    async def next(self) -> Done:
        """Write a little as the guest, then back up."""
        self.runs += 1
        grain = self.runs % 15
        await asyncio.to_thread(self.lab.write_as_guest, "web-01", 0, grain * GRAIN, self.runs.to_bytes(8, "big") * 64)
        vm = await self.vcenter.vm(Address(self.vcenter.vcenter, self.lab.moref("web-01")))
        now = datetime.now(UTC)
        job = Job(
            id=JobId(f"j{self.runs}"), key=f"k{self.runs}", kind=JobKind.BACKUP, vm=VmId("id-web"), policy="gold",
            rule="rpo", reason="it was time", created_at=now, not_before=now, consistency=Consistency.CRASH,
            fallback=Consistency.CRASH,
        )  # fmt: skip
        attempt = Attempt(
            job, replace(vm, id=VmId("id-web")), RunId(f"run{self.runs}"), on_migrate=self.on_migrate,
            was_read=self.was_read,
        )  # fmt: skip
        return await back_up_in_place(attempt, self.means)

    def content(self, done: Done) -> bytes:
        source = self.repository.read_disk(done.point, done.disks[0].label)
        data = bytearray(source.capacity_bytes)
        source.read_into(0, memoryview(data))
        return bytes(data)


@dataclass(frozen=True)
class Left:
    """What an independent reader finds."""

    snapshots: int
    proxy_disks: int
    marks: tuple[str, ...]
    switched_off: tuple[str, ...]


class Witness:
    """Reads vCenter with pyVmomi alone, as another account."""

    def __init__(self, lab: Lab) -> None:
        trusted = ssl.create_default_context(cafile=str(lab.ca_file))
        self._service = SmartConnect(host=lab.host, port=lab.port, user=lab.admin, pwd=lab.password, sslContext=trusted)
        stub = self._service._stub
        self._vm = vim.VirtualMachine(lab.moref("web-01"), stub)
        self._proxy = vim.VirtualMachine(lab.moref("app-02"), stub)

    def look(self) -> Left:
        tree = self._vm.snapshot
        config = self._proxy.config
        assert config is not None
        disks = [device for device in config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)]
        marks = tuple(option.key for option in config.extraConfig if "backstay" in option.key and option.value)
        snapshots = len(tree.rootSnapshotList) if tree is not None else 0
        return Left(snapshots, len(disks), marks, tuple(self._vm.disabledMethod))

    def close(self) -> None:
        Disconnect(self._service)


@contextmanager
def witnessing(lab: Lab) -> Iterator[Witness]:
    witness = Witness(lab)
    try:
        yield witness
    finally:
        witness.close()


@asynccontextmanager
async def backups_of(lab: Lab, root: Path) -> AsyncIterator[Backups]:
    create(root / "repo", now=datetime.now(UTC))
    transports = transport_settings(lab, root, order=("hotadd", "nbd"), proxy="app-02", libdir=str(lab.root))
    threads = Threads()
    try:
        with open_repository(root / "repo", now=lambda: datetime.now(UTC)) as repository:
            async with connected(lab, transports=transports) as vcenter:
                means = Means(vcenter, repository, threads, "e1", transports=("hotadd",))
                yield Backups(lab, vcenter, repository, means)
    finally:
        threads.close()


def places(calls: Sequence[str]) -> dict[tuple[str, str], int]:
    """The numbers of the calls, by the last change of anything and the call, without readings that were repeated."""
    found: dict[tuple[str, str], int] = {}
    change = "the beginning"
    for number, call in enumerate(calls, 1):
        found.setdefault((change, call), number)
        change = f"{call} (call {number})" if call.startswith(CHANGES) else change
    return found


def where(place: tuple[str, str]) -> tuple[str, str]:
    """A key of `places` without the numbers, which differ between two backups."""
    return place[0].partition(" (")[0], place[1]


def told_apart(calls: Sequence[str]) -> list[int]:
    """The numbers of the calls, without readings that were made already since the last change of anything."""
    return sorted(places(calls).values())


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such: a hundred commits wait long for a disk."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


async def cut_everywhere(
    backups: Backups, witness: Witness, numbers: Callable[[Sequence[str]], list[int]]
) -> list[str]:
    """Back up once with the calls recorded, then once more for each of these calls, at which the session ends.

    The calls that were recorded.
    """
    lab, before = backups.lab, witness.look()
    lab.record_calls(lab.user)
    await backups.next()
    calls = lab.recorded_calls()
    assert len(numbers(calls)) >= 5, calls
    cuts = [(number, False) for number in numbers(calls)]
    cuts += [(number, True) for number in numbers(calls) if calls[number - 1].startswith(CHANGES)]
    for number, lose in cuts:
        at = f"{calls[number - 1]} (call {number}{', its answer lost' if lose else ''})"
        known, logins = len(lab.frozen("web-01")), backups.vcenter.session.logins
        lab.record_calls(lab.user, end_at=number, lose=lose)
        done = await backups.next()
        assert backups.vcenter.session.logins == logins + 1, at
        assert done.warnings == (), at
        assert done.disks[0].changes == "incremental", at
        assert done.disks[0].transport == backups.means.transports[0], at
        assert witness.look() == before, at
        frozen = lab.frozen("web-01")
        assert len(frozen) == known + 1, f"{len(frozen) - known} snapshots were made: {at}"
        assert backups.content(done) == frozen[-1].disks[0].image.read_bytes(), at
    return calls


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login is spaced from the one before by a second, which over all the calls would add up."""
    monkeypatch.setattr("connectors.vsphere.session.LOGIN_SPACING_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
async def test_a_session_that_ends_at_any_call_of_a_backup_costs_nothing(
    fresh_lab: Callable[..., Lab], memory: Path
) -> None:
    lab = fresh_lab(vms=2, disks_per_vm=1, disk_bytes=MIB, content=False, tracking=True)
    with witnessing(lab) as witness:
        async with backups_of(lab, memory) as backups:
            await backups.next()
            calls = await cut_everywhere(backups, witness, told_apart)
            for kind in ("CreateSnapshotEx_Task", "QueryChangedDiskAreas", "ReconfigVM_Task", "RemoveSnapshot_Task"):
                assert any(call.startswith(kind) for call in calls), calls


@pytest.mark.usefixtures("at_once")
async def test_a_session_that_ends_while_a_vm_is_kept_in_its_place_and_read_by_nbd_costs_nothing(
    fresh_lab: Callable[..., Lab], memory: Path
) -> None:
    # Cut is where hot-add was not: at each change, and at the first reading after each.
    lab = fresh_lab(vms=2, disks_per_vm=1, disk_bytes=MIB, content=False, tracking=True)
    with witnessing(lab) as witness:
        async with backups_of(lab, memory) as backups:
            await backups.next()
            lab.record_calls(lab.user)
            await backups.next()
            covered = {where(place) for place in places(lab.recorded_calls())}
            backups.means = replace(backups.means, transports=("nbd",))
            backups.on_migrate = OnMigrate.BLOCK
            await backups.next()  # the first one asks for a privilege, once

            def numbers(calls: Sequence[str]) -> list[int]:
                fresh = {place: n for place, n in places(calls).items() if where(place) not in covered}
                first = {place[0]: n for place, n in reversed(fresh.items()) if not place[1].startswith(CHANGES)}
                changes = [n for place, n in fresh.items() if place[1].startswith(CHANGES)]
                return sorted([*first.values(), *changes])

            calls = await cut_everywhere(backups, witness, numbers)
            for kind in ("DisableMethods", "EnableMethods"):
                assert any(call.startswith(kind) for call in calls), calls
