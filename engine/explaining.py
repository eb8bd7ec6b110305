"""Why a VM or a restore point stands as it does: what the policies say, with what the engine knows of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.jobs import Job, JobKind, JobState
from engine.parts import Parts
from engine.plain import plain
from engine.rehearsal_report import standing_row
from engine.threads import settled
from policies.explanation import explain
from policies.facts import VmId
from policies.protection import protection
from policies.staying import explain_point, find_point, provenance
from policies.units import clock, span
from storage.errors import NoSuchPoint

_COLUMNS = (
    "at", "kind", "policy", "rule", "reason", "event", "job", "commit",
    "event_type", "event_at", "cause", "from_host", "to_host", "outcome", "attempts", "last_error", "point",
    "settled_at",
)  # fmt: skip


async def vm_explained(parts: Parts, vm: VmId) -> Mapping[str, Any]:
    """Everything about a VM that is in the inventory: policies, queue, and what was decided lately and came of it."""
    now = parts.now()
    said = explain(parts.rulebook.in_force, parts.world.vms[vm], parts.world.facts(now), _waits(parts, vm))
    decisions = await settled(parts.threads.state, parts.state.decisions_of, vm)
    rehearsal = standing_row(parts, vm, protection(parts.rulebook.in_force, parts.world.vms[vm]).rehearse)
    lines = [said.render(), *([f"Rehearsals: {rehearsal['words']}."] if rehearsal else [])]
    return {
        **said.as_json(),
        "text": "\n".join(lines),
        "rehearsal": plain(rehearsal),
        "decisions": [dict(zip(_COLUMNS, row, strict=True)) for row in decisions],
    }


async def point_explained(parts: Parts, reference: str) -> Mapping[str, Any]:
    """Why a restore point stays and until when, with what its manifest records of how it came about.

    One that only second copies have is found too, but its manifest is not read.
    """
    try:
        id = await settled(parts.threads.repository, parts.repositories.find, reference)
    except NoSuchPoint:
        facts = parts.world.facts(parts.now())
        found = find_point(replace(facts, points={}), reference)
        if len(found) != 1:
            raise
        said = explain_point(parts.rulebook.in_force, found[0][1], facts)
        return {**said.as_json(), "recorded": {}, "text": said.render()}
    home = await settled(parts.threads.repository, parts.repositories.home, id)
    detail = await settled(parts.threads.repository, home.detail, id)
    policies, facts = parts.rulebook.in_force, parts.world.facts(parts.now())
    point = next(one for one in await settled(parts.threads.repository, parts.repositories.points, detail.head.vm)
                 if one.id == id)  # fmt: skip
    said = explain_point(policies, point, facts)
    if waits := parts.awaited.get(id, ""):
        reason = f"it waits for {waits}, which would keep it and lacks it"
        wait = span(parts.config.maintenance.copy_wait)
        until = f"until it is there, or has been marked for {wait}"
        said = replace(said, status="waits for a second copy", reasons=(*said.reasons, reason), until=until)
    said = replace(said, provenance=provenance(dict(detail.head.attributes), policies))
    return {**said.as_json(), "recorded": dict(detail.head.attributes), "text": said.render()}


def _waits(parts: Parts, vm: VmId) -> list[str]:
    """What the queue says of the VM's open jobs, and what keeps it from getting another."""
    said = []
    now = parts.now()
    waiting = parts.queue.waiting
    places = {one.decision.key: (number, one.reason) for number, one in enumerate(waiting, start=1)}
    for job in [job for job in parts.world.jobs.values() if job.vm == vm and job.kind is JobKind.BACKUP]:
        if job.state is JobState.RUNNING:
            attempt = next((one for one in parts.crew.active.values() if one.job.id == job.id), None)
            stage = f", {attempt.tally.stage}" if attempt is not None and attempt.tally.stage else ""
            said.append(f"a backup is running{stage} ({_named(job)})")
        elif job.state is JobState.PENDING:
            number, reason = places.get(job.key, (0, ""))
            place = f", {number} of {len(waiting)} in line" if number else ""
            why = f": {reason}" if reason else ""
            said.append(f"a backup is waiting in the queue{place}{why} ({_named(job)})")
            if job.attempts and job.not_before > now:
                at = clock(job.not_before, now.tzinfo, now) if now.tzinfo else ""
                said.append(f"its last attempt failed; it is tried again at {at} UTC")
            if job.last_error and job.not_before > now:
                said.append(job.last_error)
    if vm in parts.crew.set_aside:
        said.append("it was put aside after an error that trying again cannot mend; backstay backup tries it again")
    return said


def _named(job: Job) -> str:
    tried = f", attempt {job.attempts + 1}" if job.attempts and job.state is JobState.PENDING else ""
    return f"job {job.id}, {job.policy or 'asked for'} {job.rule}{tried}".replace("asked for request", "asked for")
