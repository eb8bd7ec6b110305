"""What people see of our work in each vCenter: attributes of VMs, events, and runs as tasks. All of it is optional.

No run waits for it, and none fails by it: what a run tells waits in a bounded queue, is put on the board by one loop
per vCenter, not more than a few calls a second, and is dropped where vCenter does not take it. What the account may
not do is told once and left out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from connectors.cleanup import finish
from connectors.errors import Busy, ConnectorError, Gone, LoginRefused, NotPermitted, Rejected, Unreachable
from connectors.shown import POLICY, RESTORE_POINT, STATE, Kind, Note, Wanted
from engine.attempts import Attempt
from engine.jobs import Abandoned, Done, Failed, Job, JobKind, Outcome, RunId
from engine.pauses import unhurried
from engine.ports import Board
from engine.sources import Patience
from engine.units import show_size
from engine.world import World
from policies.facts import Vm, VmId
from policies.policyset import PolicySet
from policies.protection import Protection, protection

log = logging.getLogger("engine.showing")

MOST_WAITING = 1_000
"""What waits to be shown in one vCenter, some hundred bytes each; the oldest is given up first."""

PACE = 0.2
"""Seconds between two calls: attributes of 1,000 VMs are written in ten minutes, and vCenter hardly notices."""

LOOK_SECONDS = 10.0
"""How often what attributes should say is compared with what they say."""

PROGRESS_SECONDS = 5.0
AGAIN_SECONDS = 3600.0
"""After so long everything is looked at anew: attributes that somebody changed, privileges that were given."""

FAREWELL_SECONDS = 5.0
"""How long the end of the engine waits for its tasks to be shown as ended."""

_WORDS = {"attributes": "custom attributes", "events": "events", "tasks": "runs as tasks"}


def labels(policies: PolicySet, effective: Protection, vm: Vm, world: World, now: datetime) -> dict[str, str]:
    """What our attributes of a VM should say. Nothing in it changes by itself with each minute."""
    history, row = world.history.get(vm.id), world.rows.get(vm.id)
    last = history.last_success if history is not None else None
    goals = [p.timing.rpo for p in effective.scheduling if p.timing.rpo is not None]
    since = last or (row.first_seen if row is not None else now)
    if not effective.policies:
        state = "excluded" if policies.excluding(vm) else "unprotected"
    elif history is not None and history.consecutive_failures:
        state = "backup failed"
    elif goals and now - since > min(goals):
        state = "late"
    else:
        state = "protected" if last is not None else "not backed up yet"
    return {
        RESTORE_POINT: f"{last:%Y-%m-%d %H:%M} UTC" if last is not None else "",
        POLICY: ", ".join(policy.name for policy in effective.policies),
        STATE: state,
    }


@dataclass(slots=True)
class Show:
    """One vCenter: what is to be seen there, what is lacking for it, and what waits."""

    wanted: Wanted
    lacking: dict[str, str] = field(default_factory=dict)
    """By what, why it is not shown."""
    trouble: str = ""
    waiting: deque[Callable[[Board], Awaitable[None]]] = field(default_factory=deque)
    shown: dict[str, dict[str, str]] = field(default_factory=dict)
    """What our attributes of each VM say, as far as is known."""
    tasks: dict[RunId, str] = field(default_factory=dict)
    owed: dict[RunId, str] = field(default_factory=dict)
    """Runs that are over and not yet shown so, with their errors."""
    attempts: dict[RunId, Attempt] = field(default_factory=dict)
    unprotected: set[VmId] = field(default_factory=set)
    """VMs that were told to be unprotected, or were so before the engine started."""
    looked: bool = False

    def may(self, what: str) -> bool:
        """Whether this is wanted and nothing is in the way."""
        return getattr(self.wanted, what) and what not in self.lacking

    def put(self, action: Callable[[Board], Awaitable[None]]) -> None:
        """Show this as soon as its turn comes."""
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft()
            log.warning("never shown in vCenter", extra={"why": "more waits than is shown"})
        self.waiting.append(action)


@dataclass(slots=True)
class Showing:
    """Hears of runs, and keeps the boards of all vCenters. From the event loop alone."""

    world: World
    policies: Callable[[], PolicySet]
    now: Callable[[], datetime]
    is_dead: Callable[[str], bool]
    """Whether a run is no run of this engine that goes on."""
    started_at: datetime
    shows: dict[str, Show] = field(default_factory=dict)
    pace: float = PACE
    look_seconds: float = LOOK_SECONDS
    elapsed: Callable[[], float] = time.monotonic

    def began(self, attempt: Attempt) -> None:
        """The run's snapshot is about to be made."""
        show = self.shows.get(attempt.vm.address.vcenter)
        if show is None:
            return
        show.attempts[attempt.run] = attempt
        if show.may("tasks"):
            show.put(partial(self._begin, show, attempt))

    def ended(self, job: Job, outcome: Outcome) -> None:
        """The job that was taken ended so."""
        if job.kind is not JobKind.BACKUP or job.run is None:
            return
        vm = self.world.vms.get(job.vm)
        for one in self.shows.values():
            if one.attempts.pop(job.run, None) is not None:
                one.put(partial(self._end, one, job.run, _why(outcome)))
        show = self.shows.get(vm.address.vcenter) if vm is not None else None
        if show is None or vm is None or not show.may("events"):
            return
        if isinstance(outcome, Done):
            show.put(partial(self._post, show, Note(Kind.SUCCEEDED, vm.address, vm.name, _made(job, outcome))))
        elif isinstance(outcome, Failed) and (job.attempts <= 1 or outcome.retry_at is None):
            again = f"; tried again at {outcome.retry_at:%H:%M} UTC" if outcome.retry_at else "; not tried again"
            text = f"Backup failed: {outcome.error}{again}"
            show.put(partial(self._post, show, Note(Kind.FAILED, vm.address, vm.name, text)))

    def sentences(self, names: Mapping[str, str]) -> list[str]:
        """What is not shown although it is wanted, and why."""
        found = []
        for vcenter, show in self.shows.items():
            where = names.get(vcenter, vcenter)
            found += [f"{where}: {_WORDS[what]} are not shown: {why}" for what, why in sorted(show.lacking.items())]
            if show.trouble:
                found.append(f"{where}: what is shown in vCenter waits: {show.trouble}")
        return found

    async def run(self, vcenter: str, board: Board, wanted: Wanted) -> None:
        """Keep the board of one vCenter, for ever; at the end no task of ours is left running there."""
        if not wanted:
            return
        show = self.shows.setdefault(vcenter, Show(wanted))
        patience = Patience()
        try:
            while True:
                try:
                    await self._prepare(show, board)
                    patience.restore()
                    await self._keep(vcenter, show, board)
                except ConnectorError as error:
                    if show.trouble != str(error):
                        log.warning("nothing is shown", extra={"vcenter": vcenter, "why": str(error)})
                    show.trouble = str(error)
                    await patience.wait()
        finally:
            await self._farewell(show, board)

    async def _prepare(self, show: Show, board: Board) -> None:
        before = show.lacking
        show.lacking = await board.prepare(show.wanted)
        show.trouble = ""
        for what, why in show.lacking.items():
            if before.get(what) != why:
                log.warning("not shown in vCenter", extra={"what": _WORDS[what], "why": why})
        if show.may("attributes"):
            show.shown = await board.labels()
        if show.may("tasks"):
            for run in list(show.owed):
                await self._settle(show, run, board)
            for task in await board.unfinished(lambda run: run not in show.tasks and self.is_dead(run)):
                log.info("task of a dead engine ended", extra={"task": task})
                await _unless_gone(board.end(task, "the engine that ran it has ended"))

    async def _keep(self, vcenter: str, show: Show, board: Board) -> None:
        began = looked = told = self.elapsed()
        looked -= self.look_seconds
        percents: dict[RunId, int] = {}
        while self.elapsed() - began < AGAIN_SECONDS:
            if show.waiting:
                await _one(show.waiting.popleft(), board)
            elif show.may("tasks") and self.elapsed() - told >= PROGRESS_SECONDS:
                told = self.elapsed()
                await self._progress(show, board, percents)
            elif self.elapsed() - looked >= self.look_seconds:
                looked = self.elapsed()
                if vcenter in self.world.complete:
                    here = [vm for vm in self.world.vms.values() if vm.address.vcenter == vcenter]
                    async for vm in unhurried(here):
                        self._look(show, vm)
                    show.looked = True
            await asyncio.sleep(self.pace)

    def _look(self, show: Show, vm: Vm) -> None:
        """Have written what our attributes of a VM should say and do not; tell of a VM that nothing protects."""
        if len(show.waiting) >= MOST_WAITING // 2:
            return
        policies = self.policies()
        effective = protection(policies, vm)
        wanted = labels(policies, effective, vm, self.world, self.now())
        if show.may("attributes"):
            known = show.shown.get(vm.address.moref, {})
            for name, value in wanted.items():
                if known.get(name, "") != value:
                    show.shown.setdefault(vm.address.moref, {})[name] = value
                    show.put(partial(self._label, show, vm, name, value))
        if wanted[STATE] != "unprotected":
            show.unprotected.discard(vm.id)
        elif vm.id not in show.unprotected:
            show.unprotected.add(vm.id)
            row = self.world.rows.get(vm.id)
            news = show.looked or row is None or row.first_seen >= self.started_at
            if show.may("events") and news:
                text = "No Backstay policy protects this VM"
                show.put(partial(self._post, show, Note(Kind.UNPROTECTED, vm.address, vm.name, text)))

    async def _progress(self, show: Show, board: Board, percents: dict[RunId, int]) -> None:
        for run, task in list(show.tasks.items()):
            attempt = show.attempts.get(run)
            planned = sum(attempt.tally.planned.values()) if attempt is not None else 0
            if attempt is None or not planned:
                continue
            percent = min(99, 100 * sum(attempt.tally.done.values()) // planned)
            if percents.get(run) != percent:
                percents[run] = percent
                await _unless_gone(board.progress(task, percent))
        for run in percents.keys() - show.tasks.keys():
            del percents[run]

    async def _begin(self, show: Show, attempt: Attempt, board: Board) -> None:
        job = attempt.job
        text = f"Backup under policy {job.policy}: {job.reason}" if job.policy else f"Backup: {job.reason}"
        with _lacking(show, "tasks"):
            show.tasks[attempt.run] = await board.begin(attempt.vm.address, attempt.run, text)

    async def _end(self, show: Show, run: RunId, error: str, board: Board) -> None:
        if run in show.tasks:
            show.owed[run] = error
            await self._settle(show, run, board)

    async def _settle(self, show: Show, run: RunId, board: Board) -> None:
        await _unless_gone(board.end(show.tasks[run], show.owed[run]))
        del show.tasks[run], show.owed[run]

    async def _post(self, show: Show, note: Note, board: Board) -> None:
        with _lacking(show, "events"):
            await board.post(note)

    async def _label(self, show: Show, vm: Vm, name: str, value: str, board: Board) -> None:
        with _lacking(show, "attributes"):
            await board.label(vm.address, name, value)

    async def _farewell(self, show: Show, board: Board) -> None:
        """Runs that the engine's end interrupts run again; what is shown of them must not run for ever."""

        async def end() -> None:
            for task in list(show.tasks.values()):
                await _unless_gone(board.end(task, "the engine was stopped; the backup runs again"))

        try:
            await finish(end(), within=FAREWELL_SECONDS)
        except (ConnectorError, TimeoutError) as error:
            log.warning("tasks stay until the next start", extra={"tasks": len(show.tasks), "why": str(error)})


async def _one(action: Callable[[Board], Awaitable[None]], board: Board) -> None:
    """Show one thing. What vCenter does not take is left out; that nobody answers is raised."""
    try:
        await action(board)
    except (Unreachable, LoginRefused, Busy):
        raise
    except ConnectorError as error:
        log.warning("not shown in vCenter", extra={"why": str(error)})


async def _unless_gone(call: Awaitable[None]) -> None:
    """vCenter forgets tasks some minutes after their end, and those of a VM with it."""
    try:
        await call
    except (Gone, Rejected) as error:
        log.info("not shown in vCenter", extra={"why": str(error)})


@contextmanager
def _lacking(show: Show, what: str) -> Iterator[None]:
    """What the account may not do is told once and not tried again until everything is looked at anew."""
    try:
        yield
    except NotPermitted as error:
        if what not in show.lacking:
            log.warning("not shown in vCenter", extra={"what": _WORDS[what], "why": str(error)})
        show.lacking[what] = str(error)


def _made(job: Job, done: Done) -> str:
    policy = f" under policy {job.policy}" if job.policy else ""
    read, stored = show_size(done.read_bytes), show_size(done.stored_bytes)
    lacks = "; a disk is not in it" if done.lacking else ""
    return (
        f"Restore point {done.point} made{policy}, {done.consistency}-consistent: {read} read, {stored} stored{lacks}"
    )


def _why(outcome: Outcome) -> str:
    return outcome.error if isinstance(outcome, Failed) else outcome.reason if isinstance(outcome, Abandoned) else ""
