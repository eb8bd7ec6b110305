"""One VM becomes one restore point, byte for byte, and whatever fails leaves neither point nor snapshot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.errors import Busy, ReadFailed, TransportFailed
from engine.attempts import Attempt, Means
from engine.backup import back_up
from engine.jobs import Done, Job, JobId, JobKind, RunId
from engine.threads import Threads
from policies.facts import Consistency, Disk, PointId, Vm, VmId
from policies.policy import OnCbtInvalid
from storage.repository import Repository, create, open_repository
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory, broken_after


@dataclass
class Bench:
    hypervisor: HypervisorInMemory
    repository: Repository
    means: Means
    runs: int = 0

    async def back_up(
        self, vm: Vm, *, distrust: str = "", left_out: Callable[[Disk], str] = lambda disk: "",
        on_cbt_invalid: OnCbtInvalid = OnCbtInvalid.FULL, gives_way: bool = True, sample: int = 0,
        **job: object,
    ) -> Done:  # fmt: skip
        self.runs += 1
        known = replace(await self.hypervisor.vm(vm.address), id=VmId(f"id-{vm.name}"))
        base = Job(
            id=JobId("j"), key="k", kind=JobKind.BACKUP, vm=known.id, policy="gold", rule="rpo", reason="it was time",
            created_at=datetime.now(UTC), not_before=datetime.now(UTC), event_key="vc:1",
        )  # fmt: skip
        job_ = replace(base, **job)  # type: ignore[arg-type]
        attempt = Attempt(job_, known, RunId(f"run-{self.runs}"), distrust, left_out=left_out)
        before = self.repository.latest(known.id)
        attempt = replace(attempt, on_cbt_invalid=on_cbt_invalid, gives_way=gives_way, sample=sample, before=before)
        return await back_up(attempt, self.means)

    def content(self, point: PointId, disk: str = "Hard disk 1") -> bytes:
        source = self.repository.read_disk(point, disk)
        data = bytearray(source.capacity_bytes)
        source.read_into(0, memoryview(data))
        return bytes(data)


@pytest.fixture
def threads() -> Iterator[Threads]:
    pools = Threads()
    yield pools
    pools.close()


@pytest.fixture
async def bench(tmp_path: Path, threads: Threads) -> AsyncIterator[Bench]:
    create(tmp_path / "repo", now=datetime.now(UTC))
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    with open_repository(tmp_path / "repo", now=lambda: datetime.now(UTC)) as repository:
        means = Means(hypervisor, repository, threads, "test-engine", transports=("nbd", "hotadd"))
        yield Bench(hypervisor, repository, means)


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_a_restore_point_holds_the_disks_byte_for_byte(bench: Bench, transport: str) -> None:
    vm = bench.hypervisor.add("web", disks=2, mib=5)
    bench.hypervisor.write(vm, 3 * MIB + 17, b"here too", disk=1)
    done = await bench.back_up(vm, transports=(transport,))
    for index, label in enumerate(("Hard disk 1", "Hard disk 2")):
        assert bench.content(done.point, label) == bench.hypervisor.disk_file(vm, index).read_bytes()
    assert [disk.transport for disk in done.disks] == [transport, transport]
    assert bench.hypervisor.snapshots[vm.address] == {}


async def test_an_incremental_reads_only_what_changed_and_is_complete(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=8)
    first = await bench.back_up(vm)
    before = bench.hypervisor.disk_file(vm).read_bytes()
    bench.hypervisor.write(vm, 5 * MIB, os.urandom(100))
    bench.hypervisor.write(vm, 0, bytes(64 << 10))
    second = await bench.back_up(vm)
    assert second.disks[0].changes == "incremental"
    assert second.disks[0].read_bytes == 2 * (64 << 10)
    assert bench.content(second.point) == bench.hypervisor.disk_file(vm).read_bytes()
    assert bench.content(first.point) == before


async def test_distrust_or_a_new_disk_uuid_reads_in_full_and_says_why(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    await bench.back_up(vm)
    distrusted = await bench.back_up(vm, distrust="it was relocated")
    assert distrusted.disks[0].changes == "whole: it was relocated"
    disks = tuple(replace(disk, uuid="another") for disk in vm.disks)
    bench.hypervisor.set(vm, disks=disks)
    replaced = await bench.back_up(vm)
    assert replaced.disks[0].changes == "whole: there is no base"


async def test_provenance_is_recorded_with_the_restore_point(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.fail_transports = {"hotadd"}
    done = await bench.back_up(
        vm, transports=("hotadd", "nbd"), consistency=Consistency.FILESYSTEM, event_type="vm.migrated",
        event_at=datetime(2026, 11, 22, 14, tzinfo=UTC), policy_commit="c0ffee",
    )  # fmt: skip
    detail = bench.repository.detail(done.point)
    assert detail.head.attributes["policy"] == "gold"
    assert detail.head.attributes["reason"] == "it was time"
    assert detail.head.attributes["event_key"] == "vc:1"
    assert detail.head.attributes["event_type"] == "vm.migrated"
    assert detail.head.attributes["event_at"] == "2026-11-22T14:00:00Z"
    assert detail.head.attributes["policy_commit"] == "c0ffee"
    assert detail.head.aliases["moref"] == vm.address.moref
    assert detail.disks[0].head.attributes["transport"] == "nbd"
    assert "hotadd" in detail.disks[0].head.attributes["fallbacks"]
    assert detail.disks[0].head.change_id
    assert bench.repository.configuration(done.point) == b"configuration of web"


async def test_disks_that_no_snapshot_holds_are_named_in_the_result(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", disks=2)
    disks = (vm.disks[0], replace(vm.disks[1], unprotected="it is independent"))
    bench.hypervisor.set(vm, disks=disks)
    done = await bench.back_up(vm)
    assert done.unprotected == (("Hard disk 2", "it is independent"),)
    assert bench.repository.detail(done.point).unprotected == (("Hard disk 2", "it is independent"),)


async def test_a_disk_that_is_left_out_is_named_and_is_read_in_full_when_it_is_wanted_again(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", disks=3)
    disks = (*vm.disks[:2], replace(vm.disks[2], unprotected="it is independent"))
    bench.hypervisor.set(vm, disks=disks)
    await bench.back_up(vm)
    done = await bench.back_up(vm, left_out=lambda disk: "left out by policy gold" if disk.key == 2000 else "")
    told = (("Hard disk 3", "it is independent"), ("Hard disk 1", "left out by policy gold"))
    assert [disk.label for disk in done.disks] == ["Hard disk 2"]
    assert bench.repository.detail(done.point).unprotected == done.unprotected == told
    assert (done.left_out, done.lacking, done.partial) == (("Hard disk 1",), True, True)
    again = await bench.back_up(vm)
    assert [disk.whole for disk in again.disks] == ["no_base", ""]
    assert bench.content(again.point) == bench.hypervisor.disk_file(vm).read_bytes()


async def test_a_run_that_only_lacks_what_policies_leave_out_is_done(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", disks=2)
    done = await bench.back_up(vm, left_out=lambda disk: "left out by policy gold" if disk.key == 2001 else "")
    assert (done.left_out, done.lacking, done.partial) == (("Hard disk 2",), False, False)


async def test_a_way_that_breaks_twice_gives_way_to_the_next_for_the_whole_disk(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=8, data=os.urandom(8 * MIB))
    bench.hypervisor.on_read = broken_after(3, "nbd")
    done = await bench.back_up(vm, transports=("nbd", "hotadd"))
    assert done.disks[0].transport == "hotadd"
    assert "the connection broke" in done.disks[0].fallbacks[0]
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()
    assert bench.hypervisor.log == [
        "snapshot web", "open nbd", "close nbd", "open nbd", "close nbd", "open hotadd", "close hotadd",
        "remove snapshot web",
    ]  # fmt: skip


async def test_why_a_way_was_not_opened_is_kept_when_the_next_one_breaks(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=8, data=os.urandom(8 * MIB))
    bench.hypervisor.fail_transports = {"hotadd"}
    bench.hypervisor.on_read = broken_after(3, "nbd")
    done = await bench.back_up(vm, transports=("hotadd", "nbd", "https"))
    assert done.disks[0].transport == "https"
    assert [told.partition(":")[0] for told in done.disks[0].fallbacks] == ["hotadd", "nbd", "nbd"]


async def test_a_disk_that_no_way_can_read_leaves_no_restore_point_and_no_snapshot(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", disks=2, mib=8, data=os.urandom(8 * MIB))
    bench.hypervisor.on_read = broken_after(2, "nbd")
    with pytest.raises(ReadFailed):
        await bench.back_up(vm, transports=("nbd",))
    assert bench.repository.points() == []
    assert bench.hypervisor.snapshots[vm.address] == {}
    with pytest.raises(TransportFailed):
        bench.hypervisor.fail_transports = {"nbd"}
        await bench.back_up(vm, transports=("nbd",))
    assert bench.repository.points() == []


async def test_a_snapshot_that_vanishes_during_the_read_voids_the_run(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.before_copy = lambda _: bench.hypervisor.snapshots[vm.address].clear()
    with pytest.raises(ReadFailed, match="removed or reverted"):
        await bench.back_up(vm)
    assert bench.repository.points() == []


async def test_a_vm_that_moves_while_it_is_read_is_backed_up_and_the_move_is_told(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", host="esx-1")

    def move(_: Vm) -> None:
        guest = bench.hypervisor.guests[vm.address]
        guest.vm = replace(guest.vm, host="esx-2")

    bench.hypervisor.before_copy = move
    done = await bench.back_up(vm)
    assert done.moved == "esx-1 -> esx-2"
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()


async def test_a_snapshot_that_cannot_be_removed_costs_a_warning_not_the_restore_point(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.fail_removal = Busy("another task holds the VM", where="web")
    done = await bench.back_up(vm)
    assert "could not be removed" in done.warnings[0]
    assert [point.id for point in bench.repository.points()] == [done.point]


async def test_a_cancelled_run_leaves_nothing(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=8, data=os.urandom(8 * MIB))
    reading = asyncio.Event()
    bench.hypervisor.on_read = lambda transport, offset: reading.set()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.TaskGroup() as group:
            run = group.create_task(bench.back_up(vm))
            await reading.wait()
            run.cancel()
            await run
    assert bench.repository.points() == []
    assert bench.hypervisor.snapshots[vm.address] == {}
    assert bench.hypervisor.log[-2:] == ["close nbd", "remove snapshot web"]
