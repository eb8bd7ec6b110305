"""Disks that come as one stream, forward and all of it, whatever change tracking says and whichever way breaks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.commands import BackUpVm, RestoreInPlace, RestoreToVm
from engine.failures import Exit
from engine.jobs import Done
from policies.facts import PowerState, Vm
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory, broken_after
from tests.pipeline.running import EVERYTHING, configure, running
from tests.pipeline.test_engine_backup import Bench, bench, threads

__all__ = ["bench", "threads"]

BLOCK = 64 << 10


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def changed_since(bench: Bench) -> Vm:
    """A VM with a restore point, and with changes since: what had data may be empty now."""
    vm = bench.hypervisor.add("web", mib=8, data=os.urandom(6 * MIB))
    await bench.back_up(vm)
    bench.hypervisor.write(vm, 5 * MIB, os.urandom(BLOCK))
    bench.hypervisor.write(vm, MIB, bytes(BLOCK))
    return vm


def assert_all_of_it_came(bench: Bench, vm: Vm, done: Done) -> None:
    (disk,) = done.disks
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()
    assert (disk.whole, disk.read_bytes) == ("exported", 8 * MIB)
    assert disk.new_bytes == BLOCK, "what is read in full is stored as what changed"
    head = bench.repository.detail(done.point).disks[0].head
    assert head.attributes["changes"] == disk.changes == "whole: an export brings all of a disk"
    assert "tracking_sampled_blocks" not in head.attributes


async def test_an_export_is_read_in_full_where_changes_alone_were_wanted(bench: Bench) -> None:
    vm = await changed_since(bench)
    done = await bench.back_up(vm, transports=("export",), sample=10)
    assert_all_of_it_came(bench, vm, done)


@pytest.mark.parametrize("next_way", ["https", "nbd"])
async def test_the_way_after_an_export_that_breaks_reads_everything_too(bench: Bench, next_way: str) -> None:
    vm = await changed_since(bench)
    bench.hypervisor.on_read = broken_after(3, "export")
    done = await bench.back_up(vm, transports=("export", next_way))
    assert done.disks[0].transport == next_way
    assert bench.content(done.point) == bench.hypervisor.disk_file(vm).read_bytes()
    assert done.disks[0].whole == "exported"


async def test_an_export_after_a_way_that_broke_writes_over_what_that_one_had_begun(bench: Bench) -> None:
    vm = await changed_since(bench)
    bench.hypervisor.on_read = broken_after(1, "nbd")
    done = await bench.back_up(vm, transports=("nbd", "export"))
    assert [told.partition(":")[0] for told in done.disks[0].fallbacks] == ["nbd", "nbd"]
    assert_all_of_it_came(bench, vm, done)


async def test_where_nothing_writes_disks_a_restore_into_vcenter_is_declined_before_anything_is_done(
    tmp_path: Path,
) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    in_place, into_new = "into a VM that is there", "by https disks are only read"
    for order, whole, there in (("https", into_new, into_new), ('export", "https', "", in_place)):
        folder = tmp_path / order[:5]
        folder.mkdir()
        config = configure(folder, EVERYTHING, more=f'[transport]\norder = ["{order}"]')
        async with running(folder, vcenter, config) as engine:
            await engine.until(lambda engine=engine: engine.parts.world.named("web"))  # type: ignore[misc]
            point = str((await engine.finished(await engine.control.submit(BackUpVm("web"), "test")))["id"])
            vm, over = RestoreToVm(point, "copy"), RestoreInPlace(point, yes=True, power_off=True)
            for asked, says in ((vm, whole), (over, there)):
                if says:
                    declined = await engine.finished(await engine.control.submit(asked, "test"))
                    assert (declined["exit"], says in str(declined)) == (int(Exit.REFUSED), True)
    assert (vcenter.created, vcenter.guests[web.address].vm.power) == ([], PowerState.ON)
