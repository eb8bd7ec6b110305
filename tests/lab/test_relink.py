"""A VM that was restored into a new one, and whose original went away, goes on with the original's history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.commands import BackUpVm, RestoreToVm
from engine.failures import Declined
from tests.lab.test_engine_end_to_end import config_for, one_point_each
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import engine_of


async def test_a_restored_vm_goes_on_with_the_history_of_its_original(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=16 * MIB)
    [original] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine")) as engine:
        await one_point_each(engine, [original.name])
        world = engine.parts.world
        [old] = world.named(original.name)
        asked = RestoreToVm(f"{original.name}@latest", "back-again")
        report = await engine.finished(await engine.control.submit(asked, "test"))
        assert report["state"] == "done", report
        await one_point_each(engine, ["back-again"])
        with pytest.raises(Declined, match="both stand in the inventory"):
            await engine.control.plan_relink(original.name, "back-again")
        await asyncio.to_thread(lab.remove_vm, original.name)
        await engine.until(lambda: old not in world.vms and not world.jobs, seconds=60)
        done = await engine.control.relink(original.name, "back-again", "a person")
        assert len(done["moved"]) == 1
        assert world.named("back-again") == [old] and len(world.points[old]) == 2
        report = await engine.finished(await engine.control.submit(BackUpVm("back-again"), "test"))
        assert report["state"] == "done", report
        points = await engine.control.points("back-again")
        assert [point.vm for point in points] == [old] * 3
        shown = await engine.control.point(points[-1].id)
        assert shown["disks"][0]["changes"].startswith("whole")
