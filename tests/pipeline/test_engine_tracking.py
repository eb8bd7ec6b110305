"""What a run does where change tracking may not be trusted: read everything, compare besides, or fail."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.disks import Changes, Extent
from connectors.errors import Gone, ReadFailed, TrackingUnusable, TransportFailed
from connectors.hypervisor import TrackingDoubt
from engine import worker
from engine.attempts import TrackingLied
from engine.commands import BackUpVm
from engine.copying import Copied, CopyPlan
from engine.failures import Kind, verdict
from engine.jobs import Sampled
from engine.state import State
from engine.streaming import stream_disk
from engine.tracking_doubts import known_doubt
from policies.facts import EventType, ForeignSnapshot, Vm
from policies.policy import OnCbtInvalid
from policies.policyset import PolicySet
from policies.protection import Protection, protection
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory, broken_after
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


async def test_a_disk_that_is_read_in_full_is_stored_as_what_changed(bench: Bench) -> None:
    """One block of 48 MiB changed: the bytes and the metadata of a full read are those of an incremental one."""
    vm = bench.hypervisor.add("web", mib=48, data=os.urandom(48 * MIB))
    first = await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * MIB, os.urandom(BLOCK))
    incremental = (await bench.back_up(vm)).disks[0]
    bench.hypervisor.write(vm, 9 * MIB, os.urandom(BLOCK))
    full = (await bench.back_up(vm, distrust="it was moved")).disks[0]
    assert (incremental.read_bytes, full.read_bytes) == (BLOCK, 48 * MIB)
    assert full.new_bytes == incremental.new_bytes == BLOCK
    assert full.stored_bytes <= incremental.stored_bytes + 4096, "one leaf and its parents, not the whole map"
    assert full.stored_bytes * 100 < first.disks[0].stored_bytes
    unchanged = (await bench.back_up(vm, distrust="it was moved")).disks[0]
    assert (unchanged.new_bytes, unchanged.stored_bytes) == (0, 0), "the map of the point before is its own"


def in_use(bench: Bench, blocks: int = 64) -> Vm:
    """A VM whose disk holds something everywhere."""
    return bench.hypervisor.add("web", mib=blocks * BLOCK // MIB, data=os.urandom(blocks * BLOCK))


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_a_sample_of_what_change_tracking_calls_unchanged_is_read_again(bench: Bench, transport: str) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * BLOCK, os.urandom(100))
    done = await bench.back_up(vm, sample=10, transports=(transport,))
    (disk,) = done.disks
    assert disk.sampled == Sampled(blocks=10)
    assert (disk.changes, disk.read_bytes) == ("incremental", BLOCK)
    assert list(done.doubts) == []
    head = bench.repository.detail(done.point).disks[0].head
    assert head.attributes["tracking_sampled_blocks"] == "10"


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_a_sample_that_differs_has_the_same_run_read_the_disk_in_full(bench: Bench, transport: str) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * BLOCK, os.urandom(100))
    for block in range(40, 64):
        written_in_secret(bench, vm, block * BLOCK + 9, os.urandom(40))
    done = await bench.back_up(vm, sample=32, transports=(transport,))
    (disk,) = done.disks
    assert disk.sampled is not None
    assert 1 <= disk.sampled.differ <= 24
    assert (disk.whole, disk.read_bytes) == ("sample_differed", 64 * BLOCK)
    assert disk.check is not None
    assert disk.check.untold_bytes == 24 * BLOCK, "the full read counts all that was forgotten"
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()
    assert disk.new_bytes <= 25 * BLOCK, "what is read in full is stored as what changed"
    assert [kind for kind, _ in done.doubts] == ["sample_differed"]
    assert "called" in next(iter(done.doubts))[1]


async def test_a_block_that_was_empty_or_became_so_unnoticed_is_found_too(bench: Bench) -> None:
    filled, emptied = (bench.hypervisor.add(name, mib=4, data=os.urandom(2 * MIB)) for name in ("web", "db"))
    await bench.back_up(filled)
    await bench.back_up(emptied)
    written_in_secret(bench, filled, 2 * MIB, os.urandom(2 * MIB))
    assert (await bench.back_up(filled, sample=8)).disks[0].whole == "sample_differed"
    written_in_secret(bench, emptied, 0, bytes(2 * MIB))
    assert (await bench.back_up(emptied, sample=64)).disks[0].whole == "sample_differed"


async def test_under_fail_a_sample_that_differs_leaves_no_restore_point(bench: Bench) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    written_in_secret(bench, vm, 0, os.urandom(64 * BLOCK))
    with pytest.raises(TrackingLied, match="called 4 of 4 blocks unchanged"):
        await bench.back_up(vm, sample=4, on_cbt_invalid=OnCbtInvalid.FAIL)
    assert len(bench.repository.points()) == 1
    assert bench.hypervisor.snapshots[vm.address] == {}


async def test_a_last_restore_point_that_cannot_be_read_stops_the_sample_not_the_run(
    bench: Bench, tmp_path: Path
) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    written_in_secret(bench, vm, 0, os.urandom(64 * BLOCK))
    bench.hypervisor.write(vm, 0, os.urandom(64 * BLOCK - 3 * BLOCK))
    for pack in (tmp_path / "repo" / "packs").rglob("*"):
        if pack.suffix == ".data":
            data = bytearray(pack.read_bytes())
            for at in range(100, len(data) - (16 << 10), 1000):
                data[at] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(data)
    done = await bench.back_up(vm, sample=3)
    (disk,) = done.disks
    assert disk.sampled is not None
    assert (disk.sampled.blocks, disk.whole) == (0, "")
    assert disk.sampled.reason


async def test_two_runs_sample_other_blocks_and_one_run_always_the_same(bench: Bench) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    read: list[list[int]] = []
    for _ in range(2):
        offsets: list[int] = []
        bench.hypervisor.on_read = lambda transport, offset, offsets=offsets: offsets.append(offset)  # type: ignore[misc]
        await bench.back_up(vm, sample=8)
        read.append(sorted(offsets))
    assert [len(offsets) for offsets in read] == [8, 8]
    assert read[0] != read[1]


async def test_the_engine_samples_by_itself_resets_what_lied_and_trusts_again_what_begins_then(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", data=os.urandom(4 * MIB))
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.disk_file(vm).write_bytes(os.urandom(4 * MIB))
        disks = [(await backed_up(engine, vm))["disks"][0] for _ in range(4)]
        assert [disk["whole"] for disk in disks] == ["sample_differed", "distrusted", "tracking_off", ""]
        assert disks[1]["changes"].endswith("; it is being reset")
        [disk] = (await engine.control.point("web@latest"))["disks"]
        assert disk["tracking_sampled_blocks"] > 0
        assert disk["fallbacks"] == []
        sample = engine.parts.metrics.registry.get_sample_value
        assert sample("backstay_tracking_distrusted_total", {"reason": "sample_differed"}) == 1
        assert (sample("backstay_tracking_sampled_blocks_total", {"result": "differed"}) or 0) >= 1
        assert (sample("backstay_tracking_sampled_blocks_total", {"result": "agreed"}) or 0) >= 1


async def test_under_fail_a_lie_is_remembered_until_a_full_read_is_asked_for(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", data=os.urandom(4 * MIB))
    async with running(tmp_path, hypervisor, configure(tmp_path, policy("fail"))) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.disk_file(vm).write_bytes(os.urandom(4 * MIB))
        for _ in range(2):
            failed = await backed_up(engine, vm)
            assert failed["state"] == "failed", failed
            assert "unchanged that had changed" in str(failed["sentence"])
        assert hypervisor.guests[vm.address].vm.tracking_enabled, "who is to find out why needs it as it is"
        assert (await backed_up(engine, vm, full=True))["state"] == "done"
        assert not hypervisor.guests[vm.address].vm.tracking_enabled
        changes = [(await backed_up(engine, vm))["disks"][0]["changes"] for _ in range(2)]
        assert changes == ["whole: changes were not tracked when the last restore point was made", "incremental"]


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not-noted"])
async def test_under_fail_a_lie_that_only_the_newest_restore_point_keeps_is_left_to_be_looked_at_too(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    vm = hypervisor.add("web", data=os.urandom(4 * MIB))
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.disk_file(vm).write_bytes(os.urandom(4 * MIB))
        with monkeypatch.context() as patched:
            if not noted:  # as where the engine died before it noted it
                patched.setattr(State, "distrust", lambda *args, **kwargs: None)
            assert (await backed_up(engine, vm))["disks"][0]["whole"] == "sample_differed"

        def failing(policies: PolicySet, known: Vm) -> Protection:
            return replace(protection(policies, known), on_cbt_invalid=OnCbtInvalid.FAIL)

        monkeypatch.setattr(worker, "protection", failing)
        for _ in range(2):
            failed = await backed_up(engine, vm)
            assert failed["state"] == "failed", failed
            assert "cannot be trusted" in str(failed["sentence"])
            assert "unchanged that had changed" in str(failed["sentence"])
            assert hypervisor.guests[vm.address].vm.tracking_enabled, "who is to find out why needs it as it is"
        assert (await backed_up(engine, vm, full=True))["state"] == "done"
        assert not hypervisor.guests[vm.address].vm.tracking_enabled


async def test_tracking_that_lied_is_reset_although_the_state_was_lost(bench: Bench) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    written_in_secret(bench, vm, 0, os.urandom(64 * BLOCK))
    lied = await bench.back_up(vm, sample=4)
    [record] = bench.repository.detail(lied.point).disks
    assert record.head.change_id
    known = known_doubt("", bench.repository.latest(lied.vm))
    assert known == TrackingDoubt(record.head.attributes["tracking_lied"], frozenset({"52 de"}))
    assert [(await bench.back_up(vm)).disks[0].whole for _ in range(3)] == ["distrusted", "tracking_off", ""]


async def test_tracking_that_began_under_a_snapshot_is_read_in_full_until_it_was_reset_without_one(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web", data=os.urandom(MIB))
    foreign = ForeignSnapshot("by hand", datetime.now(UTC))
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.set(vm, snapshots=(foreign,))
        hypervisor.post(vm, EventType.RECONFIGURED, tracking="on")
        read = engine.parts.metrics.registry.get_sample_value
        name = "backstay_tracking_distrusted_total"
        await engine.until(lambda: read(name, {"reason": "reconfigured"}) == 1)
        kinds = [(await backed_up(engine, vm))["disks"][0]["whole"] for _ in range(2)]
        assert kinds == ["distrusted", "distrusted"], "a full read settles nothing"
        [point, *_] = (await engine.control.points("web"))[::-1]
        kept = engine.parts.repositories.named("").detail(point.id).head.attributes["tracking_doubt"]
        assert "while the VM has a snapshot of somebody else (by hand)" in kept
    (tmp_path / "state" / "state.duckdb").unlink()
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        assert (await backed_up(engine, vm))["disks"][0]["whole"] == "distrusted"
        hypervisor.set(vm, snapshots=())
        changes = [(await backed_up(engine, vm))["disks"][0]["changes"] for _ in range(3)]
        assert changes == [
            "whole: it is being reset", "whole: changes were not tracked when the last restore point was made",
            "incremental",
        ]  # fmt: skip


async def test_tracking_that_is_another_one_under_a_snapshot_from_before_needs_no_event_to_be_doubted(
    bench: Bench,
) -> None:
    vm = bench.hypervisor.add("web", mib=1)
    bench.hypervisor.set(vm, snapshots=(ForeignSnapshot("by hand", datetime.now(UTC)),))
    await bench.back_up(vm)
    bench.hypervisor.guests[vm.address].tracking = "61 f0"
    found = [(await bench.back_up(vm)).disks[0] for _ in range(2)]
    assert [disk.whole for disk in found] == ["distrusted", "distrusted"]
    assert 'began anew while the snapshot "by hand" stood' in found[0].changes


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_changes_of_a_run_that_failed_are_in_the_next_one(bench: Bench, transport: str) -> None:
    """The change ids of a run are committed with its restore point or not at all."""
    vm = in_use(bench)
    await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * BLOCK, os.urandom(BLOCK))
    bench.hypervisor.on_read = broken_after(0, transport)
    with pytest.raises(ReadFailed):
        await bench.back_up(vm, transports=(transport,))
    bench.hypervisor.on_read = lambda transport, offset: None
    bench.hypervisor.write(vm, 9 * BLOCK, os.urandom(BLOCK))
    done = await bench.back_up(vm)
    assert (done.disks[0].changes, done.disks[0].read_bytes) == ("incremental", 2 * BLOCK)
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_a_changed_part_that_is_a_hole_now_is_stored_as_zeros(bench: Bench, transport: str) -> None:
    vm = in_use(bench)
    await bench.back_up(vm)
    with bench.hypervisor.disk_file(vm).open("r+b") as file:
        file.truncate(3 * MIB)
        file.truncate(4 * MIB)
    bench.hypervisor.guests[vm.address].writes[2000].append(Extent(3 * MIB, MIB))
    done = await bench.back_up(vm, transports=(transport,))
    assert done.disks[0].changes == "incremental"
    content = bench.content(done.point)
    assert content[3 * MIB :] == bytes(MIB)
    assert content == bench.hypervisor.disk_file(vm).read_bytes()


@pytest.mark.parametrize("transport", ["nbd", "hotadd"])
async def test_a_disk_that_is_shown_smaller_than_it_is_is_no_restore_point(bench: Bench, transport: str) -> None:
    vm = in_use(bench)
    os.truncate(bench.hypervisor.disk_file(vm), 3 * MIB)
    with pytest.raises(TransportFailed, match=f"{transport} shows 3145728 bytes of a disk of 4194304"):
        await bench.back_up(vm, transports=(transport,))
    assert bench.repository.points() == []


async def test_a_disk_of_which_less_was_read_than_planned_is_no_restore_point(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = in_use(bench)

    async def forgetful(reader: Any, sink: Any, plan: CopyPlan, **more: Any) -> Copied:
        await stream_disk(reader, sink, replace(plan, read=plan.read[:-1]), **more)
        return Copied(plan.read_bytes, 0)

    monkeypatch.setattr("engine.diskreading.stream_disk", forgetful)
    with pytest.raises(ReadFailed, match="0 of 4194304 bytes were read"):
        await bench.back_up(vm, transports=("nbd",))
    assert bench.repository.points() == []


async def test_a_snapshot_that_somebody_removed_fails_the_run_for_now_and_not_for_good(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = bench.hypervisor.add("web")
    await bench.back_up(vm)

    async def gone(*_: object, **__: object) -> Changes:
        raise Gone("snapshot-7 is not there any more")

    monkeypatch.setattr(bench.hypervisor, "changes", gone)
    with pytest.raises(ReadFailed, match="somebody removed the snapshot, or reverted the VM") as failed:
        await bench.back_up(vm)
    assert verdict(failed.value).kind is Kind.RETRY
    assert len(bench.repository.points()) == 1
