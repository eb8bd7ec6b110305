"""What the bus is told of runs: that one started, and that it is done or failed.

A run never waits for the bus. What is to be told waits in a bounded queue until the bus has taken it; what it may
have taken already it gets again under the same key, which it stores once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from connectors.errors import ConnectorError
from connectors.messages import Subjects, run_message
from engine.attempts import Attempt
from engine.jobs import Abandoned, Done, Failed, Job, JobKind, Outcome
from engine.plain import plain
from engine.ports import Bus
from engine.sources import Patience

log = logging.getLogger("engine.announcing")

MOST_WAITING = 1_000
"""Messages that wait for the bus, of about 1 KiB each; the oldest are given up first."""


@dataclass(frozen=True, slots=True)
class Message:
    """One state of one run, as it is published."""

    subject: str
    key: str
    data: bytes


@dataclass(slots=True)
class Announcer:
    """Collects what is to be told, from the event loop; `run` publishes it. `name_of` is a VM's name by its id."""

    subjects: Subjects
    now: Callable[[], datetime]
    name_of: Callable[[str], str]
    waiting: deque[Message] = field(default_factory=deque)
    trouble: str = ""
    """Why the bus took nothing when it was last tried; empty when it did."""
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def began(self, attempt: Attempt) -> None:
        """The run's snapshot is about to be made."""
        self._tell(attempt.job, "started", {})

    def ended(self, job: Job, outcome: Outcome) -> None:
        """The job that was taken ended so; only runs are told, not what was given up before one."""
        match outcome:
            case Done():
                self._tell(job, "done", _made(outcome))
            case Failed():
                self._tell(job, "failed", {"error": outcome.error, "retry_at": outcome.retry_at or ""})
            case Abandoned():
                pass

    async def run(self, bus: Bus) -> None:
        """Publish in order, for ever; while the bus is away, wait for it."""
        patience = Patience()
        while True:
            while self.waiting:
                message = self.waiting[0]
                try:
                    await bus.publish(message.subject, message.data, key=message.key)
                except ConnectorError as error:
                    log.warning("run not told yet", extra={"subject": message.subject, "why": str(error)})
                    self.trouble = str(error)
                    await patience.wait()
                    continue
                self.trouble = ""
                patience.restore()
                if self.waiting and self.waiting[0] is message:
                    self.waiting.popleft()
            self._more.clear()
            await self._more.wait()

    def _tell(self, job: Job, state: str, more: Mapping[str, Any]) -> None:
        if job.kind is not JobKind.BACKUP or job.run is None:
            return
        run = job.run.lower()
        told = {
            "run": job.run, "state": state, "job": job.id, "vm": self.name_of(job.vm), "vm_id": job.vm,
            "policy": job.policy, "rule": job.rule, "reason": job.reason, "attempt": job.attempts, **more,
        }  # fmt: skip
        key = f"{run}.{state}"
        source = f"/backstay/{self.subjects.site}"
        if len(self.waiting) >= MOST_WAITING:
            log.warning("run never told", extra={"subject": self.waiting.popleft().subject})
        data = run_message(key=key, source=source, at=self.now(), run=plain(told))
        self.waiting.append(Message(self.subjects.run(run, state), key, data))
        self._more.set()


def _made(done: Done) -> Mapping[str, Any]:
    return {
        "point": done.point, "taken_at": done.taken_at, "consistency": done.consistency, "partial": done.partial,
        "moved": done.moved, "read_bytes": done.read_bytes, "stored_bytes": done.stored_bytes,
    }  # fmt: skip
