"""When each restore point of a VM would expire, were no further backup made. Pure.

Carrying retention out at any instants does the same: what nothing keeps does not count for what stays, so that a
point's time depends on the policies, its lock and its grace alone, and not on which others went before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from policies.facts import PointId, RestorePoint
from policies.keeping import Row, rows_of, unkept
from policies.policy import Policy
from policies.retention import Reasons, kept_reasons, longest_grace


@dataclass(frozen=True, slots=True)
class Dated:
    """One VM's restore points, to be asked under several policies. `rows` know nothing of locks that will end."""

    points: Sequence[RestorePoint]
    rows: Sequence[Row]
    locks: dict[PointId, datetime]
    now: datetime


def dated(points: Sequence[RestorePoint], now: datetime) -> Dated:
    """Restore points of one VM as they are now."""
    locks = {p.id: p.locked_until for p in points if p.locked_until is not None and p.locked_until > now}
    free = [replace(point, locked_until=None) if point.id in locks else point for point in points] if locks else points
    return Dated(points, rows_of(free), locks, now)


def expiries(known: Dated, policies: Sequence[Policy]) -> dict[PointId, datetime]:
    """The instant from which retention expires each point of one VM; those that stay for ever are left out."""
    grace = longest_grace(policies)
    if known.rows and known.rows[0].taken_at > known.now:
        return _step_by_step(known, policies, grace)
    going = (known.rows[position].point for position in unkept(known.rows, policies, known.now))
    return {point.id: _ends(point, known.locks.get(point.id), grace, known.now) for point in going}


def kept_until_now(known: Dated, policies: Sequence[Policy]) -> Reasons:
    """Why each point stays, apart from locks."""
    return kept_reasons([row.point for row in known.rows], policies, known.now)


def _ends(point: RestorePoint, lock: datetime | None, grace: timedelta, now: datetime) -> datetime:
    if lock is not None:
        return _later(lock, grace)  # a mark from before is taken back while it is locked
    return max(now, _later(point.expiring_since or now, grace))


def _step_by_step(known: Dated, policies: Sequence[Policy], grace: timedelta) -> dict[PointId, datetime]:
    """What a wrong clock dated into the future counts from its time on, and may displace others then."""
    now, rows = known.now, known.rows
    moments = sorted({now, *known.locks.values(), *(row.taken_at for row in rows if row.taken_at > now)})
    marked = {row.point.id: row.point.expiring_since for row in rows}
    gone: dict[PointId, datetime] = {}
    for number, moment in enumerate(moments):
        here = [row for row in rows if row.point.id not in gone]
        going = {here[position].point.id for position in unkept(here, policies, moment)}
        following = moments[number + 1] if number + 1 < len(moments) else None
        for row in here:
            point, lock = row.point, known.locks.get(row.point.id)
            if point.id not in going or (lock is not None and lock > moment):
                marked[point.id] = None
                continue
            since = marked[point.id] or moment
            marked[point.id] = since
            ends = max(moment, _later(since, grace))
            if following is None or ends < following:
                gone[point.id] = ends
    return gone


def _later(at: datetime, span: timedelta) -> datetime:
    try:
        return at + span
    except OverflowError:
        return datetime.max.replace(tzinfo=at.tzinfo)
