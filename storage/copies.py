"""A second copy: restore points move from one repository to another without their VM being read again.

A point keeps its id, so that what is there already is skipped, and a copy that was interrupted goes on. Of a VM's
further points only those blocks are looked at that differ from a point which both repositories have.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from policies.facts import PointId, RestorePoint, VmId
from storage import forgotten
from storage.errors import UNREADABLE, AlreadyExists, Damaged, NoSuchPoint, Refused, StoreFailed
from storage.following import TOMBSTONE_KEPT
from storage.forgotten import COPIED_FROM
from storage.ingest import DiskIngest
from storage.manifest import DiskRecord, PointHead
from storage.mapdiff import differences
from storage.marks import MarkKind
from storage.nodes import StoredNodes
from storage.parallel import for_each
from storage.pending import PendingPoint
from storage.points import PointDetail
from storage.reachability import Reached
from storage.reading import PointDisk
from storage.repository import Repository

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20

Extent = tuple[int, int]
"""(offset, length) in bytes of a disk."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy would move: restore points that the target lacks, oldest first. `there` counts those that it has.

    `expired` counts those that stay away: retention expired them in the target, or their tombstone still lies there,
    under which nothing lasts.
    """

    missing: tuple[RestorePoint, ...]
    there: int
    expired: int = 0


@dataclass(frozen=True, slots=True)
class CopyOutcome:
    """What a copy did. `moved_bytes` were read from the source, `stored_bytes` were written to the target's packs.

    `failed` pairs a restore point with why it could not be copied; the others were.
    """

    copied: tuple[PointId, ...]
    there: int
    expired: int
    moved_bytes: int
    stored_bytes: int
    failed: tuple[tuple[PointId, str], ...]


def plan_copy(
    source: Repository,
    target: Repository,
    points: Collection[PointId] | None = None,
    *,
    again: Collection[PointId] = (),
) -> CopyPlan:
    """Which restore points are to be copied: all, or some; Refused when both are one repository.

    What retention expired in the target is left out, unless it is among `again`. Refused when a tombstone is in the
    way of one of these.
    """
    if source.repository_id == target.repository_id:
        raise Refused("source and target are the same repository", where=str(target.location))
    wanted = [point for point in source.points() if points is None or point.id in set(points)]
    target.refresh()
    there, dead = target.point_ids() | target.marks.lost(), target.marks.expired()
    if barred := sorted(dead.intersection(again)):
        raise Refused(
            f"restore point {barred[0]} was expired here, and its tombstone still lies here",
            where=str(target.location),
            hint=f"it goes {TOMBSTONE_KEPT.days} days after the expiry",
        )
    expired = dead | (forgotten.forgotten(target.private) - there).difference(again)
    return CopyPlan(
        tuple(p for p in wanted if p.id not in there and p.id not in expired),
        sum(p.id in there for p in wanted),
        sum(p.id in expired for p in wanted),
    )


def copy_points(
    source: Repository,
    target: Repository,
    plan: CopyPlan,
    *,
    now: Callable[[], datetime],
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
    locked_until: Mapping[PointId, datetime] | None = None,
) -> CopyOutcome:
    """Carry a plan out. Each restore point is complete in the target as soon as it is committed there.

    Every chunk is verified as it is read. A point that cannot be read is left out and told; another error of the
    target ends the copy. Holds and locks of all points that both have are carried over; the copies of those in
    `locked_until` are locked for as long at least. `progress` gets the bytes read so far.
    """
    locks = locked_until or {}
    count = _Count(progress)
    copied: list[PointId] = []
    failed: list[tuple[PointId, str]] = []
    stored, there = 0, plan.there
    for point in plan.missing:
        try:
            stored += _copy_point(source, target, point.id, locks.get(point.id), threads, count)
        except NoSuchPoint:
            continue  # expired since the plan
        except AlreadyExists:
            there += 1  # another process copied it meanwhile
        except UNREADABLE as error:
            failed.append((point.id, str(error)))
        else:
            copied.append(point.id)
            forgotten.take_back(target.private, point.id)
    carry_marks(source, target, now())
    forgotten.prune(target.private, source.repository_id, source.point_ids() | source.marks.lost())
    return CopyOutcome(tuple(copied), there, plan.expired, count.total, stored, tuple(failed))


def carry_marks(source: Repository, target: Repository, now: datetime) -> None:
    """Hold, lock and join in the target what is so in the source. A release is never carried over."""
    vms = {point.id: point.vm for point in target.points()}
    longer = False
    for original in source.points():
        if original.id in vms:
            with suppress(NoSuchPoint):  # expired meanwhile
                longer |= _carry(source, target, original, vms[original.id], now)
    if longer:
        target.renew_locks(now)


def _carry(source: Repository, target: Repository, original: RestorePoint, vm: VmId, now: datetime) -> bool:
    """Carry the marks of one restore point over; whether its lock became longer."""
    point = original.id
    if original.vm != vm:
        target.add_mark(point, MarkKind.JOINED, now, original.vm)
    wanted, state = source.mark_state(point), target.mark_state(point)
    for hold in wanted.holds:
        if hold not in state.holds:
            target.add_mark(point, MarkKind.HOLD, now, hold)
    until = wanted.locked_until
    if until is None or until <= (state.locked_until or now):
        return False
    target.mark_lock(point, until, "as in the repository that it was copied from", now)
    return True


class _SourceUnreadable(Damaged):
    """A block of the source that cannot be read, whatever the copy builds on."""


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


def _copy_point(
    source: Repository, target: Repository, point: PointId, lock: datetime | None, threads: int, count: _Count
) -> int:
    detail = source.detail(point)
    origin = detail.head.attributes.get(COPIED_FROM, source.repository_id)
    locks = [until for until in (detail.head.locked_until, lock) if until is not None]
    head = replace(
        detail.head,
        attributes={**detail.head.attributes, COPIED_FROM: origin},
        locked_until=max(locks, default=None),
    )
    shared = _newest_shared(source, target, detail.head.vm, detail)
    if shared is not None:
        try:
            return _write(source, target, head, detail, shared, threads, count)
        except _SourceUnreadable:
            raise
        except (*UNREADABLE, NoSuchPoint) as error:
            log.warning("restore point copied in full: what it would build on cannot be read: %s", error)
    stored = _write(source, target, head, detail, None, threads, count)
    if shared is not None:
        _require_readable(target, point)
    return stored


def _require_readable(target: Repository, point: PointId) -> None:
    """Damaged unless the whole map of a copied restore point can be read: what it shares may be damaged, too."""
    reached = Reached(StoredNodes(target.store), target.config.fan_out)
    try:
        for disk in target.manifest(point).disks:
            reached.add_root(disk.root)
        reached.sorted()
    except UNREADABLE as error:
        target.add_mark(point, MarkKind.DAMAGED, target.now(), str(error))
        raise Damaged(f"the copy shares what is damaged: {error}", where=point, hint="verify the target") from None


def _write(
    source: Repository,
    target: Repository,
    head: PointHead,
    detail: PointDetail,
    shared: PointDetail | None,
    threads: int,
    count: _Count,
) -> int:
    point, stored = detail.id, 0
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
        try:
            disk.read_into(offset, view)
        except UNREADABLE as error:
            raise _SourceUnreadable(error.what, where=error.where, hint=error.hint) from error
        ingest.write(offset, view)
        count.add(length)

    return move
