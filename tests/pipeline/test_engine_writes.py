"""When the state cannot be written, nothing is acknowledged, nothing is lost, and the next try does it once."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.hypervisor import Cursor, EventBatch
from engine.commands import BackUpVm
from engine.inbox import Happened
from engine.records import Change
from engine.threads import settled
from policies.facts import Event, EventType, RestorePoint, VmId
from storage.errors import NoSpace
from storage.pending import PendingPoint
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import configure, running


async def test_a_batch_that_cannot_be_written_is_tried_again_and_takes_effect_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and not engine.parts.world.jobs)
        engine.parts.queue.paused = True
        event = Event("vc:vc-1:77", EventType.POWERED_OFF, datetime.now(UTC), "vcenter:vc-1", address=vm.address)
        batch = Happened("vc-1", EventBatch((event,), Cursor("vc-1", datetime.now(UTC), 77)))

        def full(*_: object, **__: object) -> None:
            raise NoSpace("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(engine.parts.state, "apply", full)
            with pytest.raises(NoSpace):
                await engine.parts.inbox.put(batch)
        assert engine.parts.world.jobs == {}
        assert "vc:vc-1:77" not in await engine.event_keys()
        await asyncio.wait_for(engine.parts.inbox.put(batch), 10)
        assert (await engine.event_keys()).count("vc:vc-1:77") == 1
        assert len(engine.parts.world.jobs) == 1
        engine.parts.queue.paused = False
        engine.parts.queue.changed()
        await engine.until(lambda: engine.points_of("web") == 2)


async def test_a_committed_run_whose_end_cannot_be_noted_is_done_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and not engine.parts.world.jobs)

        def full(*_: object, **__: object) -> None:
            raise NoSpace("the disk is full")

        monkeypatch.setattr(engine.parts.state, "settle", full)
        made = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert made["state"] == "done", made
        assert engine.points_of("web") == 2
        assert not engine.parts.world.jobs
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        assert not engine.parts.world.jobs
        assert engine.points_of("web") == 2


async def test_a_stop_while_the_restore_point_is_committed_does_not_double_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    config = configure(tmp_path)
    commit, stopped = PendingPoint.commit, threading.Event()
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and not engine.parts.world.jobs)
        loop, committing = asyncio.get_running_loop(), asyncio.Event()

        def slow(pending: PendingPoint) -> RestorePoint:
            loop.call_soon_threadsafe(committing.set)
            stopped.wait(10)
            return commit(pending)

        monkeypatch.setattr(PendingPoint, "commit", slow)
        await engine.control.submit(BackUpVm("web"), "test")
        await asyncio.wait_for(committing.wait(), 10)
        engine.service.stopping.set()
        loop.call_later(0.3, stopped.set)
    monkeypatch.undo()
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        assert not engine.parts.world.jobs
        assert engine.points_of("web") == 2


async def test_what_only_comparing_found_is_not_forgotten_when_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path), grace=0.1) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and not engine.parts.world.jobs)
        loop = asyncio.get_running_loop()
        write, failed = engine.parts.state.apply, asyncio.Event()

        def full_once(change: Change, *, now: datetime) -> frozenset[str]:
            if change.effects and not failed.is_set():
                loop.call_soon_threadsafe(failed.set)
                raise NoSpace("the disk is full")
            return write(change, now=now)

        monkeypatch.setattr(engine.parts.state, "apply", full_once)
        hypervisor.set(vm, disks=tuple(replace(disk, key=disk.key + 1) for disk in vm.disks))
        await asyncio.wait_for(failed.wait(), 10)
        [web] = engine.parts.world.named("web")
        async with asyncio.timeout(10):
            while not (known := await settled(engine.parts.threads.state, engine.parts.state.distrust_of, web)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert [one.event_key.rpartition(":")[2] for one in known] == ["vm.reconfigured"]


async def test_an_old_list_of_restore_points_does_not_hide_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and not engine.parts.world.jobs)
        points, listed, go_on = engine.parts.repository.points, threading.Event(), threading.Event()

        def slowly(vm: VmId | None = None) -> list[RestorePoint]:
            found = points(vm)
            if vm is None and not listed.is_set():
                listed.set()
                go_on.wait(10)
            return found

        monkeypatch.setattr(engine.parts.repository, "points", slowly)
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.parts.crew.list_all_points())
            await asyncio.to_thread(listed.wait, 10)
            task = await engine.control.submit(BackUpVm("web"), "test")
            await engine.until(lambda: len(points()) == 2 and not engine.parts.world.jobs)
            await asyncio.sleep(0.3)
            go_on.set()
        await engine.finished(task)
        assert engine.points_of("web") == 2
