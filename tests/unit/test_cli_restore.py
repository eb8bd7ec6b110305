"""What the commands tell of a restore over a VM, to people and to programs, however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.cli.restore import restore
from engine.cli.task import task
from engine.commands import TaskReport, TaskState
from engine.failures import Exit, RemoteFailure
from tests.unit.test_api import Desk, configuration, folder, served

__all__ = ["folder"]

OFF = {"vm": "web", "switched_off": True, "power": "off"}
FAILED = TaskReport(
    "t1", "restore", TaskState.FAILED, exit_code=6, sentence="cut off; web was switched off for this", result=OFF
)
DONE = TaskReport("t1", "restore", TaskState.DONE, result={**OFF, "point": "p1", "disks": []})


def restoring(file: Path, as_json: bool) -> None:
    restore("p1", in_place=True, yes=True, power_off=True, config=file, json=as_json)


def waiting(file: Path, as_json: bool) -> None:
    task("t1", config=file, json=as_json)


async def ran(folder: Path, report: TaskReport, command: Callable[[], None]) -> BaseException | None:
    """What the command ended with, against an engine whose task ends so."""
    async with served(Desk(reports=[report]), configuration(folder)):
        [ended] = await asyncio.gather(asyncio.to_thread(command), return_exceptions=True)
    return ended


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "backstay.toml"
    path.write_text(f'schema = 1\nstate_dir = "{folder}/state"\n[repository]\npath = "r"\n')
    return path


@pytest.mark.parametrize("command", [restoring, waiting], ids=["restore", "task"])
async def test_a_restore_that_failed_shows_programs_that_the_vm_is_off(
    folder: Path, file: Path, command: Callable[[Path, bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in (True, False):
        ended = await ran(folder, FAILED, partial(command, file, as_json))
        assert isinstance(ended, RemoteFailure), ended
        assert ended.verdict.exit_code is Exit.UNREACHABLE
        told: dict[str, Any] = json.loads(capsys.readouterr().out or "{}")
        assert told == ({**OFF, "error": FAILED.sentence, "exit_code": 6} if as_json else {})


async def test_a_restore_over_a_vm_tells_people_that_it_is_off(
    folder: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await ran(folder, DONE, lambda: restoring(file, False)) is None
    assert "It was switched off for this, and is off now." in capsys.readouterr().err
    assert await ran(folder, DONE, lambda: restoring(file, True)) is None
    assert json.loads(capsys.readouterr().out)["power"] == "off"
