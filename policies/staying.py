"""Why one restore point is kept, by whom, and until when. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from policies.advice_timing import interval
from policies.errors import printable
from policies.expiry import dated, expiries
from policies.facts import Facts, PointId, RestorePoint, VmId, instant_text
from policies.keeping import rows_of, unkept
from policies.policy import Policy
from policies.policyset import PolicySet
from policies.retention import longest_grace, plan_retention
from policies.settings import policy_line, retention_words
from policies.units import clock, counted, span

MOST_AHEAD = 2_000
"""Restore points to come that are looked ahead for: five years of daily ones."""


@dataclass(frozen=True, slots=True)
class Stay:
    """What the policies say about one restore point at one instant.

    `expires` is when it goes if no other restore point comes, None where it stays for ever then. `about` is when it
    would go if backups went on as its VM's policies ask, None where that is not foreseen. `provenance` is told by who
    knows more than the facts do: what the manifest recorded. `copy` is the second copy that this is about, "" for the
    first repository, and `copies` what is said of it in others.
    """

    point: RestorePoint
    name: str
    status: str
    reasons: tuple[str, ...]
    expires: datetime | None
    about: datetime | None
    until: str
    policies: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)
    copy: str = ""
    copies: tuple[Stay, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        point = self.point
        return {
            "point": point.id,
            "vm": self.name,
            "vm_id": point.vm,
            "taken_at": instant_text(point.taken_at),
            "consistency": point.consistency.value,
            "complete": point.complete,
            "damaged": point.damaged,
            "status": self.status,
            "reasons": [*self.reasons],
            "expires_without_new_points": instant_text(self.expires) if self.expires else None,
            "expires_with_backups_about": instant_text(self.about) if self.about else None,
            "until": self.until,
            "holds": [*point.holds],
            "locked_until": instant_text(point.locked_until) if point.locked_until else None,
            "expiring_since": instant_text(point.expiring_since) if point.expiring_since else None,
            "policies": [*self.policies],
            "provenance": dict(self.provenance),
            "copy": self.copy,
            "copies": [one.as_json() for one in self.copies],
        }

    @property
    def _where(self) -> str:
        return f" in the copy {self.copy}" if self.copy else ""

    def render(self) -> str:
        """For a person."""
        point = self.point
        state = "" if point.complete else ", incomplete"
        state += ", damaged" if point.damaged else ""
        lines = [
            f"{point.id}{self._where}: {self.status}",
            f"  of {self.name}, taken {point.taken_at:%Y-%m-%d %H:%M} UTC, {point.consistency} consistent{state}",
            "",
            "kept by:" if self.reasons else "kept by nothing",
            *(f"  {reason}" for reason in self.reasons),
            "",
            f"until: {self.until}",
        ]
        if self.policies:
            lines += ["", "under:", *(f"  {words}" for words in self.policies)]
        for one in self.copies:
            lines += ["", f"in the copy {one.copy}: {one.status}", *(f"  {reason}" for reason in one.reasons)]
            lines += [f"  until: {one.until}"]
        if self.provenance:
            lines += ["", "it came about by:", *(f"  {key:<12} {words}" for key, words in self.provenance.items())]
        return "\n".join(map(printable, lines)) + "\n"


def explain_point(policies: PolicySet, point: RestorePoint, facts: Facts) -> Stay:
    """Why this restore point of the facts stays or goes, in the first repository and in each copy that has it."""
    found = [
        _explained(policies, one, facts, copy)
        for copy in ("", *facts.copies)
        for one in facts.points_in(copy).get(point.vm, ())
        if one.id == point.id
    ]
    return replace(found[0], copies=tuple(found[1:])) if found else _explained(policies, point, facts, "")


def _explained(policies: PolicySet, point: RestorePoint, facts: Facts, copy: str) -> Stay:
    vm, now = facts.vms.get(point.vm), facts.now
    points = facts.points_in(copy).get(point.vm, ())
    retaining = policies.retaining_of(point.vm, facts, copy)
    plan = plan_retention(point.vm, points, retaining, now)
    kept = next((one.reasons for one in plan.keep if one.point == point.id), ())
    gone = next((one.reason for one in plan.expire if one.point == point.id), "")
    ends = expiries(dated(points, now), retaining).get(point.id)
    about = None if ends is not None or gone else _with_backups(point, points, retaining, facts)
    return Stay(
        point=point,
        name=vm.name if vm is not None else point.vm_name,
        status=_status(point, gone, ends, now),
        reasons=kept,
        expires=ends,
        about=about,
        until=_until(point, retaining, gone, ends, about, facts),
        policies=tuple(f"{policy_line(one)}: {retention_words(one.retention)}" for one in retaining),
        provenance=provenance({"policy": point.policy, "rule": point.rule, "reason": point.reason}, policies),
        copy=copy,
    )


def provenance(recorded: Mapping[str, str], policies: PolicySet) -> dict[str, str]:
    """What was recorded of how a restore point came about, in words."""
    by = f"{recorded.get('policy', '')} {recorded.get('rule', '')}".strip()
    digest = recorded.get("policy_hash", "")
    present = policies.policy(recorded.get("policy", ""))
    since = ""
    if digest and present is None:
        since = " (that policy is gone)"
    elif digest and present is not None and present.hash != digest:
        since = " (it has changed since)"
    at = f" at {recorded['event_at'][:19].replace('T', ' ')} UTC" if recorded.get("event_at") else ""
    event = f"{recorded.get('event_type', '')}{at} ({recorded['event_key']})" if recorded.get("event_key") else ""
    said = {
        "policy": f"{by}{since}",
        "because": recorded.get("reason", ""),
        "event": event,
        "policy hash": digest,
        "git commit": recorded.get("policy_commit", ""),
    }
    return {key: words for key, words in said.items() if words}


def _status(point: RestorePoint, gone: str, ends: datetime | None, now: datetime) -> str:
    if gone:
        return "expires when retention is next carried out"
    if ends is not None and point.locked_until is not None and point.locked_until > now:
        return "stays while it is locked"
    return "marked, and stays while its grace lasts" if ends is not None else "stays"


def _until(
    point: RestorePoint,
    retaining: Sequence[Policy],
    gone: str,
    ends: datetime | None,
    about: datetime | None,
    facts: Facts,
) -> str:
    zone = retaining[0].timing.zone if retaining else facts.now.tzinfo
    assert zone is not None  # facts are aware
    if gone:
        return f"now: {gone}"
    if point.holds:
        return f"its {counted(len(point.holds), 'hold')} is released, whatever the rules say"
    if ends is not None:
        locked = point.locked_until if point.locked_until is not None and point.locked_until > facts.now else None
        grace = longest_grace(retaining)
        why = f"the lock ends at {clock(locked, zone)}, then grace lasts {span(grace)}" if locked else ""
        return f"{clock(ends, zone)}: {why or f'no rule keeps it, and grace lasts {span(grace)}'}"
    everything = [policy.name for policy in retaining if policy.retention.empty]
    if not retaining:
        return "for ever: no policy selects its VM, so nothing expires"
    if everything:
        return f"for ever: policy {', '.join(everything)} keeps everything"
    if about is not None:
        apart = _apart(retaining, facts)
        return (
            f"about {clock(about, zone)} if a restore point comes every {span(apart or timedelta(days=1))}; for ever "
            "while none comes, as rules count restore points and not time"
        )
    return "for ever while no newer restore point comes, as rules count restore points and not time"


def _apart(retaining: Sequence[Policy], facts: Facts) -> timedelta | None:
    top = [policy for policy in retaining if policy.timing.scheduled]
    found = [interval(policy.timing, facts.now) for policy in top if policy.priority == top[0].priority]
    return min((one for one in found if one is not None), default=None)


def _with_backups(
    point: RestorePoint, points: Sequence[RestorePoint], retaining: Sequence[Policy], facts: Facts
) -> datetime | None:
    """When the point would expire if good restore points came on time; None where that is too far to see."""
    apart = _apart(retaining, facts)
    if apart is None or point.holds or point.vm not in facts.vms:
        return None
    best = max(retaining, key=lambda policy: policy.priority).wanted
    for step in dict.fromkeys((apart, max(apart, timedelta(days=1)))):
        coming = [
            replace(point, id=PointId(f"coming-{number:05}"), taken_at=facts.now + number * step, consistency=best,
                    complete=True, damaged=False, holds=(), locked_until=None, expiring_since=None)
            for number in range(1, MOST_AHEAD + 1)
        ]  # fmt: skip

        def going(number: int, step: timedelta = step, coming: list[RestorePoint] = coming) -> bool:
            rows = rows_of((*points, *coming[:number]))
            at = facts.now + number * step
            return any(rows[position].point.id == point.id for position in unkept(rows, retaining, at))

        if not going(MOST_AHEAD):
            continue
        low, high = 0, MOST_AHEAD
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if going(middle) else (middle, high)
        return facts.now + high * step + longest_grace(retaining)
    return None


def find_point(facts: Facts, reference: str) -> list[tuple[VmId, RestorePoint]]:
    """The restore points whose id is, or begins with, what a person writes; NAME@latest is the newest of a VM.

    One that is in several repositories is found once.
    """
    name, at, which = reference.partition("@")
    once = {
        point.id: (vm, point)
        for copy in (*facts.copies, "")
        for vm, points in facts.points_in(copy).items()
        for point in points
    }
    found = [*once.values()]
    if at and which == "latest":
        mine = [(vm, point) for vm, point in found if name in (vm, point.vm_name)]
        return sorted(mine, key=lambda one: one[1].taken_at)[-1:]
    exact = [(vm, point) for vm, point in found if point.id == reference]
    return exact or [(vm, point) for vm, point in found if reference and point.id.startswith(reference)]
