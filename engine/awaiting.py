"""Retention waits for second copies: what would expire goes on its way there first, for so long at most.

A copy that is away for longer than the first repository keeps what it makes would otherwise never get it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from engine.maintenance import RetentionRun
from engine.parts import Parts
from engine.rulebook import standing_still
from engine.threads import settled
from policies.decision import Expire
from policies.facts import Facts, PointId
from policies.owed import owed
from policies.policyset import PolicySet
from policies.units import counted, span

log = logging.getLogger("engine.awaiting")

Lacking = Mapping[PointId, tuple[str, ...]]
"""The second copies that lack a restore point and would keep it."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Restore points that wait, and those that have waited long enough; each with the copies that lack them."""

    still: Lacking
    over: Lacking

    def __str__(self) -> str:
        said = [
            f"; {counted(number, 'restore point')} {'waits' if number == 1 else 'wait'} for {where}"
            for where, number in _by_place(self.still).items()
        ]
        said += [
            f"; {number} of them {'is' if number == 1 else 'are'} not in {where}"
            for where, number in _by_place(self.over).items()
        ]
        return "".join(said)


def lacking(
    run: RetentionRun,
    policies: PolicySet,
    facts: Facts,
    copies: Collection[str],
    barred: Mapping[str, Collection[PointId]],
) -> Lacking:
    """Of what would expire, what second copies lack and would keep beside all that is to come to them. Pure.

    `barred` is what a copy does not take: it expired there.
    """
    found: dict[PointId, tuple[str, ...]] = {}
    for plan in run.plans:
        found |= owed(plan.vm, {one.point for one in plan.expire}, policies, facts, copies, barred)
    return found


def holding_back(run: RetentionRun, lacks: Lacking, facts: Facts, wait: timedelta) -> tuple[RetentionRun, Waits]:
    """The same run without what waits, which is marked instead: the wait counts from there. Pure."""
    still: dict[PointId, tuple[str, ...]] = {}
    over: dict[PointId, tuple[str, ...]] = {}
    plans = []
    for plan in run.plans:
        owed = [one for one in plan.expire if one.point in lacks]
        if not owed:
            plans.append(plan)
            continue
        since = {point.id: point.expiring_since for point in facts.points.get(plan.vm, ())}
        expire, mark = [one for one in plan.expire if one.point not in lacks], [*plan.mark]
        for one in owed:
            copies, marked = lacks[one.point], since.get(one.point)
            if _over(marked, wait, facts.now):
                over[one.point] = copies
                expire.append(Expire(one.point, f"{one.reason}; {place_of(copies)} did not get it in {span(wait)}"))
                continue
            still[one.point] = copies
            if marked is None:
                mark.append(one)
        plans.append(replace(plan, expire=tuple(expire), mark=tuple(mark)))
    return RetentionRun(tuple(plans), run.refusal), Waits(still, over)


def _over(marked: datetime | None, wait: timedelta, now: datetime) -> bool:
    return not wait or (marked is not None and marked + wait <= now)


async def hold_back(parts: Parts, run: RetentionRun) -> tuple[RetentionRun, Waits]:
    """The run without what waits for a second copy; `parts.awaited` tells of that."""
    parts.awaited = {}
    copies, wait = parts.config.copies, parts.config.maintenance.copy_wait
    if run.refusal or not copies or not run.expire:
        return run, Waits({}, {})
    policies, facts, barred = (
        parts.rulebook.in_force,
        standing_still(parts.world.facts(parts.now())),
        parts.copies_barred,
    )
    lacks = await settled(parts.threads.planning, lacking, run, policies, facts, tuple(copies), dict(barred))
    # Where an owner expires what is marked, a mark is no wait.
    owners = {name for name, repository in parts.repositories.each() if repository.append_only}
    theirs = {p.id for several in facts.points.values() for p in several if p.repository in owners} if owners else set()
    lacks = {point: names for point, names in lacks.items() if point not in theirs}
    held, waits = holding_back(run, lacks, facts, wait)
    parts.awaited = {point: place_of(names) for point, names in waits.still.items()}
    for where, number in _by_place(waits.over).items():
        log.error("restore points expire that a second copy lacks", extra={"copy": where, "points": number})
    return held, waits


def place_of(copies: Collection[str]) -> str:
    """What people call these copies."""
    return f"the {'copy' if len(copies) == 1 else 'copies'} {', '.join(copies)}"


def _by_place(points: Lacking) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for copies in points.values():
        found[place_of(copies)] = found.get(place_of(copies), 0) + 1
    return dict(sorted(found.items()))
