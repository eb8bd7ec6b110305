"""The session ends between any two calls of a backup: no snapshot is made twice, nothing stays, and the data is right.

The lab numbers the calls of one backup and ends the session before each in turn, which is after the one before; of
the calls that change vCenter each is also carried out, and the session ends with its answer lost. What stands in
vCenter is read by plain pyVmomi of another account, what was frozen is the lab's own copy.
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
from connectors.vsphere.transport_settings import TransportSettings
from engine.attempts import Attempt, Means
from engine.backup import back_up
from engine.jobs import Done, Job, JobId, JobKind, RunId
from engine.threads import Threads
from policies.facts import Address, Consistency, VmId
from storage.repository import Repository, create, open_repository
from tests.lab.connect import connected
from tests.lab.vcenter import MIB, Lab

GRAIN = 64 << 10
CHANGES = ("CreateSnapshotEx_Task", "ReconfigVM_Task", "RemoveSnapshot_Task")


@dataclass
class Backups:
    """One VM that is backed up again and again, and the proxy to which its disk is attached."""

    lab: Lab
    vcenter: VCenter
    repository: Repository
    means: Means
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
        return await back_up(Attempt(job, replace(vm, id=VmId("id-web")), RunId(f"run{self.runs}")), self.means)

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
        return Left(len(tree.rootSnapshotList) if tree is not None else 0, len(disks), marks)

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
    transports = TransportSettings(order=("hotadd",), proxy="app-02", device_folder=lab.device_folder)
    threads = Threads()
    try:
        with open_repository(root / "repo", now=lambda: datetime.now(UTC)) as repository:
            async with connected(lab, transports=transports) as vcenter:
                means = Means(vcenter, repository, threads, "e1", transports=("hotadd",))
                yield Backups(lab, vcenter, repository, means)
    finally:
        threads.close()


def told_apart(calls: Sequence[str]) -> list[int]:
    """The numbers of the calls, without readings that were made already since the last change of anything."""
    numbers: list[int] = []
    since: set[str] = set()
    for number, call in enumerate(calls, 1):
        if call not in since:
            numbers.append(number)
        since = set() if call.startswith(CHANGES) else since | {call}
    return numbers


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such: a hundred commits wait long for a disk."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


async def test_a_session_that_ends_at_any_call_of_a_backup_costs_nothing(
    fresh_lab: Callable[..., Lab], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A login is spaced from the one before by a second, which over all the calls would add up.
    monkeypatch.setattr("connectors.vsphere.session.LOGIN_SPACING_SECONDS", 0.0)
    lab = fresh_lab(vms=2, disks_per_vm=1, disk_bytes=MIB, content=False, tracking=True)
    with witnessing(lab) as witness:
        async with backups_of(lab, memory) as backups:
            before = witness.look()
            await backups.next()
            lab.record_calls(lab.user)
            await backups.next()
            calls = lab.recorded_calls()
            for kind in ("CreateSnapshotEx_Task", "QueryChangedDiskAreas", "ReconfigVM_Task", "RemoveSnapshot_Task"):
                assert any(call.startswith(kind) for call in calls), calls
            cuts = [(number, False) for number in told_apart(calls)]
            cuts += [(n, True) for n, call in enumerate(calls, 1) if call.startswith(CHANGES)]
            for number, lose in cuts:
                where = f"{calls[number - 1]} (call {number}{', its answer lost' if lose else ''})"
                known, logins = len(lab.frozen("web-01")), backups.vcenter.session.logins
                lab.record_calls(lab.user, end_at=number, lose=lose)
                done = await backups.next()
                assert backups.vcenter.session.logins == logins + 1, where
                assert done.warnings == (), where
                assert done.disks[0].changes == "incremental", where
                assert witness.look() == before, where
                frozen = lab.frozen("web-01")
                assert len(frozen) == known + 1, f"{len(frozen) - known} snapshots were made: {where}"
                assert backups.content(done) == frozen[-1].disks[0].image.read_bytes(), where
