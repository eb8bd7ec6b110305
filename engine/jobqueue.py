"""Which pending job runs next. The pending jobs are those of the world, which mirrors the state.

Order, limits and joined runs are those of `policies.admission`, so that what runs is what was simulated. At most
`limits.running` backups are given out at a time, which bounds what waits in memory behind them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from datetime import datetime, timedelta

from engine.jobs import Job, JobId, JobKind, JobState, decision_of
from engine.world import World
from policies.admission import Waiting
from policies.facts import VmId
from policies.limits import Limits
from policies.line import Line
from policies.overload import Load
from policies.policyset import PolicySet
from policies.protection import destinations

IDLE_SECONDS = 30.0
"""The longest sleep between two looks at the queue, in case a clock was set."""

RUNS_REMEMBERED = 16
"""The typical run is a mean in which each run counts for one in so many."""


@dataclass(slots=True)
class JobQueue:
    """Hands jobs to workers. Single event loop. Follows the world's open jobs; `policies` have limits of their own."""

    world: World
    limits: InitVar[Limits]
    now: Callable[[], datetime]
    policies: Callable[[], PolicySet] = PolicySet
    paused: bool = False
    line: Line = field(init=False)
    _limits: Limits = field(init=False)
    _in_force: PolicySet | None = None
    _ids: dict[str, JobId] = field(default_factory=dict)
    """Which job a key in line stands for."""
    _small: dict[JobId, Job] = field(default_factory=dict)
    """Pending jobs that need no place."""
    _unfound: dict[JobId, Job] = field(default_factory=dict)
    """Backups of an earlier engine that wait until the inventory can tell whether their VM is still there."""
    _running: dict[JobId, VmId] = field(default_factory=dict)
    _others: Counter[str] = field(default_factory=Counter)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self, limits: Limits) -> None:
        self._limits = limits
        self.line = Line(limits, self.world.vms)
        for job in self.world.jobs.values():
            self._heard(None, job)
        self.world.jobs.heard = self._heard
        self.world.moved = self._moved

    def changed(self) -> None:
        """A job was added, joined or settled, or a limit changed."""
        self._changed.set()

    async def take(self) -> Job:
        """Wait for a job that may start now; it is RUNNING in the world when this returns."""
        while True:
            self._changed.clear()
            job = self._next()
            if job is not None:
                started = replace(job, state=JobState.RUNNING, attempts=job.attempts + 1)
                self.world.set_job(started)
                return started
            await self._wait()

    def _next(self) -> Job | None:
        """The next job that may start."""
        if self.paused:
            return None
        self._look()
        now = self.now()
        ready = [job for job in self._small.values() if job.not_before <= now]
        if ready:
            return min(ready, key=lambda job: (job.not_before, job.id))
        run = self.line.start(now)
        if run is None:
            return None
        job = self.world.jobs[self._ids[run.key]]
        self._running[job.id] = job.vm
        return job

    def _look(self) -> None:
        """Follow the policies' own limits, and let in what waited for the inventory."""
        in_force = self.policies()
        if in_force is not self._in_force:
            self._in_force = in_force
            self.line.limits = self._limits.with_those_of(in_force.policies, destinations(in_force))
        if self._unfound and self.world.inventory_known:
            found, self._unfound = self._unfound, {}
            for job in found.values():
                self._add(job)

    # what the world tells

    def _heard(self, before: Job | None, after: Job | None) -> None:
        if before is not None:
            self._leave(before, after)
        if after is None:
            return
        if after.state is JobState.RUNNING:
            if after.kind is JobKind.BACKUP and after.id not in self._running:
                self._running[after.id] = after.vm
                self.line.began(after.vm, after.policy)
        elif after.kind is not JobKind.BACKUP:
            self._small[after.id] = after
        elif self._can_be_found(after):
            self._add(after)
        else:
            self._unfound[after.id] = after

    def _leave(self, before: Job, after: Job | None) -> None:
        self._small.pop(before.id, None)
        self._unfound.pop(before.id, None)
        if self._ids.get(before.key) == before.id:
            del self._ids[before.key]
            self.line.remove(before.key)
        if before.id in self._running and (after is None or after.state is not JobState.RUNNING):
            self.line.finished(self._running.pop(before.id))

    def _add(self, job: Job) -> None:
        self._ids[job.key] = job.id
        self.line.advance(self.now())
        self.line.add(decision_of(job))

    def _can_be_found(self, job: Job) -> bool:
        return job.vm in self.world.vms or self.world.inventory_known

    def _moved(self, vm: VmId) -> None:
        for job in self.world.jobs.of(vm):
            if job.id in self._unfound and self._can_be_found(job):
                del self._unfound[job.id]
                self._add(job)
        self.line.moved(vm)

    # what others tell and ask

    def took(self, seconds: float) -> None:
        """A run took so long: how long runs take tells whether what is due can be done in time."""
        typical = self.line.typical
        self.line.typical = typical + (timedelta(seconds=seconds) - typical) / RUNS_REMEMBERED

    @contextmanager
    def using_repository(self, *names: str) -> Iterator[None]:
        """Work beside the backups reads or writes these repositories meanwhile ("" for the engine's own, as when none
        is named); it counts with the backups to them."""
        self._use(1, names or ("",))
        try:
            yield
        finally:
            self._use(-1, names or ("",))
            self.changed()

    def _use(self, more: int, names: Sequence[str]) -> None:
        for name in names:
            self._others[name] += more
            self.line.use_repository(self._others[name], name)

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """The backups that wait, in the order of starting, and why."""
        waiting = self.line.waiting(self.now())
        unfound = (Waiting(decision_of(j), "waits until the inventory is known") for j in self._unfound.values())
        if self.paused:
            waiting = tuple(Waiting(one.decision, "the queue is paused") for one in waiting)
        return (*waiting, *unfound)

    @property
    def load(self) -> Load:
        """What is ready to start, and whether its goals can be kept."""
        return self.line.load(self.now())

    def late(self) -> Counter[str]:
        """How many backups wait past their deadline, by policy."""
        now = self.now()
        return Counter(d.policy for d in self.line.pending if d.deadline is not None and d.deadline < now)

    async def _wait(self) -> None:
        now = self.now()
        times = [] if self.paused else [job.not_before for job in self._small.values()]
        again = None if self.paused else self.line.ask_again(now)
        until = min(times if again is None else [*times, again], default=None)
        seconds = IDLE_SECONDS if until is None else min(IDLE_SECONDS, (until - now).total_seconds())
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            return
