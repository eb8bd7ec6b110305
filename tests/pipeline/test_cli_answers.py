"""What commands answer to what people get wrong, through the real console script."""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.state import State
from tests.console import BACKSTAY, backstay, environment

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with one restore point of `web`."""
    repo = tmp_path / "repo"
    (tmp_path / "web.img").write_bytes(os.urandom(MIB))
    backstay("repo", "init", repo, home=tmp_path)
    backstay("disk", "backup", tmp_path / "web.img", "--repo", repo, "--name", "web", home=tmp_path)
    return repo


def test_a_release_tells_which_holds_are_left(tmp_path: Path, repo: Path) -> None:
    for reason in ("audit", "case 17"):
        backstay("hold", "web@latest", "--reason", reason, "--repo", repo, home=tmp_path)
    ran = backstay("release", "web@latest", "--reason", "audit", "--repo", repo, home=tmp_path)
    assert "is still held: case 17" in ran.err
    assert "is released" in backstay("release", "web@latest", "--repo", repo, home=tmp_path).err


def test_what_is_held_or_forgotten_is_named_by_its_id(tmp_path: Path, repo: Path) -> None:
    (point,) = backstay("points", "--repo", repo, "--json", home=tmp_path).data
    assert point["id"] in backstay("hold", "web@latest", "--repo", repo, home=tmp_path).err
    backstay("release", "web@latest", "--repo", repo, home=tmp_path)
    assert point["id"] in backstay("expire", "web@latest", "--last", "--repo", repo, home=tmp_path).err


def test_a_restore_never_takes_the_place_of_a_character_device(tmp_path: Path, repo: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:  # not root: a pipe is as special
        os.mkfifo(null)
    mode = null.stat().st_mode
    ran = backstay("disk", "restore", "web@latest", "--repo", repo, "--to", null, "--force", home=tmp_path, expect=2)
    assert "neither a file nor a block device" in ran.err
    assert null.stat().st_mode == mode
    forgot = backstay("disk", "restore", "web", "--repo", repo, "--to", tmp_path / "w.raw", home=tmp_path, expect=2)
    assert "(the newest one of this VM is web@latest)" in forgot.err


@pytest.mark.parametrize("source", ["/dev/zero", "/tmp", ""])
def test_a_source_that_is_no_disk_is_bad_input(tmp_path: Path, repo: Path, source: str) -> None:
    ran = backstay("disk", "backup", source, "--repo", repo, "--name", "x", home=tmp_path, expect=2)
    assert ran.err == f"{source or 'an empty name'}: is neither a file nor a block device\n"


@pytest.mark.parametrize("words", [("repo", "init", ""), ("points", "--repo", ""), ("points", "--repo=")])
def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = backstay(*words, home=tmp_path, expect=2)
    assert "an empty name is no repository" in ran.err


@pytest.mark.parametrize(
    "words",
    ["verify --for 1", "verify --reread 1", "reclaim --min-age 1", "expire --marked 1", "policy plan --horizon 1"],
)
def test_what_is_no_duration_is_told_with_how_one_is_written(tmp_path: Path, repo: Path, words: str) -> None:
    ran = backstay(*words.split(), "--repo", repo, home=tmp_path, expect=2)
    option = words.split()[-2]
    assert ran.err == f'{option}: "1" is not a duration (write a number and a unit (s, m, h, d, w) such as "4h")\n'


def test_a_wrong_column_is_told_with_where_the_columns_are(tmp_path: Path, repo: Path) -> None:
    ran = backstay("sql", "SELECT nope FROM restore_points", "--repo", repo, home=tmp_path, expect=2)
    assert '"nope"' in ran.err and "backstay sql --views" in ran.err
    assert "restore_points: id, " in backstay("sql", "--views", "--repo", repo, home=tmp_path).out


def test_a_vm_without_restore_points_is_told_beside_the_empty_list(tmp_path: Path, repo: Path) -> None:
    ran = backstay("points", "wbe", "--repo", repo, home=tmp_path)
    assert ran.err == "There is no restore point of wbe.\n"
    assert backstay("points", "wbe", "--repo", repo, "--json", home=tmp_path).data == []


def test_a_file_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert "no repository here" in backstay("points", "--repo", tmp_path / "file", home=tmp_path, expect=10).err


def test_a_copy_of_a_vm_that_nobody_knows_is_bad_input(tmp_path: Path, repo: Path) -> None:
    backstay("repo", "init", tmp_path / "other", home=tmp_path)
    ran = backstay("copy", repo, tmp_path / "other", "--vm", "wbe", home=tmp_path, expect=2)
    assert "no restore point of wbe" in ran.err


def test_a_copy_names_the_repository_that_lacks_its_passphrase(tmp_path: Path, repo: Path) -> None:
    other = tmp_path / "other"
    backstay("repo", "init", other, "--encrypt", home=tmp_path, env={"BACKSTAY_PASSPHRASE": "one"})
    ran = backstay("copy", repo, other, home=tmp_path, expect=12)
    assert str(other) in ran.err
    assert "--to-passphrase-file" in ran.err


def test_no_key_file_is_made_for_a_key_that_is_not_there(tmp_path: Path) -> None:
    env = {"BACKSTAY_PASSPHRASE": "one"}
    backstay("repo", "init", tmp_path / "e", "--encrypt", home=tmp_path, env=env)
    new = tmp_path / "new.key"
    backstay("repo", "key", "rotate", "00", "--new-key-file", new, "--repo", tmp_path / "e", home=tmp_path, env=env,
             expect=5)  # fmt: skip
    assert not new.exists()


def test_a_repository_cannot_be_made_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "a directory is wanted" in backstay("repo", "init", tmp_path / "file", home=tmp_path, expect=2).err


def test_options_of_the_other_way_to_restore_are_refused(tmp_path: Path, repo: Path) -> None:
    to_file = ("restore", "web@latest", "--repo", repo, "--to-file", tmp_path / "back.img")
    assert "--datastore" in backstay(*to_file, "--datastore", "fast", home=tmp_path, expect=2).err
    to_vm = ("restore", "web@latest", "--repo", repo, "--to-vm", "web-2")
    assert "--force" in backstay(*to_vm, "--force", home=tmp_path, expect=2).err
    assert "one of" in backstay(*to_vm, "--to-file", tmp_path / "back.img", home=tmp_path, expect=2).err


def test_the_folder_that_is_missing_is_told_with_the_name_that_was_given(tmp_path: Path, repo: Path) -> None:
    target = tmp_path / "none" / "back.img"
    ran = backstay("disk", "restore", "web@latest", "--repo", repo, "--to", target, home=tmp_path, expect=2)
    assert f"{target}: its folder does not exist" in ran.err


@pytest.mark.parametrize(
    ("words", "help"),
    [
        ("nosuch", "backstay --help"),
        ("disk nosuch", "backstay disk --help"),
        ("disk backup", "backstay disk backup --help"),
    ],
)
def test_wrong_usage_points_to_a_help_that_there_is(tmp_path: Path, words: str, help: str) -> None:
    assert f"See: {help}" in backstay(*words.split(), home=tmp_path, expect=2).err
    assert "Usage" in backstay(*help.split()[1:], home=tmp_path).out


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_closed_streams_change_neither_what_is_done_nor_the_exit_code(tmp_path: Path, repo: Path, closed: str) -> None:
    def close() -> None:
        for number in closed.split():
            os.close(int(number))

    backstay("disk", "backup", tmp_path / "web.img", "--repo", repo, "--name", "b", home=tmp_path, prepare=close)
    backstay("points", "--repo", repo, home=tmp_path, prepare=close)
    backstay("points", "--repo", tmp_path, home=tmp_path, prepare=close, expect=10)
    assert backstay("verify", "--repo", repo, "--json", home=tmp_path).data["damaged"] == []


def test_messages_that_cannot_be_written_change_no_exit_code(tmp_path: Path, repo: Path) -> None:
    def fill() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

    backstay("disk", "backup", tmp_path / "web.img", "--repo", repo, "--name", "b", home=tmp_path, prepare=fill)
    backstay("points", "--repo", tmp_path, home=tmp_path, prepare=fill, expect=10)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_data_that_cannot_be_written_is_not_taken_for_a_full_store(tmp_path: Path, repo: Path, unbuffered: str) -> None:
    def fill() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    for command in (["points", "--repo", repo], ["points", "--repo", repo, "--json"], ["--version"]):
        ran = backstay(*command, home=tmp_path, env={"PYTHONUNBUFFERED": unbuffered}, prepare=fill, expect=7)
        assert ran.err == "stdout: no space left (free some, then run the command again)\n"


def test_a_terminal_that_is_gone_is_no_bug(tmp_path: Path, repo: Path) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)

    def lose() -> None:
        os.dup2(theirs, 1)

    ran = backstay("points", "--repo", repo, home=tmp_path, prepare=lose, expect=2)
    os.close(theirs)
    assert ran.err == "stdout: Input/output error\n"


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path, repo: Path) -> None:
    address = "nbd://user:hunter2@localhost:1/export"
    ran = backstay("disk", "backup", address, "--repo", repo, "--name", "b", home=tmp_path, expect=2)
    assert "user names" in ran.err and "hunter2" not in ran.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_restore_that_is_ended_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    repo, image, target = tmp_path / "repo", tmp_path / "big.img", tmp_path / "out"
    target.mkdir()
    image.write_bytes(os.urandom(256 * MIB))
    backstay("repo", "init", repo, home=tmp_path)
    backstay("disk", "backup", image, "--repo", repo, "--name", "big", home=tmp_path)
    process = subprocess.Popen(
        [BACKSTAY, "disk", "restore", "big@latest", "--repo", repo, "--to", target / "big.img"],
        cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(target.iterdir()):
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_engine_that_is_stopped_while_it_starts_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    backstay("repo", "init", tmp_path / "repo", home=tmp_path)
    (tmp_path / "backstay.toml").write_text('schema = 1\nstate_dir = "state"\n[repository]\npath = "repo"\n')
    # The start waits for the state that this process holds.
    with closing(State(tmp_path / "state", now=datetime.now(UTC))):
        process = subprocess.Popen(
            [BACKSTAY, "run"],
            cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "Stopped before the engine had started.\n")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has said what a signal means to it."""
    told = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(told, 16) >> (number - 1) & 1)


def test_nothing_is_loaded_before_an_interruption_can_be_met() -> None:
    code = "import sys; before = set(sys.modules); import engine.__main__; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["__future__", "engine", "engine.__main__"]


def test_a_command_that_has_nothing_to_say_says_nothing_at_its_end(tmp_path: Path, repo: Path) -> None:
    assert backstay("points", "--repo", repo, "--json", home=tmp_path).err == ""
    assert backstay("sql", "--views", "--repo", repo, home=tmp_path).err == ""
