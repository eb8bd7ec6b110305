"""A snapshot that could fill its datastore is not made, and one that does is removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from connectors.errors import Busy, NoRoom, NotPermitted
from engine.failures import Exit, Kind, verdict
from engine.headroom import Mark, Marks
from engine.jobs import RunId
from engine.snapshot_report import standing
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import configure, running
from tests.pipeline.test_engine_backup import Bench, bench, threads

__all__ = ["bench", "threads"]

TIB = 1 << 40


async def test_a_snapshot_is_not_made_where_its_datastore_has_no_room_for_it(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.free["ds-1"] = TIB // 12
    with pytest.raises(NoRoom, match=r"datastore ds-1 has 85\.333 GiB free .* 102\.4 GiB must be free") as refused:
        await bench.back_up(vm)
    assert bench.hypervisor.log == []
    judged = verdict(refused.value)
    assert (judged.kind, judged.exit_code) == (Kind.RETRY, Exit.NO_SPACE)
    assert "free space there or move VMs away" in judged.sentence
    bench.hypervisor.free["ds-1"] = TIB // 9
    assert (await bench.back_up(vm)).point


async def test_a_run_ends_and_its_snapshot_goes_when_the_datastore_runs_low(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=64)
    bench.means.room.look_seconds = 0.001

    def fill(transport: str, offset: int) -> None:
        bench.hypervisor.free["ds-1"] = TIB // 25

    bench.hypervisor.on_read = fill
    bench.means.room.look_seconds = 0
    counted: list[str] = []
    bench.means.room.refused = counted.append
    with pytest.raises(NoRoom, match="its snapshot removed: datastore ds-1 has only"):
        await bench.back_up(vm)
    assert counted == ["during"]
    assert bench.hypervisor.snapshots[vm.address] == {}
    assert bench.hypervisor.log[-1] == "remove snapshot web"
    assert bench.repository.points() == []


async def test_two_runs_do_not_count_on_the_same_free_space(bench: Bench) -> None:
    one, two = bench.hypervisor.add("one", mib=8), bench.hypervisor.add("two", mib=8)
    keeper = bench.means.room
    keeper.marks = Marks(free=Mark(), low=Mark())
    need = (await keeper.check(bench.hypervisor, one, RunId("r1"), [])).by_datastore["ds-1"]
    assert need > 0
    bench.hypervisor.free["ds-1"] = 2 * need - 1
    with pytest.raises(NoRoom, match="those of other runs"):
        await keeper.check(bench.hypervisor, two, RunId("r2"), [])
    with keeper.promise("r1"):
        pass
    await keeper.check(bench.hypervisor, two, RunId("r2"), [])
    with pytest.raises(NoRoom, match="those of other runs"):
        await keeper.check(bench.hypervisor, one, RunId("r1"), [])


async def test_free_space_that_the_account_may_not_see_is_no_reason_to_have_no_backup(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    bench.hypervisor.fail_space = NotPermitted("the account lacks System.Read")
    assert (await bench.back_up(vm)).point


async def test_a_vcenter_that_is_away_for_a_look_ends_no_run(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=16)
    bench.means.room.look_seconds = 0

    def away(transport: str, offset: int) -> None:
        bench.hypervisor.fail_space = Busy("away")

    bench.hypervisor.on_read = away
    assert (await bench.back_up(vm)).point


async def test_what_a_run_holds_is_seen_while_it_holds_it(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    seen: list[list[tuple[str, str, str]]] = []
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:

        def look(transport: str, offset: int) -> None:
            seen.append([(one["kind"], one["vm"], one["transport"]) for one in standing(engine.parts)["leases"]])

        hypervisor.on_read = look
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.until(lambda: not standing(engine.parts)["leases"])
    assert seen[0] == [("snapshot", "web", ""), ("disk", "web", "hotadd")]


async def test_why_no_snapshot_is_made_is_told_in_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.service.METRICS_SECONDS", 0.05)
    (tmp_path / "disks").mkdir()
    hypervisor = HypervisorInMemory(tmp_path / "disks")
    hypervisor.add("web")
    hypervisor.free["ds-1"] = TIB // 100
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: any("must be free" in job.last_error for job in engine.parts.world.jobs.values()))
        async with asyncio.timeout(10):
            while True:
                found = await engine.control.status()
                if any("no snapshot is begun" in sentence for sentence in found["problems"]):
                    break
                await asyncio.sleep(0.05)
        explained = json.dumps(await engine.control.explain("web"), default=str)
        assert "must be free for a snapshot" in explained
        row = found["vms"][0]
        assert "datastore ds-1" in row["last_failure"]
        assert row["pending"]
        value = engine.parts.metrics.registry.get_sample_value
        assert value("backstay_runs_without_room_total", {"when": "before"})
        await engine.until(lambda: value("backstay_datastores_without_room", {"vcenter": "lab"}) == 1.0)
        hypervisor.free["ds-1"] = TIB // 2
