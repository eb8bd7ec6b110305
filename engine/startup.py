"""From a configuration to the parts of an engine, and what a start has to put right first."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from connectors.messages import Subjects
from engine.announcing import Announcer
from engine.attempts import Attempt, Means
from engine.cleaning import OwnRuns
from engine.config import Config
from engine.connecting import engine_id
from engine.crew import Crew
from engine.dispatch import Dispatcher, Noted
from engine.doubts import kind_of
from engine.failures import BadInput
from engine.headroom import Marks
from engine.identity import Traits
from engine.inbox import Inbox
from engine.jobqueue import JobQueue
from engine.jobs import Job, JobId, JobState, Outcome, RunId, mint
from engine.outbox import outboxes
from engine.parts import Parts, Verified
from engine.ports import Hypervisor
from engine.records import Distrust, RunRow, VmRow
from engine.rehearsal_records import rehearsed
from engine.repositories import Repositories, open_section
from engine.restore_journal import unfinished
from engine.room import RoomKeeper
from engine.rulebook import Rulebook
from engine.showing import Showing
from engine.sources import Sources
from engine.state import State
from engine.stores import RepositorySection
from engine.tasks import TaskBoard
from engine.threads import Threads, settled
from engine.world import UNSEEN, World
from metrics.labels import OPERATIONS, VerifyState
from metrics.registry import Metrics
from policies.facts import Address, Event, Facts, RestorePoint, VmId
from policies.limits import Limits
from storage.errors import StorageError
from storage.repository import PointDetail, Repository
from storage.verify import read_back_since, verified_since

log = logging.getLogger("engine.startup")

REOPEN = timedelta(minutes=1)
"""How often a repository that is away is tried again."""

STATE_LOST = "the engine's state is new, so what happened before is not known"


def assemble(
    config: Config,
    *,
    state: State,
    repository: Repository,
    threads: Threads,
    metrics: Metrics,
    now: Callable[[], datetime],
    version: str,
    reconcile_grace: timedelta = timedelta(seconds=30),
) -> Parts:
    """Put the parts together. Nothing runs yet, and no vCenter is known."""
    world = World(
        mint=lambda: VmId(f"vm-{secrets.token_hex(8)}"), vcenters=len(config.vcenter), unseen_copies=set(config.copies)
    )
    world.unseen_repositories.update(config.repositories)
    repositories = Repositories(repository, away=dict.fromkeys(config.repositories, "it is not open yet"))
    inbox = Inbox()
    hypervisors: dict[str, Hypervisor] = {}
    names: dict[str, str] = {}
    means: dict[str, Means] = {}
    unreachable: dict[str, str] = {}

    def facts(at: datetime) -> Facts:
        """For plans of policy changes: empty until every inventory is known, as nobody could tell who loses what."""
        return world.facts(at) if world.inventory_known else Facts(at, {})

    rulebook = Rulebook(config.policies, state, threads, facts, now)
    rulebook.changed = lambda: metrics.policies_loaded(rulebook.names)
    queue = JobQueue(world, admission_limits(config), now, policies=lambda: rulebook.in_force)
    new_job, new_run = mint("job", now), mint("", now)
    runs = OwnRuns(now())

    def mint_run() -> RunId:
        return runs.minted(RunId(new_run()))

    dispatcher = Dispatcher(
        world=world,
        state=state,
        threads=threads,
        inbox=inbox,
        hypervisors=hypervisors,
        policies=lambda: rulebook.in_force,
        now=now,
        mint_job=lambda: JobId(new_job()),
        jobs_changed=queue.changed,
        noted=_noted(metrics, now),
        reconcile_grace=reconcile_grace,
    )
    crew = Crew(
        queue=queue,
        world=world,
        state=state,
        repositories=repositories,
        threads=threads,
        means=means,
        policies=lambda: rulebook.in_force,
        metrics=metrics,
        now=now,
        mint_run=mint_run,
        engine=engine_id(config),
        runs=runs,
    )
    dispatcher.given_up = crew.given_up
    dispatcher.called_back = crew.call_back

    def is_dead(run: str) -> bool:
        return not (crew.is_active(run) or runs.another(run))

    showing = Showing(world, lambda: rulebook.in_force, now, is_dead, now())
    announcer = None
    if config.bus is not None:
        announcer = Announcer(Subjects(config.bus.site), now, lambda vm: _name(world, VmId(vm)))
    _tell_of_runs(crew, showing, announcer)

    def no_room(when: str) -> None:
        metrics.standing.no_room(when)

    return Parts(
        config=config,
        version=version,
        started_at=now(),
        now=now,
        threads=threads,
        state=state,
        repository=repository,
        repositories=repositories,
        hypervisors=hypervisors,
        names=names,
        world=world,
        rulebook=rulebook,
        inbox=inbox,
        dispatcher=dispatcher,
        queue=queue,
        crew=crew,
        sources=Sources(inbox, state, threads, metrics, now, vcenters=lambda: _hosts(config, names)),
        tasks=TaskBoard(secrets.token_hex(3), _failed(metrics)),
        metrics=metrics,
        mint_run=mint_run,
        showing=showing,
        means=means,
        unreachable=unreachable,
        announcer=announcer,
        outboxes=outboxes(config, metrics, now),
        room=RoomKeeper(Marks(config.limits.datastore_free, config.limits.datastore_low), refused=no_room),
    )


def _tell_of_runs(crew: Crew, showing: Showing, announcer: Announcer | None) -> None:
    """Have those who tell of runs hear of them."""

    def began(attempt: Attempt) -> None:
        showing.began(attempt)
        if announcer is not None:
            announcer.began(attempt)

    def ended(job: Job, outcome: Outcome) -> None:
        showing.ended(job, outcome)
        if announcer is not None:
            announcer.ended(job, outcome)

    crew.began, crew.ended = began, ended


def admission_limits(config: Config) -> Limits:
    """How many backups run at once, as configured."""
    own = config.limits
    return Limits(
        running=own.total,
        per_host=own.per_host,
        per_datastore=own.per_datastore,
        per_vcenter=own.per_vcenter,
        per_repository=own.per_repository,
        starts_per_minute=own.starts_per_minute,
    )


def _hosts(config: Config, names: Mapping[str, str]) -> dict[str, str]:
    """The instance UUIDs of all configured vCenters by their hosts, empty for those that are not reached yet."""
    reached = {name: uuid for uuid, name in names.items()}
    return {
        host.lower(): reached.get(name, "")
        for name, section in config.vcenter.items()
        for host in (section.host, *section.known_as)
    }


def _name(world: World, vm: VmId) -> str:
    row = world.rows.get(vm)
    return row.traits.name if row is not None else vm


def _noted(metrics: Metrics, now: Callable[[], datetime]) -> Noted:
    def event(seen: Event, reconciled: bool) -> None:
        source = seen.source.partition(":")[0]
        metrics.event_seen(seen.type.value, source, max(0.0, (now() - seen.at).total_seconds()))
        if reconciled:
            metrics.event_found_by_reconcile(seen.type.value)

    def distrusted(seen: Event) -> None:
        metrics.tracking_distrusted(kind_of(seen))

    return Noted(event=event, gap=lambda vcenter, why: metrics.event_gap("vcenter"), distrusted=distrusted)


def _failed(metrics: Metrics) -> Callable[[str, str], None]:
    def failed(kind: str, result: str) -> None:
        operation = kind.partition("-")[0]
        if operation in OPERATIONS:
            metrics.operation_finished(operation, result)

    return failed


def add_hypervisor(parts: Parts, name: str, hypervisor: Hypervisor) -> None:
    """From now on this vCenter's VMs can be read and backed up; BadInput when two entries are one vCenter."""
    known = parts.names.get(hypervisor.vcenter)
    if known is not None:
        raise BadInput(f"vcenter.{name} and vcenter.{known} are the same vCenter", hint="remove one of them")
    limits = parts.config.limits
    parts.hypervisors[hypervisor.vcenter] = hypervisor
    parts.names[hypervisor.vcenter] = name
    parts.means[hypervisor.vcenter] = Means(
        hypervisor=hypervisor,
        repository=parts.repository,
        threads=parts.threads,
        engine=engine_id(parts.config),
        transports=parts.config.transport.order,
        disks_per_vm=limits.disks_per_vm,
        lanes=limits.lanes,
        copy_threads=limits.threads,
        room=parts.room,
    )
    parts.unreachable.pop(name, None)


async def recover(parts: Parts) -> None:
    """Take over what the last engine left: its jobs, its memory, and VM ids that only the repository knows."""
    await open_repositories(parts)
    points = await settled(parts.threads.repository, parts.repositories.points)
    await _close_committed(parts, points)
    again = await settled(parts.threads.state, parts.state.requeue_running)
    if again:
        log.info("jobs of the last engine wait again", extra={"jobs": len(again)})
    rows = {row.id for row in await settled(parts.threads.state, parts.state.vms)}
    unknown = sorted({point.vm for point in points} - rows)
    if unknown:
        await _adopt(parts, unknown, points)
    if parts.state.fresh and points:
        log.warning("state is new, restore points are not", extra={"why": parts.state.why_fresh, "points": len(points)})
    await settled(parts.threads.long, parts.crew.remember_unfinished, parts.config.state_dir)
    for left in await settled(parts.threads.long, unfinished, parts.config.state_dir):
        log.warning(
            "half restored, waiting for the same restore again",
            extra={"vm": left.name, "point": left.point, "how": left.kind},
        )
    parts.crew.set_aside = await settled(parts.threads.state, parts.state.set_aside)
    parts.rehearsals.newest = await settled(parts.threads.state, rehearsed, parts.state)
    own = [point for point in points if not point.repository]
    parts.verified = await settled(parts.threads.repository, _verified, parts.repository, own)
    await parts.dispatcher.recall()
    await parts.crew.list_all_points()
    # Not by whether the state is new: a start that ended before any policies were accepted leaves one that is not.
    await parts.rulebook.start(keep_everything=bool(points))


async def open_repositories(parts: Parts) -> list[str]:
    """Open the further repositories that are away; the names of those that are open now and are to be listed."""

    def opened(section: RepositorySection) -> Repository:
        return open_section(section, parts.config.state_dir, parts.now, f"engine unix:{parts.config.socket}")

    names = await settled(parts.threads.long, parts.repositories.open_away, parts.config, opened)
    for name in names:
        repository = parts.repositories.more[name]
        try:
            points = await settled(parts.threads.repository, repository.points)
            parts.verified_further[name] = await settled(parts.threads.repository, _verified, repository, points)
        except StorageError as error:
            log.error("repository not listed", extra={"repository": name, "why": str(error)})
    return names


async def take_up(parts: Parts) -> str:
    """Open what is away while the engine runs.

    VM ids that only it knows are not taken over then: their VMs have others by now, and may be joined by hand.
    """
    if parts.repositories.away:
        await open_repositories(parts)
    away = parts.repositories.away
    if parts.world.unseen_repositories - away.keys():
        await parts.crew.list_all_points()
    return "; ".join(f"{name} is away: {why}" for name, why in sorted(away.items())) or "all are open"


def _verified(repository: Repository, points: list[RestorePoint]) -> Verified:
    """What the repository remembers of earlier verifications. Which objects are damaged, only a new one tells."""
    if any(point.damaged for point in points):
        return Verified(VerifyState.DAMAGED, None, 1, read_back_since(repository))
    at = verified_since(repository)
    return Verified(VerifyState.NEVER if at is None else VerifyState.OK, at, 0, read_back_since(repository))


async def _close_committed(parts: Parts, points: list[RestorePoint]) -> None:
    """Settle the jobs whose run made its restore point before the engine could note it: they are not run again."""
    for job in await settled(parts.threads.state, parts.state.open_jobs):
        # A VM has one run at a time, so its newest restore point is the one to look at.
        newest = next((point for point in reversed(points) if point.vm == job.vm), None)
        if job.run is None or newest is None:
            continue
        try:
            home = parts.repositories.named(newest.repository)
            detail = await settled(parts.threads.repository, home.detail, newest.id)
        except StorageError as error:
            log.error("job runs again", extra={"job": job.id, "why": f"its restore point cannot be read: {error}"})
            continue
        if detail.head.attributes.get("run") != job.run:
            continue
        done = replace(job, state=JobState.DONE, last_error="")
        run = RunRow(job.vm, last_success=newest.taken_at, last_attempt=newest.taken_at)
        await settled(parts.threads.state, parts.state.settle, done, now=parts.now(), run=run, point=newest.id)
        log.info("run of the last engine had committed", extra={"job": job.id, "point": newest.id})


async def _adopt(parts: Parts, unknown: Iterable[VmId], points: list[RestorePoint]) -> None:
    """Give VMs the ids under which the repository keeps their restore points."""
    now = parts.now()
    rows: list[VmRow] = []
    for vm in unknown:
        mine = [point for point in points if point.vm == vm]
        try:
            home = parts.repositories.named(mine[-1].repository)
            detail = await settled(parts.threads.repository, home.detail, mine[-1].id)
        except StorageError as error:
            log.error("VM id not taken over", extra={"vm": mine[-1].vm_name, "why": str(error)})
            continue
        if detail.head.aliases.get("moref"):
            rows.append(VmRow(vm, recorded_traits(detail), {UNSEEN: "yes"}, mine[0].taken_at, left_at=None))
    if rows:
        distrust = [Distrust(row.id, STATE_LOST, "", now) for row in rows]
        await settled(parts.threads.state, parts.state.adopt, rows, distrust, now=now)
        for _ in distrust:
            parts.metrics.tracking_distrusted("state_lost")
        log.info("VM ids taken over from the repository", extra={"vms": len(rows)})


def recorded_traits(detail: PointDetail) -> Traits:
    """How a VM looked when this restore point of it was made."""
    aliases = detail.head.aliases
    return Traits(
        address=Address(aliases["vcenter"], aliases["moref"]),
        name=detail.head.vm_name,
        instance_uuid=aliases.get("instance_uuid", "").lower(),
        bios_uuid=aliases.get("bios_uuid", "").lower(),
        disk_uuids=frozenset(record.head.uuid.lower() for record in detail.disks if record.head.uuid),
    )


def policies_folder(path: Path) -> None:
    """BadInput when the policies' folder is not there: an engine without it would protect nothing and say nothing."""
    if not path.is_dir():
        raise BadInput("the folder of policies does not exist", where=str(path), hint="backstay init writes one")
