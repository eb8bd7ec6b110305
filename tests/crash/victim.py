"""The process that the crash tests kill, warmed up: it forks one child for each line that it reads.

A line is a JSON object: `scene`, `location`, `point` (where the child kills itself; empty: nowhere), `seconds` (when it
is killed from outside; null: never), `log` (its stderr). The answer is one line: `status` as subprocess has it, and
`passed`, the failpoints that a child which lived to its end has reached, in order.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from storage import failpoints
from tests.crash.objects import OBJECT_SCENES
from tests.crash.scenes import SCENES


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

    def play(self, scene: str, location: Path, point: str = "", *, seconds: float | None = None) -> int:
        """Let one child play a scene and die at a point or after a time; its status, negative for a signal."""
        status = int(self._ask(scene, location, point, seconds)["status"])
        if status > 0:
            raise AssertionError(f"{scene} does not play: {log_of(location).read_text()}")
        return status

    def passed(self, scene: str, location: Path) -> list[str]:
        """Let one child play a scene to its end; the failpoints that it reached, in order."""
        answer = self._ask(scene, location, "", None)
        if answer["status"]:
            raise AssertionError(f"{scene} does not play: {log_of(location).read_text()}")
        return list(answer["passed"])

    def _ask(self, scene: str, location: Path, point: str, seconds: float | None) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        question = {"scene": scene, "location": str(location), "point": point, "seconds": seconds}
        print(json.dumps(question | {"log": str(log_of(location))}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def log_of(location: Path) -> Path:
    """Where the child that plays there writes what it has to say."""
    return location.with_name(location.name + ".log")


def _child(question: dict[str, Any], answer: int) -> None:
    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 2)
    passed: list[str] = []
    failpoints.watch(failpoints.dying_at(question["point"]) if question["point"] else passed.append)
    (SCENES | OBJECT_SCENES)[question["scene"]].play(Path(question["location"]), None)
    os.write(answer, json.dumps(passed).encode())


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
    if question["seconds"] is not None and not select.select([reading], [], [], question["seconds"])[0]:
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        passed = pipe.read()
    _, status = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status), "passed": json.loads(passed or b"[]")}


def main() -> None:
    """Answer until stdin ends."""
    # Imported, but nothing opened: a fork must not inherit DuckDB's threads.
    import numpy  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
