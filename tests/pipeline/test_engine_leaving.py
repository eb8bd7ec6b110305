"""Retention of a VM that left: what its policy says counts once its leaving is known, with a day of grace."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from engine import upkeep
from engine.commands import BackUpVm
from engine.records import Audited
from engine.threads import settled
from policies.facts import EventType
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, running

LAST_GOOD = EVERYTHING.replace("[policy.everything]", '[policy.everything]\non_removed = "keep_last_good"')


def vanished_before(number: int, at: datetime) -> list[Audited]:
    """What retention wrote down of restore points whose VMs had left."""
    why = "the VM left the inventory, and policy everything, which made the restore point, says on_removed = expire"
    return [Audited(at, "retention", "expire", f"point-{one}", why) for one in range(number)]


async def test_all_but_the_last_good_point_of_a_removed_vm_are_marked(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    vm = hypervisor.add("web")
    hypervisor.add("db")
    async with running(tmp_path, hypervisor, configure(tmp_path, LAST_GOOD)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
        [known] = engine.parts.world.named("web")
        assert known not in engine.parts.world.left
        guest = hypervisor.guests[vm.address]
        hypervisor.remove_vm(vm)
        hypervisor.post(vm, EventType.REMOVED)
        await engine.until(lambda: known in engine.parts.world.left)
        assert [*engine.parts.world.left] == [known]
        assert len(engine.parts.world.left) == 1
        old = engine.parts.now() - timedelta(days=31)
        await settled(engine.parts.threads.state, engine.parts.state.audit, *vanished_before(20, old))
        assert await upkeep.retain(engine.parts) == "0 expired, 1 marked"
        lately = engine.parts.now() - timedelta(days=29)
        await settled(engine.parts.threads.state, engine.parts.state.audit, *vanished_before(20, lately))
        assert "(20 of them expired in the last 30 d)" in await upkeep.retain(engine.parts)
        first, second = await engine.control.points("web")
        assert (first.expiring_since is None, second.expiring_since is None) == (False, True)
        hypervisor.guests[vm.address] = guest
        hypervisor.tell_watchers()
        await engine.until(lambda: known in engine.parts.world.vms)
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
        assert [point.expiring_since for point in await engine.control.points("web")] == [None, None]
