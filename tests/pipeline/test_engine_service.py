"""Events become restore points, each effect once, through a whole engine that is started and stopped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import ReadFailed, Unreachable
from connectors.hypervisor import Snapshot
from engine.commands import BackUpVm, QueryLimits, Reclaim, RestoreToFile, RestoreToVm, Verify
from engine.failures import BadInput
from engine.inbox import Told
from engine.sections import Transport
from engine.threads import settled
from policies.facts import Event, EventType, PowerState
from storage.errors import Refused
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, running


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def test_every_vm_gets_its_first_restore_point_by_policy(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    for name in ("web", "app", "db"):
        hypervisor.add(name)
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: all(engine.points_of(name) == 1 for name in ("web", "app", "db")))
        status = await engine.control.status()
        assert status["coverage"]["protected"] == 3
        assert (await engine.control.health())["ok"]
        [point] = await engine.control.points("web")
        shown = await engine.control.point(point.id)
        assert shown["attributes"]["policy"] == "everything"
        assert "never backed up" in shown["attributes"]["reason"]
    assert all(not held for held in hypervisor.snapshots.values())


async def test_one_event_becomes_one_incremental_restore_point(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.write(vm, 2 * MIB, os.urandom(64 << 10))
        hypervisor.set(vm, host="esx-2")
        event = hypervisor.post(vm, EventType.MIGRATED, cause="drs", from_host="esx-1", to_host="esx-2")
        await engine.until(lambda: engine.points_of("web") == 2)
        second = (await engine.control.points("web"))[-1]
        shown = await engine.control.point(second.id)
        assert shown["attributes"]["event_key"] == event.key
        assert shown["attributes"]["rule"] == "trigger[0]"
        assert shown["disks"][0]["changes"] == "incremental"
        assert shown["disks"][0]["read_bytes"] == 64 << 10
        explained = await engine.control.explain("web")
        led = next(one for one in explained["decisions"] if one["event"] == event.key and one["kind"] == "backup")
        assert (led["event_type"], led["cause"], led["to_host"]) == ("vm.migrated", "drs", "esx-2")
        assert (led["outcome"], led["point"]) == ("done", second.id)
        stay = await engine.control.explain_point("web@latest")
        assert stay["point"] == second.id and stay["status"] == "stays" and stay["reasons"]
        assert stay["provenance"]["event"].startswith("vm.migrated at ")
        assert stay["recorded"]["event_key"] == event.key


async def test_the_journal_has_each_key_once_over_restarts(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    config = configure(tmp_path)
    for _ in range(3):
        async with running(tmp_path, hypervisor, config) as engine:
            await engine.until(lambda: engine.parts.world.complete)
            for _ in range(50):
                hypervisor.post(vm, EventType.RENAMED)
            await engine.until_journaled({event.key for event in hypervisor.sent})
        for _ in range(25):
            hypervisor.post(vm, EventType.RENAMED)
    async with running(tmp_path, hypervisor, config) as engine:
        known = {event.key for event in hypervisor.sent}
        await engine.until_journaled(known)
        assert sorted(key for key in await engine.event_keys() if key.startswith("vc:")) == sorted(known)


async def test_a_run_that_fails_is_told_retried_and_does_not_stop_its_neighbours(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    bad, good = hypervisor.add("bad"), hypervisor.add("good")
    del good

    def on_read(transport: str, offset: int) -> None:
        raise ReadFailed("a cable is loose", where="somewhere")

    hypervisor.on_read = on_read
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        history = engine.parts.world.history

        def failed(name: str) -> bool:
            return any(history[vm].consecutive_failures for vm in engine.parts.world.named(name))

        await engine.until(lambda: failed("bad") and failed("good"))
        status = await engine.control.status()
        rows = {row["vm"]: row for row in status["vms"]}
        assert "a cable is loose" in rows["bad"]["last_failure"]
        assert {job["attempts"] for job in status["queue"]["waiting"]} == {1}
        hypervisor.on_read = lambda transport, offset: None
        result = await engine.finished(await engine.control.submit(BackUpVm("bad"), "root"))
        assert result["state"] == "done"
        assert engine.points_of("bad") == 1
    assert not hypervisor.snapshots[bad.address]


async def test_an_operator_backs_up_restores_verifies_and_holds(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        control = engine.control
        await engine.until(lambda: engine.points_of("web") == 1)
        result = await engine.finished(await control.submit(BackUpVm("web", full=True), "root"))
        assert result["state"] == "done", result
        point = str(result["id"])
        assert (await control.point(point))["disks"][0]["changes"] == "whole: a full read was asked for"
        target = tmp_path / "restored.raw"
        restored = await engine.finished(await control.submit(RestoreToFile("web@latest", target), "root"))
        assert restored["state"] == "done", restored
        assert target.read_bytes() == hypervisor.disk_file(vm).read_bytes()
        again = await engine.finished(await control.submit(RestoreToFile("web@latest", target), "root"))
        assert (again["state"], again["exit"]) == ("failed", 5)
        made = await engine.finished(await control.submit(RestoreToVm(point, "web-again"), "root"))
        assert made["state"] == "done", made
        new = next(guest for guest in hypervisor.guests.values() if guest.vm.name == "web-again")
        assert new.files[2000].read_bytes() == target.read_bytes()
        verified = await engine.finished(await control.submit(Verify(), "root"))
        assert verified["sound"], verified
        await control.hold(point, "the auditor asked", "root")
        assert (await control.points("web"))[-1].holds == ("the auditor asked",)
        with pytest.raises(Refused):
            await control.expire(point, "no room", "root")
        await control.release(point, None, "root")
        await control.expire(point, "no room", "root")
        first = (await control.points("web"))[0]
        with pytest.raises(Refused, match="last good"):
            await control.expire(first.id, "no room", "root")
        planned = await engine.finished(await control.submit(Reclaim(plan_only=True), "root"))
        assert planned["state"] == "done", planned
        answer = await control.select("SELECT action FROM audit ORDER BY done_at", QueryLimits())
        assert [row[0] for row in answer.rows][-3:] == ["hold", "release", "expire"]


async def test_what_no_event_told_is_found_by_comparing_and_only_then(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    told, untold = hypervisor.add("told"), hypervisor.add("untold")
    async with running(tmp_path, hypervisor, configure(tmp_path), grace=0.3) as engine:
        await engine.until(lambda: engine.points_of("told") == engine.points_of("untold") == 1)
        hypervisor.set(untold, power=PowerState.OFF)
        hypervisor.set(told, power=PowerState.OFF)
        hypervisor.post(told, EventType.POWERED_OFF)
        await engine.until(lambda: engine.points_of("untold") == 2)
        await engine.until(lambda: engine.points_of("told") == 2)
        async with asyncio.timeout(5):
            events = await asyncio.wrap_future(engine.parts.threads.state.submit(engine.parts.state.events))
        found = [row for row in events if row[0].startswith("reconcile:")]
        assert [(row[1], row[4]) for row in found] == [("vm.powered_off", "untold")]


async def test_a_vm_that_left_keeps_its_restore_points_and_a_returning_one_its_history(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [vm_id] = engine.parts.world.named("web")
        guest = hypervisor.guests.pop(vm.address)
        hypervisor.post(vm, EventType.REMOVED)
        hypervisor.tell_watchers()
        await engine.until(lambda: vm_id not in engine.parts.world.vms)
        assert engine.points_of("web") == 1
        address = replace(vm.address, moref="vm-99")
        guest.vm = replace(guest.vm, address=address)
        hypervisor.guests[address] = guest
        hypervisor.post(guest.vm, EventType.REGISTERED)
        hypervisor.tell_watchers()
        await engine.until(lambda: vm_id in engine.parts.world.vms)
        assert engine.parts.world.vms[vm_id].address == address


async def test_losing_the_state_loses_no_restore_point_and_no_identity(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [before] = engine.parts.world.named("web")
        for file in config.state_dir.iterdir():
            file.unlink()
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        assert engine.parts.world.named("web") == [before]
        assert engine.points_of("web") == 1
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "root"))
        assert result["state"] == "done", result
        shown = await engine.control.point(str(result["id"]))
        assert "state is new" in shown["disks"][0]["changes"]


async def test_a_policy_change_that_takes_protection_away_waits_for_a_person(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.add("db")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == engine.points_of("db") == 1)
        policy = tmp_path / "policies" / "all.toml"
        policy.write_text(EVERYTHING.replace('["*"]', '["name:web"]'))
        await engine.until(lambda: engine.parts.rulebook.plan is not None)
        pending = await engine.control.pending_policies()
        assert any("db" in sentence for sentence in pending["sentences"])
        [vm] = engine.parts.world.named("db")
        assert engine.parts.rulebook.in_force.matching(engine.parts.world.vms[vm])
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.complete and engine.parts.rulebook.plan is not None)
        pending = await engine.control.pending_policies()
        with pytest.raises(Refused):
            await engine.control.apply_policies("another", "root")
        with pytest.raises(Refused, match="a guard refuses it: 1 VM would lose protection"):
            await engine.control.apply_policies(pending["digest"], "root")
        await engine.control.apply_policies(pending["digest"], "root", override_guard=True)
        assert await engine.control.pending_policies() == {}
        audited = await settled(engine.parts.threads.state, engine.parts.state.audited)
        [confirmed] = [one for one in audited if one.who == "root"]
        assert f"plan {pending['digest']}: guard overridden (1 VM would lose protection" in confirmed.detail
        [vm] = engine.parts.world.named("db")
        assert not engine.parts.rulebook.in_force.matching(engine.parts.world.vms[vm])


async def test_a_broken_policy_file_changes_nothing_and_is_told(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        before = engine.parts.rulebook.in_force.hash
        (tmp_path / "policies" / "broken.toml").write_text("schema = 1\n[policy.x]\nrop = '4h'\n")
        await engine.until(lambda: engine.parts.rulebook.problems)
        assert engine.parts.rulebook.in_force.hash == before
        health = await engine.control.health()
        assert any("broken.toml:3:1" in sentence for sentence in health["problems"])


async def test_a_stop_in_the_middle_of_a_run_leaves_no_snapshot_and_the_job_for_later(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", mib=64, data=os.urandom(64 * MIB))
    config = configure(tmp_path)
    reading = asyncio.Event()
    hypervisor.on_read = lambda transport, offset: reading.set()
    by_nbd = config.model_copy(update={"transport": Transport(order=("nbd",))})
    async with running(tmp_path, hypervisor, by_nbd), asyncio.timeout(10):
        await reading.wait()
    assert not hypervisor.snapshots[vm.address]
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)


class Lingering(HypervisorInMemory):
    """Removing a snapshot takes calls to vCenter."""

    @asynccontextmanager
    async def snapshot(self, *args: Any, **named: Any) -> AsyncIterator[Snapshot]:
        async with super().snapshot(*args, **named) as snapshot:
            try:
                yield snapshot
            finally:
                for _ in range(100):
                    await asyncio.sleep(0)


async def test_a_stop_logs_out_only_when_the_runs_that_it_cut_off_have_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = Lingering(tmp_path / "disks")
    hypervisor.add("web", mib=64, data=os.urandom(64 * MIB))
    reading = asyncio.Event()
    hypervisor.on_read = lambda transport, offset: reading.set()
    config = configure(tmp_path).model_copy(update={"transport": Transport(order=("nbd",))})
    async with running(tmp_path, hypervisor, config), asyncio.timeout(10):
        await reading.wait()
    assert hypervisor.log.index("remove snapshot web") < hypervisor.log.index("closed")


async def test_what_a_killed_engine_left_is_removed_at_the_next_start(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    hypervisor.snapshots[vm.address] = {"backstay-dead": "dead"}
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        assert "janitor removes backstay-dead" in hypervisor.log


async def test_a_vcenter_that_is_away_stops_nothing_else(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.fail_vm = Unreachable("no answer", where="vc-1")
        hypervisor.post(vm, EventType.POWERED_OFF)
        await engine.until(lambda: engine.parts.sources.troubles)
        assert len(await engine.control.points(None)) == 1
        hypervisor.fail_vm = None
        await engine.until(lambda: engine.points_of("web") == 2)
        await engine.until(lambda: not engine.parts.sources.troubles)


async def test_an_unknown_vm_is_bad_input(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        with pytest.raises(BadInput, match="no VM is known as nobody"):
            await engine.control.submit(BackUpVm("nobody"), "root")


async def test_a_hold_that_a_message_asks_for_holds_every_restore_point(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        event = Event(
            key="nats:1",
            type=EventType.HOLD_REQUESTED,
            at=datetime.now(UTC),
            source="nats",
            vm_name="web",
            user="legal",
            detail={"reason": "case 7"},
        )
        await engine.parts.inbox.put(Told(event))
        await engine.parts.inbox.put(Told(event))
        [vm] = engine.parts.world.named("web")
        await engine.until(lambda: engine.parts.world.points[vm][0].holds)
        assert len(engine.parts.world.points[vm][0].holds) == 1
