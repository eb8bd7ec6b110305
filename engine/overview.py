"""How the engine is doing, as plain values: for `status`, for health checks and for the coverage metrics."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from engine import restore_report, snapshot_report
from engine.jobs import JobKind, JobState
from engine.parts import Parts, Verified
from engine.pauses import unhurried
from engine.rehearsal_report import standing_row
from engine.threads import settled
from metrics.labels import CoverageState, RepositoryState, VmCoverage
from policies.decision import BackUp
from policies.facts import Vm, VmId
from policies.naming import unknown_copies, unknown_destinations, unknown_targets
from policies.policyset import PolicySet
from policies.protection import Protection, due_of, left_out, protection, refusal_of
from policies.rehearsal import Rehearsed
from policies.units import counted
from storage.errors import StorageError
from storage.repository import Repository

log = logging.getLogger("engine.overview")


async def publish_coverage(parts: Parts) -> None:
    """Bring the metrics about each VM up to date."""
    policies = parts.rulebook.in_force
    vms = tuple(parts.world.vms.values())
    parts.metrics.cover([_covered(parts, policies, vm) async for vm in unhurried(vms)])


def _covered(parts: Parts, policies: PolicySet, vm: Vm) -> VmCoverage:
    effective = protection(policies, vm)
    history, tried = parts.world.history.get(vm.id), parts.rehearsals.newest.get(vm.id)
    goals = [p.timing.rpo for p in effective.scheduling if p.timing.rpo is not None]
    row = parts.world.rows.get(vm.id)
    return VmCoverage(
        vcenter=parts.names.get(vm.address.vcenter, vm.address.vcenter),
        vm_id=vm.id,
        vm=vm.name,
        state=_state(policies, effective, vm),
        known_since=row.first_seen if row is not None else parts.started_at,
        last_success=history.last_success if history is not None else None,
        policy=effective.scheduling[0].name
        if effective.scheduling
        else (effective.winner.name if effective.winner else ""),
        rpo_seconds=min(goals).total_seconds() if goals else None,
        consecutive_failures=history.consecutive_failures if history is not None else 0,
        unprotected_disks=sum(1 for disk in vm.disks if disk.unprotected and not left_out(effective, disk)),
        moref=vm.address.moref,
        rehearsed=_rehearsed(effective, tried),
        rehearsal_seconds=tried.seconds if tried is not None else None,
    )


def _rehearsed(effective: Protection, tried: Rehearsed | None) -> float | None:
    if tried is not None and tried.passed_at is not None:
        return tried.passed_at.timestamp()
    return 0.0 if effective.rehearse is not None else None


def _state(policies: PolicySet, effective: Protection, vm: Vm) -> CoverageState:
    if effective.policies:
        return CoverageState.PROTECTED
    return CoverageState.EXCLUDED if policies.excluding(vm) else CoverageState.UNPROTECTED


def publish(parts: Parts) -> None:
    """Bring the metrics about policies, snapshots and the queue up to date."""
    metrics, rulebook = parts.metrics, parts.rulebook
    metrics.policies_loaded(rulebook.names)
    metrics.policy_files_checked(len(rulebook.problems))
    plan = rulebook.plan
    metrics.reload_pending(len(plan.losing) + len(plan.expiring) if plan else 0, rulebook.pending_since)
    snapshot_report.publish(parts)
    jobs = parts.world.jobs.values()
    metrics.queue(
        waiting=sum(job.state is JobState.PENDING for job in jobs),
        running=sum(job.state is JobState.RUNNING for job in jobs),
        quarantined=len(parts.crew.set_aside & parts.world.vms.keys()),
    )
    metrics.lateness(parts.queue.late(), overloaded=parts.queue.load.overloaded)


async def publish_repository(parts: Parts) -> None:
    """Bring the metrics about the repository up to date."""
    _count_rebuilds(parts)
    own = parts.config.repository
    label = own.name if own.name not in parts.config.repositories else str(own.path or own.url)
    await _publish_one(parts, "", label, parts.repository, parts.verified)
    for name, repository in sorted(parts.repositories.more.items()):
        try:
            await _publish_one(parts, name, name, repository, parts.verified_further.get(name, Verified()))
        except StorageError as error:
            log.warning("repository not measured", extra={"repository": name, "why": str(error)})


async def _publish_one(parts: Parts, name: str, label: str, repository: Repository, verified: Verified) -> None:
    sizes = await settled(parts.threads.repository, repository.sizes)
    points = [point for listed in parts.world.points.values() for point in listed if point.repository == name]
    parts.metrics.repositories.seen(
        RepositoryState(
            repository=label,
            stored_bytes=sizes.stored_bytes,
            logical_bytes=sizes.logical_bytes,
            free_bytes=sizes.free_bytes,
            chunks=sizes.chunks,
            packs=sizes.packs,
            points=sizes.points,
            held_points=sum(bool(point.holds) for point in points),
            damaged_points=sum(point.damaged for point in points),
            damaged_objects=verified.damaged,
            last_verified=verified.at,
            verify=verified.state,
            read_back_since=verified.since,
            verify_left_bytes=verified.left_bytes,
        )
    )


def _count_rebuilds(parts: Parts) -> None:
    now = Counter(parts.repository.catalog.rebuilds)
    for kind in (now - parts.rebuilds).elements():
        parts.metrics.repositories.catalog_rebuilt(kind)
    parts.rebuilds = now


def problems(parts: Parts) -> list[str]:
    """What a person should look at, each in a sentence; empty when all is well."""
    found = [f"{name}: {why}" for name, why in sorted(parts.unreachable.items())]
    found += [f"{name}: {why}" for name, why in sorted(parts.sources.troubles.items())]
    found += [f"policies: {problem}" for problem in parts.rulebook.problems]
    if parts.announcer is not None and parts.announcer.trouble:
        waiting = counted(len(parts.announcer.waiting), "message")
        found.append(f"bus: {waiting} about runs not sent: {parts.announcer.trouble}")
    if parts.queue.load.overloaded:
        found.append(f"queue: {parts.queue.load.sentence}")
    found += snapshot_report.problems(parts)
    found += restore_report.problems(parts)
    found += parts.showing.sentences(parts.names)
    found += unknown_targets(parts.rulebook.in_force, parts.config.notify).values()
    found += [f"notices to {name} wait: {box.trouble}" for name, box in parts.outboxes.items() if box.trouble]
    found += [f"repository {name} is away: {why}" for name, why in sorted(parts.repositories.away.items())]
    found += [f"repository {name} does not answer: {why}" for name, why in sorted(parts.repositories.silent.items())]
    found += unknown_destinations(parts.rulebook.in_force, parts.config.repositories).values()
    found += [
        f"retention: {counted(number, 'restore point')} {'waits' if number == 1 else 'wait'} for {where}, which would"
        " keep what no rule here keeps any more"
        for where, number in sorted(Counter(parts.awaited.values()).items())
    ]
    found += unknown_copies(parts.rulebook.in_force, parts.config.copies).values()
    if parts.retention_refused:
        found.append(f"retention: {parts.retention_refused}")
    found += [f"retention in the copy {name}: {why}" for name, why in sorted(parts.copies_refused.items())]
    found += [sentence for vm, sentence in parts.world.alerts.items() if vm in parts.world.vms]
    return found


def waiting_for_a_person(parts: Parts) -> list[str]:
    """The pending change of policies, in sentences."""
    pending = parts.rulebook.pending
    if pending is None:
        return []
    plan = pending.plan
    override = " --override-guard" if plan.refusals else ""
    return [*pending.sentences, *plan.refusals, f"confirm with: backstay policy apply {plan.id}{override}"]


async def status(parts: Parts) -> Mapping[str, Any]:
    """All of it."""
    sizes = await settled(parts.threads.repository, parts.repository.sizes)
    now = parts.now()
    vms = sorted(parts.world.vms.values(), key=lambda vm: vm.name)
    rows = [_vm_row(parts, vm, now) async for vm in unhurried(vms)]
    waits = {one.decision.key: one.reason for one in parts.queue.waiting}
    jobs = parts.world.jobs.values()
    return {
        "engine": {
            "name": parts.config.name,
            "version": parts.version,
            "pid": os.getpid(),
            "started_at": parts.started_at,
            "addresses": dict(parts.addresses),
        },
        "vcenters": [
            {
                "vcenter": uuid,
                "name": parts.names.get(uuid, uuid),
                "inventory_at": parts.world.complete.get(uuid),
                "events_at": parts.sources.alive.get(f"{uuid}/events"),
                "trouble": _trouble(parts, uuid),
                "vms": sum(vm.address.vcenter == uuid for vm in parts.world.vms.values()),
            }
            for uuid in parts.hypervisors
        ],
        "missed_events": dict(sorted(parts.dispatcher.missed.items())),
        "coverage": {
            "vms": len(rows),
            "protected": sum(row["protected"] for row in rows),
            "unprotected": [row["vm"] for row in rows if not row["protected"]],
            "never_backed_up": [row["vm"] for row in rows if row["protected"] and row["last_success"] is None],
            "late": [row["vm"] for row in rows if row["late"]],
        },
        "vms": rows,
        "queue": {
            "waiting": [_job_row(parts, job, waits) for job in jobs if job.state is JobState.PENDING],
            "running": [_job_row(parts, job, waits) for job in jobs if job.state is JobState.RUNNING],
        },
        "repository": {
            "location": str(parts.repository.location),
            "encrypted": parts.repository.encrypted,
            "stored_bytes": sizes.stored_bytes,
            "logical_bytes": sizes.logical_bytes,
            "free_bytes": sizes.free_bytes,
            "chunks": sizes.chunks,
            "packs": sizes.packs,
            "points": sizes.points,
        },
        "repositories": [
            {
                "name": name,
                "location": str(section.path or section.url),
                "away": parts.repositories.away.get(name, ""),
                "points": sum(one.repository == name for listed in parts.world.points.values() for one in listed),
            }
            for name, section in sorted(parts.config.repositories.items())
        ],
        "policies": {
            "in_force": [policy.name for policy in parts.rulebook.in_force.policies],
            "hash": parts.rulebook.in_force.hash,
            "pending": parts.rulebook.plan.id if parts.rulebook.plan else "",
        },
        **snapshot_report.standing(parts),
        "verification": [
            {
                "policy": one.policy,
                "every_seconds": one.every.total_seconds(),
                "points": one.points,
                "overdue": one.overdue,
                "oldest_reading": one.oldest,
            }
            for one in parts.wishes
        ],
        "rehearsals": [
            {
                "policy": one.policy,
                "every_seconds": one.every.total_seconds(),
                "vms": one.vms,
                "overdue": one.overdue,
                "failed": one.failed,
            }
            for one in parts.rehearsals.standing
        ],
        "notify": [
            {"target": name, "last_sent": box.last_sent, "waiting": box.letter is not None, "trouble": box.trouble}
            for name, box in parts.outboxes.items()
        ],
        "upkeep": dict(parts.upkeep),
        "waits_for_a_person": waiting_for_a_person(parts),
        "problems": problems(parts),
    }


def _trouble(parts: Parts, vcenter: str) -> str:
    told = (parts.sources.troubles.get(f"{vcenter}/{source}", "") for source in ("events", "inventory", "clock"))
    return next(filter(None, told), "")


def _vm_row(parts: Parts, vm: Vm, now: datetime) -> dict[str, Any]:
    facts = parts.world.facts(now)
    effective = protection(parts.rulebook.in_force, vm)
    found = due_of(effective, vm.id, facts)
    history = parts.world.history.get(vm.id)
    points = parts.world.points.get(vm.id, ())
    goals = [p.timing.rpo for p in effective.scheduling if p.timing.rpo is not None]
    last = history.last_success if history else None
    row = parts.world.rows.get(vm.id)
    known_since = row.first_seen if row is not None else parts.started_at
    return {
        "vm": vm.name,
        "vm_id": vm.id,
        "vcenter": parts.names.get(vm.address.vcenter, vm.address.vcenter),
        "host": vm.host,
        "power": vm.power,
        "protected": bool(effective.policies),
        "policies": [policy.name for policy in effective.policies],
        "points": len(points),
        "last_success": last,
        "due_at": found[1].at if found else None,
        "rpo_seconds": min(goals).total_seconds() if goals else None,
        "late": bool(goals and now - (last or known_since) > min(goals) and effective.policies),
        "last_failure": history.last_failure if history and history.consecutive_failures else "",
        "running": bool(history and history.running),
        "pending": bool(history and history.pending),
        "refusal": refusal_of(effective, vm),
        "unprotected_disks": [
            *([disk.label, disk.unprotected] for disk in vm.disks if disk.unprotected),
            *snapshot_report.left_out_disks(effective, vm),
        ],
        "rehearsal": standing_row(parts, vm.id, effective.rehearse),
        "standing": _said(parts, vm.id),
    }


def _said(parts: Parts, vm: VmId) -> str:
    decision = parts.dispatcher.standing.get(vm)
    return "" if decision is None or isinstance(decision, BackUp) else decision.reason


def _job_row(parts: Parts, job: Any, waits: Mapping[str, str]) -> dict[str, Any]:
    row = parts.world.rows.get(job.vm)
    attempt = next((one for one in parts.crew.active.values() if one.job.id == job.id), None)
    return {
        "job": job.id,
        "kind": job.kind,
        "vm": row.traits.name if row is not None else job.vm,
        "policy": job.policy,
        "rule": job.rule,
        "reason": job.reason,
        "not_before": job.not_before,
        "deadline": job.deadline,
        "attempts": job.attempts,
        "last_error": job.last_error,
        "waits_because": waits.get(job.key, "") if job.kind is JobKind.BACKUP else "",
        "stage": attempt.tally.stage if attempt else "",
        "done_bytes": sum(attempt.tally.done.values()) if attempt else 0,
        "planned_bytes": sum(attempt.tally.planned.values()) if attempt else 0,
    }
