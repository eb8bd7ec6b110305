"""The process that the crash tests kill, warmed up: it forks one child for each line that it reads.

A line is a JSON object: `scene`, `location`, `point` (where the child kills itself; empty: nowhere), `seconds` (when it
is killed from outside; null: never), `log` (its stderr). The answer is one line: `status` as subprocess has it, and
`passed`, the failpoints that the child has reached, in order, the one at which it died included.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage import failpoints
from tests.crash.objects import OBJECT_SCENES
from tests.crash.scenes import SCENES


@dataclass(frozen=True, slots=True)
class Life:
    """How a child ended, and the failpoints that it reached, in order. Its threads pass theirs in any order."""

    status: int
    passed: Sequence[str]

    @property
    def killed(self) -> bool:
        """Whether it was ended before its scene."""
        return self.status == -signal.SIGKILL


class Victims:
    """The warmed process, from outside. Use it in a `with` block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def play(self, scene: str, location: Path, point: str = "", *, seconds: float | None = None) -> Life:
        """Let one child play a scene and die at a point, after a time, or at its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        question = {"scene": scene, "location": str(location), "point": point, "seconds": seconds}
        print(json.dumps(question | {"log": str(log_of(location))}), file=self._process.stdin, flush=True)
        life = Life(**json.loads(self._process.stdout.readline()))
        if life.status not in (0, -signal.SIGKILL):
            raise AssertionError(f"{scene} does not play: {log_of(location).read_text()}")
        return life


def log_of(location: Path) -> Path:
    """Where the child that plays there writes what it has to say."""
    return location.with_name(location.name + ".log")


def _child(question: dict[str, Any], answer: int) -> None:
    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 2)
    die = failpoints.dying_at(question["point"]) if question["point"] else None

    def reached(name: str) -> None:
        os.write(answer, name.encode() + b"\n")
        if die is not None:
            die(name)

    failpoints.watch(reached)
    (SCENES | OBJECT_SCENES)[question["scene"]].play(Path(question["location"]), None)


def _fork(question: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(reading)
            _child(question, writing)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writing)
    alarm = threading.Timer(question["seconds"] or 0, os.kill, (pid, signal.SIGKILL))
    if question["seconds"] is not None:
        alarm.start()
    with os.fdopen(reading) as pipe:
        passed = pipe.read().split()
    alarm.cancel()
    _, status = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status), "passed": passed}


def main() -> None:
    """Answer until stdin ends."""
    # Imported, but nothing opened: a fork must not inherit DuckDB's threads.
    importlib.import_module("numpy")

    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
