"""The soak itself: it ends where it is told to, says what it did, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def begun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "tests.crash.soak", "--seed", "1", *arguments]
    # A group of its own, as a shell would make it: Ctrl-C reaches all of them.
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, process_group=0)


def folder_of(first_line: str) -> Path:
    found = re.fullmatch(r"soak, seed 1, below (.+)\n", first_line)
    assert found
    return Path(found[1])


def test_it_plays_as_much_as_it_is_told_and_says_so() -> None:
    soak = begun("--scenes", "marks", "--kills", "4", "--faults", "4", "--cuts", "0")
    assert soak.stdout is not None
    folder = folder_of(soak.stdout.readline())
    said, _ = soak.communicate(timeout=120)
    assert soak.returncode == 0, said
    assert "plays 4 kills, 4 faults, 0 power cuts" in said
    assert re.search(r"kills +[0-4] withstood, 0 failed", said)
    assert re.search(r"faults +4 withstood, 0 failed", said)
    assert said.endswith("nothing failed\n")
    assert not folder.exists()


def test_an_interrupt_ends_it_cleanly() -> None:
    soak = begun("--scenes", "marks", "--cuts", "0")
    assert soak.stdout is not None
    folder = folder_of(soak.stdout.readline())
    while not (line := soak.stdout.readline()).startswith("plays "):
        assert line
    os.killpg(soak.pid, signal.SIGINT)
    said, _ = soak.communicate(timeout=60)
    assert soak.returncode == 130, said
    assert "cases were not played, as a signal came" in said
    assert not folder.exists()
