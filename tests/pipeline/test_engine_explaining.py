"""What a running engine says of a VM: its place in the queue, the last failure, and what came of what was decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.facts import EventType
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import configure, running


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def test_a_waiting_run_has_its_place_in_the_queue_and_its_reason(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        engine.parts.queue.paused = True
        event = hypervisor.post(vm, EventType.MIGRATED, cause="drs")
        await engine.until_journaled({event.key})
        said = await engine.control.explain("web")
        (blocked,) = said["blocked"]
        assert blocked.startswith("a backup is waiting in the queue, 1 of 1 in line: the queue is paused (job ")
        assert f"  blocked: {blocked}" in said["text"]
        assert said["decisions"][0]["outcome"] == "pending"
        assert said["origins"].keys() == said["settings"].keys()
        engine.parts.queue.paused = False
        engine.parts.queue.changed()
        await engine.until(lambda: engine.points_of("web") == 2 and not engine.parts.world.jobs)
        assert (await engine.control.explain("web"))["blocked"] == []
