"""The frame of the command line: help, usage errors, bugs, and what a quick command does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.cli.output import printable
from engine.cli.reference import reference
from engine.cli.table import COMMANDS, Command
from engine.failures import EXIT_MEANINGS
from tests.console import backstay

ROOT = Path(__file__).parents[2]


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded when the code has run in a process of its own."""
    show = "import sys, json; json.dump(sorted(sys.modules), sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


HEAVY = {"fastapi", "uvicorn", "httpx", "numpy", "pyarrow", "duckdb", "pydantic", "pyVmomi", "nats", "tree_sitter"}


def test_help_loads_no_command() -> None:
    loaded = loaded_by("from engine.__main__ import main; main(['--help'])")
    assert not loaded & (HEAVY | {"asyncio", "cyclopts", "rich", "storage.repository", "engine.cli.points"})


def test_the_backup_of_a_disk_loads_nothing_that_it_does_not_need() -> None:
    loaded = loaded_by("import engine.__main__, engine.cli.disk_backup, engine.cli.disk_restore")
    assert not loaded & (HEAVY | {"asyncio", "ssl", "http.client"})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_every_command_tells_what_it_is_for_and_its_exit_codes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.words.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert f"backstay {command.words}" in told
    for code, meaning in EXIT_MEANINGS.items():
        assert f"{code.value:3}  {meaning}" in told


def test_the_reference_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference(), (
        "make it again: python -m engine.cli.reference > docs/cli.md"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pionts"], 'Did you mean "points"'),
        (["points", "--jsn"], "--jsn"),
        (["points", "a", "b"], "Too many arguments: 'b'."),
        (["disk", "backup"], "SOURCE"),
        (["disk", "backup", "x"], "--name"),
        (["disk", "restore", "x"], "--to"),
        (["disk", "baukcp"], "baukcp"),
        (["sql"], "--views"),
        (["sql", "select 1", "--rows", "many", "--repo", "x"], "many"),
        (["restore", "x"], "--to-vm"),
        (["restore", "x", "--to-vm", "y", "--network", "oops"], "OLD=NEW"),
        (["restore", "x", "--to-vm", "y", "--storage-policy", "oops"], "OLD=NEW"),
        (["restore", "x", "--in-place", "--storage-policy", "a=b"], "another way to restore"),
        (["restore", "x", "--in-place", "--without-safety", "--keep-safety"], "opposite of --keep-safety"),
        (["reclaim", "--min-age", "soon", "--repo", "x"], "duration"),
        (["repo", "init", "x", "--block", "3"], "size"),
        (["repo", "init", "x", "--block", "5KiB"], "4KiB"),
    ],
)
def test_wrong_usage_ends_with_two_and_a_hint(arguments: list[str], said: str, tmp_path: Path) -> None:
    ran = backstay(*arguments, home=tmp_path, expect=2)
    assert said in ran.err and ran.out == ""


def test_the_overview_has_every_command_and_exit_code(tmp_path: Path) -> None:
    told = backstay(home=tmp_path).out
    assert told == backstay("--help", home=tmp_path).out
    for command in COMMANDS:
        assert f"  {command.words} " in told and command.summary in told
    for code, meaning in EXIT_MEANINGS.items():
        assert f"{code.value:3}  {meaning}" in told


def test_the_version_is_told(tmp_path: Path) -> None:
    assert backstay("--version", home=tmp_path).out.startswith("backstay ")


def test_a_bug_shows_a_short_text_and_keeps_its_details_privately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(given: object) -> object:
        raise ValueError("password=hunter2")

    monkeypatch.setattr("engine.cli.calling.plain_call", broken)
    monkeypatch.setenv("BACKSTAY_BUG_DIR", str(tmp_path))
    assert main(["points"]) == 1
    said = capsys.readouterr().err
    (kept,) = tmp_path.glob("backstay-bug-*.log")
    assert "bug in Backstay: unexpected ValueError" in said and str(kept) in said
    assert "Traceback" not in said and "hunter2" not in said
    assert "hunter2" in kept.read_text() and kept.stat().st_mode & 0o777 == 0o600


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    backstay("repo", "init", "r", home=tmp_path)
    done = subprocess.run(
        f"{Path(sys.executable).parent}/backstay policy schema | head -c 10",
        shell=True, capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stderr == ""


@pytest.mark.parametrize("words", ["points --help", "disk"])
def test_a_help_that_nobody_reads_is_no_error(tmp_path: Path, words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        command = [f"{Path(sys.executable).parent}/backstay", *words.split()]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_from_outside_cannot_steer_the_terminal() -> None:
    assert printable("web\x1b[2J\n") == "web\\x1b[2J\\x0a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 1\n[policy.a]\nrpoo = '4h'\n", "a.toml:3:1:"),
        ("schema = 1\n[policy.a]\nschedule = '61 * * * *'\n", "a.toml:3:"),
        ("schema = 1\n[policy.a]\nwindow = ['25:00-26:00']\n", "a.toml:3:"),
        ("schema = 1\n[policy.a\n", "a.toml:2:"),
    ],
)
def test_broken_policies_end_with_two_and_the_place(tmp_path: Path, text: str, said: str) -> None:
    folder = tmp_path / "policies.d"
    folder.mkdir()
    (folder / "a.toml").write_text(text)
    ran = backstay("policy", "lint", folder, home=tmp_path, expect=2)
    assert said in ran.err


def test_two_policies_of_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text("schema = 1\n[policy.same]\nrpo = '4h'\nselect.all = ['*']\n")
    ran = backstay("policy", "lint", tmp_path, home=tmp_path, expect=2)
    assert "a.toml" in ran.err and "b.toml" in ran.err and "same" in ran.err


def test_good_policies_are_good_and_advice_is_data(tmp_path: Path) -> None:
    folder = tmp_path / "policies.d"
    folder.mkdir()
    (folder / "a.toml").write_text("schema = 1\n[policy.everything]\nrpo = '24h'\nselect.all = ['*']\n")
    assert backstay("policy", "lint", folder, "--json", home=tmp_path).data["policies"] == ["everything"]
    assert "valid" in backstay("policy", "lint", folder, home=tmp_path).err


def test_the_schema_of_policies_is_json(tmp_path: Path) -> None:
    assert "properties" in backstay("policy", "schema", home=tmp_path).data


def test_what_only_an_engine_does_says_that_none_runs(tmp_path: Path) -> None:
    backstay("repo", "init", "r", home=tmp_path)
    (tmp_path / "backstay.toml").write_text(
        f'schema = 1\nstate_dir = "{tmp_path}/state"\n[repository]\npath = "{tmp_path}/r"\n'
    )
    for command in (
        ["backup", "web"],
        ["policy", "explain", "web"],
        ["policy", "apply"],
        ["restore", "x", "--to-vm", "y"],
        ["vm", "relink", "x", "y", "--yes"],
    ):
        for where in (["--repo", "r"], ["--config", "backstay.toml"]):
            assert "backstay run" in backstay(*command, *where, home=tmp_path, expect=6).err


def test_a_broken_configuration_ends_with_two_and_the_place(tmp_path: Path) -> None:
    (tmp_path / "backstay.toml").write_text("schema = 1\n[repository]\npth = 'r'\n")
    ran = backstay("points", "--config", "backstay.toml", home=tmp_path, expect=2)
    assert "backstay.toml:3:1: unknown key repository.pth" in ran.err


def test_without_an_engine_status_shows_the_repository(tmp_path: Path) -> None:
    backstay("repo", "init", "r", home=tmp_path)
    shown = backstay("status", "--repo", "r", "--json", home=tmp_path).data
    assert shown["engine"] is None and shown["repository"]["points"] == 0
    assert "backstay run" in backstay("status", "--repo", "r", home=tmp_path).err


def test_sql_answers_from_the_repository_and_refuses_files(tmp_path: Path) -> None:
    backstay("repo", "init", "r", home=tmp_path)
    assert backstay("sql", "SELECT count(*) AS n FROM restore_points", "--repo", "r", "--json", home=tmp_path).data == [
        {"n": 0}
    ]
    assert backstay("sql", "SELECT count(*) AS n FROM events", "--repo", "r", "--json", home=tmp_path).data == [
        {"n": 0}
    ]
    views = backstay("sql", "--views", "--repo", "r", "--json", home=tmp_path).data
    assert {"restore_points", "vms", "disks", "chunks", "packs", "events", "decisions", "jobs"} <= set(views)
    for query in (
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY chunks TO 'x.csv'",
        "SET threads = 1",
        "SELECT 1; SELECT 2",
    ):
        ran = backstay("sql", query, "--repo", "r", home=tmp_path, expect=2)
        assert "root:" not in ran.out and ran.err.startswith("sql: ")
    assert backstay("sql", "FROM range(9)", "--rows", "3", "--repo", "r", home=tmp_path, expect=3).out.count("\n") == 4


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("import atexit; atexit.register(print, 'at the end')", "at the end"),
        ("import threading; t = threading.Timer(0.2, print, ['later']); t.start()", "later"),
        ("import asyncio, weakref; weakref.finalize(sys, print, 'the long way')", "the long way"),
    ],
    ids=["registered", "thread", "long lived"],
)
def test_a_process_does_what_is_left_before_it_ends(before: str, said: str) -> None:
    code = f"import sys; {before}; sys.argv = ['backstay', 'disk', 'what']; from engine.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", f"{code}"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said in done.stdout and "what" in done.stderr


def test_what_a_command_printed_arrives_and_its_exit_code_too(tmp_path: Path) -> None:
    assert backstay("points", "--repo", "nowhere", home=tmp_path, expect=10).err.count("\n") == 1
    assert backstay("policy", "schema", home=tmp_path).out.endswith("}\n")
