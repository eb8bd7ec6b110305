"""What people see of runs in vCenter: nothing where it is not wanted, and never a run that fails by it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from connectors.errors import NotPermitted, Unreachable
from connectors.shown import POLICY, RESTORE_POINT, STATE, Kind
from engine.commands import BackUpVm
from engine.overview import problems
from engine.showing import Showing
from tests.pipeline.board_in_memory import Task
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, running

GOLD = """
schema = 1
[policy.gold]
rpo = "24h"
select.all = ["name:web*"]
consistency = { want = "crash", fallback = "crash" }
"""

SHOW = """
[vcenter.lab.show]
attributes = true
events = true
tasks = true
"""


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    return HypervisorInMemory(tmp_path)


def quick(engine: Running) -> Showing:
    showing = engine.parts.showing
    showing.pace, showing.look_seconds = 0.01, 0.05
    return showing


async def test_a_run_is_seen_as_task_event_and_attributes_which_are_written_once(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    web, lonely, board = hypervisor.add("web"), hypervisor.add("lonely"), hypervisor.board
    async with running(tmp_path, hypervisor, configure(tmp_path, GOLD, more=SHOW)) as engine:
        quick(engine)
        await engine.until(lambda: board.said.get(web.address.moref, {}).get(STATE) == "protected")
        await engine.until(lambda: len(board.notes) == 2)
        said = board.said[web.address.moref]
        point = engine.parts.world.points[engine.parts.world.named("web")[0]][0]
        assert (said[POLICY], said[RESTORE_POINT]) == ("gold", f"{point.taken_at:%Y-%m-%d %H:%M} UTC")
        assert board.said[lonely.address.moref] == {STATE: "unprotected"}
        told = {note.kind: (note.vm_name, note.text) for note in board.notes}
        assert told[Kind.UNPROTECTED][0] == "lonely"
        name, text = told[Kind.SUCCEEDED]
        assert name == "web" and point.id in text and "crash-consistent" in text
        (task,) = board.tasks.values()
        assert (task.ended, task.text.partition(":")[0]) == ("done", "Backup under policy gold")
        writes = board.writes
        hypervisor.set(lonely, host="esx-2")
        await engine.until(lambda: engine.parts.world.vms[engine.parts.world.named("lonely")[0]].host == "esx-2")
        await asyncio.sleep(0.2)  # four looks: what is said already is not written again
        assert (board.writes, len(board.notes)) == (writes, 2)


async def test_nothing_is_shown_that_nobody_asked_for(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, GOLD)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        board = hypervisor.board
        assert (board.prepared, board.said, board.notes, board.tasks) == (0, {}, [], {})


async def test_a_failure_is_told_and_a_lacking_privilege_costs_no_run(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.board.lacking = {"attributes": "Global.ManageCustomFields is missing"}
    hypervisor.fail_transports = {"hotadd", "nbd", "export", "https"}
    async with running(tmp_path, hypervisor, configure(tmp_path, GOLD, more=SHOW)) as engine:
        quick(engine)
        board = hypervisor.board
        await engine.until(lambda: any(note.kind is Kind.FAILED for note in board.notes))
        assert all(task.ended not in ("", "done") for task in board.tasks.values())
        assert board.said == {}
        assert "lab: custom attributes are not shown: Global.ManageCustomFields is missing" in problems(engine.parts)
        board.fail = NotPermitted("the account may not post events", where="lab")
        hypervisor.fail_transports = set()
        done = await engine.finished(await engine.control.submit(BackUpVm("web", "test"), "alice"))
        assert done["state"] == "done"
        await engine.until(lambda: len(engine.parts.showing.sentences({})) == 3)


async def test_a_vcenter_that_does_not_answer_delays_no_run_and_gets_its_tasks_ended_later(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    board = hypervisor.board
    reading, go_on = threading.Event(), threading.Event()

    def on_read(transport: str, offset: int) -> None:
        reading.set()
        go_on.wait(20)

    hypervisor.on_read = on_read
    async with running(tmp_path, hypervisor, configure(tmp_path, GOLD, more=SHOW)) as engine:
        quick(engine)
        await engine.until(lambda: reading.is_set() and board.tasks)
        board.fail = Unreachable("vCenter is away")
        go_on.set()
        await engine.until(lambda: engine.points_of("web") == 1)
        await engine.until(lambda: engine.parts.showing.shows["vc-1"].trouble)
        assert any("waits: vCenter is away" in one for one in problems(engine.parts))
        board.fail = None
        await engine.until(lambda: [task.ended for task in board.tasks.values()] == ["done"])
        assert not engine.parts.showing.sentences({})


async def test_a_task_of_a_dead_engine_ends_as_an_error_and_one_that_runs_goes_on(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    board = hypervisor.board
    board.tasks["task-1"] = Task("20200101T000000dead0001", "a run of an engine that was killed")
    async with running(tmp_path, hypervisor, configure(tmp_path, GOLD, more=SHOW)) as engine:
        quick(engine)
        await engine.until(lambda: board.tasks["task-1"].ended == "the engine that ran it has ended")
        reading, go_on = threading.Event(), threading.Event()

        def on_read(transport: str, offset: int) -> None:
            reading.set()
            go_on.wait(20)

        hypervisor.on_read = on_read
        hypervisor.add("web-2")
        await engine.until(lambda: reading.is_set() and len(board.tasks) == 2)
        show = engine.parts.showing.shows["vc-1"]
        await engine.parts.showing._prepare(show, board)
        assert board.tasks["task-2"].ended == ""
        # A stop interrupts the run; what is shown of it must not run for ever.
        asyncio.get_running_loop().call_later(0.3, go_on.set)
    assert "the engine was stopped" in board.tasks["task-2"].ended
