"""The real console script, run as a user runs it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKSTAY = Path(sys.executable).parent / "backstay"


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)


def backstay(
    *arguments: str | Path,
    home: Path,
    env: Mapping[str, str] | None = None,
    expect: int | None = 0,
    prepare: Callable[[], None] | None = None,
) -> Ran:
    """Run a command to its end with nothing of this user's environment; it must never show a traceback.

    `expect` is the exit code that it must have, None for any; `prepare` runs in the child before it starts.
    """
    done = subprocess.run(
        [BACKSTAY, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home) | dict(env or {}),
        timeout=120,
        check=False,
        preexec_fn=prepare,
    )
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in ran.err + ran.out, ran.err
    if expect is not None:
        bugs = "".join(path.read_text() for path in home.glob("backstay-bug-*.log"))
        assert ran.code == expect, f"exit {ran.code}, not {expect}\n{ran.out}\n{ran.err}\n{bugs}"
    return ran


def environment(home: Path) -> dict[str, str]:
    """An environment in which every default place lies below home."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
        "LC_ALL": "C.UTF-8",
        "BACKSTAY_CONFIG": str(home / "none" / "backstay.toml"),
        "BACKSTAY_BUG_DIR": str(home),
    }


def on_terminal(
    home: Path, arguments: Sequence[str], dialogue: Sequence[tuple[str, str]], env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command on a terminal, giving each answer when its question has come; exit code and all that was shown."""
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [BACKSTAY, *arguments], cwd=home, env=environment(home) | {"TERM": "xterm"} | dict(env or {}),
        stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    shown, deadline, waiting = "", time.monotonic() + 60, list(dialogue)
    seen = 0
    while True:
        assert time.monotonic() < deadline, shown
        if waiting and waiting[0][0] in shown[seen:]:
            question, answer = waiting.pop(0)
            seen = shown.index(question, seen) + len(question)
            os.write(ours, f"{answer}\n".encode())
        if not select.select([ours], [], [], 0.5)[0]:
            continue
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part.decode()
    os.close(ours)
    assert not waiting, shown
    return process.wait(60), shown
