"""What policies want read back: the restore points that a verification begins with, and how the wishes stand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from engine.parts import Parts
from engine.threads import settled
from policies.facts import Facts, PointId
from policies.policyset import PolicySet
from policies.verification import DueVerification, due_verifications, verification_standing
from storage.errors import StorageError
from storage.verify import Sooner, points_read

log = logging.getLogger("engine.rereading")

MOST_GROUPS = 8
"""Groups that one verification tells apart: what the first needs is read first, and each costs a look at all packs."""

STANDING_KEPT = timedelta(minutes=10)
"""How old what is told about the standing may be: it changes over days."""


def groups_of(due: Sequence[DueVerification], *, by: datetime, now: datetime) -> tuple[Sooner, ...]:
    """Restore points that are due as groups to be read one after the other, most overdue first. Pure.

    A reading counts that is still good for a quarter of the wish when the next verification has ended: else its
    restore point would be due again at once.
    """
    wishes: dict[timedelta, list[DueVerification]] = {}
    for one in due:
        wishes.setdefault(one.every, []).append(one)
    slices = max(1, MOST_GROUPS // max(1, len(wishes)))
    groups: list[tuple[datetime, Sooner]] = []
    for every, wanting in wishes.items():
        size = -(-len(wanting) // slices)
        after = min(by - every * 3 / 4, now - timedelta(microseconds=1))
        for start in range(0, len(wanting), size):
            some = wanting[start : start + size]
            groups.append((some[0].deadline, Sooner(tuple(one.point for one in some), after)))
    return tuple(group for _, group in sorted(groups, key=lambda one: one[0]))


def next_ended(parts: Parts, closes: datetime | None, now: datetime, name: str = "") -> datetime:
    """When the verification after the one of now will have ended; `closes` is when the window of now does."""
    hours, interval = parts.config.verify_hours(name), parts.config.timers.verify
    if closes is None:
        return now + 2 * interval
    opens = hours.opens(max(closes, now + interval))
    return hours.closes(opens) or opens


async def to_begin_with(parts: Parts, closes: datetime | None, name: str = "") -> tuple[Sooner, ...]:
    """The groups with which a verification of this repository begins now; none where no policy says how often."""
    if not _anybody(parts.rulebook.in_force):
        return ()
    now = parts.now()
    by = next_ended(parts, closes, now, name)
    read = await settled(parts.threads.repository, points_read, parts.repositories.named(name))
    facts = _facts(parts, now)
    if parts.config.repositories:
        here = {vm: tuple(one for one in several if one.repository == name) for vm, several in facts.points.items()}
        facts = replace(facts, points=here)
    due = await settled(parts.threads.long, due_verifications, parts.rulebook.in_force, facts, read, by)
    return groups_of(due, by=by, now=now)


async def look(parts: Parts, *, anew: bool = False) -> None:
    """Bring the standing up to date, if it is old or `anew`."""
    now, policies = parts.now(), parts.rulebook.in_force
    fresh = parts.wishes_at is not None and now - parts.wishes_at < STANDING_KEPT
    if fresh and not anew and parts.wishes_of == policies.hash:
        return
    parts.wishes_at, parts.wishes_of = now, policies.hash
    if _anybody(parts.rulebook.in_force):
        read: dict[PointId, datetime] = {}
        for name, repository in [*parts.repositories.each()]:
            try:
                read |= await settled(parts.threads.repository, points_read, repository)
            except StorageError as error:
                if not name:
                    raise
                log.warning("not known what was read back", extra={"repository": name, "why": str(error)})
        facts = _facts(parts, now)
        parts.wishes = await settled(parts.threads.long, verification_standing, parts.rulebook.in_force, facts, read)
    else:
        parts.wishes = ()
    parts.metrics.repositories.verification_wanted(
        {one.policy: (one.every.total_seconds(), one.overdue, one.oldest) for one in parts.wishes}
    )


def _anybody(policies: PolicySet) -> bool:
    return any(policy.verify_every is not None for policy in policies.policies)


def _facts(parts: Parts, now: datetime) -> Facts:
    """Of its own, as threads read it while the world goes on."""
    return Facts(now, dict(parts.world.vms), points=dict(parts.world.points))
