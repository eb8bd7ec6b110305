"""A second copy: restore points move from one repository to another without their VM being read again.

A point keeps its id, so that what is there already is skipped, and a copy that was interrupted goes on. Of a VM's
further points only those blocks are looked at that differ from a point which both repositories have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from policies.facts import PointId, RestorePoint, VmId
from storage.errors import Damaged, NoSuchPoint, Refused, StoreFailed
from storage.ingest import DiskIngest
from storage.manifest import DiskRecord
from storage.mapdiff import differences
from storage.marks import MarkKind
from storage.nodes import StoredNodes
from storage.parallel import for_each
from storage.pending import PendingPoint
from storage.points import PointDetail
from storage.reading import PointDisk
from storage.repository import Repository

COPIED_FROM = "copied_from"
"""The attribute of a copied restore point that names the repository it came from."""

PIECE_BYTES = 1 << 20

Extent = tuple[int, int]
"""(offset, length) in bytes of a disk."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy would move: restore points that the target lacks, oldest first. `there` counts those that it has."""

    missing: tuple[RestorePoint, ...]
    there: int


@dataclass(frozen=True, slots=True)
class CopyOutcome:
    """What a copy did. `moved_bytes` were read from the source, `stored_bytes` were written to the target's packs.

    `failed` pairs a restore point with why it could not be copied; the others were.
    """

    copied: tuple[PointId, ...]
    there: int
    moved_bytes: int
    stored_bytes: int
    failed: tuple[tuple[PointId, str], ...]


def plan_copy(source: Repository, target: Repository, points: Sequence[PointId] | None = None) -> CopyPlan:
    """Which restore points are to be copied: all, or some; Refused when both are one repository."""
    if source.repository_id == target.repository_id:
        raise Refused("source and target are the same repository", where=str(target.location))
    wanted = [point for point in source.points() if points is None or point.id in set(points)]
    there = target.point_ids() | target.marks.lost()
    return CopyPlan(tuple(p for p in wanted if p.id not in there), sum(p.id in there for p in wanted))


def copy_points(
    source: Repository,
    target: Repository,
    plan: CopyPlan,
    *,
    now: Callable[[], datetime],
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> CopyOutcome:
    """Carry a plan out. Each restore point is complete in the target as soon as it is committed there.

    Every chunk is verified as it is read. A point whose source is damaged is left out and told; an error of the
    target ends the copy. Holds and locks of all points that both have are carried over. `progress` gets the bytes
    read so far.
    """
    count = _Count(progress)
    copied: list[PointId] = []
    failed: list[tuple[PointId, str]] = []
    stored = 0
    for point in plan.missing:
        try:
            stored += _copy_point(source, target, point.id, threads, count)
        except NoSuchPoint:
            continue  # expired since the plan
        except Damaged as error:
            failed.append((point.id, str(error)))
        else:
            copied.append(point.id)
    carry_marks(source, target, now())
    return CopyOutcome(tuple(copied), plan.there, count.total, stored, tuple(failed))


def carry_marks(source: Repository, target: Repository, now: datetime) -> None:
    """Hold, lock and join in the target what is so in the source. A release is never carried over."""
    vms = {point.id: point.vm for point in target.points()}
    for original in source.points():
        point = original.id
        if point not in vms:
            continue
        if original.vm != vms[point]:
            target.add_mark(point, MarkKind.JOINED, now, original.vm)
        wanted, state = source.mark_state(point), target.mark_state(point)
        for hold in wanted.holds:
            if hold not in state.holds:
                target.add_mark(point, MarkKind.HOLD, now, hold)
        until = wanted.locked_until
        if until is not None and until > (state.locked_until or now):
            target.mark_lock(point, until, "as in the repository that it was copied from", now)


class _Count:
    """Bytes read so far, from any thread."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.total = 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        with self._lock:
            self.total += amount
            total = self.total
        if self._progress is not None:
            self._progress(total)


def _copy_point(source: Repository, target: Repository, point: PointId, threads: int, count: _Count) -> int:
    detail = source.detail(point)
    origin = detail.head.attributes.get(COPIED_FROM, source.repository_id)
    head = replace(detail.head, attributes={**detail.head.attributes, COPIED_FROM: origin})
    shared = _newest_shared(source, target, detail.head.vm, detail)
    stored = 0
    with target.new_point(head, point=point) as pending:
        for record in detail.disks:
            stored += _copy_disk(source, pending, target.block_bytes, point, record, shared, threads, count)
        for label, reason in detail.unprotected:
            pending.unprotected(label, reason)
        if detail.has_configuration:
            pending.configuration(source.configuration(point))
        pending.commit()
    return stored


def _newest_shared(source: Repository, target: Repository, vm: VmId, before: PointDetail) -> PointDetail | None:
    """The newest earlier restore point of a VM that is sound in both repositories."""
    sound = {point.id for point in target.points(vm) if not point.damaged}
    for point in reversed(source.points(vm)):
        if point.id in sound and not point.damaged and point.taken_at < before.head.taken_at:
            return source.detail(point.id)
    return None


def _copy_disk(
    source: Repository,
    pending: PendingPoint,
    block_bytes: int,
    point: PointId,
    record: DiskRecord,
    shared: PointDetail | None,
    threads: int,
    count: _Count,
) -> int:
    disk = source.read_disk(point, record.head.name)
    base = next((one for one in shared.disks if one.head.name == record.head.name), None) if shared else None
    if shared is None or base is None:
        ingest = pending.disk(record.head, base=None)
        extents = iter(disk.extents())
    else:
        _kept = source.read_disk(shared.id, base.head.name)  # its map stays readable for as long as this is here
        ingest = pending.disk(record.head, base=(shared.id, base.head.name))
        extents = _changed(source, disk, base)
    work = pieces(extents, block_bytes, disk.capacity_bytes)
    for_each(work, partial(_mover, disk, ingest, max(PIECE_BYTES, block_bytes), count), threads)
    stats = ingest.finish()
    if source.block_bytes == block_bytes and stats.mapped_bytes != record.mapped_bytes:
        raise StoreFailed(
            f"the copy of {record.head.name} maps {stats.mapped_bytes} bytes, its source {record.mapped_bytes}",
            where=point,
            hint="verify both repositories; nothing was committed",
        )
    return stats.stored_bytes


def _changed(source: Repository, disk: PointDisk, base: DiskRecord) -> Iterator[Extent]:
    """What differs between a disk and an earlier one, in order."""
    size = disk.block_bytes
    for block, _ in differences(StoredNodes(source.store), base.root, disk.record.root, disk.fan_out):
        if block * size < disk.capacity_bytes:
            yield block * size, min(size, disk.capacity_bytes - block * size)


def pieces(extents: Iterator[Extent], block_bytes: int, capacity_bytes: int) -> Iterator[Extent]:
    """Sorted extents widened to a grid of blocks and joined, in parts of PIECE_BYTES at most (one block at least)."""
    step = max(PIECE_BYTES // block_bytes, 1) * block_bytes
    start = end = 0
    for offset, length in extents:
        low = offset // block_bytes * block_bytes
        high = min(-(-(offset + length) // block_bytes) * block_bytes, capacity_bytes)
        if low > end:
            yield from _cut(start, end, step)
            start = low
        end = max(end, high)
        while end - start > step:
            yield start, step
            start += step
    yield from _cut(start, end, step)


def _cut(start: int, end: int, step: int) -> Iterator[Extent]:
    for at in range(start, end, step):
        yield at, min(step, end - at)


def _mover(disk: PointDisk, ingest: DiskIngest, room: int, count: _Count) -> Callable[[Extent], None]:
    buffer = memoryview(bytearray(room))

    def move(piece: Extent) -> None:
        offset, length = piece
        view = buffer[:length]
        disk.read_into(offset, view)
        ingest.write(offset, view)
        count.add(length)

    return move
