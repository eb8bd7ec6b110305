"""Whether datastores have room for what a snapshot takes, decided from values alone. Pure.

While a snapshot stands, what the guest writes goes into deltas beside its disks. How much that may come to is the
VM's rate of change times how long the run takes, doubled; where nothing is known a rate is taken that few VMs reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from connectors.hypervisor import DatastoreSpace
from policies.facts import RestorePoint, Vm
from policies.units import counted, parse_share, parse_size, size, span

UNKNOWN_DAILY_CHANGE = 0.10
"""The share of its disks that a VM changes in a day, where its restore points do not tell."""

LEAST_DAILY_CHANGE = 0.01
"""A VM that was quiet may wake up."""

UNKNOWN_BYTES_PER_SECOND = 30 << 20
"""How fast disks are read where no run of this engine has told: a slow network."""

BESIDE_READING = timedelta(minutes=10)
"""What making and removing the snapshot may take beside the reading; the guest writes on meanwhile."""

UNKNOWN_AT_MOST = 0.20
"""Nor more than so large a share of each disk is expected there: what VMware advises to keep free for snapshots."""

MARGIN = 2.0
"""Guests do not write evenly over the day."""

INTERVALS = 7
"""So many of the newest intervals between restore points tell the rate; the busiest counts."""

SHORTEST_INTERVAL = timedelta(hours=1)
"""What was read a few minutes after another run does not tell a day: taken for one, it could keep the VM from ever
being backed up again, as no further restore point would tell otherwise."""

READ_IN_FULL = 0.9
"""A restore point that read so large a share of its disks does not tell what had changed."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A level of free space: a share of the datastore, or bytes."""

    share: float = 0.0
    fixed_bytes: int = 0

    def of(self, capacity_bytes: int) -> int:
        """In bytes, of a datastore of this size."""
        return self.fixed_bytes or int(capacity_bytes * self.share)

    def __str__(self) -> str:
        """As it is written in a configuration."""
        return (
            f"{self.fixed_bytes >> 10}KiB" if self.fixed_bytes else f"{self.share:.4%}".rstrip("0%").rstrip(".") + "%"
        )


def parse_mark(text: str) -> Mark:
    """ "10%" or "50GiB"; raises ValueError."""
    return Mark(share=parse_share(text)) if text.strip().endswith("%") else Mark(fixed_bytes=parse_size(text))


@dataclass(frozen=True, slots=True)
class Marks:
    """No snapshot is begun with less than `free` on a datastore, nor kept with less than `low`."""

    free: Mark = Mark(share=0.10)
    low: Mark = Mark(share=0.05)


@dataclass(frozen=True, slots=True)
class Expected:
    """What may be written while a VM's snapshot stands, by the names of datastores, and why so much."""

    by_datastore: Mapping[str, int]
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Rate:
    """How much a VM changes in a day, what its last incremental run read (None: not known), and what tells."""

    daily_bytes: int
    last_read_bytes: int | None
    told_by: str


def rate_of(points: Sequence[RestorePoint], disk_bytes: int) -> Rate:
    """The rate of change by a VM's restore points, in order of time."""
    complete = [point for point in points if point.complete and not point.damaged]
    rates: list[float] = []
    read: int | None = None
    for before, after in pairwise(complete):
        apart = after.taken_at - before.taken_at
        if apart > timedelta() and after.read_bytes < READ_IN_FULL * after.disk_bytes:
            read = after.read_bytes
            rates.append(read / max(apart, SHORTEST_INTERVAL).total_seconds() * 86_400)
    if not rates:
        return Rate(int(disk_bytes * UNKNOWN_DAILY_CHANGE), None, "assumed, as its restore points do not tell")
    newest = rates[-INTERVALS:]
    daily = max(*newest, disk_bytes * LEAST_DAILY_CHANGE)
    return Rate(int(daily), read, f"measured over {counted(len(newest), 'incremental run')}")


def expect(
    vm: Vm,
    points: Sequence[RestorePoint],
    *,
    bytes_per_second: float | None,
    last_seconds: float | None,
    whole: bool = False,
) -> Expected:
    """What a run of the VM may need, which reads the `whole` of its disks or what changed.

    `last_seconds` is how long its last run took, where that is known.
    """
    disks = [disk for disk in vm.disks if not disk.unprotected]
    total = sum(disk.capacity_bytes for disk in disks)
    rate = rate_of(points, total)
    to_read = total if whole or rate.last_read_bytes is None else rate.last_read_bytes
    reading = to_read / (bytes_per_second or UNKNOWN_BYTES_PER_SECOND)
    seconds = max(reading, last_seconds or 0.0) if whole else reading if last_seconds is None else last_seconds
    seconds += BESIDE_READING.total_seconds()
    most = UNKNOWN_AT_MOST if rate.last_read_bytes is None else 1.0
    needed: Counter[str] = Counter()
    for disk in disks:
        written = rate.daily_bytes * (disk.capacity_bytes / total) * seconds / 86_400 * MARGIN if total else 0.0
        needed[disk.datastore] += int(min(written, disk.capacity_bytes * most))
    often = f"{size(rate.daily_bytes)} of change a day ({rate.told_by})"
    return Expected(dict(needed), seconds, f"{often} for about {span(timedelta(seconds=round(seconds)))}, doubled")


def no_room(
    spaces: Iterable[DatastoreSpace], expected: Expected, promised: Mapping[str, int], marks: Marks
) -> tuple[str, ...]:
    """Why no snapshot is to be made now, a sentence for each datastore; empty when there is room.

    `promised` is what runs that are under way may still need there.
    """
    sentences: list[str] = []
    for space in spaces:
        needed = expected.by_datastore.get(space.name, 0) + promised.get(space.name, 0)
        wanted = max(marks.free.of(space.capacity_bytes), marks.low.of(space.capacity_bytes) + needed)
        if space.free_bytes >= wanted:
            continue
        others = promised.get(space.name, 0)
        beside = f", those of other runs {size(others)}" if others else ""
        sentences.append(
            f"datastore {space.name} has {_free(space)}; {size(wanted)} must be free for a snapshot, whose deltas may"
            f" come to {size(expected.by_datastore.get(space.name, 0))}{beside} ({expected.reason})"
        )
    return tuple(sentences)


def running_low(spaces: Iterable[DatastoreSpace], marks: Marks) -> tuple[str, ...]:
    """Why a snapshot that stands has to go, a sentence for each datastore; empty when it may stay."""
    return tuple(
        f"datastore {space.name} has only {_free(space)}, less than the {size(marks.low.of(space.capacity_bytes))}"
        " with which a snapshot may stay"
        for space in spaces
        if space.free_bytes < marks.low.of(space.capacity_bytes)
    )


def blocked(spaces: Iterable[DatastoreSpace], marks: Marks) -> dict[str, str]:
    """The datastores on which no snapshot is begun, whatever its size, each with the sentence."""
    return {
        space.name: f"datastore {space.name} has {_free(space)}; no snapshot is begun with less than"
        f" {size(marks.free.of(space.capacity_bytes))}"
        for space in spaces
        if space.free_bytes < marks.free.of(space.capacity_bytes)
    }


def _free(space: DatastoreSpace) -> str:
    return (
        f"{size(space.free_bytes)} free ({space.free_bytes / space.capacity_bytes:.1%} of {size(space.capacity_bytes)})"
    )
