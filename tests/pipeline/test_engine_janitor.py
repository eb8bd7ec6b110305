"""The janitor looks when something calls for it, takes away only what is ours and unused, and merges what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.errors import Busy, Unreachable
from engine.cleaning import FIRST_AGAIN, FIRST_MERGE, LONGEST_MERGE, SETTLES, Cleaner, Merging
from engine.config import Config
from engine.jobs import JobState, mint
from engine.records import Intent
from engine.snapshot_report import problems
from policies.facts import Address, EventType, ForeignSnapshot, Vm, VmId
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, running

MONDAY = datetime(2026, 11, 23, 8, tzinfo=UTC)
LONG = 'janitor = "9h"\nreconcile = "9h"\n'
MANUAL = 'schema = 1\n[policy.manual]\nselect.all = ["*"]\n'


@pytest.fixture
def hypervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HypervisorInMemory:
    monkeypatch.setattr("engine.service.METRICS_SECONDS", 0.05)
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def configured(tmp_path: Path, policies: str = EVERYTHING) -> Config:
    """An engine whose janitor would not look again by its timer."""
    return configure(tmp_path, policies, more=LONG)


def left_behind(hypervisor: HypervisorInMemory, vm: Vm, run: str) -> None:
    """A snapshot of ours whose run is dead, as the inventory shows it."""
    hypervisor.snapshots.setdefault(vm.address, {})[f"backstay-test_engine-{run}"] = run
    hypervisor.set(vm, own_snapshots=(f"backstay-test_engine-{run}",))


def removed(hypervisor: HypervisorInMemory) -> Iterator[str]:
    return (line for line in hypervisor.log if line.startswith("janitor removes"))


async def test_a_snapshot_that_no_run_uses_is_removed_long_before_the_timer(
    hypervisor: HypervisorInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cleaning.SETTLES", timedelta())
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configured(tmp_path, MANUAL)) as engine:
        await engine.until(lambda: any("left-over" in said for said in engine.parts.upkeep.values()))
        assert not list(removed(hypervisor))
        left_behind(hypervisor, vm, "dead")
        await engine.until(lambda: list(removed(hypervisor)))
        assert hypervisor.snapshots[vm.address] == {}


async def test_an_event_of_a_vm_with_an_unused_snapshot_calls_the_janitor(
    hypervisor: HypervisorInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.service.METRICS_SECONDS", 3600.0)
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configured(tmp_path, MANUAL)) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        await engine.until(lambda: any("left-over" in said for said in engine.parts.upkeep.values()))
        left_behind(hypervisor, vm, "dead")
        await engine.until(lambda: any(one.own_snapshots for one in engine.parts.world.vms.values()))
        assert not list(removed(hypervisor))
        hypervisor.post(vm, EventType.MIGRATED)
        await engine.until(lambda: list(removed(hypervisor)))
        await engine.until(lambda: any("web has a snapshot" in said for said in engine.parts.upkeep.values()))


async def test_a_vcenter_that_is_reached_again_calls_the_janitor(
    hypervisor: HypervisorInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.service.METRICS_SECONDS", 3600.0)
    async with running(tmp_path, hypervisor, configured(tmp_path, MANUAL)) as engine:
        await engine.until(lambda: any("left-over" in said for said in engine.parts.upkeep.values()))
        engine.parts.sources.reconnected("vc-1")
        await engine.until(lambda: any("is reached again" in said for said in engine.parts.upkeep.values()))


async def test_a_snapshot_of_a_run_under_way_is_left_alone(hypervisor: HypervisorInMemory, tmp_path: Path) -> None:
    hypervisor.add("web")
    going = asyncio.Event()

    async with running(tmp_path, hypervisor, configured(tmp_path)) as engine:

        def look(transport: str, offset: int) -> None:
            engine.parts.cleaners["vc-1"].nudge("a test")
            going.set()

        hypervisor.on_read = look
        await going.wait()
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.until(lambda: any("a test" in said for said in engine.parts.upkeep.values()))
    assert not list(removed(hypervisor))


async def test_a_snapshot_of_another_engine_with_the_same_name_is_told_and_left_alone(
    hypervisor: HypervisorInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 16: a copied configuration makes two engines of one name, which must not end each other's runs."""
    monkeypatch.setattr("engine.cleaning.SETTLES", timedelta())
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configured(tmp_path, MANUAL)) as engine:
        theirs = mint("", lambda: datetime.now(UTC) + timedelta(seconds=2))()
        left_behind(hypervisor, vm, theirs)
        await engine.until(lambda: any("called test-engine too" in one for one in problems(engine.parts)))
        engine.parts.cleaners["vc-1"].nudge("a test")
        await engine.until(lambda: any("a test" in said for said in engine.parts.upkeep.values()))
        assert list(hypervisor.snapshots[vm.address].values()) == [theirs]
        gauge = "backstay_orphan_snapshots"
        assert engine.parts.metrics.registry.get_sample_value(gauge, {"vcenter": "lab"}) == 0.0
        ours = engine.parts.mint_run()
        assert not engine.parts.crew.runs.another(ours)
        left_behind(hypervisor, vm, ours)
        await engine.until(lambda: list(removed(hypervisor)))
        assert list(hypervisor.snapshots[vm.address].values()) == [theirs]


async def test_deltas_behind_a_snapshot_of_ours_are_merged_by_the_janitor_also_after_a_restart(
    hypervisor: HypervisorInMemory, tmp_path: Path
) -> None:
    vm = hypervisor.add("web")
    hypervisor.leave_deltas = 1
    hypervisor.fail_consolidation = Busy("a disk is locked")
    async with running(tmp_path, hypervisor, configured(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.until(lambda: all(job.state is JobState.DONE for job in engine.parts.world.jobs.values()))
        engine.parts.cleaners["vc-1"].nudge("a test")
        await engine.until(lambda: engine.parts.crew.merging.failed)
        told = problems(engine.parts)
        assert any("web needs consolidation behind a snapshot of ours" in one for one in told), told
        await engine.until(lambda: any("1 VM still to be con" in said for said in engine.parts.upkeep.values()))
        assert hypervisor.guests[vm.address].vm.consolidation_needed
    hypervisor.fail_consolidation = None
    async with running(tmp_path, hypervisor, configured(tmp_path)) as engine:
        await engine.until(lambda: not hypervisor.guests[vm.address].vm.consolidation_needed)
    assert hypervisor.log.count("consolidate web") == 1


async def test_a_vm_that_needs_consolidation_through_no_doing_of_ours_is_told_and_left_alone(
    hypervisor: HypervisorInMemory, tmp_path: Path
) -> None:
    vm = hypervisor.add("web")
    hypervisor.set(vm, consolidation_needed=True)
    async with running(tmp_path, hypervisor, configured(tmp_path, MANUAL)) as engine:
        await engine.until(lambda: any("web needs consolidation" in one for one in problems(engine.parts)))
        engine.parts.cleaners["vc-1"].nudge("a test")
        await engine.until(lambda: any("a test" in said for said in engine.parts.upkeep.values()))
        gauge = "backstay_vms_need_consolidation"
        await engine.until(lambda: engine.parts.metrics.registry.get_sample_value(gauge, {"vcenter": "lab"}) == 1.0)
    assert "consolidate web" not in hypervisor.log


async def test_old_snapshots_of_others_and_deep_chains_are_told(hypervisor: HypervisorInMemory, tmp_path: Path) -> None:
    vm = hypervisor.add("web")
    now = datetime.now(UTC)
    hypervisor.set(
        vm,
        snapshots=(
            ForeignSnapshot("before the update", now - timedelta(hours=80), 1),
            ForeignSnapshot("after it", now - timedelta(hours=70), 2),
        ),
    )
    async with running(tmp_path, hypervisor, configured(tmp_path, MANUAL)) as engine:
        parts = engine.parts
        await engine.until(lambda: any("older than 3 d" in one for one in problems(parts)))
        (sentence,) = problems(parts)
        assert sentence == "lab: snapshots of others are older than 3 d and slow their VMs down: web (1 snapshot)"

        def value(name: str) -> float | None:
            return parts.metrics.registry.get_sample_value(f"backstay_{name}", {"vcenter": "lab"})

        await engine.until(lambda: value("foreign_snapshots_old") == 1.0)
        assert value("snapshot_chain_depth") == 2.0
        (row,) = (await engine.control.status())["snapshots"]
        assert (row["vm"], row["depth"], row["old_foreign"]) == ("web", 2, 1)


def test_what_stayed_is_tried_less_and_less_often_until_the_timer() -> None:
    cleaner, now = Cleaner(timedelta(minutes=10)), MONDAY
    for pause in (FIRST_AGAIN, 2 * FIRST_AGAIN, 4 * FIRST_AGAIN):
        cleaner.unused({"s"}, now)
        assert cleaner._wanted.is_set()
        cleaner._wanted.clear()
        cleaner.looked(now, stuck=True)
        cleaner.unused({"s"}, now + pause - timedelta(seconds=1))
        assert not cleaner._wanted.is_set()
        now += pause
    cleaner.looked(now, stuck=False)
    cleaner.unused({"s"}, now)
    assert not cleaner._wanted.is_set()
    cleaner.unused(set(), now + SETTLES)
    assert not cleaner._wanted.is_set()
    cleaner.unused({"s"}, now + SETTLES)
    assert cleaner._wanted.is_set()


async def test_a_consolidation_that_fails_waits_twice_as_long_each_time(hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    hypervisor.set(vm, consolidation_needed=True)
    hypervisor.fail_consolidation = Busy("a disk is locked")
    merging, now = Merging(), MONDAY
    intent = Intent("run-1", "snapshot", vm.address, VmId("id"), "run-1", MONDAY)
    for tries in range(9):
        assert await merging.merge(hypervisor, [intent], now) == {"run-1": "a disk is locked"}
        _, again, _ = merging.failed[vm.address]
        assert again - now == min(FIRST_MERGE * 2**tries, LONGEST_MERGE)
        hypervisor.fail_consolidation = Unreachable("not asked before its time")
        assert await merging.merge(hypervisor, [intent], again - timedelta(seconds=1)) == {"run-1": "a disk is locked"}
        hypervisor.fail_consolidation = Busy("a disk is locked")
        now = again
    hypervisor.fail_consolidation = None
    assert await merging.merge(hypervisor, [intent], now) == {}
    assert merging.failed == {}
    gone = Intent("run-2", "snapshot", Address("vc-1", "vm-99"), VmId("id"), "run-2", MONDAY)
    assert await merging.merge(hypervisor, [gone], now) == {}
