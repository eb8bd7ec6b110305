"""Which restore points are to be read back, as policies want it, and how that stands. Pure.

A restore point counts as read when it was taken: its bytes were just written, and had come from the disk itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from policies.facts import Facts, PointId, RestorePoint, VmId
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.units import span


@dataclass(frozen=True, slots=True)
class DueVerification:
    """A restore point that is to be read back before `deadline`, which may be past, and why."""

    point: PointId
    vm: VmId
    policy: str
    every: timedelta
    deadline: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class VerificationStanding:
    """How one policy's wish stands: its restore points, those read too long ago, and the oldest reading of all."""

    policy: str
    every: timedelta
    points: int
    overdue: int
    oldest: datetime | None


def due_verifications(
    policies: PolicySet, facts: Facts, last_read: Mapping[PointId, datetime], by: datetime
) -> tuple[DueVerification, ...]:
    """The restore points whose time comes at `by` or before, most overdue first.

    `last_read` is when each was last read back as a whole. Of several policies that select a VM the shortest time
    counts. Known damage is told in other ways than by reading it again.
    """
    found = []
    for point, wanting in _wanted(policies, facts):
        policy, every = min(wanting, key=lambda one: (one[1], one[0].name))
        read = last_read.get(point.id)
        deadline = _base(point, read) + every
        if deadline <= by:
            when = f"last read back {span(facts.now - read)} ago" if read is not None else "never read back"
            reason = f"{when}; policy {policy.name} wants it every {span(every)}"
            found.append(DueVerification(point.id, point.vm, policy.name, every, deadline, reason))
    return tuple(sorted(found, key=lambda due: (due.deadline, due.point)))


def verification_standing(
    policies: PolicySet, facts: Facts, last_read: Mapping[PointId, datetime]
) -> tuple[VerificationStanding, ...]:
    """For each policy that wants restore points read back, in the order of names."""
    bases: dict[str, list[datetime]] = {p.name: [] for p in policies.policies if p.verify_every is not None}
    every = {policy.name: policy.verify_every for policy in policies.policies}
    for point, wanting in _wanted(policies, facts):
        for policy, wanted in wanting:
            every[policy.name] = wanted
            bases.setdefault(policy.name, []).append(_base(point, last_read.get(point.id)))
    return tuple(
        VerificationStanding(
            name, wish, len(found), sum(at + wish < facts.now for at in found), min(found, default=None)
        )
        for name, found in sorted(bases.items())
        if (wish := every[name]) is not None
    )


def _base(point: RestorePoint, read: datetime | None) -> datetime:
    return point.taken_at if read is None else max(read, point.taken_at)


def _wanted(policies: PolicySet, facts: Facts) -> Iterator[tuple[RestorePoint, list[tuple[Policy, timedelta]]]]:
    """Restore points with the policies that want them read back. Of a VM that is gone, its own policy says so."""
    for vm_id, points in facts.points.items():
        vm = facts.vms.get(vm_id)
        selecting = _wishes(policies.matching(vm)) if vm is not None else []
        for point in points:
            if vm is None:
                own = policies.policy(point.policy)
                selecting = _wishes((own,) if own is not None else ())
            if selecting and not point.damaged:
                yield point, selecting


def _wishes(policies: tuple[Policy, ...]) -> list[tuple[Policy, timedelta]]:
    return [(policy, policy.verify_every) for policy in policies if policy.verify_every is not None]
