"""What is plainly meant is what the parser says; whatever is not plain is left to it."""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from engine.__main__ import main
from engine.cli.calling import plain_call
from engine.cli.frame import build
from engine.cli.table import COMMANDS, Command

VALUES = [
    "a",
    "b c",
    "x/y",
    "vm@latest",
    "7",
    "none",
    "NULL",
    "true",
    "no",
    "",
    "-",
    "--",
    "-5",
    "s3://b/p",
    "ä",
    "*",
    "full",
    "FULL",
]
OPTIONS = [
    "--repo",
    "--config",
    "--json",
    "--passphrase-file",
    "--name",
    "--to",
    "--disk",
    "--force",
    "--changed",
    "--scope",
]
ODD = ["--help", "--no-json", "--repo=x", "--json=true", "--jsn", "-h", "--passphrase_file", "--version", "--no-wait"]


def parsed(given: list[str]) -> tuple[str, tuple[object, ...], dict[str, object]] | None:
    """What cyclopts makes of arguments: function, values in order, values by name; None for a complaint."""
    try:
        function, bound, _ = build(given).parse_args(given, exit_on_error=False, print_error=False)
    except CycloptsError:
        return None
    return f"{function.__module__}:{function.__name__}", bound.args, bound.kwargs


def plainly(given: list[str]) -> tuple[str, tuple[object, ...], dict[str, object]] | None:
    """The same of the call that needs no parser; None where that is left to it."""
    call = plain_call(given)
    if call is None:
        return None
    assert isinstance(call, partial)
    return f"{call.func.__module__}:{call.func.__name__}", call.args, call.keywords


def test_what_is_plain_is_what_the_parser_says() -> None:
    dice = random.Random(8)
    plain = 0
    for _ in range(600):
        command = dice.choice(COMMANDS)
        given = command.words.split()
        for _ in range(dice.randrange(6)):
            given += dice.choice([[dice.choice(VALUES)], [dice.choice(OPTIONS), dice.choice(VALUES)]])
            if dice.random() < 0.15:
                given.append(dice.choice(OPTIONS + ODD))
        found = plainly(given)
        if found is not None:
            assert found == parsed(given), given
            plain += 1
    assert plain > 40


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_no_command_takes_a_request_for_help_for_plain(command: Command) -> None:
    for asked in ("--help", "-h"):
        assert plain_call([*command.words.split(), asked]) is None


def test_the_commands_of_every_day_are_plain() -> None:
    assert plainly(["disk", "backup", "a.img", "--name", "a", "--repo", "r", "--changed", "c.json"]) == (
        "engine.cli.disk_backup:disk_backup",
        ("a.img",),
        {"name": "a", "repo": "r", "changed": Path("c.json")},
    )
    assert plain_call(["disk", "restore", "a@latest", "--to", "a.img", "--force", "--repo", "r"]) is not None
    assert plain_call(["points", "--json", "--repo", "r"]) is not None
    assert plainly(["verify", "a", "b@latest", "--scope", "full", "--anew", "--repo", "r"]) == (
        "engine.cli.verify:verify",
        ("a", "b@latest"),
        {"scope": "full", "anew": True, "repo": "r"},
    )
    assert plain_call(["verify", "--scope", "ful"]) is None


def test_a_plain_call_loads_no_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert main(["points", "--repo", str(tmp_path)]) == 10
