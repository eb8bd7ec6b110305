"""What stood in a vCenter before the engine came was not created before its eyes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from connectors.hypervisor import InventoryUpdate
from policies.facts import PowerState
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import configure, running


class SlowToShow(HypervisorInMemory):
    """Tells events at once, and what is there when it is released."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.released = asyncio.Event()

    async def watch(self) -> AsyncIterator[InventoryUpdate]:
        await self.released.wait()
        async for update in super().watch():
            yield update


async def test_a_vm_that_was_there_first_is_not_told_as_created_though_events_came_before_the_inventory(
    tmp_path: Path,
) -> None:
    hypervisor = SlowToShow(tmp_path)
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path), grace=0.1) as engine:
        await engine.until(lambda: any(key.endswith("/events") for key in engine.parts.sources.alive))
        hypervisor.released.set()
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.set(vm, power=PowerState.OFF)
        [web] = engine.parts.world.named("web")
        await engine.until_journaled({f"reconcile:{web}:1:vm.powered_off"})
        assert [key for key in await engine.event_keys() if key.startswith("reconcile:")] == [
            f"reconcile:{web}:1:vm.powered_off"
        ]
