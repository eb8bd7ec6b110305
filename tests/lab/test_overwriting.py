"""A restore point over a VM that is there: only what differs is written, and until the end it can be undone."""

from __future__ import annotations

import asyncio
import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyVmomi import vim

from engine.commands import BackUpVm, RestoreDisk, RestoreInPlace
from engine.failures import Exit
from tests.lab.images import GRAIN
from tests.lab.test_engine_end_to_end import config_for
from tests.lab.test_provision import told
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of

FreshLab = Callable[..., Lab]
DISK_BYTES = 16 * MIB
ON_REQUEST = """
schema = 1
[policy.on_request]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
"""


async def backed_up(engine: Running, name: str, **how: Any) -> dict[str, Any]:
    report = await engine.finished(await engine.control.submit(BackUpVm(name, **how), "test"))
    assert report["state"] == "done", report
    return report


async def restored(engine: Running, task: RestoreInPlace | RestoreDisk) -> dict[str, Any]:
    return await engine.finished(await engine.control.submit(task, "test"))


async def known(engine: Running, *names: str) -> None:
    await engine.until(lambda: all(engine.parts.world.named(name) for name in names), seconds=60)


def writes(lab: Lab, name: str, disk: int = 0) -> set[int]:
    """The grains of the VM's disk that the server of NBD was asked to write."""
    flat = lab.vm(name).disks[disk].flat
    log = flat.with_name(flat.name + ".writes")
    spans = [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []
    return {g for offset, length in spans for g in range(offset // GRAIN, -(-(offset + length) // GRAIN))}


def same(lab: Lab, name: str, taken: int, disk: int = 0) -> bool:
    """Whether the VM's disk is as the lab froze it for its n-th snapshot."""
    return filecmp.cmp(lab.frozen(name)[taken].disks[disk].image, lab.vm(name).disks[disk].flat, shallow=False)


def grains(extents: list[tuple[int, int]]) -> set[int]:
    return {g for offset, length in extents for g in range(offset // GRAIN, (offset + length) // GRAIN)}


async def test_in_place_only_what_differs_is_written_and_the_next_run_reads_in_full(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=DISK_BYTES)
    write = lab.write_random_grains
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01")
        await asyncio.to_thread(lambda: lab.reconfigure("web-01", annotation="the books"))
        # Switched off by hand is a doubt about change tracking, which the first run settles.
        await asyncio.to_thread(lab.power_off, "web-01")
        await engine.until_written("SELECT 1 FROM events WHERE type = 'vm.powered_off'")
        first = await backed_up(engine, "web-01")
        between = await asyncio.to_thread(lambda: write("web-01", 0, share=0.02, seed=1))
        await backed_up(engine, "web-01")
        since = await asyncio.to_thread(lambda: write("web-01", 0, share=0.02, seed=2))
        asked = RestoreInPlace(first["id"], yes=True)
        report = await restored(engine, asked)
        assert report["state"] == "done", report
        [disk] = report["disks"]
        assert disk["compared"] == ""
        assert disk["transport"] == "nbd"
        assert [way for way, _ in disk["fallbacks"]] == []
        assert same(lab, "web-01", 0)
        assert writes(lab, "web-01") == grains(between) | grains(since)
        assert disk["written_bytes"] == len(writes(lab, "web-01")) * GRAIN
        assert not lab.vm("web-01").snapshots
        assert told(lab, "web-01").annotation == "the books"
        again = await backed_up(engine, "web-01")
        [how] = again["disks"]
        assert how["changes"].startswith("whole: ")
        assert "was restored to" in how["changes"]


async def test_it_is_refused_unless_confirmed_off_and_without_snapshots(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=DISK_BYTES)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01")
        first = await backed_up(engine, "web-01")
        before = lab.calls()
        report = await restored(engine, RestoreInPlace(first["id"]))
        assert (report["exit"], "confirm with --yes" in str(report["sentence"])) == (int(Exit.REFUSED), True)
        report = await restored(engine, RestoreInPlace(first["id"], yes=True))
        assert "not powered off" in str(report["sentence"])
        await asyncio.to_thread(lab.power_off, "web-01")
        await asyncio.to_thread(lab.snapshot, "web-01")
        report = await restored(engine, RestoreInPlace(first["id"], yes=True))
        assert "it has snapshots, above which nothing may be written" in str(report["sentence"])
        after = lab.calls()
        # What an administrator did beside us counts too: one snapshot, no change of the VM.
        assert after.get("ReconfigVM_Task", 0) == before.get("ReconfigVM_Task", 0)
        assert writes(lab, "web-01") == set()


async def test_with_power_off_it_is_switched_off_first(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=DISK_BYTES)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01")
        await asyncio.to_thread(lambda: lab.reconfigure("web-01", annotation="the books"))
        first = await backed_up(engine, "web-01")
        await asyncio.to_thread(lambda: lab.write_random_grains("web-01", 0, share=0.02, seed=1))
        report = await restored(engine, RestoreInPlace(first["id"], yes=True, power_off=True, keep_safety=True))
        assert report["state"] == "done", report
        vm = lab.vm("web-01")
        assert vm.power == "poweredOff"
        assert len(vm.snapshots) == 1
        assert same(lab, "web-01", 0)
        safety = next(w for w in report["warnings"] if "backstay-safety-" in w)
        assert await engine.parts.hypervisors[vm_center(engine)].leftovers(lambda run: False) == []
        # A revert by hand brings everything back that was there before.
        await asyncio.to_thread(lab.revert, vm.snapshots[0])
        assert filecmp.cmp(lab.frozen("web-01")[-1].disks[0].image, lab.vm("web-01").disks[0].flat, shallow=False)
        assert told(lab, "web-01").annotation == "the books"
        assert safety


def vm_center(engine: Running) -> str:
    return next(iter(engine.parts.hypervisors))


async def test_without_safety_nothing_that_was_never_backed_up_is_given_up_unasked_and_hot_add_writes(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=DISK_BYTES)
    config = config_for(lab, tmp_path / "engine", ON_REQUEST, order='hotadd", "nbd', proxy="app-02")
    before = lab.vm("app-02").disks
    async with engine_of(config) as engine:
        await known(engine, "web-01")
        first = await backed_up(engine, "web-01")
        since = await asyncio.to_thread(lambda: lab.write_random_grains("web-01", 0, share=0.02, seed=1))
        await asyncio.to_thread(lab.power_off, "web-01")
        asked = RestoreInPlace(first["id"], yes=True, safety=False)
        report = await restored(engine, asked)
        assert report["exit"] == int(Exit.REFUSED)
        assert "this would be lost" in str(report["sentence"])
        report = await restored(engine, RestoreInPlace(first["id"], yes=True, safety=False, discard=True))
        assert report["state"] == "done", report
        assert same(lab, "web-01", 0)
        [disk] = report["disks"]
        assert disk["transport"] == "hotadd"
        assert disk["compared"] != "" or disk["written_bytes"] == len(grains(since)) * GRAIN
        # Above a snapshot the disk is not attached.
        report = await restored(engine, RestoreInPlace(first["id"], yes=True))
        [disk] = report["disks"]
        assert (disk["transport"], disk["fallbacks"][0][0]) == ("nbd", "hotadd")
        assert disk["written_bytes"] == 0
    assert lab.vm("app-02").disks == before


async def test_a_disk_that_is_another_one_now_is_not_written_over(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=DISK_BYTES)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01")
        first = await backed_up(engine, "web-01")
        await asyncio.to_thread(lab.power_off, "web-01")
        old = lab.vm("web-01").disks[0]

        def swap() -> None:
            [device] = [d for d in told(lab, "web-01").hardware.device if d.key == old.key]
            gone = vim.vm.device.VirtualDeviceSpec(operation="remove", device=device)
            lab.reconfigure("web-01", deviceChange=[gone])
            lab.add_disk("web-01", DISK_BYTES)

        await asyncio.to_thread(swap)
        assert lab.vm("web-01").disks[0].capacity_bytes == old.capacity_bytes
        report = await restored(engine, RestoreInPlace(first["id"], yes=True))
        assert "is not the one of the restore point" in str(report["sentence"])


async def test_a_disk_is_added_to_a_vm_or_written_over_one_of_its_disks(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=DISK_BYTES)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01", "app-02")
        first = await backed_up(engine, "web-01")
        image = lab.frozen("web-01")[0].disks[0].image
        await asyncio.to_thread(lab.power_off, "app-02")
        before = lab.vm("app-02").disks[0].flat.read_bytes()
        report = await restored(engine, RestoreDisk(first["id"], "app-02"))
        assert report["state"] == "done", report
        kept, added = lab.vm("app-02").disks
        assert filecmp.cmp(image, added.flat, shallow=False)
        assert kept.flat.read_bytes() == before
        no_disk = RestoreDisk(first["id"], "app-02", disk="none")
        for wrong in (no_disk, RestoreDisk(first["id"], "app-02", over="none", yes=True)):
            assert (await restored(engine, wrong))["exit"] == int(Exit.USAGE)
        over = RestoreDisk(first["id"], "app-02", over=kept.label)
        report = await restored(engine, over)
        assert "confirm with --yes" in str(report["sentence"])
        report = await restored(engine, RestoreDisk(first["id"], "app-02", over=kept.label, yes=True))
        assert report["state"] == "done", report
        assert filecmp.cmp(image, kept.flat, shallow=False)
        assert not lab.vm("app-02").snapshots
