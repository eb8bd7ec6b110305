"""A task that the engine does for a command, followed to its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.cli.output import say, show_json
from engine.cli.progress import Progress
from engine.client import Engine
from engine.commands import Task, TaskReport
from engine.failures import RemoteFailure


def follow(engine: Engine, task: Task, bar: Progress) -> Mapping[str, Any]:
    """The task's result; RemoteFailure when it failed. An interruption leaves it running, and says so."""
    return finish(engine, engine.submit(task), bar)


def finish(engine: Engine, id: str, bar: Progress) -> Mapping[str, Any]:
    """The result of a task that was begun; RemoteFailure when it failed. An interruption leaves it running."""
    seen = _Seen(bar)
    try:
        return engine.finish(id, seen.tell)
    except KeyboardInterrupt:
        say(f"The engine goes on with task {id}. To wait for it: backstay task {id}; to stop it: add --cancel")
        raise


@contextmanager
def failure_shown(json: bool) -> Iterator[None]:
    """Show as JSON, where that is wanted, what is so although the task failed; the failure goes on its way."""
    try:
        yield
    except RemoteFailure as failure:
        if json and failure.result:
            judged = failure.verdict
            show_json({**failure.result, "error": judged.sentence, "exit_code": int(judged.exit_code)})
        raise


class _Seen:
    """Turns reports of where a task is into steps of a progress bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._note, self._total, self._done = "", -1, 0

    def tell(self, report: TaskReport) -> None:
        if (report.note, report.total_bytes) != (self._note, self._total):
            self._note, self._total, self._done = report.note, report.total_bytes, 0
            self._bar.begin(report.note or report.kind, report.total_bytes)
        self._bar.advance(report.done_bytes - self._done)
        self._done = report.done_bytes
