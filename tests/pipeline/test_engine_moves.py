"""A VM moves while it is read: its run goes on or gives way, and what is committed is right in any case."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from connectors.errors import ConnectorError, ReadFailed
from engine.attempts import CalledBack
from engine.commands import BackUpVm
from engine.jobs import Job, JobState
from engine.state import State
from policies.evaluation import CALLED_BACK_AT_MOST
from policies.facts import EventType, Vm
from storage.errors import NoSpace
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, running
from tests.pipeline.test_engine_backup import Bench, bench, threads

__all__ = ["bench", "threads"]

QUIET = EVERYTHING.partition("[[policy")[0]
SOON = timedelta(milliseconds=50)
REQUEUE = f'{QUIET}on_migrate = "requeue"\n'
TRIGGERED = f"""{REQUEUE}
[[policy.everything.trigger]]
on = "vm.migrated"
"""
BLOCK = f'{QUIET}on_migrate = "block"\n'


@pytest.fixture
def hypervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    monkeypatch.setattr("engine.endings.GIVES_WAY", SOON)
    return HypervisorInMemory(tmp_path / "disks")


def relocates(bench: Bench, vm: Vm) -> Callable[[Vm], None]:
    """The VM's storage moves as its disk is opened."""

    def move(_: Vm) -> None:
        disks = tuple(replace(disk, datastore="ds-2") for disk in bench.hypervisor.guests[vm.address].vm.disks)
        bench.hypervisor.set(vm, disks=disks, datastores=("ds-2",))

    return move


async def test_changes_that_were_asked_around_a_move_of_storage_are_not_committed(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    await bench.back_up(vm)
    bench.hypervisor.before_copy = relocates(bench, vm)
    with pytest.raises(CalledBack, match="moved to other storage while it was backed up"):
        await bench.back_up(vm)
    assert len(bench.repository.points()) == 1
    assert bench.hypervisor.snapshots[vm.address] == {}
    bench.hypervisor.before_copy = lambda _: None
    again = await bench.back_up(vm, distrust="it was moved")
    assert bench.content(again.point) == bench.hypervisor.disk_file(vm).read_bytes()


async def test_a_full_read_outlasts_a_move_of_storage_and_tells_the_next_run_to_be_in_doubt(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.before_copy = relocates(bench, vm)
    done = await bench.back_up(vm)
    assert done.relocated == "ds-1 -> ds-2"
    assert [kind for kind, _ in done.doubts] == ["relocated"]
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()


def gone(transport: str, offset: int) -> None:
    """A read of what lies elsewhere now."""
    raise ReadFailed("no such file", where=transport)


async def test_a_disk_that_cannot_be_read_where_it_was_gives_way_until_it_did_so_too_often(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.before_copy = relocates(bench, vm)
    bench.hypervisor.on_read = gone
    with pytest.raises(CalledBack):
        await bench.back_up(vm)
    with pytest.raises(ReadFailed):
        await bench.back_up(vm, gives_way=False)
    assert bench.repository.points() == []
    assert bench.hypervisor.snapshots[vm.address] == {}


async def test_what_is_written_beside_a_snapshot_on_another_datastore_is_no_move(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.set(vm, datastores=("ds-1", "swap"))
    await bench.back_up(vm)

    def delta(_: Vm) -> None:
        disks = tuple(replace(disk, datastore="swap") for disk in vm.disks)
        bench.hypervisor.set(vm, disks=disks)

    bench.hypervisor.before_copy = delta
    done = await bench.back_up(vm)
    assert (done.disks[0].changes, done.relocated) == ("incremental", "")


class Reads:
    """Holds the reading of disks up until it is let go, and moves the VM meanwhile."""

    def __init__(self, hypervisor: HypervisorInMemory, vm: Vm) -> None:
        self.hypervisor, self.vm, self.hosts = hypervisor, vm, 1
        self.let_go = asyncio.Event()
        self._changes = hypervisor.changes
        hypervisor.changes = self._wait  # type: ignore[method-assign, assignment]

    async def _wait(self, *args: object, **more: object) -> object:
        await self.let_go.wait()
        return await self._changes(*args, **more)  # type: ignore[arg-type]

    async def move(self, engine: Running) -> None:
        """One more move, that the engine has taken in."""
        was, self.hosts = f"esx-{self.hosts}", self.hosts + 1
        self.hypervisor.set(self.vm, host=f"esx-{self.hosts}")
        event = self.hypervisor.post(
            self.vm, EventType.MIGRATED, cause="drs", from_host=was, to_host=f"esx-{self.hosts}"
        )
        await engine.until_journaled({event.key})


def gave_way(engine: Running, times: int) -> bool:
    return list(engine.parts.world.called_back.values()) == [times]


async def test_a_run_gives_way_to_moves_leaves_nothing_and_the_third_time_is_the_last(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    reads = Reads(hypervisor, vm)
    async with running(tmp_path, hypervisor, configure(tmp_path, REQUEUE)) as engine:
        for times in range(1, CALLED_BACK_AT_MOST + 1):
            await engine.until(lambda: engine.parts.world.reading_on)
            await reads.move(engine)
            await engine.until(partial(gave_way, engine, times))
            assert hypervisor.snapshots[vm.address] == {}
            assert engine.points_of("web") == 0
        (known,) = engine.parts.world.named("web")
        (job,) = engine.parts.world.jobs.values()
        assert "moved by DRS" in job.last_error or job.state is JobState.RUNNING
        await engine.until(lambda: engine.parts.world.reading_on)
        await reads.move(engine)
        decisions = (await engine.control.explain("web"))["decisions"]
        told = [one["reason"] for one in decisions if one["rule"] == "on_migrate"]
        assert sum("has its run give way and wait again" in reason for reason in told) == CALLED_BACK_AT_MOST
        assert sum("gave way 3 times in a row, so that this one goes on" in reason for reason in told) == 1
        assert [one["kind"] for one in decisions].count("requeue") == CALLED_BACK_AT_MOST
        reads.let_go.set()
        await engine.until(lambda: engine.points_of("web") == 1)
        assert engine.parts.world.runs[known].consecutive_failures == 0
        sample = engine.parts.metrics.registry.get_sample_value
        labels = {"policy": "everything", "result": "requeued"}
        assert sample("backstay_runs_total", labels) == CALLED_BACK_AT_MOST
        assert sample("backstay_runs_total", {**labels, "result": "failed"}) == 0
        assert engine.parts.world.called_back == {}


async def test_who_asked_for_a_backup_waits_with_it_while_it_gives_way(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, REQUEUE)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        reads = Reads(hypervisor, vm)
        task = await engine.control.submit(BackUpVm("web", "test"), "alice")
        await engine.until(lambda: engine.parts.world.reading_on)
        await reads.move(engine)
        reads.let_go.set()
        assert (await engine.finished(task))["state"] == "done"
        assert engine.points_of("web") == 2


async def test_a_run_that_gives_way_and_the_one_that_its_move_asks_for_become_one(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    reads = Reads(hypervisor, vm)
    async with running(tmp_path, hypervisor, configure(tmp_path, TRIGGERED)) as engine:
        await engine.until(lambda: engine.parts.world.reading_on)
        (first,) = engine.parts.world.jobs.values()
        asked = await engine.control.submit(BackUpVm("web", "while the first one runs"), "bob")
        await engine.until(lambda: len(engine.parts.world.jobs) == 2)
        await reads.move(engine)
        await engine.until(partial(gave_way, engine, 1))
        await engine.until(lambda: len(engine.parts.world.jobs) == 1)
        (job,) = engine.parts.world.jobs.values()
        assert (job.id, job.rule, job.manual) == (first.id, "rpo", True)
        reads.let_go.set()
        assert (await engine.finished(asked))["state"] == "done"
        assert engine.points_of("web") == 1
        assert not engine.parts.world.jobs


async def test_without_the_key_a_run_goes_on_while_its_vm_moves(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    reads = Reads(hypervisor, vm)
    async with running(tmp_path, hypervisor, configure(tmp_path, QUIET)) as engine:
        await engine.until(lambda: engine.parts.world.reading_on)
        await reads.move(engine)
        reads.let_go.set()
        await engine.until(lambda: engine.points_of("web") == 1)
        assert hypervisor.log.count("snapshot web") == 1


async def test_after_a_move_of_storage_the_same_job_reads_everything(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", mib=4)
    async with running(tmp_path, hypervisor, configure(tmp_path, QUIET)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.write(vm, MIB, os.urandom(100))

        def move(_: Vm) -> None:
            disks = tuple(replace(disk, datastore="ds-2") for disk in vm.disks)
            hypervisor.set(vm, disks=disks, datastores=("ds-2",))

        hypervisor.before_copy = move
        done = await engine.finished(await engine.control.submit(BackUpVm("web", "test"), "alice"))
        assert done["state"] == "done", done
        assert "other storage while it was backed up (ds-1 -> ds-2)" in done["disks"][0]["changes"]  # type: ignore[index]
        assert hypervisor.log.count("snapshot web") == 3


async def test_a_vm_is_kept_in_its_place_from_before_its_snapshot_until_that_is_removed(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, BLOCK)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.until(lambda: not hypervisor.kept)
        assert hypervisor.log == [
            "keep web", "snapshot web", "open hotadd", "close hotadd", "remove snapshot web", "let go web",
        ]  # fmt: skip
        (point,) = await engine.control.points("web")
        assert (await engine.control.point(point.id))["attributes"]["placement"] == "kept in its place"
        hypervisor.log.clear()
        hypervisor.on_read = gone
        hypervisor.write(vm, MIB, os.urandom(100))
        done = await engine.finished(await engine.control.submit(BackUpVm("web", "test"), "alice"))
        assert done["state"] == "failed"
        assert (hypervisor.log[0], hypervisor.log[-1]) == ("keep web", "let go web")
        assert hypervisor.kept == {}


async def test_a_vm_that_cannot_be_kept_is_backed_up_and_the_result_tells_why(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.movable = "another product keeps it"
    async with running(tmp_path, hypervisor, configure(tmp_path, BLOCK)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        done = await engine.finished(await engine.control.submit(BackUpVm("web", "test"), "alice"))
        assert done["placement"] == "not kept in its place: another product keeps it"
        told = [(await engine.control.point(one.id))["attributes"] for one in await engine.control.points("web")]
        assert [one["placement"] for one in told] == [done["placement"]] * 2
        assert "keep web" not in hypervisor.log


async def test_a_vm_that_another_product_keeps_is_waited_for_without_a_worker(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.endings.POSTPONE", SOON)
    hypervisor.add("web")
    hypervisor.kept_by_other = "com.example.other"
    async with running(tmp_path, hypervisor, configure(tmp_path, BLOCK)) as engine:
        await engine.until(
            lambda: any("keeps the VM in its place" in job.last_error for job in engine.parts.world.jobs.values())
        )
        hypervisor.kept_by_other = ""
        await engine.until(lambda: engine.points_of("web") == 1)
        assert hypervisor.log[0] == "keep web"
        sample = engine.parts.metrics.registry.get_sample_value
        assert sample("backstay_runs_to_be_kept_in_place_total", {"placement": "kept"}) == 1
        assert sample("backstay_runs_total", {"policy": "everything", "result": "failed"}) == 0


async def test_a_vm_that_another_product_keeps_for_too_long_is_backed_up_all_the_same(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.endings.POSTPONE", SOON)
    monkeypatch.setattr("engine.worker.PLACE_AWAITED", 3 * SOON)
    hypervisor.add("web")
    hypervisor.kept_by_other = "com.example.other"
    async with running(tmp_path, hypervisor, configure(tmp_path, BLOCK)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        (point,) = await engine.control.points("web")
        told = (await engine.control.point(point.id))["attributes"]["placement"]
        assert told.startswith("not kept in its place: another product, com.example.other, keeps the VM")
        sample = engine.parts.metrics.registry.get_sample_value
        assert sample("backstay_runs_to_be_kept_in_place_total", {"placement": "not_kept"}) == 1
        state = engine.parts.state
        assert await asyncio.wrap_future(engine.parts.threads.state.submit(state.intents)) == []


async def test_a_vm_that_was_not_let_go_is_told_and_let_go_by_the_janitor(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, BLOCK)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.fail_letting_go = ConnectorError("vCenter is busy")
        done = await engine.finished(await engine.control.submit(BackUpVm("web", "test"), "alice"))
        assert done["warnings"] == ["the VM cannot be moved until the janitor lets it go: vCenter is busy"]
        assert engine.points_of("web") == 2
        state = engine.parts.state
        left = await asyncio.wrap_future(engine.parts.threads.state.submit(state.intents))
        assert {intent.kind for intent in left} == {"snapshot", "migration lock"}
        assert [*hypervisor.kept] == [vm.address]
        await engine.parts.crew.sweep(hypervisor.vcenter)
        assert hypervisor.kept == {}
        assert await asyncio.wrap_future(engine.parts.threads.state.submit(state.intents)) == []


async def test_a_run_that_gives_way_and_leaves_deltas_has_them_consolidated(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    reads = Reads(hypervisor, vm)
    async with running(tmp_path, hypervisor, configure(tmp_path, REQUEUE)) as engine:
        await engine.until(lambda: engine.parts.world.reading_on)
        hypervisor.set(vm, consolidation_needed=True)
        await reads.move(engine)
        await engine.until(partial(gave_way, engine, 1))
        await engine.until(lambda: engine.parts.world.reading_on)
        await engine.parts.crew.sweep(hypervisor.vcenter)
        assert not (await hypervisor.vm(vm.address)).consolidation_needed
        reads.let_go.set()


async def test_a_state_that_cannot_be_written_while_a_run_gives_way_ends_no_worker(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = hypervisor.add("web")
    reads = Reads(hypervisor, vm)
    save, refused = State.save_job, list[str]()

    def full(state: State, job: Job) -> None:
        if "moved by DRS" in job.last_error and not refused:
            refused.append(job.id)
            raise NoSpace("no space left", where="state")
        save(state, job)

    monkeypatch.setattr(State, "save_job", full)
    async with running(tmp_path, hypervisor, configure(tmp_path, REQUEUE)) as engine:
        await engine.until(lambda: engine.parts.world.reading_on)
        await reads.move(engine)
        await engine.until(partial(gave_way, engine, 1))
        reads.let_go.set()
        await engine.until(lambda: engine.points_of("web") == 1)
    assert len(refused) == 1
