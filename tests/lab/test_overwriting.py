"""A restore point over a VM that is there: only what differs is written, and until the end it can be undone."""

from __future__ import annotations

import asyncio
import filecmp
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import NotOurs, NoTransport
from connectors.hypervisor import OpenTarget, StoragePolicy
from engine.commands import BackUpVm, RestoreDisk, RestoreInPlace, RestoreToFile, RestoreToVm
from engine.failures import Exit
from policies.facts import Address, Disk
from tests.lab.images import GRAIN
from tests.lab.reaching import connected, transport_settings
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


@pytest.mark.parametrize("way_out", ["a bug", "no transport", "cancelled", "cancelled while it is added", "no write"])
async def test_a_disk_that_was_added_and_not_written_to_is_taken_away_whatever_went_wrong(
    fresh_lab: FreshLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way_out: str
) -> None:
    lab = fresh_lab(vms=2, disk_bytes=DISK_BYTES)
    begun = asyncio.Event()
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01", "app-02")
        first = await backed_up(engine, "web-01")
        await asyncio.to_thread(lab.power_off, "app-02")
        await asyncio.to_thread(lambda: lab.reconfigure("app-02", annotation="the shop"))
        folder = lab.vm("app-02").disks[0].flat.parent
        files = {path.name for path in folder.iterdir() if path.suffix == ".vmdk"}
        vcenter = engine.parts.hypervisors[vm_center(engine)]
        add_disk = vcenter.add_disk

        async def added(*given: Any, **more: Any) -> tuple[Disk, tuple[str, ...]]:
            disk = await add_disk(*given, **more)
            assert len(lab.vm("app-02").disks) == 2
            if way_out == "cancelled while it is added":
                begun.set()
                await asyncio.Event().wait()
            return disk

        @asynccontextmanager
        async def opened(*_: object, **__: object) -> AsyncIterator[OpenTarget]:
            begun.set()
            match way_out:
                case "a bug":
                    raise ZeroDivisionError("nobody foresaw it")
                case "no transport":
                    raise NoTransport.because([("nbd", "the server is away")], where="app-02")
                case "cancelled":
                    await asyncio.Event().wait()
            yield OpenTarget(Small(), "nbd")

        with monkeypatch.context() as injected:
            injected.setattr(vcenter, "add_disk", added)
            injected.setattr(vcenter, "write_disk", opened)
            task = await engine.control.submit(RestoreDisk(first["id"], "app-02"), "test")
            if way_out.startswith("cancelled"):
                await begun.wait()
                await engine.control.cancel(task, "test")
            report = await engine.finished(task)
        assert report["state"] == "failed", report
        assert begun.is_set()
        vm = lab.vm("app-02")
        assert len(vm.disks) == 1
        assert {path.name for path in folder.iterdir() if path.suffix == ".vmdk"} == files, "its file is gone as well"
        assert told(lab, "app-02").annotation == "the shop"
        assert await vcenter.marked_vms([vm.moref]) == []
        assert list((tmp_path / "engine" / "state" / "restores").glob("*")) == []
        await asyncio.to_thread(lab.power_on, "app-02")  # nothing keeps it off
        await asyncio.to_thread(lab.power_off, "app-02")
        report = await restored(engine, RestoreDisk(first["id"], "app-02"))
        assert report["state"] == "done", report
        assert filecmp.cmp(lab.frozen("web-01")[0].disks[0].image, lab.vm("app-02").disks[1].flat, shallow=False)


async def test_a_disk_that_was_written_to_stays_for_the_same_restore_to_go_on(
    fresh_lab: FreshLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = fresh_lab(vms=2, disk_bytes=DISK_BYTES)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01", "app-02")
        first = await backed_up(engine, "web-01")
        await asyncio.to_thread(lab.power_off, "app-02")
        vcenter = engine.parts.hypervisors[vm_center(engine)]
        write_disk = vcenter.write_disk

        @asynccontextmanager
        async def breaks(*given: Any, **more: Any) -> AsyncIterator[OpenTarget]:
            async with write_disk(*given, **more) as opened:
                monkeypatch.setattr(type(opened.writer), "flush", broken)
                yield opened

        async def broken(_: object) -> None:
            raise ZeroDivisionError("nobody foresaw it")

        with monkeypatch.context() as injected:
            injected.setattr(vcenter, "write_disk", breaks)
            assert (await restored(engine, RestoreDisk(first["id"], "app-02")))["exit"] == int(Exit.BUG)
        monkeypatch.undo()
        assert len(lab.vm("app-02").disks) == 2
        assert [one.name for one in await vcenter.marked_vms([])] == ["app-02"]
        report = await restored(engine, RestoreDisk(first["id"], "app-02"))
        assert (report["state"], report["resumed"]) == ("done", True), report
        assert len(lab.vm("app-02").disks) == 2


async def test_no_disk_is_taken_away_but_the_one_that_the_run_has_added(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=DISK_BYTES)
    await asyncio.to_thread(lab.power_off, "web-01")
    async with connected(lab, transport_settings(lab, tmp_path)) as vcenter:
        address = Address(vcenter.vcenter, lab.vm("web-01").moref)
        await vcenter.take_over(address, (), point="p1", run="r1", safety=False)
        await vcenter.discard_disk(address, run="r1", uuid="")
        assert len(lab.vm("web-01").disks) == 1, "none was added yet"
        policy = StoragePolicy()
        added, _ = await vcenter.add_disk(address, MIB, "fast-1", thin=True, label="Hard disk 1", policy=policy)
        for run, uuid, why in (("r2", added.uuid, "another run has added it"), ("r1", "6000C29a", "taken the VM into")):
            with pytest.raises(NotOurs, match=why):
                await vcenter.discard_disk(address, run=run, uuid=uuid)
        held = await asyncio.to_thread(lab.snapshot, "web-01", "by hand")
        with pytest.raises(NotOurs, match="taken the VM into use"):
            await vcenter.discard_disk(address, run="r1", uuid=added.uuid)
        await asyncio.to_thread(lab.remove_snapshot, held)
        assert len(lab.vm("web-01").disks) == 2
        for _ in range(2):
            await vcenter.discard_disk(address, run="r1", uuid=added.uuid)
        assert len(lab.vm("web-01").disks) == 1


async def test_what_is_there_already_is_refused_alike_wherever_it_is(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=DISK_BYTES)
    there = tmp_path / "there.raw"
    there.write_text("mine")
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01")
        point = str((await backed_up(engine, "web-01"))["id"])
        for task, why in (
            (RestoreToVm(point, "web-01"), "a VM or folder called web-01 is there already"),
            (RestoreToVm(point, "new", identity="keep"), "the identity of the original is in use"),
            (RestoreToFile(point, there), "is there already"),
        ):
            report = await engine.finished(await engine.control.submit(task, "test"))
            assert (report["exit"], why in str(report["sentence"])) == (int(Exit.REFUSED), True), report
        report = await engine.finished(await engine.control.submit(RestoreToVm(point, "a/b"), "test"))
        assert report["exit"] == int(Exit.USAGE)
    assert [vm.name for vm in lab.vms()] == ["web-01"]
    assert there.read_text() == "mine"


class Small:
    """A disk that turns out to be smaller than it should be."""

    capacity_bytes = GRAIN

    async def read_into(self, offset: int, view: memoryview) -> None:
        raise AssertionError("it is fresh")

    async def write(self, offset: int, data: memoryview) -> None:
        raise AssertionError("it is too small")

    async def flush(self) -> None:
        raise AssertionError("nothing was written")
