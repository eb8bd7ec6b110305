"""What a simulation takes for granted: how fast backups are, how much changes, how often the engine looks. Pure.

Rates are measured from a VM's restore points where it has some, else assumed from the size of its disks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median

from policies.facts import RestorePoint, Vm
from policies.limits import Limits

_DAY = 86_400.0
_WHOLE = 0.9
"""A run that read more than this share of the disks was a full read: it tells nothing about what changes."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The figures of a simulation. Shares are of 1, sizes and rates in bytes."""

    tick: timedelta = timedelta(seconds=30)
    """How often the engine asks its clock what is due."""
    retention_every: timedelta = timedelta(days=1)
    """How often retention looks at all restore points."""
    limits: Limits = field(default_factory=Limits)
    bytes_per_second: int = 200 << 20
    """How fast one backup reads."""
    run_overhead: timedelta = timedelta(seconds=30)
    """What a backup takes besides reading: to make and to remove a snapshot."""
    used_share: float = 0.4
    """How much of its disks a VM uses, which a full read reads."""
    change_share: float = 0.02
    """How much of its disks a VM that was never measured changes a day."""
    stored_share: float = 0.5
    """How much of what such a VM's backup reads is new to the repository, compressed."""
    overwritten_share: float = 0.5
    """How much of what a restore point added is overwritten by the next one, and freed when it expires."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What backups of one VM come to."""

    full_bytes: int
    change_per_second: float
    stored_share: float
    measured: bool = False

    def read_after(self, last: datetime | None, now: datetime) -> int:
        """What a run reads that builds on the restore point of `last`; in full without one."""
        if last is None:
            return self.full_bytes
        changed = int(self.change_per_second * (now - last).total_seconds())
        return changed if changed < self.full_bytes else self.full_bytes


def rate_of(vm: Vm, points: Iterable[RestorePoint], assumed: Assumptions) -> Rate:
    """From the VM's restore points, or, where they are too few, as assumed."""
    known = sorted((point for point in points if point.complete), key=lambda point: point.taken_at)
    size = max([sum(disk.capacity_bytes for disk in vm.disks), *(point.disk_bytes for point in known[-1:])])
    whole = max((point.read_bytes for point in known), default=0)
    full = whole if whole > size * assumed.used_share / 2 else int(size * assumed.used_share)
    daily, shares = [], []
    for before, after in pairwise(known):
        days = (after.taken_at - before.taken_at).total_seconds() / _DAY
        if days > 0 and 0 < after.read_bytes < _WHOLE * full:
            daily.append(after.read_bytes / days)
            shares.append(after.stored_bytes / after.read_bytes)
    if not daily:
        return Rate(full, size * assumed.change_share / _DAY, assumed.stored_share)
    return Rate(full, median(daily) / _DAY, min(1.0, median(shares)), measured=True)
