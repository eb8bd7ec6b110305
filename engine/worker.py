"""Workers take jobs and carry them out. One job's failure is told, judged and retried; it never ends a neighbour."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

from connectors.errors import Gone
from engine.attempts import Attempt, CalledBack, NotNow, Tally
from engine.backup import newest_point
from engine.crew import Crew
from engine.doubts import host_failed, newest_is_gone
from engine.endings import abandon, finish, give_back, give_way, judge, postpone, wait
from engine.holding import hold_all
from engine.inplace import PLACE_AWAITED, back_up_in_place
from engine.jobs import Job, JobKind, JobState, Outcome, RunId
from engine.leases import MIGRATION_LOCK
from engine.needed import still_due, waits_until
from engine.records import FULL_READ_ASKED, Change, Intent
from engine.threads import settled
from engine.tracking_doubts import known_doubt, to_reset, was_tracked
from policies.evaluation import CALLED_BACK_AT_MOST
from policies.facts import Vm, VmId
from policies.policy import OnCbtInvalid, OnMigrate
from policies.protection import left_out, nothing_wanted, protection


async def work(crew: Crew) -> None:
    """Take jobs for ever."""
    while True:
        job = await crew.queue.take()
        run, began = crew.mint_run(), crew.now()
        started = replace(job, run=run)
        try:
            outcome = await _carry_out(crew, started, run)
        except asyncio.CancelledError:
            await give_back(crew, started)
            raise
        except CalledBack as over:
            outcome = await give_way(crew, started, over, began)
        except NotNow as over:
            outcome = await wait(crew, started, over)
        except Exception as error:
            outcome = await judge(crew, started, error, began)
        finally:
            crew.active.pop(run, None)
            crew.world.reads(job.vm, "")
            crew.queue.changed()
        crew.tell(started, outcome)


async def _carry_out(crew: Crew, job: Job, run: RunId) -> Outcome:
    await settled(crew.threads.state, crew.state.save_job, job)
    match job.kind:
        case JobKind.HOLD:
            return await _hold(crew, job)
        case JobKind.BACKUP:
            return await _back_up(crew, job, run)


async def _back_up(crew: Crew, job: Job, run: RunId) -> Outcome:
    known = crew.world.vms.get(job.vm)
    if known is None:
        return await abandon(crew, job, "the VM is not in the inventory")
    means = crew.means.get(known.address.vcenter)
    if means is None:
        return await abandon(crew, job, f"vCenter {known.address.vcenter} is not configured any more")
    try:
        seen = await means.hypervisor.vm(known.address)
        if seen.own_snapshots:
            # One VM has one run at a time, so this is what a dead run left.
            await crew.sweep(known.address.vcenter, known.address)
            seen = await means.hypervisor.vm(known.address)
    except Gone:
        return await abandon(crew, job, "the VM is not in the inventory any more")
    sighting = crew.world.sight(seen, crew.now())
    rows = tuple(row for row in (sighting.row, sighting.displaced) if row is not None)
    if rows:
        await settled(crew.threads.state, crew.state.apply, Change(vms=rows), now=crew.now())
    vm = sighting.vm
    if vm.id != job.vm:
        return await abandon(crew, job, "another VM stands in its place now")
    if await crew.carries_mark(vm, means.hypervisor) or crew.is_restoring(vm):
        return await postpone(crew, job, "the VM is being restored, or half restored")
    dropped = still_due(job, vm, crew.policies(), crew.world.facts(crew.now()))
    dropped = dropped or nothing_wanted(protection(crew.policies(), vm), vm)
    if dropped:
        return await abandon(crew, job, dropped)
    about_to = partial(_not_in_a_blackout, crew, job, vm)
    about_to()
    destination = protection(crew.policies(), vm).destination
    means = replace(means, repository=crew.repositories.named(destination))
    began = crew.now()
    reasons = await settled(crew.threads.state, crew.state.distrust_of, vm.id)
    before = await newest_point(means, vm.id)
    stopped = await host_failed(crew.threads, crew.state, crew.metrics, vm, before)
    effective = protection(crew.policies(), vm)
    own = [*newest_is_gone(crew.world, vm.id), *_newest_is_elsewhere(crew, vm.id, destination)]
    doubt = "; ".join(dict.fromkeys([*(d.reason for d in reasons), *stopped, *own]))
    # Doubts of our own, and a full read that a person asked for, are nothing that vSphere could have wrong.
    ours = bool(own) or any(not d.event_key or d.reason == FULL_READ_ASKED for d in reasons)
    on_cbt_invalid = OnCbtInvalid.FULL if ours else effective.on_cbt_invalid
    # A run that fails until somebody has looked is not to change what there is to be looked at.
    fails = on_cbt_invalid is OnCbtInvalid.FAIL and was_tracked(before)
    if fails and (kept := known_doubt("", before)):
        doubt = doubt or kept.reason
    attempt = Attempt(
        job, vm, run, doubt, Tally(), effective.lock, partial(left_out, effective), on_cbt_invalid,
        sample=effective.tracking_sample,
        to_reset="" if fails else to_reset(reasons),
        resets=not fails,
        before=before,
        quiescing=effective.quiescing,
        on_migrate=effective.on_migrate,
        about_to=about_to,
        waits_for_place=began - crew.kept_since.get(job.id, began) < PLACE_AWAITED,
        was_read=partial(crew.world.reads, vm.id, ""),
        gives_way=crew.world.called_back.get(vm.id, 0) < CALLED_BACK_AT_MOST,
    )  # fmt: skip
    if crew.is_restoring(vm):  # since; from here on a restore sees that the VM is backed up
        return await postpone(crew, job, "the VM is being restored, or half restored")
    waited = began - max(job.created_at, job.not_before)
    attempt.tally.seconds["queued"] = max(0.0, waited.total_seconds())
    crew.active[run] = attempt
    crew.world.reads(vm.id, vm.host)
    # Not before the run is known as active: a sweep in between would close what it has just opened.
    await settled(crew.threads.state, crew.state.intend, Intent(run, "snapshot", vm.address, vm.id, run, began))
    if effective.on_migrate is OnMigrate.BLOCK:
        lock = Intent(run, MIGRATION_LOCK, vm.address, vm.id, vm.name, began)
        await settled(crew.threads.state, crew.state.intend, lock)
    crew.began(attempt)
    done = await back_up_in_place(attempt, means)
    crew.active.pop(run, None)
    await finish(crew, job, done, attempt, began, reasons)
    return done


def _newest_is_elsewhere(crew: Crew, vm: VmId, destination: str) -> list[str]:
    """Why what is in the destination is not built on: the doubts that lie behind it were settled in another one."""
    newest = max(crew.world.points.get(vm, ()), key=lambda point: point.taken_at, default=None)
    elsewhere = newest is not None and newest.repository != destination
    return ["the newest restore point is in another repository"] if elsewhere else []


def _not_in_a_blackout(crew: Crew, job: Job, vm: Vm) -> None:
    """Raise NotNow where the job may not start at this moment: it may have waited long for its turn, or its guest."""
    later = waits_until(job, vm, crew.policies(), crew.world.facts(crew.now()))
    if later is not None:
        raise NotNow("a blackout has begun", later)


async def _hold(crew: Crew, job: Job) -> Outcome:
    await hold_all(crew, job.vm, job.reason)
    return await abandon(crew, replace(job, state=JobState.DONE), "held")
