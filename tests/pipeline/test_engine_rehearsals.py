"""Rehearsals of a whole engine: on the policy's schedule, by hand, with damage, without a sign of life, cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connectors.disk_files import FileWriter
from connectors.errors import NoRoom, Unreachable
from connectors.hypervisor import CreatedVm, DatastoreSpace, Heartbeat, RestoreTarget
from engine import rehearsals, upkeep
from engine.commands import BackUpVm, Rehearse
from engine.failures import BadInput, RemoteFailure
from engine.headroom import Marks
from engine.rehearsing import heartbeat_of, place, trial_name
from engine.troubles import troubles
from policies.facts import PowerState, Vm
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, running

REHEARSED = (
    EVERYTHING
    + """
[policy.everything.rehearse]
every = "30d"
heartbeat = true
"""
)
OFTEN = 'rehearsals = "1s"\n'


@pytest.fixture
def vcenter(tmp_path: Path) -> HypervisorInMemory:
    return HypervisorInMemory(tmp_path)


async def backed_up(engine: Running, vm: Vm) -> str:
    await engine.until(lambda: engine.points_of(vm.name))
    return engine.parts.world.points[engine.parts.world.named(vm.name)[0]][-1].id


async def rehearsed(engine: Running, task: Rehearse) -> Mapping[str, Any]:
    return await engine.finished(await engine.control.submit(task, "a test"))


def value(engine: Running, name: str, **labels: str) -> float | None:
    return engine.parts.metrics.registry.get_sample_value(f"backstay_{name}", labels)


async def test_what_a_policy_wants_is_rehearsed_once_recorded_and_told(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    vm = vcenter.add("db", disks=2)
    async with running(tmp_path, vcenter, configure(tmp_path, REHEARSED, more=OFTEN)) as engine:
        point = await backed_up(engine, vm)
        await engine.until(lambda: engine.parts.rehearsals.newest)
        await engine.until(lambda: "none is due" in engine.parts.upkeep.get("rehearsals", ""))
        [(id, last)] = engine.parts.rehearsals.newest.items()
        assert (last.point, last.passed, last.why) == (point, True, "")
        assert vcenter.log.count("heartbeat") == 1
        assert [line for line in vcenter.log if line.startswith("trial")][1:] == ["trial removed"]
        assert list(vcenter.trials) == []
        assert [row.name for row in await vcenter.inventory()] == ["db"]
        assert value(engine, "rehearsals_total", result="passed") == 1
        assert value(engine, "rehearsal_overdue_vms", policy="everything") == 0
        await upkeep.publish(engine.parts)
        labels = {"vcenter": "lab", "vm_id": id, "vm": "db"}
        assert value(engine, "vm_rehearsal_last_success_timestamp_seconds", **labels) == last.at.timestamp()
        status = await engine.control.status()
        assert [(row["policy"], row["vms"], row["overdue"]) for row in status["rehearsals"]] == [("everything", 1, 0)]
        assert "passed" in status["vms"][0]["rehearsal"]["words"]
        shown = await engine.control.point(point)
        assert [(one["passed"], one["policy"]) for one in shown["rehearsals"]] == [(True, "everything")]
        assert "rehearsed at" in (await engine.control.explain("db"))["text"]
    async with running(tmp_path, vcenter, configure(tmp_path, REHEARSED, more=OFTEN)) as engine:
        assert engine.parts.rehearsals.newest[id].point == point, "a start remembers what was rehearsed"


async def test_a_damaged_restore_point_fails_its_rehearsal_is_marked_and_told(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    vm = vcenter.add("db")
    more = 'rehearsals = "1d"\n[notify.ops]\nwebhook = "file:hook"\n'
    (tmp_path / "hook").write_text("https://127.0.0.1:9/")
    config = configure(tmp_path, REHEARSED.replace("rpo =", 'notify = ["ops"]\nrpo ='), more=more)
    async with running(tmp_path, vcenter, config) as engine:
        point = await backed_up(engine, vm)
        for pack in (tmp_path / "repo" / "packs").rglob("*"):
            if pack.is_file():
                data = bytearray(pack.read_bytes())
                data[len(data) // 3] ^= 1
                pack.write_bytes(data)
        result = await rehearsed(engine, Rehearse("db"))
        assert (result["state"], result["passed"], result["exit_code"]) == ("done", False, 4)
        assert "damaged" in str(result["why"])
        assert "trial removed" in vcenter.log
        [listed] = engine.parts.world.points[engine.parts.world.named("db")[0]]
        assert (listed.id, listed.damaged) == (point, True)
        topics = {one.topic.value: one.sentence for one in await troubles(engine.parts)}
        assert "damage" in topics
        assert topics["rehearsal_failed"].startswith(f"restoring db was tried from {point}, and failed")
        assert value(engine, "rehearsals_total", result="failed") == 1


async def test_a_byte_that_is_not_what_was_restored_fails_the_rehearsal(
    tmp_path: Path, vcenter: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = vcenter.add("db", disks=2)
    config = configure(tmp_path)
    opened: list[int] = []
    written = vcenter.write_disk

    def spoiled(made: CreatedVm, index: int, **more: Any) -> Any:
        opened.append(index)
        if opened == [0, 0, 1, 1]:  # when the second disk is opened to be read back
            with FileWriter(vcenter.guests[made.address].files[made.disks[1].key]) as writer:
                writer.write(12345, memoryview(b"\xff\x00"))
        return written(made, index, **more)

    monkeypatch.setattr(vcenter, "write_disk", spoiled)
    async with running(tmp_path, vcenter, config) as engine:
        point = await backed_up(engine, vm)
        result = await rehearsed(engine, Rehearse(point, heartbeat=True))
        assert (result["passed"], result["exit_code"]) == (False, 4)
        assert [disk["differing_bytes"] for disk in result["disks"]] == [0, 65536]
        assert "heartbeat" not in vcenter.log, "a VM with other bytes is not switched on"
        [listed] = engine.parts.world.points[engine.parts.world.named("db")[0]]
        assert not listed.damaged, "its own bytes are as they were written"


async def test_a_guest_without_a_sign_of_life_is_told_and_one_without_tools_is_not_waited_for(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    db, web = vcenter.add("db"), vcenter.add("web")
    vcenter.set(web, tools_running=False)
    vcenter.lifeless = "its VMware Tools did not start"
    async with running(tmp_path, vcenter, configure(tmp_path)) as engine:
        await backed_up(engine, db)
        await backed_up(engine, web)
        result = await rehearsed(engine, Rehearse("db", heartbeat=True, heartbeat_seconds=30))
        assert (result["passed"], result["exit_code"]) == (False, 3)
        assert result["why"] == "no sign of life from its guest within 30 s: its VMware Tools did not start"
        result = await rehearsed(engine, Rehearse("web@latest", heartbeat=True))
        assert (result["passed"], result["exit_code"]) == (True, 0)
        assert result["heartbeat"]["why"] == "web itself runs no VMware Tools"


async def test_an_older_restore_point_is_tried_but_does_not_count_and_a_second_one_at_a_time_is_refused(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    vm = vcenter.add("db")
    holding, held = asyncio.Event(), asyncio.Event()
    async with running(tmp_path, vcenter, configure(tmp_path)) as engine:
        first = await backed_up(engine, vm)
        vcenter.write(vm, MIB, b"more")
        await engine.finished(await engine.control.submit(BackUpVm("db"), "a test"))
        result = await rehearsed(engine, Rehearse(first))
        assert result["passed"]
        assert engine.parts.rehearsals.newest == {}
        vcenter.on_trial = lambda vm: held.set()
        beat = vcenter.heartbeat

        async def slow(vm: CreatedVm, seconds: float) -> Heartbeat:
            await holding.wait()
            return await beat(vm, seconds)

        vcenter.heartbeat = slow  # type: ignore[method-assign]
        one = await engine.control.submit(Rehearse("db", heartbeat=True), "a test")
        await held.wait()
        refused = await rehearsed(engine, Rehearse("db"))
        assert (refused["state"], refused["exit"]) == ("failed", 2)
        assert "being rehearsed already" in str(refused["sentence"])
        await engine.control.cancel(one, "a test")
        assert (await engine.finished(one))["state"] == "failed"
        assert list(vcenter.trials) == [], "a cancelled rehearsal leaves nothing"
        assert engine.parts.rehearsals.newest == {}


async def test_what_a_killed_engine_left_is_removed_by_the_next_one(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    vm = vcenter.add("db")
    vcenter.keep_trials = True
    async with running(tmp_path, vcenter, configure(tmp_path)) as engine:
        await backed_up(engine, vm)
        assert (await rehearsed(engine, Rehearse("db")))["passed"]
        assert len(vcenter.trials) == 1
    async with running(tmp_path, vcenter, configure(tmp_path)) as engine:
        await engine.until(lambda: not vcenter.trials)
        assert "janitor removes a trial VM" in vcenter.log


async def test_a_vm_that_cannot_be_tried_now_keeps_no_other_from_its_rehearsal(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    first, second = vcenter.add("first"), vcenter.add("second")
    config = configure(tmp_path, REHEARSED, more='rehearsals = "1d"\n')
    trial_vm = vcenter.trial_vm

    def unreachable(configuration: bytes, target: RestoreTarget) -> Any:
        if "first" in target.name:
            raise Unreachable("it does not answer")
        return trial_vm(configuration, target)

    vcenter.trial_vm = unreachable  # type: ignore[method-assign]
    async with running(tmp_path, vcenter, config) as engine:
        await backed_up(engine, first)
        await backed_up(engine, second)
        said = [await rehearsals.rehearse_next(engine.parts) for _ in range(3)]
        assert sorted(said[:2]) == ["first failed: it does not answer", "second passed"]
        assert said[2] == "none is due"
        names = [engine.parts.crew.name(vm) for vm in engine.parts.rehearsals.newest]
        assert names == ["second"], "a vCenter that is away says nothing of a restore point"


async def test_a_vm_without_a_good_restore_point_has_nothing_to_rehearse(
    tmp_path: Path, vcenter: HypervisorInMemory
) -> None:
    vcenter.add("db")
    policies = EVERYTHING.replace('["*"]', '["name:other"]')
    async with running(tmp_path, vcenter, configure(tmp_path, policies)) as engine:
        await engine.until(lambda: engine.parts.world.named("db"))
        with pytest.raises((BadInput, RemoteFailure), match="has no good restore point"):
            await engine.control.submit(Rehearse("db"), "a test")


def test_a_trial_vm_goes_where_it_is_named_or_to_the_roomiest_of_the_vm_s_own_datastores() -> None:
    spaces = [DatastoreSpace("a", 1000, 400), DatastoreSpace("b", 1000, 600), DatastoreSpace("c", 1000, 150)]
    assert place(spaces, "", ["a", "b"], 100, Marks()) == "b"
    assert place(spaces, "a", ["b"], 100, Marks()) == "a"
    assert place(spaces, "", ["unseen"], 100, Marks()) == ""
    with pytest.raises(NoRoom, match="datastore c has 150 B free"):
        place(spaces, "c", ["b"], 101, Marks())
    # Two datacenters have one of this name: the one with less room decides.
    with pytest.raises(NoRoom):
        place([*spaces, DatastoreSpace("b", 1000, 90)], "b", [], 10, Marks())


def test_trial_vms_have_names_that_vcenter_takes_and_tell_the_vm() -> None:
    name = trial_name("backstay-rehearsal-", "Büro %2f/1 " + "x" * 90, "20261123T1200000a1b2c3d")
    assert len(name) == 80
    assert name.startswith("backstay-rehearsal-B-ro--2f-1-x")
    assert name.endswith("-20261123T1200000a1b2c3d")


def test_a_heartbeat_is_waited_for_where_there_may_be_one(vcenter: HypervisorInMemory) -> None:
    vm = vcenter.add("db")
    assert heartbeat_of(True, vm) == heartbeat_of(True, None) == ""
    assert heartbeat_of(False, vm) == "none was asked for"
    off = vcenter.set(vm, power=PowerState.OFF, tools_running=False)
    assert heartbeat_of(True, off) == "", "a VM that is off may have them"
