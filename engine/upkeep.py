"""Maintenance on a timer: janitor, retention, reclaim, verify. One loop each; none ends because of an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

from connectors.errors import ConnectorError
from engine import awaiting, further, maintenance, overview, rereading, snapshot_report, vanished
from engine.cleaning import Cleaner
from engine.hours import until_open
from engine.jobs import JobId, mint
from engine.journal import DONE_KEYS_KEPT
from engine.parts import Parts
from engine.plain import show_time
from engine.records import Audited
from engine.threads import settled
from policies.facts import Event, EventType
from policies.units import counted
from storage.errors import StorageError
from storage.reclaim import SafetyAges
from storage.verify import Bounds, Scope

log = logging.getLogger("engine.upkeep")


JOURNAL_KEPT = timedelta(days=400)
"""How long events, decisions and settled jobs can be asked for: a year and some weeks."""

RETRY_VERIFY = timedelta(minutes=10)
"""Until a verification that ended early goes on, while its window is still open."""

FIRST_RECLAIM = timedelta(hours=1)
"""A start begins no new interval: an engine that is started daily would never free anything."""

FIRST_VERIFY = timedelta(minutes=5)
"""What a start has to do first comes before a verification that is overdue."""

DATASTORES_SECONDS = 60.0
"""How often it is looked how full datastores are, beside the looks of each run."""

GONE_KEPT = timedelta(days=30)
"""How long a VM that left without a restore point is known: where VMs come and go by the hundred, they add up."""


async def every(parts: Parts, name: str, interval: timedelta, work: Callable[[Parts], Awaitable[str]]) -> None:
    """Do the work each interval; its sentence, or what went wrong, is in `parts.upkeep`."""
    while True:
        await asyncio.sleep(interval.total_seconds())
        await once(parts, name, work)


async def once(parts: Parts, name: str, work: Callable[[Parts], Awaitable[str]]) -> None:
    """Do the work now."""
    try:
        said = await work(parts)
    except (ConnectorError, StorageError) as error:
        said = f"failed: {error}"
        log.error("maintenance failed", extra={"what": name, "why": str(error)})
        if name in ("reclaim", "verify"):
            parts.metrics.operation_finished(name, "failed")
    parts.upkeep[name] = f"{show_time(parts.now())} {said}"


async def janitor(parts: Parts, vcenter: str, interval: timedelta) -> None:
    """The janitor of one vCenter: at once, when something happens that calls for it, and each interval.

    A pass may take hours: merging a snapshot does.
    """
    cleaner = parts.cleaners.setdefault(vcenter, Cleaner(interval))

    async def sweep(parts: Parts) -> str:
        why = cleaner.why
        try:
            await parts.crew.look_at_marks(vcenter)
        except ConnectorError as error:  # left-overs are looked for all the same
            log.warning("marks of restores not looked at", extra={"vcenter": vcenter, "why": str(error)})
        swept = await parts.crew.sweep(vcenter)
        cleaner.looked(parts.now(), stuck=bool(swept.stuck))
        merge = f", {counted(len(swept.unmerged), 'VM')} still to be consolidated" if swept.unmerged else ""
        return f"{counted(len(swept.removed), 'left-over')} removed, {len(swept.stuck)} stay{merge} (after: {why})"

    name = f"janitor of {parts.names.get(vcenter, vcenter)}"
    while True:
        await once(parts, name, sweep)
        await cleaner.wait()


SHOWS_LEFTOVERS = frozenset(
    {EventType.POWERED_ON, EventType.POWERED_OFF, EventType.MIGRATED, EventType.RELOCATED, EventType.REGISTERED}
)
"""After these a snapshot that could not be removed before may go."""


def call_the_janitor(parts: Parts) -> None:
    """From now on have the janitor look when a vCenter is reached again, and at a VM's event that calls for it."""
    told = parts.dispatcher.noted.event

    def event(seen: Event, reconciled: bool) -> None:
        told(seen, reconciled)
        vm = parts.world.vms.get(seen.vm) if seen.vm is not None else None
        if vm is None:
            return
        cleaner = parts.cleaners.get(vm.address.vcenter)
        if cleaner is not None and seen.type is EventType.RECONFIGURED and parts.crew.waits_for_restore(vm.address):
            cleaner.nudge(f"{vm.name}, which is half restored, was changed")
        if seen.type not in SHOWS_LEFTOVERS:
            return
        if cleaner is not None and snapshot_report.unused(parts, [vm]):
            cleaner.nudge(f"{vm.name} has a snapshot that no run uses")

    def reconnected(vcenter: str) -> None:
        if vcenter in parts.cleaners:
            parts.cleaners[vcenter].nudge("the vCenter is reached again")

    parts.dispatcher.noted = replace(parts.dispatcher.noted, event=event)
    parts.sources.reconnected = reconnected


async def look_at_datastores(parts: Parts, vcenter: str) -> None:
    """How full the datastores of one vCenter are, now and then: for the status, the metrics and the alerts."""

    async def look(parts: Parts) -> str:
        spaces = tuple(await parts.hypervisors[vcenter].space())
        parts.stores[vcenter] = spaces
        return f"{counted(len(spaces), 'datastore')} seen"

    while True:
        await once(parts, f"datastores of {parts.names.get(vcenter, vcenter)}", look)
        await asyncio.sleep(DATASTORES_SECONDS)


async def retain(parts: Parts) -> str:
    """One run of retention over all VMs; not before every inventory was seen, as policies select by it."""
    if not parts.world.inventory_known:
        return "waits until every vCenter's inventory is known"
    if parts.sources.clock_doubt:
        parts.retention_refused = f"waits: {parts.sources.clock_doubt}"
        return parts.retention_refused
    now = parts.now()
    run = await maintenance.plan_apart(
        dict(parts.world.points),
        parts.world,
        parts.rulebook.in_force,
        parts.threads,
        now=now,
        max_expire=parts.config.maintenance.max_expire,
        gone=await vanished.expired_lately(parts, now),
    )
    parts.retention_refused = run.refusal
    run, waits = await awaiting.hold_back(parts, run)
    done = await further.retain(parts, run, now)
    if done.expired:
        entries = [Audited(now, vanished.who_of(), "expire", one.point, one.reason) for one in done.expired]
        await settled(parts.threads.state, parts.state.audit, *entries)
        parts.metrics.repositories.points_expired(len(done.expired))
        parts.metrics.operation_finished("expire", "done")
    if done.expired or done.marked or any(plan.unmark for plan in run.plans):
        await parts.crew.list_all_points()
    return run.refusal or f"{len(done.expired)} expired, {len(done.marked)} marked{waits}"


async def forget(parts: Parts) -> None:
    """Drop the oldest pages of the journal, VMs that left long ago, and keys that cannot come again."""
    now = parts.now()
    await settled(parts.threads.state, parts.state.forget, now - JOURNAL_KEPT)
    gone = parts.world.long_gone(now - GONE_KEPT)
    parts.world.forget(gone)
    await settled(parts.threads.state, parts.state.forget_vms, gone)
    kept = await settled(parts.threads.state, parts.state.job_keys, now)
    parts.world.keep_keys(kept, JobId(mint("job", lambda: now - DONE_KEYS_KEPT)()))


async def reclaim(parts: Parts) -> str:
    """Condemn packs that nothing needs, free those condemned long enough ago, and the oldest pages of the journal."""
    if parts.sources.clock_doubt:
        return f"waits: {parts.sources.clock_doubt}"
    await forget(parts)
    if parts.repository.append_only:
        return "left to the user who owns the repository"
    hours = parts.config.reclaim_hours()
    if not hours.is_open(parts.now()):
        return "waits for its window"
    ages = SafetyAges(min_age=parts.config.maintenance.orphan_pack)
    plan = await maintenance.reclaim_plan(parts.repository, ages, parts.threads, now=parts.now())
    with parts.queue.using_repository():
        outcome = await maintenance.reclaim(
            parts.repository, plan, parts.threads, now=parts.now(), go_on=lambda: hours.is_open(parts.now())
        )
    parts.metrics.repositories.reclaimed(max(0, outcome.freed_bytes))
    parts.metrics.operation_finished("reclaim", "done")
    condemned = counted(outcome.condemned, "pack")
    return f"{outcome.freed_bytes} bytes freed, {condemned} condemned, {len(plan.waiting)} waiting"


async def renew_locks(parts: Parts) -> str:
    """Lock in the object store what locked restore points need and is not locked for as long."""
    if parts.repository.locking is None:
        return "the repository has no Object Lock"
    count = await settled(parts.threads.long, parts.repository.renew_locks, parts.now())
    return f"{counted(count, 'object')} locked for longer"


async def reclaiming(
    parts: Parts, interval: timedelta, name: str = "", *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Reclaim a repository, the engine's own or the further one of this name, each interval within its window."""
    hours = parts.config.reclaim_hours(name)
    wait = min(interval, FIRST_RECLAIM)
    while True:
        await sleep(wait.total_seconds())
        await until_open(hours, parts.now, sleep)
        started = parts.now()
        if name:
            await once(parts, f"reclaim {name}", lambda parts: further.reclaim(parts, name))
        else:
            await once(parts, "reclaim", reclaim)
        wait = max(timedelta(0), started + interval - parts.now())


async def verifying(
    parts: Parts, interval: timedelta, name: str = "", *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Verify a repository each interval, within its window; where a window was too short, go on in the next one."""
    hours = parts.config.verify_hours(name)
    wait = _first_wait(further.verified_of(parts, name).at, interval, parts.now())
    while True:
        await sleep(wait.total_seconds())
        await until_open(hours, parts.now, sleep)
        started = parts.now()
        if name:
            await once(parts, f"verify {name}", lambda parts: further.verify(parts, name))
        else:
            await once(parts, "verify", verify)
        left = further.verified_of(parts, name).left_bytes
        wait = timedelta(0) if left else max(timedelta(0), started + interval - parts.now())
        if left and hours.is_open(parts.now()):
            wait = RETRY_VERIFY  # it ended early for another reason than its window


def _first_wait(last: datetime | None, interval: timedelta, now: datetime) -> timedelta:
    """A start begins no new interval: else an engine that is started daily would never verify."""
    return interval if last is None else min(interval, max(FIRST_VERIFY, last + interval - now))


async def verify(parts: Parts) -> str:
    """Read back what was not read for a while, until the window closes."""
    hours, now = parts.config.verify_hours(), parts.now()
    if not hours.is_open(now):
        return "waits for its window"
    deadline = hours.closes(now)
    sooner = await rereading.to_begin_with(parts, deadline)
    bounds = Bounds(Scope.INCREMENTAL, parts.config.maintenance.reread, deadline, sooner=sooner)
    report = await further.read_back(parts, bounds=bounds)
    left = f", {report.left_bytes} left for the next window" if report.left_bytes else ""
    return f"{report.checked_bytes} bytes read, {counted(len(report.damaged), 'damaged object')}{left}"


async def publish(parts: Parts) -> str:
    """Bring the metrics about VMs and the repository up to date."""
    overview.publish(parts)
    await overview.publish_coverage(parts)
    await overview.publish_repository(parts)
    await rereading.look(parts)
    return "metrics published"
