"""Workers take jobs and carry them out. One job's failure is told, judged and retried; it never ends a neighbour."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import ParamSpec

from connectors.errors import ConnectorError, Gone, LoginRefused
from connectors.hypervisor import Leftover
from engine.attempts import Attempt, CalledBack, Means, Tally
from engine.backup import back_up
from engine.counting import count_done, count_without_point
from engine.failures import Kind, verdict
from engine.jobqueue import JobQueue
from engine.jobs import Abandoned, Done, Failed, Job, JobId, JobKind, JobState, Outcome, RunId
from engine.maintenance import Sweep, sweep
from engine.needed import stands, still_due, waits_until
from engine.records import FULL_READ_ASKED, Change, Distrust, Intent, RunRow
from engine.state import State
from engine.threads import Threads, settled
from engine.world import World
from metrics.registry import Metrics
from policies.admission import retry_at
from policies.decision import Requeue
from policies.evaluation import CALLED_BACK_AT_MOST, GIVES_WAY
from policies.facts import RestorePoint, VmId
from policies.policy import OnCbtInvalid
from policies.policyset import PolicySet
from policies.protection import left_out, nothing_wanted, protection
from storage.errors import Damaged, StorageError
from storage.repository import Repository

P = ParamSpec("P")

log = logging.getLogger("engine.worker")

MAX_ATTEMPTS = 12
"""So often a run that an event or a person asked for is tried before it counts as failed for good: about six hours."""


POSTPONE = timedelta(seconds=30)
"""How long a job waits that met its VM occupied by ourselves."""


@dataclass(slots=True)
class Crew:
    """What the workers share. `means` gives what a run needs for a vCenter.

    `began` is told of every run whose snapshot is about to be made, `ended` of every job that was taken and how that
    ended; both must be quick. `set_aside` are VMs whose last run ended with an error that trying again cannot mend.
    """

    queue: JobQueue
    world: World
    state: State
    repository: Repository
    threads: Threads
    means: Mapping[str, Means]
    policies: Callable[[], PolicySet]
    metrics: Metrics
    now: Callable[[], datetime]
    mint_run: Callable[[], RunId]
    engine: str
    began: Callable[[Attempt], None] = lambda attempt: None
    ended: Callable[[Job, Outcome], None] = lambda job, outcome: None
    active: dict[RunId, Attempt] = field(default_factory=dict)
    set_aside: set[VmId] = field(default_factory=set)
    _others: set[RunId] = field(default_factory=set)
    _restoring: set[tuple[str, str]] = field(default_factory=set)
    _listing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _followers: dict[JobId, asyncio.Future[Outcome]] = field(default_factory=dict)

    def is_active(self, run: str) -> bool:
        """Whether a snapshot or disk of this run is in use."""
        return run in self.active or run in self._others

    async def work(self) -> None:
        """Take jobs for ever."""
        while True:
            job = await self.queue.take()
            run, began = self.mint_run(), self.now()
            started = replace(job, run=run)
            try:
                outcome = await self._carry_out(started, run)
            except asyncio.CancelledError:
                await self._give_back(started)
                raise
            except CalledBack as over:
                outcome = await self._give_way(started, over, began)
            except Exception as error:
                outcome = await self._judge(started, error, began)
            finally:
                self.active.pop(run, None)
                self.world.reads(job.vm, "")
                self.queue.changed()
            self._tell(started, outcome)

    def follow(self, job: JobId) -> asyncio.Future[Outcome]:
        """Resolved with how the next run of this job ends."""
        return self._followers.setdefault(job, asyncio.get_running_loop().create_future())

    @contextmanager
    def alive(self, run: RunId) -> Iterator[None]:
        """What carries this run's mark is in use meanwhile, though it is no job's."""
        self._others.add(run)
        try:
            yield
        finally:
            self._others.discard(run)

    @contextmanager
    def restoring(self, vcenter: str, name: str) -> Iterator[None]:
        """No VM of this name is backed up meanwhile: its disks are being written."""
        self._restoring.add((vcenter, name))
        try:
            yield
        finally:
            self._restoring.discard((vcenter, name))

    def given_up(self, job: Job) -> None:
        """An event gave the job up before it ran: tell who waits for it."""
        self._tell(job, Abandoned(job.last_error))

    def _tell(self, job: Job, outcome: Outcome) -> None:
        follower = self._followers.pop(job.id, None)
        if follower is not None and not follower.done():
            follower.set_result(outcome)
        self.ended(job, outcome)

    async def _carry_out(self, job: Job, run: RunId) -> Outcome:
        await settled(self.threads.state, self.state.save_job, job)
        match job.kind:
            case JobKind.HOLD:
                return await self._hold(job)
            case JobKind.BACKUP:
                return await self._back_up(job, run)

    async def _back_up(self, job: Job, run: RunId) -> Outcome:
        known = self.world.vms.get(job.vm)
        if known is None:
            return await self._abandon(job, "the VM is not in the inventory")
        means = self.means.get(known.address.vcenter)
        if means is None:
            return await self._abandon(job, f"vCenter {known.address.vcenter} is not configured any more")
        try:
            seen = await means.hypervisor.vm(known.address)
            if seen.own_snapshots:
                # One VM has one run at a time, so this is what a dead run left.
                address = known.address
                await self.sweep(address.vcenter, lambda left: left.vm == address)
                seen = await means.hypervisor.vm(known.address)
        except Gone:
            return await self._abandon(job, "the VM is not in the inventory any more")
        sighting = self.world.sight(seen, self.now())
        rows = tuple(row for row in (sighting.row, sighting.displaced) if row is not None)
        if rows:
            await settled(self.threads.state, self.state.apply, Change(vms=rows), now=self.now())
        vm = sighting.vm
        if vm.id != job.vm:
            return await self._abandon(job, "another VM stands in its place now")
        if (vm.address.vcenter, vm.name) in self._restoring:
            return await self._postpone(job, "the VM is being restored")
        dropped = still_due(job, vm, self.policies(), self.world.facts(self.now()))
        dropped = dropped or nothing_wanted(protection(self.policies(), vm), vm)
        if dropped:
            return await self._abandon(job, dropped)
        later = waits_until(job, vm, self.policies(), self.world.facts(self.now()))
        if later is not None:
            return await self._postpone(job, "a blackout has begun", later)
        began = self.now()
        reasons = await settled(self.threads.state, self.state.distrust_of, vm.id)
        await settled(
            self.threads.state,
            self.state.intend,
            Intent(run, "snapshot", vm.address, vm.id, run, began),
        )
        doubts = [*(d.reason for d in reasons), *self._newest_is_gone(vm.id)]
        effective = protection(self.policies(), vm)
        doubt = "; ".join(dict.fromkeys(doubts))
        # Doubts of our own, and a full read that a person asked for, are nothing that vSphere could have wrong.
        ours = len(doubts) > len(reasons) or any(not d.event_key or d.reason == FULL_READ_ASKED for d in reasons)
        on_cbt_invalid = OnCbtInvalid.FULL if ours else effective.on_cbt_invalid
        attempt = Attempt(
            job, vm, run, doubt, Tally(), effective.lock, partial(left_out, effective), on_cbt_invalid,
            was_read=partial(self.world.reads, vm.id, ""),
            gives_way=self.world.called_back.get(vm.id, 0) < CALLED_BACK_AT_MOST,
        )  # fmt: skip
        waited = began - max(job.created_at, job.not_before)
        attempt.tally.seconds["queued"] = max(0.0, waited.total_seconds())
        self.active[run] = attempt
        self.world.reads(vm.id, vm.host)
        self.began(attempt)
        done = await back_up(attempt, means)
        self.active.pop(run, None)
        await self._done(job, done, attempt, began, reasons)
        return done

    def _newest_is_gone(self, vm: VmId) -> list[str]:
        """Why an older restore point is not built on: it may lie behind a doubt that the newest one had settled."""
        last = self.world.runs.get(vm, RunRow(vm)).last_success
        good = [point.taken_at for point in self.world.points.get(vm, ()) if point.complete and not point.damaged]
        gone = last is not None and max(good, default=last) < last
        return ["the newest restore point is gone or damaged"] if gone else []

    async def _done(self, job: Job, done: Done, attempt: Attempt, began: datetime, trusted: list[Distrust]) -> None:
        settled_job = replace(job, state=JobState.DONE, last_error="")
        run = RunRow(job.vm, last_success=done.taken_at, last_attempt=began)
        self.set_aside.discard(job.vm)
        self.world.set_job(settled_job)
        self.world.set_run(run)
        self.world.gave_way(job.vm, 0)
        for kind, reason in done.doubts:
            log.error("change tracking is in doubt", extra={"vm": attempt.vm.name, "why": reason})
            await self._remember(self.state.distrust, job.vm, reason, f"run:{attempt.run}", self.now())
            self.metrics.tracking_distrusted(kind)
        # The restore point is committed: whatever cannot be noted now, the run is not to be done again.
        await self._remember(self.state.settle, settled_job, now=self.now(), run=run, point=done.point, trusted=trusted)
        if not done.warnings:
            await self._remember(self.state.resolve_intents, [attempt.run])
        try:
            await self.list_points(job.vm)
        except StorageError as error:
            log.error("restore points not listed", extra={"vm": attempt.vm.name, "why": str(error)})
        seconds = (self.now() - began).total_seconds()
        self.queue.took(seconds)
        count_done(self.metrics, job, done, attempt, seconds)
        log.info(
            "restore point committed",
            extra={
                "vm": attempt.vm.name, "point": done.point, "policy": job.policy, "rule": job.rule,
                "read_bytes": done.read_bytes, "stored_bytes": done.stored_bytes, "moved": done.moved or None,
            },
        )  # fmt: skip

    def _count_without_point(self, job: Job, result: str, began: datetime) -> None:
        attempt = self.active.get(job.run) if job.run is not None else None
        count_without_point(self.metrics, job, result, attempt, (self.now() - began).total_seconds())

    async def _judge(self, job: Job, error: Exception, began: datetime) -> Failed:
        """Write down what went wrong, when it is tried again, and clean up behind it."""
        judged = verdict(error)
        now = self.now()
        if judged.exit_code == 1:
            log.error("bug in a job", extra={"job": job.id, "vm": job.vm}, exc_info=error)
        # A login that is refused is mended for all VMs at once, and none of them is to wait for its next slot then.
        retriable = judged.kind is Kind.RETRY or isinstance(error, LoginRefused)
        if isinstance(error, Damaged) and job.kind is JobKind.BACKUP:
            # What the run built on is damaged; a full read builds on nothing.
            retriable = True
            await self._remember(self.state.distrust, job.vm, f"the base is damaged: {error}", "", now)
            self.metrics.tracking_distrusted("damaged_base")
        again = retriable and (job.attempts < MAX_ATTEMPTS or stands(job))
        retry = retry_at(now, job.attempts, job.key, self.engine) if again else None
        state = JobState.QUARANTINED if judged.kind is Kind.QUARANTINE else JobState.FAILED
        after = replace(
            job,
            state=JobState.PENDING if retry else state,
            not_before=retry or job.not_before,
            last_error=judged.sentence,
        )
        old = self.world.runs.get(job.vm, RunRow(job.vm))
        run = replace(
            old,
            last_attempt=now,
            last_failure=judged.sentence,
            consecutive_failures=old.consecutive_failures + 1,
        )
        if job.kind is JobKind.HOLD:
            run = old
        if not (retry or stands(job)):
            self.world.forget_keys(job.id)  # a schedule that had joined it asks again
        self.world.set_job(after)
        self.world.set_run(run)
        await self._remember(self.state.settle, after, now=now, run=run)
        if job.kind is JobKind.BACKUP:
            self._count_without_point(job, "failed", began)
            (self.set_aside.add if after.state is JobState.QUARANTINED else self.set_aside.discard)(job.vm)
        log.error(
            "run failed",
            extra={"vm": self._name(job.vm), "why": judged.sentence, "retry_at": retry.isoformat() if retry else None},
        )
        if job.run is not None:
            self.active.pop(job.run, None)
            await self._clean_up(job)
        return Failed(judged.sentence, judged.kind.value, int(judged.exit_code), retry, state is JobState.QUARANTINED)

    def call_back(self, decision: Requeue) -> None:
        """Have the run of this VM give way, unless it has read everything by now."""
        for attempt in [one for one in self.active.values() if one.vm.id == decision.vm]:
            attempt.recall.call(decision.reason)

    async def _give_way(self, job: Job, over: CalledBack, began: datetime) -> Abandoned:
        """The run left nothing, which is no failure; the same job waits again."""
        log.info("run gave way", extra={"vm": self._name(job.vm), "why": over.reason})
        self.world.gave_way(job.vm, self.world.called_back.get(job.vm, 0) + 1)
        self._count_without_point(job, "requeued", began)
        if over.distrust:
            await self._remember(self.state.distrust, job.vm, over.distrust, f"run:{job.run}", self.now())
            self.metrics.tracking_distrusted("relocated")
        if job.run is not None:
            self.active.pop(job.run, None)
            await self._remember(self.state.resolve_intents, [job.run])
        await self._postpone(job, over.reason, self.now() + GIVES_WAY)
        return Abandoned(over.reason, requeue=True, called_back=True)

    async def _clean_up(self, job: Job) -> None:
        vm = self.world.vms.get(job.vm)
        if vm is None or vm.address.vcenter not in self.means:
            return
        try:
            await self.sweep(vm.address.vcenter, lambda left: left.run == job.run)
        except (ConnectorError, StorageError) as error:
            log.warning("clean-up waits for the next sweep", extra={"vm": vm.name, "why": str(error)})

    async def sweep(self, vcenter: str, wanted: Callable[[Leftover], bool] | None = None) -> Sweep:
        """One janitor's pass over a vCenter, or over what a run waits for; closes intents of which nothing is left."""
        swept = await sweep(self.means[vcenter].hypervisor, self.is_active, wanted or (lambda left: True))
        left = {leftover.run for leftover, _ in swept.stuck}
        gone = {leftover.run for leftover in swept.removed}
        intents = await settled(self.threads.state, self.state.intents)
        over = [
            i.run
            for i in intents
            if i.address.vcenter == vcenter
            and i.run not in left
            and not self.is_active(i.run)
            and (wanted is None or i.run in gone)
        ]
        if over:
            await settled(self.threads.state, self.state.resolve_intents, over)
        return swept

    async def _hold(self, job: Job) -> Outcome:
        for point in await settled(self.threads.repository, self.repository.points, job.vm):
            if job.reason not in point.holds:
                await settled(self.threads.repository, self.repository.mark_hold, point.id, job.reason, self.now())
        await self.list_points(job.vm)
        return await self._abandon(replace(job, state=JobState.DONE), "held")

    async def _abandon(self, job: Job, reason: str) -> Abandoned:
        state = job.state if job.state is JobState.DONE else JobState.ABANDONED
        over = replace(job, state=state, last_error="" if state is JobState.DONE else reason)
        self.world.set_job(over)
        if state is JobState.ABANDONED:
            self.world.forget_keys(job.id)
            log.info("job given up", extra={"vm": self._name(job.vm), "why": reason})
        await settled(self.threads.state, self.state.save_job, over)
        return Abandoned(reason)

    async def _remember(self, write: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write to the state; when that fails too (a full disk), go on: at worst the job runs again after a start."""
        try:
            await settled(self.threads.state, write, *args, **kwargs)
        except StorageError as error:
            log.error("not written to the state", extra={"why": str(error)})

    async def _postpone(self, job: Job, reason: str, until: datetime | None = None) -> Abandoned:
        """Not now, through no fault of the job's."""
        not_before = until or self.now() + POSTPONE
        later = replace(
            job, state=JobState.PENDING, attempts=job.attempts - 1, not_before=not_before, last_error=reason
        )
        self.world.set_job(later)
        await settled(self.threads.state, self.state.save_job, later)
        return Abandoned(reason, requeue=True)

    async def _give_back(self, job: Job) -> None:
        """The engine stops: the job waits for the next start, unless it was settled just before."""
        if job.id not in self.world.jobs:
            return
        waiting = replace(job, state=JobState.PENDING)
        self.world.set_job(waiting)
        await self._remember(self.state.save_job, waiting)

    async def list_points(self, vm: VmId) -> None:
        """Read the restore points of a VM from the repository again."""
        async with self._listing:
            self.world.set_points(vm, await settled(self.threads.repository, self.repository.points, vm))

    async def list_all_points(self) -> None:
        """Read every restore point from the repository again."""
        async with self._listing:
            by_vm: dict[VmId, list[RestorePoint]] = {vm: [] for vm in self.world.points}
            for point in await settled(self.threads.repository, self.repository.points):
                by_vm.setdefault(point.vm, []).append(point)
            for vm, points in by_vm.items():
                self.world.set_points(vm, points)

    def _name(self, vm: VmId) -> str:
        row = self.world.rows.get(vm)
        return row.traits.name if row is not None else vm
