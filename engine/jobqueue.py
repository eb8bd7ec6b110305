"""Which pending job runs next. The pending jobs are those of the world, which mirrors the state.

Order, limits and joined runs are those of `policies.admission`, so that what runs is what was simulated. At most
`limits.running` backups are given out at a time, which bounds what waits in memory behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from engine.jobs import Job, JobKind, JobState, decision_of
from engine.world import World
from policies.admission import Waiting, admit
from policies.facts import VmId
from policies.limits import Limits

IDLE_SECONDS = 30.0
"""The longest sleep between two looks at the queue, in case a clock was set."""


@dataclass(slots=True)
class JobQueue:
    """Hands jobs to workers. Single event loop."""

    world: World
    limits: Limits
    now: Callable[[], datetime]
    paused: bool = False
    waiting: tuple[Waiting, ...] = ()
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        """A job was added, joined or settled, or a limit changed."""
        self._changed.set()

    async def take(self) -> Job:
        """Wait for a job that may start now; it is RUNNING in the world when this returns."""
        while True:
            self._changed.clear()
            job, again = self._next()
            if job is not None:
                started = replace(job, state=JobState.RUNNING, attempts=job.attempts + 1)
                self.world.set_job(started)
                return started
            await self._wait(again)

    def _next(self) -> tuple[Job | None, datetime | None]:
        """The next job that may start, else when to look again."""
        if self.paused:
            return None, None
        now = self.now()
        pending = [job for job in self.world.jobs.values() if job.state is JobState.PENDING]
        small = [job for job in pending if job.kind is not JobKind.BACKUP]
        ready = [job for job in small if job.not_before <= now]
        if ready:
            return min(ready, key=lambda job: (job.not_before, job.id)), None
        backups = {job.key: job for job in pending if job.kind is JobKind.BACKUP and self._can_be_found(job)}
        admission = admit(map(decision_of, backups.values()), self.running(), self.world.vms, self.limits, now)
        self.waiting = admission.waiting
        if admission.start:
            return backups[admission.start[0].key], None
        times = [t for t in (admission.ask_again, *(job.not_before for job in small)) if t is not None]
        return None, min(times, default=None)

    def _can_be_found(self, job: Job) -> bool:
        """A job that an earlier engine left waits until the inventory can tell whether its VM is still there."""
        return job.vm in self.world.vms or self.world.inventory_known

    def running(self) -> dict[VmId, str]:
        """The policy of each running backup, by its VM."""
        jobs = self.world.jobs.values()
        return {j.vm: j.policy for j in jobs if j.state is JobState.RUNNING and j.kind is JobKind.BACKUP}

    async def _wait(self, until: datetime | None) -> None:
        seconds = IDLE_SECONDS if until is None else min(IDLE_SECONDS, (until - self.now()).total_seconds())
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            return
