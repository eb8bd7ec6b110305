"""Disks that policies leave out: what the run, the restore point, the status, the metrics and a restore say of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from connectors.disks import Changes
from connectors.hypervisor import Snapshot, SnapshotDisk, TrackedBase
from engine import overview
from engine.commands import BackUpVm, RestoreToVm
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, configure, running

WITHOUT_SECOND = EVERYTHING + '[policy.everything.disks]\nexclude = ["number:2"]\n'


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def test_a_run_leaves_the_disk_out_and_everybody_is_told(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web", disks=3)
    async with running(tmp_path, hypervisor, configure(tmp_path, WITHOUT_SECOND)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        why = [["Hard disk 2", "left out by policy everything"]]
        assert (result["state"], result["exit"], result["unprotected"]) == ("done", 0, why)
        [row] = [row for row in (await engine.control.status())["vms"] if row["vm"] == "web"]
        assert row["unprotected_disks"] == why
        overview.publish(engine.parts)
        registry = engine.parts.metrics.registry
        assert registry.get_sample_value("backstay_left_out_disks", {"vcenter": "lab"}) == 1
        point = (await engine.control.points("web"))[-1].id
        task = await engine.control.submit(RestoreToVm(point, name="web-new", vcenter="lab"), "test")
        restored = await engine.finished(task)
        assert (restored["state"], restored["without"]) == ("done", why), restored
        copy = next(guest.vm for guest in hypervisor.guests.values() if guest.vm.name == "web-new")
        assert sorted(hypervisor.asked_to_make) == [2000, 2002]
        for index, key in enumerate(hypervisor.asked_to_make):
            assert hypervisor.disk_file(copy, index).read_bytes() == hypervisor.disk_file(vm, key - 2000).read_bytes()


async def test_a_restored_vm_has_each_disk_in_its_place_whichever_was_read_first(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = hypervisor.add("web", disks=2)
    answer, told = hypervisor.changes, asyncio.Event()

    async def later_for_the_first(
        snapshot: Snapshot, disk: SnapshotDisk, base: TrackedBase | None, *, distrust: str = ""
    ) -> Changes:
        if disk.disk.key == 2001:
            told.set()
        await told.wait()
        return await answer(snapshot, disk, base, distrust=distrust)

    monkeypatch.setattr(hypervisor, "changes", later_for_the_first)
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        point = (await engine.control.points("web"))[-1].id
        task = await engine.control.submit(RestoreToVm(point, name="web-new", vcenter="lab"), "test")
        assert (await engine.finished(task))["state"] == "done"
    copy = next(guest.vm for guest in hypervisor.guests.values() if guest.vm.name == "web-new")
    assert hypervisor.asked_to_make == (2001, 2000)
    for index, key in enumerate(hypervisor.asked_to_make):
        assert hypervisor.disk_file(copy, index).read_bytes() == hypervisor.disk_file(vm, key - 2000).read_bytes()


async def test_a_vm_of_which_all_disks_are_left_out_is_refused_before_a_snapshot_is_made(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web", disks=2)
    hypervisor.add("db")
    text = (
        EVERYTHING
        + '[policy.everything.disks]\nexclude = ["label:Hard disk ?"]\n[policy.db]\nselect.all = ["name:db"]\n'
    )
    async with running(tmp_path, hypervisor, configure(tmp_path, text)) as engine:
        await engine.until(lambda: engine.points_of("db") == 1)
        result = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert result["exit"] != 0
        assert "all its disks are left out by policy everything" in str(result["sentence"])
        assert "snapshot web" not in hypervisor.log
