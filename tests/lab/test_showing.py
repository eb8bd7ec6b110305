"""What vCenter shows of our work: attributes, events and tasks, by privilege, findable, and removable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import ConnectorError
from connectors.shown import ATTRIBUTES, POLICY, STATE, Kind, Note, Put, Wanted
from connectors.vsphere import extension
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.inventory import Inventory
from engine.cli.vcenter_clean import vcenter_clean
from engine.connecting import engine_id
from engine.failures import BadInput
from policies.facts import Address
from tests.lab.connect import connected
from tests.lab.test_doctor import written
from tests.lab.test_engine_end_to_end import config_for, one_point_each
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import engine_of

Start = Callable[..., Lab]
ALL = Wanted(attributes=True, events=True, tasks=True)


def address(lab: Lab, name: str) -> Address:
    return Address(lab.instance_uuid, lab.vm(name).moref)


async def task_of(vcenter: VCenter, moref: str) -> Any:
    told = await vcenter.session.properties(vcenter.session.managed(vim.Task, moref), ["info"])
    return told["info"]


async def test_attributes_are_made_once_and_hidden_from_policies(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    async with connected(lab) as vcenter, connected(lab, engine_id="e2") as other:
        assert await vcenter.board.prepare(ALL) == {}
        assert await other.board.prepare(ALL) == {}
        where = address(lab, "web-01")
        lab.set_attribute("web-01", "Owner", "dba")
        before = await vcenter.vm(where)
        await vcenter.board.label(where, STATE, "protected")
        await vcenter.board.label(where, POLICY, "gold")
        await vcenter.board.label(where, STATE, "late")
        assert await other.board.labels() == {where.moref: {STATE: "late", POLICY: "gold"}}
        assert await vcenter.vm(where) == before
        assert before.attributes == {"Owner": "dba"}
        assert "CustomFieldValueChangedEvent" in {event.type for event in lab.event_log()}


async def test_our_own_events_are_seen_in_vcenter_and_not_taken_for_news(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    async with connected(lab) as vcenter:
        await vcenter.board.prepare(ALL)
        follower = vcenter.events(None)
        await anext(follower)
        where = address(lab, "web-01")
        await vcenter.board.post(Note(Kind.FAILED, where, "web-01", "the datastore is full"))
        await vcenter.board.label(where, STATE, "failed")
        await vcenter.board.end(await vcenter.board.begin(where, "r1", "backup"))
        await asyncio.to_thread(lab.power_off, "web-01")
        seen: list[str] = []
        async with asyncio.timeout(20):
            while "vm.powered_off" not in seen:
                seen += [event.type.value for event in (await anext(follower)).events]
        assert seen == ["vm.powered_off"]
        await follower.aclose()
        events = vcenter.session.content.eventManager
        posted = await vcenter.session.call(
            events.QueryEvents, vim.event.EventFilterSpec(eventTypeId=[Kind.FAILED.value])
        )
        assert [(e.vm.name, e.severity, e.message) for e in posted] == [("web-01", "error", "the datastore is full")]


async def test_a_run_is_a_task_and_that_of_a_dead_engine_is_found(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    where = address(lab, "web-01")
    async with connected(lab) as vcenter, connected(lab, engine_id="e2") as other:
        await vcenter.board.prepare(ALL)
        task = await vcenter.board.begin(where, "r1", "backup of web-01 under policy gold")
        await vcenter.board.progress(task, 40)
        told = await task_of(vcenter, task)
        assert (told.state, told.progress, told.entityName) == ("running", 40, "web-01")
        assert told.description.message == "backup of web-01 under policy gold"
        left = await other.board.begin(where, "r1", "of another engine")
        assert await vcenter.board.unfinished(lambda run: False) == []
        assert await vcenter.board.unfinished(lambda run: run == "r1") == [task]
        await vcenter.board.end(task, "the engine that ran it has died")
        assert await vcenter.board.unfinished(lambda run: True) == []
        ended = await task_of(vcenter, task)
        assert (ended.state, ended.error.reason) == ("error", "the engine that ran it has died")
        assert (await task_of(other, left)).state == "running"


async def test_what_the_account_may_not_do_is_told(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.surroundings(user=lab.user, denied=["Global.ManageCustomFields", "Extension.Register"])
    async with connected(lab) as vcenter:
        lacking = await vcenter.board.prepare(ALL)
        assert set(lacking) == {"attributes", "tasks"}
        assert "Global.ManageCustomFields" in lacking["attributes"]
        assert "Extension.Register" in lacking["tasks"]
        await vcenter.board.post(Note(Kind.SUCCEEDED, address(lab, "web-01"), "web-01", "made"))
        with pytest.raises(ConnectorError):
            await vcenter.board.begin(address(lab, "web-01"), "r1", "a type that no extension has declared")


async def test_everything_of_ours_can_be_taken_away_and_nothing_else(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    where = address(lab, "web-01")
    lab.set_attribute("web-01", "Owner", "dba")
    async with connected(lab) as vcenter:
        await vcenter.board.prepare(ALL)
        await vcenter.board.label(where, STATE, "protected")
        task = await vcenter.board.begin(where, "r1", "backup")
        assert await vcenter.board.there() == Put(ATTRIBUTES, 1, extension=True)
        await vcenter.board.clean()
        await vcenter.board.clean()
        assert not await vcenter.board.there()
        assert (await task_of(vcenter, task)).state == "error"
        found = (await Inventory.read_all(vcenter._inventory, ("customValue",)))[where.moref]["customValue"]
        assert [v.value for v in found] == ["dba"]
        assert await vcenter.session.call(vcenter.session.content.extensionManager.FindExtension, extension.KEY) is None


def test_a_command_shows_what_is_there_and_takes_it_away_when_told(
    fresh_lab: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = fresh_lab(vms=1, content=False)
    config = written(lab, tmp_path, "[vcenter.main.show]", "tasks = true")

    async def prepare() -> None:
        async with connected(lab) as vcenter:
            await vcenter.board.prepare(ALL)

    asyncio.run(prepare())
    assert vcenter_clean("main", config=config) == 3
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == 'custom attribute "Backstay restore point", with its values on all VMs'
    assert "set [vcenter.main.show] to false" in said.err
    assert vcenter_clean("main", config=config, yes=True) == 0
    capsys.readouterr()
    assert vcenter_clean("main", config=config, json=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "vcenter": "main",
        "found": {"attributes": [], "tasks": 0, "extension": False},
        "removed": False,
    }
    with pytest.raises(BadInput):
        vcenter_clean("elsewhere", config=config)


async def test_an_engine_shows_its_runs_and_ends_the_tasks_of_the_one_before(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=4 * MIB)
    name, where = lab.vms()[0].name, Address(lab.instance_uuid, lab.vms()[0].moref)
    show = "[vcenter.lab.show]\nattributes = true\nevents = true\ntasks = true\n"
    config = config_for(lab, tmp_path / "engine", more=show)
    async with connected(lab, engine_id=engine_id(config)) as vcenter:
        await vcenter.board.prepare(ALL)
        dead = await vcenter.board.begin(where, "20200101T000000dead0001", "of an engine that was killed")
        async with engine_of(config) as engine:
            engine.parts.showing.pace, engine.parts.showing.look_seconds = 0.02, 0.1
            await one_point_each(engine, [name])
            said: dict[str, dict[str, str]] = {}
            async with asyncio.timeout(20):
                while said.get(where.moref, {}).get(STATE) != "protected":
                    said = await vcenter.board.labels()
            await engine.until(lambda: not engine.parts.showing.shows[lab.instance_uuid].waiting)
            assert said[where.moref][POLICY] == "everything"
            assert Kind.SUCCEEDED in await posted(vcenter)
            over = await task_of(vcenter, dead)
            assert (over.state, over.error.reason) == ("error", "the engine that ran it has ended")
            tasks = await vcenter.session.properties(vcenter.session.content.taskManager, ["recentTask"])
            infos = [await task_of(vcenter, task._moId) for task in tasks["recentTask"]]
            ours = [info for info in infos if info.descriptionId == extension.TASK_TYPE]
            assert [info.state for info in ours] == ["error", "success"]
            assert not engine.parts.showing.sentences({})


async def posted(vcenter: VCenter) -> list[str]:
    events = vcenter.session.content.eventManager
    found = await vcenter.session.call(
        events.QueryEvents, vim.event.EventFilterSpec(eventTypeId=[kind.value for kind in Kind])
    )
    return [event.eventTypeId for event in found]
