"""What a careful person would want kept stays, whatever the engine forgot or never knew."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from connectors.errors import Unreachable
from engine import sections, upkeep
from engine.commands import BackUpVm
from engine.config import Config
from engine.jobs import Job, JobId, JobKind
from engine.ports import Hypervisor
from engine.records import RunRow
from engine.state import State
from policies.facts import EventType
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, engine_of, now, running

LAST_ONE = EVERYTHING.replace("[policy.everything]", '[policy.everything]\nretention = { keep_last = 1, grace = "0s" }')


async def _away(name: str, vcenter: sections.VCenter, config: Config) -> Hypervisor:
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


LAST_GOOD = EVERYTHING.replace("[policy.everything]", '[policy.everything]\non_removed = "keep_last_good"')


async def test_a_vm_that_this_engine_never_saw_has_not_left_it(tmp_path: Path) -> None:
    """Two engines with one repository and one vCenter, each with the rights to see its own VMs only."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    ours, theirs = HypervisorInMemory(tmp_path / "ours"), HypervisorInMemory(tmp_path / "theirs")
    theirs.add("padding")
    their_vm = theirs.add("their-web")
    ours.add("our-web")
    config = configure(tmp_path, LAST_GOOD)
    async with running(tmp_path, theirs, config.model_copy(update={"state_dir": tmp_path / "their-state"})) as engine:
        await engine.until(lambda: engine.points_of("their-web") == 1)
        await engine.finished(await engine.control.submit(BackUpVm("their-web"), "test"))
        [known] = engine.parts.world.named("their-web")
    for _ in range(2):
        async with running(tmp_path, ours, config) as engine:
            await engine.until(lambda: engine.points_of("our-web") == 1 and engine.parts.world.inventory_known)
            assert engine.points_of("their-web") == 2
            await engine.until(lambda: "gone" in engine.parts.world.rows[known].accounted)
            assert known not in engine.parts.world.left
            assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
    # Once it was seen here, its leaving counts.
    ours.guests[their_vm.address] = theirs.guests[their_vm.address]
    async with running(tmp_path, ours, config) as engine:
        await engine.until(lambda: known in engine.parts.world.vms)
        ours.remove_vm(their_vm)
        ours.post(their_vm, EventType.REMOVED)
        await engine.until(lambda: known in engine.parts.world.left)
        assert await upkeep.retain(engine.parts) == "0 expired, 1 marked"


@pytest.mark.parametrize("attempts", [0, 2])
async def test_what_a_clock_that_was_ahead_put_off_does_not_keep_a_vm_waiting(tmp_path: Path, attempts: int) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    config = configure(tmp_path, EVERYTHING.replace('rpo = "24h"\n', ""))
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        [vm] = engine.parts.world.named("web")
    ahead = now() + timedelta(days=365)
    job = Job(
        id=JobId("job-1"), key="key-1", kind=JobKind.BACKUP, vm=vm, policy="everything", rule="rpo", reason="due",
        created_at=now() if attempts else ahead, not_before=ahead + timedelta(minutes=5), attempts=attempts,
    )  # fmt: skip
    state = State(config.state_dir, now=now())
    state.save_job(job, run=RunRow(vm, last_attempt=ahead, consecutive_failures=attempts))
    state.close()
    (tmp_path / "policies" / "all.toml").write_text(EVERYTHING)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        assert job.id not in engine.parts.world.jobs


@pytest.mark.parametrize("days", [1, 365, -1, -365])
async def test_a_clock_that_is_set_while_no_vcenter_tells_the_time_deletes_nothing(tmp_path: Path, days: int) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, LAST_ONE)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and engine.parts.sources.skews)
        await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        engine.parts.sources.now = lambda: now() + timedelta(days=days)
        assert "this machine's clock was set by" in await upkeep.retain(engine.parts)
        assert "this machine's clock was set by" in await upkeep.reclaim(engine.parts)
        assert engine.points_of("web") == 2
        engine.parts.sources.now = now
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
