"""What a careful person would want kept stays, whatever the engine forgot or never knew."""

from __future__ import annotations

import shutil
from pathlib import Path

from connectors.errors import Unreachable
from engine import config as configuration
from engine import upkeep
from engine.commands import BackUpVm
from engine.config import Config
from engine.ports import Hypervisor
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, engine_of, running

LAST_ONE = EVERYTHING.replace("[policy.everything]", '[policy.everything]\nretention = { keep_last = 1, grace = "0s" }')


async def _away(name: str, vcenter: configuration.VCenter, config: Config) -> Hypervisor:
    raise Unreachable("nobody answers", where=name)


async def test_an_engine_that_lost_its_state_expires_nothing_new_after_a_second_start_either(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
    shutil.rmtree(config.state_dir)
    (tmp_path / "policies" / "all.toml").write_text(LAST_ONE)
    async with engine_of(config, _away):
        pass
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        await engine.parts.rulebook.replan()
        assert engine.parts.rulebook.plan is not None
        assert len(engine.parts.rulebook.plan.expiring) == 1
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
        assert engine.points_of("web") == 2
