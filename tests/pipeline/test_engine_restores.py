"""Restores beside the running engine: what is half restored is not backed up, and people are told of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.errors import Unreachable, WriteFailed
from connectors.hypervisor import CreatedVm
from engine.commands import BackUpVm, RestoreDisk, RestoreInPlace, RestoreToVm
from engine.failures import Exit
from engine.restore_journal import Journal, Restoring
from engine.restore_report import only_marked
from policies.facts import EventType, PowerState
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import configure, running

ON_REQUEST = """
schema = 1
[policy.on_request]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
"""


def half_restored(root: Path, moref: str, name: str) -> Journal:
    """The journal that a restore leaves when its engine dies."""
    journal = Journal(root / "state", Restoring("in place", "p1", "vc-1", moref, name))
    journal.begin(version="1", anew=True)
    journal.note(0, MIB)
    return journal


async def test_a_half_restored_vm_is_told_of_and_not_backed_up_until_it_is_whole(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web, other = vcenter.add("web"), vcenter.add("db")
    config = configure(tmp_path, ON_REQUEST)
    half_restored(tmp_path, web.address.moref, "web")
    vcenter.half_restored_vms[web.address] = ("web", "p1")
    async with running(tmp_path, vcenter, config) as engine:
        await engine.until(lambda: engine.parts.world.named("db"))
        health = await engine.control.health()
        assert "web is half restored from p1: do not power it on, run the same restore again" in health["problems"]
        assert engine.parts.crew.is_restoring(web)
        assert not engine.parts.crew.is_restoring(other)
        waiting = await engine.control.submit(BackUpVm("web"), "test")
        report = await engine.finished(await engine.control.submit(BackUpVm("db"), "test"))
        assert report["state"] == "done"
        assert "snapshot web" not in vcenter.log
        await engine.control.cancel(waiting, "test")
        # A person reverts it in vCenter: nothing is left to wait for.
        vcenter.half_restored_vms.clear()
        report = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert report["state"] == "done", report
        assert (await engine.control.health())["problems"] == []


async def test_a_restore_that_ended_just_before_its_engine_died_is_called_half_restored_no_more(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web, db, app = vcenter.add("web"), vcenter.add("db"), vcenter.add("app")
    half_restored(tmp_path, web.address.moref, "web")
    half_restored(tmp_path, db.address.moref, "db")
    vcenter.half_restored_vms[db.address] = ("db", "p1")
    # A VM whose host or datastore is away shows no mark, and may carry one all the same.
    away = vcenter.add("away")
    half_restored(tmp_path, away.address.moref, "away")
    vcenter.unreadable.add(away.address)
    about_to = Journal(tmp_path / "state", Restoring("in place", "p1", "vc-1", app.address.moref, "app"))
    about_to.intend("r0")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: len(engine.parts.crew.half_restored) == 3)
        assert {one.name for one in engine.parts.crew.half_restored} == {"app", "db", "away"}
        # Nothing but its journal knows the snapshot for safety that it may have made.
        assert about_to.read() is not None


async def test_a_vm_that_says_itself_that_it_is_half_restored_is_told_of_though_no_journal_is_there(
    tmp_path: Path,
) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    vcenter.half_restored_vms[web.address] = ("web", "p1")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.crew.only_marked)
        [told] = (await engine.control.health())["problems"]
        assert told.startswith("web is half restored from p1, and how far is not known here any more: do not power it")
        assert "run the same restore again, which compares everything, or to give up delete it" in told
        vcenter.marked_by = "lost-engine"
        engine.parts.cleaners["vc-1"].nudge("a test")
        await engine.until(lambda: engine.parts.crew.only_marked[0].engine == "lost-engine")
        [told] = (await engine.control.health())["problems"]
        assert "half restored from p1 by the engine lost-engine: do not power it on, let that one finish" in told
        # Nobody is told to delete a VM that stood there before.
        assert "to give up delete it if that restore made it, else remove" in told
        beside = replace(engine.parts.crew.only_marked[0], disk="Hard disk 1")
        assert "delete" not in only_marked(beside, "lost-engine")
        assert "to give up remove the disk that was added to it for Hard disk 1, and its option" in only_marked(
            beside, "test"
        )
        # A change of the VM, here that a person has made it whole, has it looked at again at once.
        vcenter.half_restored_vms.clear()
        vcenter.post(web, EventType.RECONFIGURED)
        await engine.until(lambda: not engine.parts.crew.only_marked)
        assert (await engine.control.health())["problems"] == []


async def test_a_restore_in_place_is_marked_distrusted_and_handed_back(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        before = await asyncio.to_thread(vcenter.disk_file(web).read_bytes)
        vcenter.write(web, MIB, b"since then")
        refused = await engine.finished(await engine.control.submit(RestoreInPlace(str(first["id"])), "test"))
        assert refused["exit"] == int(Exit.REFUSED)
        vcenter.set(web, power=PowerState.OFF)
        done = await engine.finished(await engine.control.submit(RestoreInPlace(str(first["id"]), yes=True), "test"))
        assert done["state"] == "done", done
        assert done["written_bytes"] == 64 << 10
        assert await asyncio.to_thread(vcenter.disk_file(web).read_bytes) == before
        assert [line for line in vcenter.log if "hand back" in line] == ["hand back web"]
        again = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert "was restored to" in str(again["disks"])


async def test_nothing_is_restored_over_the_vm_that_the_engine_stands_on(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    vcenter.own.add(web.address)
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        point = str(first["id"])
        for task in (RestoreInPlace(point, yes=True, power_off=True), RestoreDisk(point, "web", yes=True)):
            refused = await engine.finished(await engine.control.submit(task, "test"))
            assert refused["exit"] == int(Exit.REFUSED)
            assert "cannot write over what it stands on" in str(refused["sentence"])
    assert vcenter.guests[web.address].vm.power is PowerState.ON


@pytest.mark.parametrize("ends", ["well", "badly", "cancelled"])
async def test_that_a_vm_was_switched_off_for_a_restore_is_told_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    begun = asyncio.Event()

    async def stopped(*_: object, **__: object) -> CreatedVm:
        begun.set()
        if ends == "cancelled":
            await asyncio.Event().wait()
        raise WriteFailed("the host said no", where="web")

    if ends != "well":
        monkeypatch.setattr(vcenter, "take_over", stopped)
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        asked = RestoreInPlace(str(first["id"]), yes=True, power_off=True)
        task = await engine.control.submit(asked, "test")
        if ends == "cancelled":
            await begun.wait()
            await engine.control.cancel(task, "test")
        done = await engine.finished(task)
        assert (done["vm"], done["switched_off"], done["power"]) == ("web", True, "off"), done
        said = {
            "well": "",
            "badly": "web: the host said no; web was switched off for this, and is off now",
            "cancelled": "cancelled; web was switched off for this, and is off now",
        }
        assert done["sentence"] == said[ends]
        if ends == "well":
            again = await engine.finished(await engine.control.submit(asked, "test"))
            assert (again["switched_off"], again["power"]) == (False, "off"), again
    assert vcenter.guests[web.address].vm.power is PowerState.OFF


async def test_a_vm_whose_power_off_was_not_answered_is_not_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    vcenter.add("web")

    async def unanswered(*_: object) -> None:
        raise Unreachable("vCenter does not answer", where="vc-1")

    monkeypatch.setattr(vcenter, "power_off", unanswered)
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        asked = RestoreInPlace(str(first["id"]), yes=True, power_off=True)
        done = await engine.finished(await engine.control.submit(asked, "test"))
    assert (done["switched_off"], "power" in done) == (None, False)
    assert str(done["sentence"]).endswith("web was to be switched off for this: look whether it is on")


async def test_two_restores_to_one_name_do_not_run_at_once(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        with engine.parts.crew.restoring("vc-1", "copy"):
            report = await engine.finished(await engine.control.submit(RestoreToVm(str(first["id"]), "copy"), "test"))
        assert "copy is being restored already" in str(report["sentence"])
