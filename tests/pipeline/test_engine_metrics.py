"""What a running engine counts and measures, seen where Prometheus sees it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.errors import BadMessage, Busy, ReadFailed, TransportFailed, Unreachable
from engine import upkeep
from engine.commands import BackUpVm, RestoreToFile, Verify
from engine.jobs import mint
from policies.facts import Disk, EventType, ForeignSnapshot, PowerState
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, running


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def value(engine: Running, name: str, **labels: str) -> float | None:
    return engine.parts.metrics.registry.get_sample_value(f"backstay_{name}", labels)


async def shown(engine: Running) -> None:
    """What is read from tables is published, twice, so that what only passes does not count."""
    for _ in range(2):
        await upkeep.publish(engine.parts)


async def test_a_policy_counts_under_its_name_from_its_first_run_on(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        assert value(engine, "runs_total", policy="everything", result="done") is not None
        await engine.until(lambda: value(engine, "runs_total", policy="everything", result="done") == 1)
        assert value(engine, "run_duration_seconds_count", policy="everything") == 1
        assert value(engine, "bytes_read_total", policy="everything") == 4 * MIB
        assert value(engine, "bytes_zero_total", policy="everything") == 3 * MIB


async def test_a_failed_run_counts_with_its_time_what_it_read_and_its_stages(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")

    def on_read(transport: str, offset: int) -> None:
        if offset >= 2 * MIB:
            raise ReadFailed("a cable is loose")

    hypervisor.on_read = on_read
    config = configure(tmp_path, more='[limits]\nthreads = 1\n[transport]\norder = ["hotadd"]\n')
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: value(engine, "runs_total", policy="everything", result="failed"))
        assert (value(engine, "run_duration_seconds_sum", policy="everything") or 0) > 0
        assert value(engine, "bytes_read_total", policy="everything") == 2 * MIB
        assert (value(engine, "run_stage_seconds_total", stage="snapshot") or 0) > 0


async def test_a_vm_is_set_aside_until_a_run_of_it_ends_well_over_restarts(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")

    def on_read(transport: str, offset: int) -> None:
        raise BadMessage("nobody can mend this")

    hypervisor.on_read = on_read
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.crew.set_aside)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        await shown(engine)
        assert value(engine, "jobs_quarantined") == 1
        hypervisor.on_read = lambda transport, offset: None
        await engine.finished(await engine.control.submit(BackUpVm("web"), "root"))
        await shown(engine)
        assert value(engine, "jobs_quarantined") == 0


async def test_a_transport_that_breaks_and_a_base_that_is_not_trusted_are_counted(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    hypervisor.fail_transports = {"hotadd"}
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: value(engine, "disks_read_total", transport="nbd") == 1)
        assert value(engine, "transport_fallbacks_total", transport="hotadd") == 1
        assert value(engine, "full_reads_total", reason="first") == 1
        hypervisor.post(vm, EventType.RELOCATED)
        await engine.until(lambda: value(engine, "tracking_distrusted_total", reason="relocated") == 1)
        await engine.finished(await engine.control.submit(BackUpVm("web"), "root"))
        assert value(engine, "full_reads_total", reason="distrusted") == 1
        await engine.finished(await engine.control.submit(BackUpVm("web", full=True), "root"))
        assert value(engine, "tracking_distrusted_total", reason="asked") == 1
        hypervisor.guests[vm.address].tracking += "-again"
        await engine.finished(await engine.control.submit(BackUpVm("web"), "root"))
        assert value(engine, "full_reads_total", reason="tracking_reset") == 1
        await engine.finished(await engine.control.submit(BackUpVm("web"), "root"))
        assert value(engine, "incremental_reads_total") == 1


async def test_snapshots_that_nobody_owns_and_those_of_others_are_counted_with_their_age(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    long_ago = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    run = mint("", lambda: long_ago)()
    bad_disk = Disk(2000, "Hard disk 1", MIB, "6000", "ds-1", "x.vmdk", "independent", unprotected="it is independent")
    hypervisor.set(
        hypervisor.add("web"),
        own_snapshots=(f"backstay-e1-{run}",),
        snapshots=(ForeignSnapshot("before the update", long_ago),),
        disks=(bad_disk,),
        consolidation_needed=True,
    )
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        engine.parts.queue.paused = True  # a run would read the VM again, as the fake keeps it
        await engine.until(lambda: engine.parts.world.complete)
        await shown(engine)
        assert value(engine, "orphan_snapshots", vcenter="lab") == 1
        assert value(engine, "orphan_snapshot_oldest_timestamp_seconds", vcenter="lab") == long_ago.timestamp()
        assert value(engine, "foreign_snapshots", vcenter="lab") == 1
        assert value(engine, "foreign_snapshot_oldest_timestamp_seconds", vcenter="lab") == long_ago.timestamp()
        assert value(engine, "unprotected_disks", vcenter="lab") == 1
        assert value(engine, "vms_need_consolidation", vcenter="lab") == 1


async def test_a_snapshot_in_use_is_nobodys_left_over(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [vm] = engine.parts.world.named("web")
        run = engine.parts.mint_run()
        hypervisor.set(hypervisor.guests[engine.parts.world.vms[vm].address].vm, own_snapshots=(f"backstay-e-{run}",))
        await engine.until(lambda: engine.parts.world.vms[vm].own_snapshots)
        with engine.parts.crew.alive(run):
            await shown(engine)
            assert value(engine, "orphan_snapshots", vcenter="lab") == 0
        await shown(engine)
        assert value(engine, "orphan_snapshots", vcenter="lab") == 1


async def test_the_clocks_are_compared_and_silence_shows_as_no_connection_and_in_the_status(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.ahead = timedelta(minutes=5)
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: value(engine, "clock_skew_seconds", peer="vcenter") is not None)
        assert value(engine, "clock_skew_seconds", peer="vcenter") == pytest.approx(300, abs=5)
        assert value(engine, "connected", peer="vcenter") == 1
        hypervisor.fail_vm = Unreachable("no answer", where="vc-1")
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(engine.parts.sources.watch_clock(hypervisor, timedelta(seconds=0.01)))
            await engine.until(lambda: value(engine, "connected", peer="vcenter") == 0)
            assert any("no answer" in problem for problem in (await engine.control.health())["problems"])
            assert [one["trouble"] for one in (await engine.control.status())["vcenters"]] == ["vc-1: no answer"]
            hypervisor.fail_vm = None
            await engine.until(lambda: value(engine, "connected", peer="vcenter") == 1)
            assert (await engine.control.health())["ok"]
            watch.cancel()


async def test_what_only_comparing_found_is_counted(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.set(vm, power=PowerState.OFF)
        await engine.until(lambda: value(engine, "events_found_by_reconcile_total", type="vm.powered_off") == 1)
        assert value(engine, "event_lag_seconds", source="reconcile") is not None


async def test_vms_that_a_policy_excludes_are_not_unprotected(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    for name in ("web", "scratch"):
        hypervisor.add(name)
    policy = EVERYTHING.replace('select.all = ["*"]', 'select.all = ["*"]\nselect.none = ["name:scratch"]')
    async with running(tmp_path, hypervisor, configure(tmp_path, policy)) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        await shown(engine)
        totals = {name: value(engine, name, vcenter="lab") for name in ("vms", "vms_unprotected", "vms_excluded")}
        assert totals == {"vms": 2, "vms_unprotected": 0, "vms_excluded": 1}


async def test_the_last_verification_is_known_after_a_restart_and_a_lost_catalog_is_counted(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.finished(await engine.control.submit(Verify(), "root"))
        verified = value(engine, "verify_last_success_timestamp_seconds", repository="repo")
        assert verified
        assert value(engine, "catalog_rebuilds_total", reason="missing") == 0
    for path in (tmp_path / "repo").glob("catalog.duckdb*"):
        path.unlink()
    async with running(tmp_path, hypervisor, config) as engine:
        await shown(engine)
        again = value(engine, "verify_last_success_timestamp_seconds", repository="repo")
        assert again == pytest.approx(verified, abs=5)
        assert value(engine, "verify_state", repository="repo", state="ok") == 1
        assert value(engine, "catalog_rebuilds_total", reason="missing") == 1


async def test_damage_is_told_and_the_last_success_stays(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.finished(await engine.control.submit(Verify(), "root"))
        before = value(engine, "verify_last_success_timestamp_seconds", repository="repo")
        pack = max((p for p in (tmp_path / "repo" / "packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
        found = await engine.finished(await engine.control.submit(Verify(), "root"))
        assert found["exit"] == 4
        assert value(engine, "verify_state", repository="repo", state="damaged") == 1
        assert value(engine, "verify_last_success_timestamp_seconds", repository="repo") == before
        assert value(engine, "damaged_objects", repository="repo") == 1
        assert value(engine, "restore_points_damaged", repository="repo") == 1
        assert value(engine, "operations_total", operation="verify", result="failed") == 1


async def test_a_restore_that_fails_counts_as_one(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        target = tmp_path / "there"
        await engine.finished(await engine.control.submit(RestoreToFile("web@latest", target), "root"))
        await engine.finished(await engine.control.submit(RestoreToFile("web@latest", target), "root"))
        counted = Counter({r: value(engine, "operations_total", operation="restore", result=r) for r in RESULTS})
        assert counted == {"done": 1, "failed": 1, "cancelled": 0}


RESULTS = ("done", "failed", "cancelled")


@pytest.mark.parametrize("error", [TransportFailed("no way"), Busy("later")])
async def test_what_may_pass_sets_no_vm_aside(tmp_path: Path, hypervisor: HypervisorInMemory, error: Exception) -> None:
    hypervisor.add("web")

    def on_read(transport: str, offset: int) -> None:
        raise error

    hypervisor.on_read = on_read
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: value(engine, "runs_total", policy="everything", result="failed"))
        assert not engine.parts.crew.set_aside
