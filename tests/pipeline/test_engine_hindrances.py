"""What is slow, late, away or overtaken in one place is not believed, not lost, and stops nothing elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.errors import ConnectorError, LoginRefused, ReadFailed, Unreachable
from connectors.hypervisor import InventoryUpdate, Leftover
from engine import config as configuration
from engine import dispatch, sections
from engine.commands import BackUpVm
from engine.endings import MAX_ATTEMPTS
from engine.inbox import Seen
from engine.jobs import JobState
from engine.ports import Hypervisor
from policies.facts import Address, EventType, Vm
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, engine_of, running


class Hindered(HypervisorInMemory):
    """Its watch waits until it may tell the inventory, and removing left-overs of some VM never ends."""

    def __init__(self, directory: Path, vcenter: str = "vc-1") -> None:
        super().__init__(directory, vcenter)
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.stuck = ""
        self.hangs = False

    async def watch(self) -> AsyncIterator[InventoryUpdate]:
        await self.may_tell.wait()
        async for update in super().watch():
            yield update

    async def vm(self, address: Address) -> Vm:
        if self.hangs:
            await asyncio.Event().wait()
        return await super().vm(address)

    async def remove(self, leftover: Leftover) -> None:
        if leftover.vm_name == self.stuck:
            await asyncio.Event().wait()
        await super().remove(leftover)


@pytest.fixture
def hypervisor(tmp_path: Path) -> Hindered:
    (tmp_path / "disks").mkdir()
    return Hindered(tmp_path / "disks")


async def reconciled(engine: Running) -> list[str]:
    return [key for key in await engine.event_keys() if key.startswith("reconcile:")]


async def test_an_inventory_that_events_overtook_is_not_believed(tmp_path: Path, hypervisor: Hindered) -> None:
    moved, gone = hypervisor.add("moved"), hypervisor.add("gone")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("moved") == engine.points_of("gone") == 1)
        engine.parts.queue.paused = True
        old = tuple(await hypervisor.inventory())
        hypervisor.set(moved, host="esx-2")
        hypervisor.remove_vm(gone)
        new = hypervisor.add("new")
        keys = {hypervisor.post(moved, kind).key for kind in (EventType.MIGRATED,)}
        keys |= {hypervisor.post(gone, EventType.REMOVED).key, hypervisor.post(new, EventType.CREATED).key}
        await engine.until_journaled(keys)
        await engine.until(lambda: {vm.name for vm in engine.parts.world.vms.values()} == {"moved", "new"})
        await engine.parts.inbox.put(Seen("vc-1", InventoryUpdate(old, (), complete=True)))
        assert {vm.name: vm.host for vm in engine.parts.world.vms.values()} == {"moved": "esx-2", "new": "esx-1"}
        await asyncio.sleep(2.5)  # the grace, and the clock after it
        assert await reconciled(engine) == []


async def test_a_vcenter_that_is_away_does_not_keep_the_vms_of_another_from_being_seen(
    tmp_path: Path, hypervisor: Hindered
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Hindered(tmp_path / "elsewhere", "vc-2")
    other.may_tell.clear()
    hypervisor.add("web")
    other.add("web")  # what disaster recovery does: the same VM, registered at the other site
    other.add("db")

    async def opened(name: str, vcenter: sections.VCenter, config: configuration.Config) -> Hypervisor:
        return hypervisor if name == "lab" else other

    more = '[vcenter.other]\nhost = "else.invalid"\nuser = "backup"\npassword = "file:password"\n'
    async with engine_of(configure(tmp_path, more=more), opened) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.fail_vm = Unreachable("the site is down")
        other.may_tell.set()
        await engine.until(lambda: engine.points_of("db") == 1)
        health = await engine.control.health()
        assert any("may be a copy" in sentence for sentence in health["problems"])


async def test_nobody_loses_protection_unasked_while_a_vcenter_is_still_being_reached(
    tmp_path: Path, hypervisor: Hindered
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other, reached = HypervisorInMemory(tmp_path / "elsewhere", "vc-2"), asyncio.Event()
    reached.set()
    hypervisor.add("web")
    db = other.add("db")
    other.set(db, instance_uuid="instance-db", bios_uuid="bios-db")

    async def opened(name: str, vcenter: sections.VCenter, config: configuration.Config) -> Hypervisor:
        if name == "lab":
            return hypervisor
        await reached.wait()
        return other

    more = '[vcenter.other]\nhost = "else.invalid"\nuser = "backup"\npassword = "file:password"\n'
    config = configure(tmp_path, more=more)
    async with engine_of(config, opened) as engine:
        await engine.until(lambda: engine.points_of("web") == engine.points_of("db") == 1)
    reached.clear()
    policies = tmp_path / "policies" / "all.toml"
    policies.write_text(policies.read_text().replace('["*"]', '["name:web"]'))
    async with engine_of(config, opened) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        looked = engine.parts.sources.alive.get("policies")
        await engine.until(lambda: engine.parts.sources.alive.get("policies") != looked)
        assert engine.parts.rulebook.plan is not None
        reached.set()
        await engine.until(lambda: engine.parts.rulebook.plan and engine.parts.rulebook.plan.losing)
        assert [change.name for change in engine.parts.rulebook.plan.losing] == ["db"]


async def test_a_vcenter_that_hangs_holds_up_what_happens_elsewhere_for_a_moment_only(
    tmp_path: Path, hypervisor: Hindered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "READ_SECONDS", 0.2)
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.hangs = True
        event = hypervisor.post(vm, EventType.MIGRATED)
        await engine.until(lambda: "vc-1/events" in engine.parts.sources.troubles)
        ticked = engine.parts.sources.alive["clock"]
        await engine.until(lambda: engine.parts.sources.alive["clock"] > ticked)
        hypervisor.hangs = False
        await engine.until_journaled({event.key})


async def test_a_left_over_that_takes_hours_to_remove_stops_nothing_else(tmp_path: Path, hypervisor: Hindered) -> None:
    stuck, bad = hypervisor.add("stuck"), hypervisor.add("bad")
    names = [hypervisor.add(f"web-{number}").name for number in range(8)]
    hypervisor.snapshots[stuck.address] = {"backstay-dead": "dead"}
    hypervisor.stuck = "stuck"

    def broken(vm: Vm) -> None:
        if vm.address == bad.address:
            raise ReadFailed("the disk cannot be read")

    hypervisor.before_copy = broken
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: all(engine.points_of(name) == 1 for name in names))
        await engine.until(lambda: any(job.last_error for job in engine.parts.world.jobs.values()))
        assert engine.points_of("stuck") == engine.points_of("bad") == 0
        other = hypervisor.add("later")
        await engine.until(lambda: engine.points_of(other.name) == 1)


async def test_who_waits_for_a_backup_is_told_when_the_vm_leaves_before_it(
    tmp_path: Path, hypervisor: Hindered
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and not engine.parts.world.jobs)
        engine.parts.queue.paused = True
        task = await engine.control.submit(BackUpVm("web"), "test")
        await engine.until(lambda: engine.parts.world.jobs)
        hypervisor.remove_vm(vm)
        hypervisor.post(vm, EventType.REMOVED)
        async with asyncio.timeout(10):
            told = await engine.finished(task)
        assert told["state"] == "failed"
        assert "not backed up" in str(told["sentence"])


@pytest.mark.parametrize("error", [Unreachable("the vCenter is being upgraded"), LoginRefused("wrong password")])
async def test_a_long_outage_does_not_cost_a_vm_its_slot(
    tmp_path: Path, hypervisor: Hindered, error: ConnectorError
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        engine.parts.queue.paused = True
        await engine.until(lambda: engine.parts.world.jobs)
        [job] = engine.parts.world.jobs.values()
        engine.parts.world.set_job(replace(job, attempts=MAX_ATTEMPTS - 1))
        hypervisor.fail_vm = error
        engine.parts.queue.paused = False
        engine.parts.queue.changed()
        await engine.until(lambda: engine.parts.world.runs)
        [waiting] = engine.parts.world.jobs.values()
        assert (waiting.state, waiting.attempts) == (JobState.PENDING, MAX_ATTEMPTS)
        hypervisor.fail_vm = None
        engine.parts.world.set_job(replace(waiting, not_before=waiting.created_at))
        engine.parts.queue.changed()
        await engine.until(lambda: engine.points_of("web") == 1)


async def test_a_schedule_that_joined_a_triggered_run_does_not_fail_with_it(
    tmp_path: Path, hypervisor: Hindered
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        engine.parts.queue.paused = True
        await engine.until(lambda: engine.parts.world.jobs)
        [job] = engine.parts.world.jobs.values()
        engine.parts.world.set_job(replace(job, rule="trigger[0]", attempts=MAX_ATTEMPTS - 1))
        hypervisor.fail_vm = Unreachable("the vCenter is being upgraded")
        engine.parts.queue.paused = False
        engine.parts.queue.changed()
        await engine.until(lambda: engine.parts.world.runs)
        hypervisor.fail_vm = None
        await engine.until(lambda: engine.points_of("web") == 1 or any(engine.parts.world.jobs.values()))
        assert job.id not in engine.parts.world.jobs
