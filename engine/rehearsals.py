"""Rehearsals of a running engine: those that policies want, when they are due, and those that a person asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from connectors.errors import ConnectorError, Unreachable
from connectors.hypervisor import TRIAL_PREFIX
from engine import further
from engine.commands import Rehearse
from engine.failures import BadInput, Exit
from engine.keptvm import summary_of
from engine.parts import Parts
from engine.ports import Hypervisor
from engine.rehearsal_records import RehearsalRow, note_rehearsal
from engine.rehearsing import Tried, Ways, heartbeat_of, place, rehearse_point, trial_name
from engine.restore import Means
from engine.tasks import Body, Watch
from engine.threads import settled
from policies import rehearsing
from policies.facts import Facts, PointId, RestorePoint, VmId
from policies.policy import DEFAULT_FALLBACK
from policies.protection import protection
from policies.rehearsal import due_rehearsals, good_points, rehearsal_standing
from storage.errors import Damaged, StorageError
from storage.repository import PointDetail, Repository

log = logging.getLogger("engine.rehearsals")

PAUSE = timedelta(minutes=10)
"""How long a VM that could not be rehearsed lets others go first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted of one rehearsal. `policy` is empty where a person asks."""

    heartbeat: bool
    heartbeat_seconds: float
    datastore: str = ""
    pool: str = ""
    policy: str = ""


async def rehearse_next(parts: Parts) -> str:
    """Do the rehearsal that is due for longest, if one is; in a sentence what came of it."""
    if not any(policy.rehearse is not None for policy in parts.rulebook.in_force.policies):
        parts.rehearsals.standing = ()
        parts.metrics.rehearsals.stand({})
        return "no policy wants any"
    if not parts.world.inventory_known:
        return "waits until every vCenter's inventory is known"
    if parts.sources.clock_doubt:
        return f"waits: {parts.sources.clock_doubt}"
    facts = await look(parts)
    found = await settled(
        parts.threads.long,
        partial(
            due_rehearsals,
            busy=dict(parts.rehearsals.busy),
            aside=_aside(parts),
            most=parts.config.limits.rehearsals,
            usual=(parts.config.maintenance.window, parts.config.maintenance.timezone),
        ),
        parts.rulebook.in_force,
        replace(facts, points=_at_hand(parts, facts)),
        dict(parts.rehearsals.newest),
    )
    if not found:
        return "none is due"
    [one, *_] = found
    vm = parts.world.vms.get(one.vm)
    hypervisor = parts.hypervisors.get(vm.address.vcenter) if vm is not None else None
    # Another may have begun while the decision was made.
    if vm is None or hypervisor is None or len(parts.rehearsals.busy) >= parts.config.limits.rehearsals:
        return "waits for its turn"
    how = one.how
    asked = Asked(how.heartbeat, how.heartbeat_within.total_seconds(), how.datastore, how.pool, one.policy)
    log.info("rehearsal begins", extra={"vm": vm.name, "point": one.point, "why": one.reason})
    try:
        result = await rehearse(parts, one.point, hypervisor, asked, Watch())
    except (ConnectorError, StorageError, BadInput) as error:
        parts.rehearsals.paused[one.vm] = parts.now() + PAUSE
        return f"{vm.name} failed: {error}"
    finally:
        await look(parts)
    return f"{vm.name} {'passed' if result['passed'] else 'failed: ' + result['why']}"


def _aside(parts: Parts) -> frozenset[VmId]:
    """VMs that cannot be rehearsed now: their vCenter does not answer, or they failed a moment ago."""
    now, answering = parts.now(), parts.sources.answering
    parts.rehearsals.paused = {vm: until for vm, until in parts.rehearsals.paused.items() if until > now}
    away = [
        vm.id
        for vm in parts.world.vms.values()
        if vm.address.vcenter not in parts.hypervisors or not answering.get(vm.address.vcenter, True)
    ]
    return frozenset((*parts.rehearsals.paused, *away))


def _at_hand(parts: Parts, facts: Facts) -> Mapping[VmId, tuple[RestorePoint, ...]]:
    """The restore points that are in repositories which are open."""
    away = parts.repositories.away
    if not away:
        return facts.points
    return {vm: tuple(one for one in listed if one.repository not in away) for vm, listed in facts.points.items()}


async def look(parts: Parts) -> Facts:
    """Bring the standing of rehearsals up to date; what it was made from."""
    facts = Facts(parts.now(), dict(parts.world.vms), points=dict(parts.world.points))
    standing = await settled(
        parts.threads.long, rehearsal_standing, parts.rulebook.in_force, facts, dict(parts.rehearsals.newest)
    )
    parts.rehearsals.standing = standing
    parts.metrics.rehearsals.stand({one.policy: (one.vms, one.overdue, one.failed) for one in standing})
    return facts


def rehearse_task(parts: Parts, point: PointId, hypervisor: Hypervisor, task: Rehearse) -> Body:
    """A person's rehearsal of one restore point."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        seconds = task.heartbeat_seconds or rehearsing.HEARTBEAT_WITHIN.total_seconds()
        asked = Asked(task.heartbeat, seconds, task.datastore, task.pool)
        return await rehearse(parts, point, hypervisor, asked, watch)

    return body


async def rehearse(
    parts: Parts, point: PointId, hypervisor: Hypervisor, asked: Asked, watch: Watch
) -> Mapping[str, Any]:
    """Rehearse one restore point, remember how that ended, and tell it in plain values.

    Damage is an ending, and marks the restore point. Raises what else came in the way; that is remembered as a failure,
    but for a vCenter that is away. BadInput while the VM is being rehearsed.
    """
    home = await settled(parts.threads.repository, parts.repositories.home, point)
    detail = await settled(parts.threads.repository, home.detail, point)
    began, clock = parts.now(), time.monotonic()
    tried, why, code = None, "", Exit.DONE
    ways = Ways()
    vm = detail.head.vm
    with _busy(parts, vm, point, detail.head.vm_name):
        try:
            ways, tried = await _try(parts, home, detail, hypervisor, asked, watch)
            why = tried.why
            code = Exit.DONE if not why else Exit.PARTIAL if tried.same else Exit.DAMAGED
        except Unreachable:
            raise
        except Damaged as error:
            why, code = f"the restore point is damaged: {error}", Exit.DAMAGED
        except (ConnectorError, StorageError) as error:
            await _remember(parts, detail, began, clock, asked, str(error), None)
            raise
        await _remember(parts, detail, began, clock, asked, why, tried)
        if tried is None:
            watch.say("marking what is damaged")
            await _mark(parts, home, point)
    return told(parts, detail, tried, ways, why, time.monotonic() - clock, code)


async def _try(
    parts: Parts, home: Repository, detail: PointDetail, hypervisor: Hypervisor, asked: Asked, watch: Watch
) -> tuple[Ways, Tried]:
    pool = parts.threads.repository
    configuration = await settled(pool, home.configuration, detail.id)
    if not configuration:
        raise ConnectorError("the restore point holds no configuration of a VM", where=detail.id)
    summary = await settled(pool, summary_of, home, detail.id)
    vm = parts.world.vms.get(detail.head.vm)
    why_none = heartbeat_of(asked.heartbeat, vm)
    size = sum(record.mapped_bytes for record in detail.disks)
    swap = 0 if why_none else int(summary.get("memory_bytes") or 0)
    own = [*(vm.datastores if vm is not None else ()), *summary.get("datastores", ())]
    datastore = place(await hypervisor.space(), asked.datastore, own, size + swap, parts.room.marks)
    ways = Ways(datastore, asked.pool, None if why_none else asked.heartbeat_seconds, why_none)
    run = parts.mint_run()
    name = trial_name(TRIAL_PREFIX, detail.head.vm_name, run)
    watch.note, watch.done, watch.total = f"{detail.id} to {name}", 0, 2 * size

    def advance(step: int) -> None:
        watch.done += step

    means = Means(
        home, hypervisor, parts.threads, parts.config.state_dir, parts.config.transport.order, advance=advance
    )
    with parts.crew.alive(run):
        return ways, await rehearse_point(detail, configuration, name, ways, means, run=run)


@contextmanager
def _busy(parts: Parts, vm: VmId, point: PointId, name: str) -> Iterator[None]:
    """One rehearsal of a VM at a time."""
    if vm in parts.rehearsals.busy:
        raise BadInput(f"{name} is being rehearsed already", hint="wait for that to end, see: backstay status")
    parts.rehearsals.busy[vm] = point
    try:
        yield
    finally:
        del parts.rehearsals.busy[vm]


async def _remember(
    parts: Parts, detail: PointDetail, began: datetime, clock: float, asked: Asked, why: str, tried: Tried | None
) -> None:
    beat = tried.heartbeat if tried is not None else None
    row = RehearsalRow(
        detail.head.vm,
        detail.id,
        began,
        round(time.monotonic() - clock, 3),
        not why,
        why,
        asked.policy,
        _counts(parts, detail),
        sum(disk.compared_bytes for disk in tried.disks) if tried is not None else 0,
        beat.seconds if beat is not None and not beat.why else None,
    )
    parts.rehearsals.ended(row)
    parts.metrics.rehearsals.ended(passed=row.passed, seconds=row.seconds)
    level = logging.INFO if row.passed else logging.ERROR
    log.log(level, "rehearsal ended", extra={"vm": detail.head.vm_name, "point": detail.id, "why": why or "passed"})
    await parts.crew.remember(note_rehearsal, parts.state, row)


def _counts(parts: Parts, detail: PointDetail) -> bool:
    """Whether it was of the VM's last good restore point, by what was known when it began."""
    vm = parts.world.vms.get(detail.head.vm)
    weakest = protection(parts.rulebook.in_force, vm).fallback if vm is not None else DEFAULT_FALLBACK
    later = [
        one
        for one in good_points(parts.world.points.get(detail.head.vm, ()), weakest)
        if one.id != detail.id and one.taken_at > detail.head.taken_at
    ]
    return not later


async def _mark(parts: Parts, home: Repository, point: PointId) -> None:
    """Have the restore point read back: what is damaged of it is found, marked and told as after a verification."""
    name = parts.repositories.at(str(home.location))
    try:
        await further.read_back(parts, name, [point])
    except StorageError as error:
        log.error("damage not marked", extra={"point": point, "why": str(error)})


def told(
    parts: Parts, detail: PointDetail, tried: Tried | None, ways: Ways, why: str, seconds: float, code: Exit
) -> dict[str, Any]:
    """What a rehearsal came to, for the command and for programs."""
    beat = tried.heartbeat if tried is not None else None
    return {
        "point": detail.id,
        "vm": detail.head.vm_name,
        "passed": not why,
        "why": why,
        "seconds": round(seconds, 3),
        "trial": tried.trial if tried is not None else "",
        "datastore": ways.datastore,
        "disks": [
            {
                "disk": disk.label,
                "capacity_bytes": disk.capacity_bytes,
                "compared_bytes": disk.compared_bytes,
                "differing_bytes": disk.differing_bytes,
                "transport": disk.transport,
                "fallbacks": [[one.transport, one.reason] for one in disk.fallbacks],
            }
            for disk in (tried.disks if tried is not None else ())
        ],
        "heartbeat": {
            "waited": beat is not None,
            "seen": beat is not None and not beat.why,
            "seconds": round(beat.seconds, 3) if beat is not None else 0.0,
            "why": beat.why if beat is not None else ways.why_none,
        },
        "warnings": list(tried.warnings) if tried is not None else [],
        "exit_code": int(code),
    }


def last_good(parts: Parts, vm: VmId) -> PointId:
    """The restore point that a rehearsal of the VM takes; BadInput when it has none."""
    seen = parts.world.vms.get(vm)
    weakest = protection(parts.rulebook.in_force, seen).fallback if seen is not None else DEFAULT_FALLBACK
    good = good_points(parts.world.points.get(vm, ()), weakest)
    if not good:
        raise BadInput(f"{parts.crew.name(vm)} has no good restore point", hint="see: backstay points")
    return good[-1].id
