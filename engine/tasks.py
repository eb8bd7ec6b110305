"""What operators asked for and wait on: each task with its own progress, ended by its own cancellation alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.commands import TaskReport, TaskState
from engine.failures import BadInput, Exit, verdict

log = logging.getLogger("engine.tasks")

REMEMBERED = 200
"""Ended tasks whose result can still be asked for."""

WAITING = 32
"""Tasks that may wait to be started."""


@dataclass(slots=True)
class Watch:
    """How a task is getting on; its body writes, its followers read.

    `facts` belong to its result however it ends, and `standing` is the sentence about them where it does not end well.
    """

    note: str = ""
    done: int = 0
    total: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    standing: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, note: str) -> None:
        """What it does now."""
        self.note = note
        self.changed.set()


Body = Callable[[Watch], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True)
class _Task:
    id: str
    kind: str
    body: Body
    watch: Watch
    state: TaskState = TaskState.WAITING
    exit_code: int = 0
    sentence: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    runner: asyncio.Task[None] | None = None
    cancelled: bool = False

    def report(self) -> TaskReport:
        watch = self.watch
        return TaskReport(
            self.id,
            self.kind,
            self.state,
            watch.note,
            watch.done,
            watch.total,
            self.exit_code,
            self.sentence,
            self.result,
        )


class TaskBoard:
    """Accepts tasks and runs them side by side. `run` is one of the service's loops.

    `failed` is told the kind of each task that did not end well, and "failed" or "cancelled".
    """

    def __init__(self, prefix: str, failed: Callable[[str, str], None] = lambda kind, result: None) -> None:
        self._prefix = prefix
        self._failed = failed
        self._numbers = itertools.count(1)
        self._tasks: dict[str, _Task] = {}
        self._new: asyncio.Queue[_Task] = asyncio.Queue(WAITING)

    def submit(self, kind: str, body: Body) -> str:
        """Accept a task; BadInput when too many wait already."""
        task = _Task(f"{self._prefix}-{next(self._numbers)}", kind, body, Watch())
        try:
            self._new.put_nowait(task)
        except asyncio.QueueFull:
            raise BadInput(f"{WAITING} tasks wait already", hint="try again later") from None
        self._tasks[task.id] = task
        for old in [t.id for t in self._tasks.values() if t.report().final][:-REMEMBERED]:
            del self._tasks[old]
        return task.id

    async def run(self) -> None:
        """Start tasks as they come; ends by cancellation, which ends them all."""
        async with asyncio.TaskGroup() as group:
            while True:
                task = await self._new.get()
                if not task.cancelled:
                    task.runner = group.create_task(self._carry_out(task))

    async def report(self, id: str, wait_seconds: float) -> TaskReport:
        """How a task is getting on; waits so long for news."""
        task = self._find(id)
        if not task.report().final and wait_seconds > 0:
            task.watch.changed.clear()
            try:
                async with asyncio.timeout(wait_seconds):
                    await task.watch.changed.wait()
            except TimeoutError:
                pass
        return task.report()

    def cancel(self, id: str) -> None:
        """End a task as soon as it has cleaned up."""
        task = self._find(id)
        task.cancelled = True
        if task.runner is not None:
            task.runner.cancel()
        else:
            self._end(task, Exit.INTERRUPTED, "cancelled")

    def _find(self, id: str) -> _Task:
        try:
            return self._tasks[id]
        except KeyError:
            raise BadInput(f"there is no task {id}") from None

    async def _carry_out(self, task: _Task) -> None:
        task.state = TaskState.RUNNING
        task.watch.changed.set()
        try:
            achieved = await task.body(task.watch)
        except asyncio.CancelledError:
            self._end(task, Exit.INTERRUPTED, "cancelled")
            if not task.cancelled:
                raise
        except Exception as error:
            judged = verdict(error)
            if judged.exit_code is Exit.BUG:
                log.error("bug in a task", extra={"kind": task.kind}, exc_info=error)
            self._end(task, judged.exit_code, judged.sentence)
        else:
            task.result = {**task.watch.facts, **achieved}
            code = task.result.get("exit_code", 0)
            task.exit_code = int(code)
            task.state = TaskState.DONE
            task.watch.changed.set()

    def _end(self, task: _Task, code: Exit, sentence: str) -> None:
        task.state, task.exit_code = TaskState.FAILED, int(code)
        task.sentence = "; ".join(part for part in (sentence, task.watch.standing) if part)
        task.result = dict(task.watch.facts)
        self._failed(task.kind, "cancelled" if code is Exit.INTERRUPTED else "failed")
        task.watch.changed.set()
