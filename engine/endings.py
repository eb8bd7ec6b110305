"""How a run ends: written down, counted, told, and cleaned up behind. Trying again is decided here."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from connectors.errors import ConnectorError, LoginRefused
from engine.attempts import Attempt, CalledBack, KeptByOther, NotNow, TrackingLied
from engine.counting import count_done, count_without_point
from engine.crew import Crew
from engine.drafting import joined
from engine.failures import Kind, verdict
from engine.jobs import LIED, Abandoned, Done, Failed, Job, JobKind, JobState, decision_of
from engine.needed import stands
from engine.plain import show_time
from engine.records import Distrust, RunRow
from engine.threads import settled
from policies.admission import retry_at
from policies.evaluation import GIVES_WAY
from storage.errors import Damaged, StorageError

log = logging.getLogger("engine.endings")

MAX_ATTEMPTS = 12
"""So often a run that an event or a person asked for is tried before it counts as failed for good: about six hours."""

POSTPONE = timedelta(seconds=30)
"""How long a job waits that met its VM occupied by ourselves."""


async def finish(crew: Crew, job: Job, done: Done, attempt: Attempt, began: datetime, trusted: list[Distrust]) -> None:
    """The restore point is committed; `trusted` are the doubts that it settled."""
    settled_job = replace(job, state=JobState.DONE, last_error="")
    run = RunRow(job.vm, last_success=done.taken_at, last_attempt=began)
    crew.set_aside.discard(job.vm)
    crew.world.set_job(settled_job)
    crew.world.set_run(run)
    crew.world.gave_way(job.vm, 0)
    for kind, reason in done.doubts:
        log.error("change tracking is in doubt", extra={"vm": attempt.vm.name, "why": reason})
        of, reset = f"run:{attempt.run}", kind == LIED
        await crew.remember(crew.state.distrust, job.vm, reason, of, crew.now(), reset=reset)
        crew.metrics.tracking_distrusted(kind)
    # The restore point is committed: whatever cannot be noted now, the run is not to be done again.
    await crew.remember(crew.state.settle, settled_job, now=crew.now(), run=run, point=done.point, trusted=trusted)
    if not done.warnings:
        await crew.remember(crew.state.resolve_intents, [attempt.run])
    try:
        await crew.list_points(job.vm)
    except StorageError as error:
        log.error("restore points not listed", extra={"vm": attempt.vm.name, "why": str(error)})
    seconds = (crew.now() - began).total_seconds()
    crew.queue.took(seconds)
    count_done(crew.metrics, job, done, attempt, seconds)
    log.info(
        "restore point committed",
        extra={
            "vm": attempt.vm.name, "point": done.point, "policy": job.policy, "rule": job.rule,
            "read_bytes": done.read_bytes, "stored_bytes": done.stored_bytes, "moved": done.moved or None,
        },
    )  # fmt: skip


def _count_without_point(crew: Crew, job: Job, result: str, began: datetime) -> None:
    attempt = crew.active.get(job.run) if job.run is not None else None
    count_without_point(crew.metrics, job, result, attempt, (crew.now() - began).total_seconds())


async def judge(crew: Crew, job: Job, error: Exception, began: datetime) -> Failed:
    """Write down what went wrong, when it is tried again, and clean up behind it."""
    judged = verdict(error)
    now = crew.now()
    if judged.exit_code == 1:
        log.error("bug in a job", extra={"job": job.id, "vm": job.vm}, exc_info=error)
    # A login that is refused is mended for all VMs at once, and none of them is to wait for its next slot then.
    retriable = judged.kind is Kind.RETRY or isinstance(error, LoginRefused)
    if isinstance(error, Damaged) and job.kind is JobKind.BACKUP:
        # What the run built on is damaged; a full read builds on nothing.
        retriable = True
        await crew.remember(crew.state.distrust, job.vm, f"the base is damaged: {error}", "", now)
        crew.metrics.tracking_distrusted("damaged_base")
    if isinstance(error, TrackingLied):
        await crew.remember(crew.state.distrust, job.vm, error.what, f"run:{job.run}", now, reset=True)
        crew.metrics.tracking_distrusted(LIED)
        crew.metrics.tracking_sampled(error.sampled.blocks, differ=error.sampled.differ)
    again = retriable and (job.attempts < MAX_ATTEMPTS or stands(job))
    retry = retry_at(now, job.attempts, job.key, crew.engine) if again else None
    state = JobState.QUARANTINED if judged.kind is Kind.QUARANTINE else JobState.FAILED
    after = replace(
        job,
        state=JobState.PENDING if retry else state,
        not_before=retry or job.not_before,
        last_error=judged.sentence,
    )
    old = crew.world.runs.get(job.vm, RunRow(job.vm))
    run = replace(
        old,
        last_attempt=now,
        last_failure=judged.sentence,
        consecutive_failures=old.consecutive_failures + 1,
    )
    if job.kind is JobKind.HOLD:
        run = old
    if not (retry or stands(job)):
        crew.world.forget_keys(job.id)  # a schedule that had joined it asks again
    crew.world.set_job(after)
    crew.world.set_run(run)
    await crew.remember(crew.state.settle, after, now=now, run=run)
    if job.kind is JobKind.BACKUP:
        _count_without_point(crew, job, "failed", began)
        (crew.set_aside.add if after.state is JobState.QUARANTINED else crew.set_aside.discard)(job.vm)
    log.error(
        "run failed",
        extra={"vm": crew.name(job.vm), "why": judged.sentence, "retry_at": show_time(retry) if retry else None},
    )
    if job.run is not None:
        crew.active.pop(job.run, None)
        await _clean_up(crew, job)
    return Failed(judged.sentence, judged.kind.value, int(judged.exit_code), retry, state is JobState.QUARANTINED)


async def give_way(crew: Crew, job: Job, over: CalledBack, began: datetime) -> Abandoned:
    """The run left nothing, which is no failure; the same job waits again."""
    log.info("run gave way", extra={"vm": crew.name(job.vm), "why": over.reason})
    crew.world.gave_way(job.vm, crew.world.called_back.get(job.vm, 0) + 1)
    _count_without_point(crew, job, "requeued", began)
    if over.distrust:
        await crew.remember(crew.state.distrust, job.vm, over.distrust, f"run:{job.run}", crew.now())
        crew.metrics.tracking_distrusted("relocated")
    if job.run is not None:
        crew.active.pop(job.run, None)
        await _clean_up(crew, job)  # it gives way also where its snapshot could not be removed
    await postpone(crew, job, over.reason, crew.now() + GIVES_WAY)
    return Abandoned(over.reason, requeue=True, called_back=True)


async def wait(crew: Crew, job: Job, over: NotNow) -> Abandoned:
    """The run has made nothing: the same job waits again, and others have its worker meanwhile."""
    log.info("run waits", extra={"vm": crew.name(job.vm), "why": over.reason})
    if isinstance(over, KeptByOther):
        crew.kept_since = {one: at for one, at in crew.kept_since.items() if one in crew.world.jobs}
        crew.kept_since.setdefault(job.id, crew.now())
    if job.run is not None:
        crew.active.pop(job.run, None)
        await crew.remember(crew.state.resolve_intents, [job.run])
    return await postpone(crew, job, over.reason, over.until or crew.now() + POSTPONE)


async def _clean_up(crew: Crew, job: Job) -> None:
    vm = crew.world.vms.get(job.vm)
    if vm is None or vm.address.vcenter not in crew.means:
        return
    try:
        await crew.sweep(vm.address.vcenter, vm.address)
    except (ConnectorError, StorageError) as error:
        log.warning("clean-up waits for the next sweep", extra={"vm": vm.name, "why": str(error)})


async def abandon(crew: Crew, job: Job, reason: str) -> Abandoned:
    """The job is over without a run: nobody wants it any more, or it was no backup."""
    state = job.state if job.state is JobState.DONE else JobState.ABANDONED
    over = replace(job, state=state, last_error="" if state is JobState.DONE else reason)
    crew.world.set_job(over)
    if state is JobState.ABANDONED:
        crew.world.forget_keys(job.id)
        log.info("job given up", extra={"vm": crew.name(job.vm), "why": reason})
    await settled(crew.threads.state, crew.state.save_job, over)
    return Abandoned(reason)


async def postpone(crew: Crew, job: Job, reason: str, until: datetime | None = None) -> Abandoned:
    """Not now, through no fault of the job's."""
    not_before = until or crew.now() + POSTPONE
    later = replace(job, state=JobState.PENDING, attempts=job.attempts - 1, not_before=not_before, last_error=reason)
    later, absorbed = _back_in_line(crew, later)
    await crew.remember(crew.state.save_job, later)
    if absorbed is not None:
        await crew.remember(crew.state.save_job, absorbed)
    return Abandoned(reason, requeue=True)


def _back_in_line(crew: Crew, job: Job) -> tuple[Job, Job | None]:
    """The job waits again, joined by the backup of its VM that came meanwhile: one VM needs one run.

    Returns it as it waits now, and the other as it is over.
    """
    other = crew.world.jobs.waiting_backup(job.vm) if job.kind is JobKind.BACKUP else None
    if other is None:
        crew.world.set_job(job)
        return job, None
    both = replace(joined(job, decision_of(other)), manual=job.manual or other.manual)
    over = replace(other, state=JobState.ABANDONED, last_error=f"one run is enough: it has joined {job.id}")
    crew.world.set_job(over)
    crew.world.job_keys.update(dict.fromkeys(crew.world.forget_keys(other.id), job.id))
    crew.world.set_job(both)
    crew.joined(other.id, job.id)
    return both, over


async def give_back(crew: Crew, job: Job) -> None:
    """The engine stops: the job waits for the next start, unless it was settled just before."""
    if job.id not in crew.world.jobs:
        return
    waiting = replace(job, state=JobState.PENDING)
    crew.world.set_job(waiting)
    await crew.remember(crew.state.save_job, waiting)
