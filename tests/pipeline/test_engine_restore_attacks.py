"""Restores over VMs that something happened to: between two looks, behind the engine's back, or to its own memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.hypervisor import CreatedVm
from engine.commands import BackUpVm, RestoreDisk, RestoreInPlace, RestoreToVm
from engine.failures import BadInput, Exit
from engine.overwrite import BESIDE, IN_PLACE
from engine.restore_journal import Journal, Restoring
from engine.restore_tasks import check_name
from engine.state import State
from policies.facts import Address, PowerState, Vm
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import Running, configure, running
from tests.pipeline.test_engine_restores import ON_REQUEST


async def carried_out(engine: Running, task: Any) -> dict[str, Any]:
    return await engine.finished(await engine.control.submit(task, "test"))


async def backed_up(engine: Running, name: str = "web") -> str:
    report = await carried_out(engine, BackUpVm(name))
    assert report["state"] == "done", report
    await engine.until(lambda: not engine.parts.crew.active)  # no restore is begun beside a run that is ending
    return str(report["id"])


def contents(vcenter: HypervisorInMemory, vm: Vm, disk: int = 0) -> bytes:
    return vcenter.disk_file(vm, disk).read_bytes()


def before_taking_over(vcenter: HypervisorInMemory, happens: Callable[[], None]) -> None:
    """Let something happen after the engine has looked at a VM, and before that is taken over."""
    take_over = vcenter.take_over

    async def later(*args: Any, **kwargs: Any) -> CreatedVm:
        happens()
        return await take_over(*args, **kwargs)

    vcenter.take_over = later  # type: ignore[method-assign]


@pytest.mark.parametrize("when", ["while it was looked at", "after it was looked at"])
async def test_what_a_guest_writes_between_the_question_and_the_writing_is_not_left_on_its_disk(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await backed_up(engine)
        wanted = contents(vcenter, web)
        vcenter.set(web, power=PowerState.OFF, change_version="1")

        def switched_on_and_off() -> None:
            vcenter.write(web, 2 * MIB, b"written between the question and the answer")
            vcenter.set(web, change_version="2")

        if when == "after it was looked at":
            before_taking_over(vcenter, switched_on_and_off)
        else:
            changes = vcenter.changes

            async def answered(*args: Any, **kwargs: Any) -> Any:
                answer = await changes(*args, **kwargs)
                switched_on_and_off()
                return answer

            monkeypatch.setattr(vcenter, "changes", answered)
        done = await carried_out(engine, RestoreInPlace(first, yes=True))
        assert done["state"] == "done", done
        assert done["disks"][0]["compared"] == f"the VM was changed {when}"
        assert contents(vcenter, web) == wanted


async def test_without_safety_what_was_written_between_is_not_given_up_unasked(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        vcenter.set(web, power=PowerState.OFF)
        first = await backed_up(engine)

        def switched_on_and_off() -> None:
            vcenter.write(web, 2 * MIB, b"new")
            vcenter.set(web, change_version="2")

        before_taking_over(vcenter, switched_on_and_off)
        refused = await carried_out(engine, RestoreInPlace(first, yes=True, safety=False))
        assert refused["exit"] == int(Exit.REFUSED)
        assert contents(vcenter, web)[2 * MIB : 2 * MIB + 3] == b"new"
        assert (vcenter.half_restored_vms, engine.parts.crew.half_restored) == ({}, [])


async def test_an_older_restore_point_is_not_built_on_when_the_newest_is_gone(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await backed_up(engine)
        wanted = contents(vcenter, web)
        # Not told by tracking, and settled by the next run, which reads in full.
        with vcenter.disk_file(web).open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"what tracking never told of")
        second = str((await carried_out(engine, BackUpVm("web", full=True)))["id"])
        await engine.control.expire(second, "a test", "test")
        vcenter.set(web, power=PowerState.OFF)
        done = await carried_out(engine, RestoreInPlace(first, yes=True))
        assert done["state"] == "done", done
        assert "the newest restore point is gone" in done["disks"][0]["compared"]
        assert contents(vcenter, web) == wanted


async def test_a_disk_that_stands_in_the_place_of_the_one_that_was_added_is_not_written(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    vcenter.add("web")
    other = vcenter.add("db", disks=2)
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("db"))
        first = await backed_up(engine)
        vcenter.set(other, power=PowerState.OFF)
        # The interrupted restore had made a disk with the key 2001; it was deleted, and somebody's own has that now.
        journal = Journal(
            tmp_path / "state", Restoring(BESIDE, first, "vc-1", f"{other.address.moref}/Hard disk 1", "db")
        )
        journal.begin(version="", anew=True, made="6000C29-gone")
        journal._add({"version": "", "made": 2001, "anew": False})
        vcenter.half_restored_vms[other.address] = ("db", first)
        vcenter.added[other.address] = ("Hard disk 1", other.disks[1].uuid)
        theirs = contents(vcenter, other, 1)
        done = await carried_out(engine, RestoreDisk(first, "db"))
        assert done["state"] == "done", done
        assert contents(vcenter, other, 1) == theirs
        assert contents(vcenter, other, 2) == contents(vcenter, vcenter.guests[next(iter(vcenter.guests))].vm)
        assert any(warning.endswith("is left: it holds data") for warning in done["warnings"])


async def test_one_disk_does_not_make_a_vm_whole_that_another_restore_has_left_half_done(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    db = vcenter.add("db", disks=2)
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("db"))
        first = await backed_up(engine, "db")
        vcenter.set(db, power=PowerState.OFF)
        in_place = Journal(tmp_path / "state", Restoring(IN_PLACE, first, "vc-1", db.address.moref, "db"))
        in_place.begin(version="", anew=True)
        vcenter.half_restored_vms[db.address] = ("db", first)
        over = RestoreDisk(first, "db", disk="Hard disk 1", over="Hard disk 1", yes=True)
        for left in (first, "what is not known here"):
            refused = await carried_out(engine, over)
            assert (refused["exit"], "would leave it so" in str(refused["sentence"])) == (int(Exit.REFUSED), True), left
            in_place.finish()
        assert db.address in vcenter.half_restored_vms
        assert not [line for line in vcenter.log if "take over" in line]
        done = await carried_out(engine, RestoreInPlace(first, yes=True))
        assert (done["state"], vcenter.half_restored_vms) == ("done", {}), done


async def test_a_journal_of_a_restore_that_was_given_up_takes_no_guard_away(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await backed_up(engine)
        Journal(tmp_path / "state", Restoring("in place", first, "vc-1", web.address.moref, "web")).begin(
            version="", anew=True
        )
        vcenter.write(web, MIB, b"what the VM did since it was reverted by hand")
        vcenter.set(web, power=PowerState.OFF)
        before = contents(vcenter, web)
        refused = await carried_out(engine, RestoreInPlace(first, yes=True, safety=False))
        assert (refused["exit"], "would be lost" in str(refused["sentence"])) == (int(Exit.REFUSED), True)
        assert contents(vcenter, web) == before


async def test_a_vm_with_the_mark_of_a_restore_of_which_nothing_is_known_here_is_not_backed_up(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    vcenter.half_restored_vms[web.address] = ("web", "p1")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        waiting = await engine.control.submit(BackUpVm("web"), "test")
        db = vcenter.add("db")
        await engine.until(lambda: engine.parts.world.named(db.name))
        await backed_up(engine, "db")
        assert "snapshot web" not in vcenter.log
        await engine.control.cancel(waiting, "test")


async def test_a_vm_that_is_renamed_while_it_is_restored_is_not_backed_up(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await backed_up(engine)
        with engine.parts.crew.restoring("vc-1", "web", web.address.moref):
            renamed = vcenter.set(web, name="web-old")
            assert engine.parts.crew.is_restoring(renamed)
            vcenter.set(web, power=PowerState.OFF)
            report = await carried_out(engine, RestoreInPlace(first, yes=True))
            assert "is being restored already" in str(report["sentence"])


async def test_a_backup_that_is_about_to_begin_gives_way_to_a_restore_that_began(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web, _ = vcenter.add("web"), vcenter.add("db")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("db"))
        crew, state = engine.parts.crew, engine.parts.state
        began: list[Any] = []
        distrust_of = state.distrust_of

        def restore_begins(vm: Any) -> Any:
            held = crew.restoring("vc-1", "web", web.address.moref)
            held.__enter__()
            began.append(held)
            return distrust_of(vm)

        state.distrust_of = restore_begins  # type: ignore[method-assign]
        waiting = await engine.control.submit(BackUpVm("web"), "test")
        await engine.until(lambda: began)
        state.distrust_of = distrust_of  # type: ignore[method-assign]
        await backed_up(engine, "db")
        assert "snapshot web" not in vcenter.log
        began[0].__exit__(None, None, None)
        await engine.control.cancel(waiting, "test")


async def test_the_identity_of_a_vm_that_lives_in_another_vcenter_is_not_given_away_twice(tmp_path: Path) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        first = await backed_up(engine)
        [known] = engine.parts.world.named("web")
        engine.parts.world.vms[known] = replace(web, id=known, address=Address("vc-2", "vm-9"))
        report = await carried_out(engine, RestoreToVm(first, "web", identity="keep"))
        assert report["exit"] == int(Exit.REFUSED)
        assert "the identity of the original is in use: web is still in vc-2" in str(report["sentence"])
        assert len(vcenter.guests) == 1


@pytest.mark.parametrize("name", ["", " ", "prod/web", "web\n", "..\\web", "w" * 81])
def test_what_is_no_name_of_a_vm_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="is no name of a VM"):
        check_name(name)
    check_name("Bücher 50%2f50")


async def test_tracking_that_lied_for_the_newest_restore_point_is_not_asked_although_the_state_knows_of_no_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter = HypervisorInMemory(tmp_path)
    web = vcenter.add("web")
    monkeypatch.setattr(State, "distrust", lambda *args, **kwargs: None)  # as where the engine died before it noted it
    async with running(tmp_path, vcenter, configure(tmp_path, ON_REQUEST)) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        await backed_up(engine)
        vcenter.disk_file(web).write_bytes(os.urandom(web.disks[0].capacity_bytes))
        lied = await backed_up(engine)
        wanted = contents(vcenter, web)
        vcenter.set(web, power=PowerState.OFF)
        with vcenter.disk_file(web).open("r+b") as file:
            file.write(b"not told by tracking")
        done = await carried_out(engine, RestoreInPlace(lied, yes=True))
        assert done["state"] == "done", done
        assert contents(vcenter, web) == wanted
        assert "unchanged that had changed" in done["disks"][0]["compared"]
