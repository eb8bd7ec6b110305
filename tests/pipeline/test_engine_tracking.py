"""What a run does where change tracking may not be trusted: read everything, compare besides, or fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import TrackingUnusable
from engine.commands import BackUpVm
from policies.facts import EventType, Vm
from policies.policy import OnCbtInvalid
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, running
from tests.pipeline.test_engine_backup import Bench, bench, threads

__all__ = ["bench", "threads"]

BLOCK = 64 << 10


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def written_in_secret(bench: Bench, vm: Vm, offset: int, data: bytes) -> None:
    """As a guest writes, and change tracking does not notice."""
    with bench.hypervisor.disk_file(vm).open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_a_verifying_run_counts_what_change_tracking_forgot_and_stores_it(bench: Bench, transport: str) -> None:
    vm = bench.hypervisor.add("web", mib=8)
    bench.hypervisor.write(vm, 6 * MIB, os.urandom(2 * BLOCK))
    await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * MIB, os.urandom(100))
    written_in_secret(bench, vm, 3 * MIB + 9, os.urandom(40))
    written_in_secret(bench, vm, 6 * MIB, bytes(2 * BLOCK))
    done = await bench.back_up(vm, distrust="it was moved", on_cbt_invalid=OnCbtInvalid.VERIFY, transports=(transport,))
    (check,) = done.checks
    assert (check.result, check.untold_bytes) == ("differed", 3 * BLOCK)
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()
    head = bench.repository.detail(done.point).disks[0].head
    assert head.attributes["tracking_check"] == check.sentence
    assert head.attributes["changes"] == "whole: it was moved"


async def test_a_verifying_run_says_when_change_tracking_was_right(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=8)
    await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * MIB, os.urandom(100))
    done = await bench.back_up(vm, distrust="it was moved", on_cbt_invalid=OnCbtInvalid.VERIFY)
    assert [check.result for check in done.checks] == ["agreed"]
    assert done.disks[0].stored_bytes < MIB, "what is read in full is stored as what changed"


async def test_a_run_that_is_not_in_doubt_reads_what_changed_whatever_the_policy_says(bench: Bench) -> None:
    vm = bench.hypervisor.add("web", mib=8)
    for value in OnCbtInvalid:
        done = await bench.back_up(vm, on_cbt_invalid=value)
    assert done.disks[0].changes == "incremental"
    assert done.checks == ()


async def test_where_change_tracking_gives_no_answer_a_verifying_run_says_that_nothing_was_compared(
    bench: Bench,
) -> None:
    vm = bench.hypervisor.add("web")
    await bench.back_up(vm)
    bench.hypervisor.guests[vm.address].tracking = "52 another"
    done = await bench.back_up(vm, on_cbt_invalid=OnCbtInvalid.VERIFY)
    assert [check.result for check in done.checks] == ["impossible"]
    assert "change tracking was started again" in done.checks[0].sentence


async def test_a_last_restore_point_that_cannot_be_read_stops_the_comparison_not_the_run(
    bench: Bench, tmp_path: Path
) -> None:
    vm = bench.hypervisor.add("web", mib=8)
    await bench.back_up(vm)
    bench.hypervisor.disk_file(vm).write_bytes(os.urandom(8 * MIB))
    for pack in (tmp_path / "repo" / "packs").rglob("*"):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[len(data) // 4] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(data)
    done = await bench.back_up(vm, distrust="it was moved", on_cbt_invalid=OnCbtInvalid.VERIFY)
    assert [check.result for check in done.checks] in (["impossible"], ["differed"])
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()


async def test_a_run_that_shall_fail_says_why_and_leaves_nothing(bench: Bench) -> None:
    vm = bench.hypervisor.add("web")
    await bench.back_up(vm, distrust="it is new", on_cbt_invalid=OnCbtInvalid.FAIL)
    bench.hypervisor.guests[vm.address].tracking = "52 another"
    with pytest.raises(TrackingUnusable, match=r"web: change tracking of Hard disk 1 cannot be trusted: .*--full"):
        await bench.back_up(vm, on_cbt_invalid=OnCbtInvalid.FAIL)
    assert len(bench.repository.points()) == 1
    assert bench.hypervisor.snapshots[vm.address] == {}


def policy(value: str) -> str:
    return EVERYTHING.replace("[[policy", f'on_cbt_invalid = "{value}"\n[[policy', 1)


async def backed_up(engine: Running, vm: Vm, *, full: bool = False) -> dict[str, Any]:
    known = engine.parts.world.named(vm.name)[0]
    return await engine.finished(await engine.control.submit(BackUpVm(known, "test", full), "alice"))


async def test_under_fail_a_moved_vm_s_run_fails_once_and_a_full_read_that_is_asked_for_goes_through(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, policy("fail"))) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        event = hypervisor.post(vm, EventType.RELOCATED)
        await engine.until_journaled({event.key})
        failed = await backed_up(engine, vm)
        assert failed["state"] == "failed", failed
        assert "was moved to other storage" in str(failed["sentence"])
        assert "backstay backup VM --full" in str(failed["sentence"])
        assert not [job for job in engine.parts.world.jobs.values() if job.last_error], "it is not tried again"
        assert (await backed_up(engine, vm, full=True))["state"] == "done"
        assert (await backed_up(engine, vm))["disks"][0]["changes"] == "incremental"


async def test_under_verify_runs_are_compared_until_change_tracking_is_right_again(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, policy("verify"))) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.disk_file(vm).write_bytes(os.urandom(4 * MIB))
        event = hypervisor.post(vm, EventType.RELOCATED)
        await engine.until_journaled({event.key})
        results = [((await backed_up(engine, vm))["disks"][0]["check"] or {}).get("result") for _ in range(3)]
        assert results == ["differed", "agreed", None]
        sample = engine.parts.metrics.registry.get_sample_value
        assert sample("backstay_tracking_untold_bytes_total") == 4 * MIB
        assert sample("backstay_tracking_distrusted_total", {"reason": "differed"}) == 1
