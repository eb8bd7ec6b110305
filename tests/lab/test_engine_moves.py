"""Moves during a run and change tracking in doubt, against the lab's vCenter and its own copies of what was frozen."""

from __future__ import annotations

import asyncio
import filecmp
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from engine.commands import BackUpVm
from tests.lab.test_engine_end_to_end import config_for, one_point_each, restored
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of

POLICY = """
schema = 1
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
"""
VERIFY = f"""{POLICY}on_cbt_invalid = "verify"
[[policy.everything.trigger]]
on = "vm.powered_off"
action = "distrust"
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.endings.GIVES_WAY", timedelta(milliseconds=50))


async def reading(engine: Running) -> None:
    await engine.until(lambda: any(a.tally.done for a in engine.parts.crew.active.values()), seconds=60)


async def backed_up(engine: Running, name: str) -> dict[str, Any]:
    return await engine.finished(await engine.control.submit(BackUpVm(name, "test"), "test"))


async def assert_as_frozen(engine: Running, lab: Lab, name: str, target: Path) -> None:
    point = (await engine.control.points(name))[-1]
    shown = await engine.control.point(point.id)
    for kept, record in zip(lab.frozen(name)[-1].disks, shown["disks"], strict=True):
        copy = await restored(engine, point.id, record["label"], target)
        assert filecmp.cmp(copy, kept.image, shallow=False)
    assert not lab.vm(name).snapshots


async def test_a_run_gives_way_to_drs_and_its_next_try_is_right(fresh_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine", POLICY + 'on_migrate = "requeue"\n')) as engine:
        with lab.nbd_fault(delay_ms=500):
            await reading(engine)
            await asyncio.to_thread(lab.drs_move, vm.name)
            await engine.until(lambda: engine.parts.world.called_back, seconds=60)
            assert engine.points_of(vm.name) == 0
        await one_point_each(engine, [vm.name])
        assert len(lab.frozen(vm.name)) == 2
        told = [
            one["reason"] for one in (await engine.control.explain(vm.name))["decisions"] if one["kind"] == "requeue"
        ]
        assert len(told) == 1
        assert "was moved by DRS" in told[0]
        await assert_as_frozen(engine, lab, vm.name, tmp_path / "restored.raw")


async def test_storage_that_moves_during_an_incremental_run_leads_to_a_full_one_that_is_right(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine", POLICY)) as engine:
        await one_point_each(engine, [vm.name])
        await asyncio.to_thread(lab.write_random_grains, vm.name, 0, share=0.5, seed=7)
        with lab.nbd_fault(delay_ms=40):
            run = asyncio.create_task(backed_up(engine, vm.name))
            await reading(engine)
            await asyncio.to_thread(lab.relocate, vm.name, "bulk-1")
        done = await run
        assert done["state"] == "done", done
        assert done["disks"][0]["changes"].startswith("whole: ")
        assert engine.points_of(vm.name) == 2
        await assert_as_frozen(engine, lab, vm.name, tmp_path / "restored.raw")


async def test_change_tracking_in_doubt_is_compared_where_it_answers(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine", VERIFY)) as engine:
        await one_point_each(engine, [vm.name])
        (known,) = engine.parts.world.named(vm.name)

        async def doubted() -> None:
            state = engine.parts.state
            async with asyncio.timeout(30):
                while not await asyncio.wrap_future(engine.parts.threads.state.submit(state.distrust_of, known)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        await asyncio.to_thread(lab.write_random_grains, vm.name, 0, share=0.1, seed=7)
        await asyncio.to_thread(lab.power_off, vm.name)
        await doubted()
        first = await backed_up(engine, vm.name)
        assert first["disks"][0]["check"]["result"] == "agreed", first
        await asyncio.to_thread(lab.relocate, vm.name, "bulk-1")
        await doubted()
        second = await backed_up(engine, vm.name)
        assert second["disks"][0]["check"]["result"] == "impossible", second
        await assert_as_frozen(engine, lab, vm.name, tmp_path / "restored.raw")


async def test_an_engine_lets_go_what_a_dead_one_left_and_keeps_a_vm_in_its_place_while_it_is_read(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, tracking=True, disk_bytes=32 * MIB)
    kept, dead, other = lab.vms()
    lab.disable_methods(dead.name, "backstay.lab_engine")
    lab.disable_methods(other.name, "com.example.other")
    policy = POLICY.replace('"*"', f'"name:{kept.name}"') + 'on_migrate = "block"\n'
    async with engine_of(config_for(lab, tmp_path / "engine", policy)) as engine:
        with lab.nbd_fault(delay_ms=100):
            await reading(engine)
            for move in (lab.migrate, lab.drs_move):
                with pytest.raises((vim.fault.MethodDisabled, RuntimeError)):
                    await asyncio.to_thread(move, kept.name)
            assert lab.disabled_methods(kept.name)
        await one_point_each(engine, [kept.name])
        await engine.until(lambda: not lab.disabled_methods(kept.name) and not lab.disabled_methods(dead.name))
        for vm in (kept, dead):
            await asyncio.to_thread(lab.migrate, vm.name)
        assert lab.disabled_methods(other.name)
        [point] = await engine.control.points(kept.name)
        assert (await engine.control.point(point.id))["attributes"]["placement"] == "kept in its place"
        await assert_as_frozen(engine, lab, kept.name, tmp_path / "restored.raw")
