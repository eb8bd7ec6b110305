"""A running engine, seen from a command: its API over the Unix socket, with the engine's own verdicts as errors.

The standard library's HTTP client loads in a tenth of httpx's time, which a command that shows one table would feel.
Most commands find no engine: what only a talk with one needs is loaded with the first word of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.failures import Exit, Kind, NotReachable, RemoteFailure, Verdict
from engine.plain import plain

if TYPE_CHECKING:
    from engine.commands import Task, TaskReport

ANSWER_SECONDS = 120.0
"""How long an answer may take: longer than the longest SQL statement's default and a task's long poll."""

POLL_SECONDS = 20.0
"""How long one question for news of a task waits; the engine answers as soon as there is some."""

_ROUTES = {
    "BackUpVm": "backup",
    "BackUpDisk": "backup-disk",
    "RestoreToFile": "restore-file",
    "RestoreToVm": "restore-vm",
    "RestoreInPlace": "restore-in-place",
    "RestoreDisk": "restore-disk",
    "Verify": "verify",
    "Rehearse": "rehearse",
    "Reclaim": "reclaim",
}
"""By the name of the task."""


class Engine:
    """The engine that listens on a Unix socket. Every method raises NotReachable or RemoteFailure."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def listens(self) -> bool:
        """Whether anybody accepts connections there."""
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self.path))
            except OSError:
                return False
        return True

    def get(self, route: str, parameters: Mapping[str, str | float | None] | None = None) -> Any:
        """The answer to a question."""
        from urllib.parse import urlencode

        asked = {name: str(value) for name, value in (parameters or {}).items() if value is not None}
        return self._ask("GET", f"{route}?{urlencode(asked)}" if asked else route)

    def fetch(self, route: str) -> bytes:
        """The answer to a question as it stands, for what is written to a file."""
        status, text = self._answer("GET", route)
        if status >= 400:
            _understood(status, text, self.path)
        return text

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request that changes something."""
        return self._ask("POST", route, json.dumps(plain(body)).encode())

    def delete(self, route: str) -> Any:
        """The answer to a request that takes something away."""
        return self._ask("DELETE", route)

    def submit(self, task: Task) -> str:
        """Start what takes long; its id."""
        fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
        return str(self.post(f"/v1/tasks/{_ROUTES[type(task).__name__]}", fields)["id"])

    def finish(self, id: str, tell: Callable[[TaskReport], None]) -> Mapping[str, Any]:
        """Wait until a task has ended, telling every news; its result, or RemoteFailure with the engine's exit code."""
        from engine.commands import TaskState

        while True:
            report = _report(self.get(f"/v1/tasks/{id}", {"wait": POLL_SECONDS}))
            tell(report)
            if report.state is TaskState.FAILED:
                raise RemoteFailure(Verdict(Kind.FAIL, _exit(report.exit_code), report.sentence), report.result)
            if report.final:
                return report.result

    def _ask(self, method: str, target: str, body: bytes | None = None) -> Any:
        return _understood(*self._answer(method, target, body), self.path)

    def _answer(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        import socket
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("localhost", timeout=ANSWER_SECONDS)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(ANSWER_SECONDS)
            connection.sock.connect(str(self.path))
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException) as error:
            said = getattr(error, "strerror", None) or type(error).__name__
            raise NotReachable(
                f"the engine does not answer: {said}", where=f"unix:{self.path}", hint="is it running? see its log"
            ) from None
        finally:
            connection.close()


def _understood(status: int, text: bytes, path: Path) -> Any:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if status < 400 and answer is not None:
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise NotReachable(f"what answers here is not an engine (status {status})", where=f"unix:{path}")
    raise RemoteFailure(Verdict(Kind(error["kind"]), _exit(error["exit_code"]), str(error["sentence"])))


def _report(answer: Mapping[str, Any]) -> TaskReport:
    from engine.commands import TaskReport, TaskState

    known = {field.name: answer[field.name] for field in dataclasses.fields(TaskReport) if field.name in answer}
    return TaskReport(**{**known, "state": TaskState(answer["state"])})


def _exit(code: int) -> Exit:
    return next((known for known in Exit if known == code), Exit.BUG)
