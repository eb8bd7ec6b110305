"""Two histories become one: the restore points of one VM id count as those of another from now on.

Manifests stay as they are; a create-once mark beside each restore point says whose it is. So a catalog that is made
again, or an engine that lost its state, sees the same.
"""

from __future__ import annotations

from datetime import datetime

from policies.facts import PointId, VmId
from storage.errors import NoSuchPoint
from storage.marks import MarkKind
from storage.repository import Repository


def begin_grace_anew(
    repository: Repository, vms: tuple[VmId, ...], now: datetime, *, reason: str, lock: dict[PointId, datetime]
) -> None:
    """Forget that retention wanted restore points of these VMs gone, and lock some until a time. Blocking."""
    for vm in vms:
        for point in repository.points(vm):
            try:
                repository.unmark(point.id, reason, now)
                if point.id in lock:
                    repository.mark_lock(point.id, lock[point.id], reason, now)
            except NoSuchPoint:
                continue  # it expired a moment ago


def join(repository: Repository, moving: VmId, into: VmId, now: datetime) -> list[PointId]:
    """Count the restore points of one VM as another's; which were moved. Blocking.

    Interrupted, some have moved and some have not: none is lost, and doing it again finishes it.
    """
    moved: list[PointId] = []
    for point in repository.points(moving):
        try:
            repository.add_mark(point.id, MarkKind.JOINED, now, into)
        except NoSuchPoint:
            continue
        moved.append(point.id)
    return moved
