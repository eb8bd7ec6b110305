"""How a run has its snapshot made, and what it tells of it: patience, time, and disks that no snapshot holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine import overview
from engine.commands import BackUpVm
from policies.facts import Consistency, Quiescing
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, running

PATIENT = EVERYTHING.replace(
    'fallback = "crash" }', 'fallback = "crash", retries = 5, retry_wait = "30s", quiesce_timeout = "20m" }'
)


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def test_a_guest_is_asked_to_hold_still_as_patiently_as_its_policy_says(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, PATIENT)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
    assert hypervisor.asked_to_quiesce == Quiescing(5, timedelta(seconds=30), timedelta(minutes=20))


async def test_rule_7_a_restore_point_has_the_level_that_was_achieved_what_was_wanted_and_why(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.achieves = (Consistency.FILESYSTEM, "the guest's VSS writers left no manifest")
    wants = EVERYTHING.replace('want = "crash"', 'want = "application"')
    async with running(tmp_path, hypervisor, configure(tmp_path, wants)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        (listed,) = await engine.control.points("web")
        point = await engine.control.point(listed.id)
        value = engine.parts.metrics.registry.get_sample_value
        assert value("backstay_consistency_fallbacks_total", {"achieved": "filesystem"}) == 1
    assert (listed.consistency, point["consistency"]) == ("filesystem", "filesystem")
    assert point["attributes"]["consistency_wanted"] == "application"
    assert point["attributes"]["consistency_reason"] == "the guest's VSS writers left no manifest"


async def test_a_snapshot_that_took_long_is_told_and_makes_the_run_no_less(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.slow_snapshot = "making the snapshot took 95 s"
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert (result["state"], result["exit"]) == ("done", 0)
        assert result["warnings"] == ["making the snapshot took 95 s"]
        point = (await engine.control.points("web"))[-1].id
        assert (await engine.control.point(point))["attributes"]["snapshot_seconds"] == 0.1


async def test_how_long_the_guest_stood_still_is_in_the_point_the_result_and_the_metrics(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.stood_still = {"creation": (0.2,), "removal": (0.04, 7.25)}
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        creation = {"count": 1, "longest_seconds": 0.2, "total_seconds": 0.2}
        removal = {"count": 2, "longest_seconds": 7.25, "total_seconds": 7.29}
        assert (result["state"], result["exit"]) == ("done", 0)
        assert result["stuns"] == {"creation": creation, "removal": removal}
        long = "the guest stood still for 7.2 s when its snapshot was removed, which is long for clusters"
        assert result["warnings"] == [long]
        for point in await engine.control.points("web"):
            told = (await engine.control.point(point.id))["attributes"]
            assert (told["stun_creation"], told["stun_removal"]) == (creation, removal)
        value = engine.parts.metrics.registry.get_sample_value
        name = "backstay_guest_stun_seconds"
        assert value(f"{name}_count", {"when": "creation"}) == 2
        assert value(f"{name}_bucket", {"when": "removal", "le": "5.0"}) == 2
        assert value(f"{name}_count", {"when": "removal"}) == 4


async def test_what_a_failed_run_knows_of_the_guest_counts_too(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    hypervisor.stood_still = {"creation": (12.0,)}
    hypervisor.fail_transports = {"hotadd", "nbd", "export", "https"}
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        value = engine.parts.metrics.registry.get_sample_value
        failed = {"policy": "everything", "result": "failed"}
        await engine.until(lambda: (value("backstay_runs_total", failed) or 0) > 0)
        assert (value("backstay_guest_stun_seconds_sum", {"when": "creation"}) or 0) >= 12


async def test_a_guest_of_which_nothing_is_known_is_told_of_nowhere(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert (result["stuns"], result["warnings"]) == ({}, [])
        value = engine.parts.metrics.registry.get_sample_value
        assert value("backstay_guest_stun_seconds_count", {"when": "creation"}) == 0


async def test_rule_8_a_disk_that_no_snapshot_holds_is_in_each_result_the_status_and_the_metrics(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", disks=2)
    why = "its mode is independent_persistent: a snapshot does not hold independent disks"
    hypervisor.set(vm, disks=(vm.disks[0], replace(vm.disks[1], unprotected=why)))
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        for _ in range(2):
            result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
            assert (result["exit"], result["unprotected"]) == (3, [["Hard disk 2", why]])
        for point in await engine.control.points("web"):
            assert (await engine.control.point(point.id))["unprotected"] == [["Hard disk 2", why]]
        [row] = [row for row in (await engine.control.status())["vms"] if row["vm"] == "web"]
        assert row["unprotected_disks"] == [["Hard disk 2", why]]
        overview.publish(engine.parts)
        await overview.publish_coverage(engine.parts)
        value_of = engine.parts.metrics.registry.get_sample_value
        assert value_of("backstay_unprotected_disks", {"vcenter": "lab"}) == 1
        each = {m.labels["vm"]: m.value for f in engine.parts.metrics.registry.collect() for m in f.samples
                if m.name == "backstay_vm_unprotected_disks"}  # fmt: skip
        assert each == {"web": 1.0}


async def test_a_disk_outside_of_snapshots_that_the_policy_leaves_out_is_listed_and_is_no_lack(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", disks=2)
    hypervisor.set(vm, disks=(vm.disks[0], replace(vm.disks[1], unprotected="its mode is independent_persistent")))
    meant = EVERYTHING + '[policy.everything.disks]\nexclude = ["number:2"]\n'
    async with running(tmp_path, hypervisor, configure(tmp_path, meant)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert (result["exit"], result["unprotected"]) == (0, [["Hard disk 2", "its mode is independent_persistent"]])
        await overview.publish_coverage(engine.parts)
        assert {m.value for f in engine.parts.metrics.registry.collect() for m in f.samples
                if m.name == "backstay_vm_unprotected_disks"} == {0.0}  # fmt: skip


async def test_a_blackout_that_begins_while_a_run_waits_for_its_snapshot_makes_the_job_wait_and_fails_nothing(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor.add("web")
    begun = [False]

    def begins() -> None:
        begun[0] = not hypervisor.log

    def held_until(*_: object) -> datetime | None:
        was, begun[0] = begun[0], False
        if was:
            hypervisor.log.append("blackout")
        return datetime.now(UTC) + timedelta(milliseconds=50) if was else None

    hypervisor.before_snapshot = begins
    monkeypatch.setattr("engine.worker.waits_until", held_until)
    async with running(tmp_path, hypervisor, configure(tmp_path, EVERYTHING)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        sample = engine.parts.metrics.registry.get_sample_value
        assert sample("backstay_runs_total", {"policy": "everything", "result": "failed"}) == 0
        assert (await engine.control.points("web"))[0].vm_name == "web"
    assert hypervisor.log[:2] == ["blackout", "snapshot web"]
