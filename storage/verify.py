"""Reading everything back and comparing: packs byte for byte, manifests, marks, and every map down to its chunks.

It trusts neither catalog nor lookup index: what it compares with, it has read from the packs themselves. It goes on
where an interrupted verification ended, reads only what was not read for a while if that is asked for, and stops at a
deadline. What it finds is recorded in marks; damaged packs are distrusted, so that the next backup stores anew what
no pack has intact and the next reclaim replaces them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from policies.facts import PointId
from storage.catalog_rows import aware
from storage.condemned import FREEING, noted
from storage.damage import Damage
from storage.demand import Sooner, last_read, needed_packs, read_wholly, said_of
from storage.errors import Damaged, NoSpace, NoSuchPoint, Overtaken, StorageError, StoreFailed
from storage.failpoints import failpoint
from storage.format import PackKind, PackName
from storage.manifest import manifest_key
from storage.mapcheck import Held, Walker
from storage.marks import Mark, MarkKind
from storage.moments import stamp
from storage.parallel import Aside
from storage.pointcheck import check_points
from storage.readback import Findings, Packs, TimeIsUp, read_all
from storage.readings import KEY, Readings
from storage.repository import Repository
from storage.survey import Survey, list_packs, survey

__all__ = [
    "REREAD_AFTER",
    "Bounds",
    "Damage",
    "Scope",
    "Sooner",
    "VerifyReport",
    "points_read",
    "read_back_since",
    "verified_since",
    "verify",
]

log = logging.getLogger(__name__)

REREAD_AFTER = timedelta(days=30)
"""A reading counts for so long in incremental scope; an interrupted full verification can go on for so long."""


_NEVER = datetime.min.replace(tzinfo=UTC)


class Scope(StrEnum):
    """Which packs are read: all, or those that were not read back for a while. All else is always looked at."""

    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is read, and until when. With `anew` an interrupted full verification is not continued.

    What the groups of `sooner` need is read as well, and first, in the order of the groups.
    """

    scope: Scope = Scope.FULL
    reread_after: timedelta = REREAD_AFTER
    deadline: datetime | None = None
    anew: bool = False
    sooner: tuple[Sooner, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read, and what was wrong.

    `counted_bytes` were read by an earlier verification that counts for this one; `left_bytes` in `left_packs` are
    still to be read, because the deadline came. Every stored byte was read back, or written, at `read_back_since` or
    later; None where only some restore points were looked at.
    """

    checked_chunks: int
    checked_bytes: int
    checked_points: int
    damaged: tuple[Damage, ...]
    counted_bytes: int = 0
    left_packs: int = 0
    left_bytes: int = 0
    left_points: int = 0
    read_back_since: datetime | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not self.damaged

    @property
    def complete(self) -> bool:
        """Whether all was read that was to be read."""
        return not self.left_packs and not self.left_points

    @property
    def vms(self) -> tuple[str, ...]:
        """The names of the VMs that are hit."""
        return tuple(sorted({name for damage in self.damaged for name in damage.vms}))


def verify(
    repo: Repository,
    *,
    now: datetime,
    points: Sequence[PointId] | None = None,
    bounds: Bounds | None = None,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> VerifyReport:
    """Read back everything in scope, or all that some restore points need, and record the result in marks.

    `planned` gets the bytes to read, then `progress` those read so far, from any thread; what it raises ends the
    verification. StoreFailed when the store itself fails: that says nothing of the data.
    """
    bounds = bounds or Bounds()
    watch = _Watch(repo, bounds, progress)
    with repo.maintenance:
        if points is not None:
            return _verify_some(repo, points, watch, now)
        readings = _readings(repo)
        work = _Whole(repo, readings, bounds, now)
        try:
            if planned is not None:
                planned(work.plan_bytes)
            return work.run(watch, threads or len(os.sched_getaffinity(0)))
        finally:
            readings.close(work.names)


def read_back_since(repo: Repository) -> datetime | None:
    """Every stored byte was read back, or written, at this time or later; None where nobody remembers."""
    return _readings(repo).since


def points_read(repo: Repository) -> dict[PointId, datetime]:
    """When each restore point was last read back as a whole, without those that never were."""
    return last_read(repo, read_back_since(repo))


def verified_since(repo: Repository) -> datetime | None:
    """When a verification last found no damage and nothing left to read; None for never.

    Where nobody remembers, the oldest of the restore points' newest verifications.
    """
    sound = _readings(repo).sound_at
    if sound is not None:
        return sound
    [(oldest,)] = repo.opened_catalog().query("SELECT min(marked_at) FROM marks WHERE kind = 'verified'")
    return aware(oldest) if oldest is not None else None


def _readings(repo: Repository) -> Readings:
    return Readings(repo.work / KEY, repo.sealing.node_id)


class _Watch:
    """Counts bytes and looks at the clock, for several threads."""

    def __init__(self, repo: Repository, bounds: Bounds, progress: Callable[[int], None] | None) -> None:
        self._now = repo.now
        self._deadline = bounds.deadline
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0

    def time_is_up(self) -> bool:
        return self._deadline is not None and self._now() >= self._deadline

    def step(self, count: int) -> None:
        with self._lock:
            self._done += count
            done = self._done
        if self._progress is not None:
            self._progress(done)

    def step_in_time(self, count: int) -> None:
        self.step(count)
        if self.time_is_up():
            raise TimeIsUp


class _Whole:
    """One verification of the repository."""

    def __init__(self, repo: Repository, readings: Readings, bounds: Bounds, now: datetime) -> None:
        self._repo = repo
        self._readings = readings
        self._scope = bounds.scope
        self._now = now
        repo.refresh()
        self._points = sorted(repo.point_ids())  # before the packs: every pack of these is listed
        self._damaged, self.names = list_packs(repo)
        self._packs = Packs(repo.blobs, repo.sealing)
        after = self._counted_after(bounds)
        self._sizes: dict[PackName, int] = {}
        self._written_at: dict[PackName, datetime] = {}
        self._read_at: dict[PackName, datetime] = {}
        for name in self.names:
            self._sizes[name] = 0
            with suppress(Damaged):  # told when it is read
                state = self._packs.state(name)
                self._sizes[name] = state.size
                self._written_at[name] = datetime.fromtimestamp(state.stamp_us / 1e6, UTC)
                at = readings.read_at(name, state)
                if at is not None and at <= now:
                    self._read_at[name] = at
        self._sooner = bounds.sooner
        self._needed = needed_packs(repo, self.names, self._sooner)
        self._ranks = self._ranked()
        old = (n for n in self.names if self._read_at.get(n, after) <= after or n in self._ranks)
        self._to_read = sorted(old, key=self._urgency)
        self.plan_bytes = sum(self._sizes[name] for name in self._to_read)

    def _counted_after(self, bounds: Bounds) -> datetime:
        """Readings after this moment count."""
        if bounds.scope is Scope.INCREMENTAL:
            return self._now - bounds.reread_after
        begun = self._readings.full_begun
        if begun is not None and not bounds.anew and self._now - bounds.reread_after < begun <= self._now:
            log.info("going on with the verification that began at %s", stamp(begun))
            return begun - timedelta(microseconds=1)
        self._readings.begin_full(self._now)
        return self._now - timedelta(microseconds=1)

    def _ranked(self) -> dict[PackName, int]:
        """What is to be read sooner, with the place of the first group that needs it."""
        ranks: dict[PackName, int] = {}
        for rank, (group, packs) in enumerate(zip(self._sooner, self._needed, strict=True)):
            for name in packs - ranks.keys():
                if self._read_at.get(name, group.after) <= group.after:
                    ranks[name] = rank
        return ranks

    def _urgency(self, name: PackName) -> tuple[int, bool, datetime, int]:
        """What shall be read sooner, then maps, then what was never read, then what was not read for longest."""
        rank = self._ranks.get(name, len(self._sooner))
        return rank, name.kind is not PackKind.TREE, self._read_at.get(name, _NEVER), name.number

    def run(self, watch: _Watch, threads: int) -> VerifyReport:
        findings = Findings()
        seen = Aside(lambda: survey(self._repo, self._packs, self.names, set(self._to_read), self._points))
        try:
            with suppress(TimeIsUp):
                if not watch.time_is_up():
                    read_all(
                        self._packs, self._to_read, findings, self._readings, watch.step_in_time,
                        now=self._now, threads=threads,
                    )  # fmt: skip
        finally:
            seen.join()
        return self._judge(findings, seen.result())

    def _judge(self, findings: Findings, seen: Survey) -> VerifyReport:
        broken = {**seen.broken, **findings.broken}
        self._refuse_freed({*broken, *(one.pack for one in findings.bad)})
        damaged = self._damaged + seen.damaged + [Damage(n.key, "", (), what) for n, what in sorted(broken.items())]
        for point, what in seen.unreadable.items():
            damaged.append(Damage(manifest_key(point), "", (point,), what, _named([point], seen.names)))
        sound = [of for name, of in seen.heads.items() if name not in broken]
        held = Held(sound, (one.chunk for one in findings.bad), few=seen.few)
        lacking, why = self._lacking(seen, held)
        bad = {one.chunk: (one.pack.key, one.what) for one in findings.bad}
        affected: dict[bytes, list[PointId]] = {}
        for point, chunks in lacking.items():
            for chunk in chunks:
                affected.setdefault(chunk, []).append(point)
        for chunk, of in affected.items():
            where, what = bad.get(chunk) or ("packs/", why.get(chunk, "no pack holds it"))
            damaged.append(Damage(where, chunk.hex(), tuple(of), what, _named(of, seen.names)))
        damaged += [
            Damage(where, chunk.hex(), (), what) for chunk, (where, what) in bad.items() if chunk not in affected
        ]
        left = [name for name in self._to_read if name not in findings.read]
        self._distrust(affected.keys() | held.lacks(list(bad)), {*broken, *(one.pack for one in findings.bad)}, left)
        since = self._since(findings.read)
        wholly = read_wholly(self._sooner, self._needed, self._read_at, left, self._now)
        for point in [*seen.unreadable, *(manifest.id for manifest in seen.manifests)]:
            if point in seen.unreadable:
                self._record(point, f"its manifest: {seen.unreadable[point]}", since)
            elif lacking.get(point):
                self._record(point, f"chunks lost: {len(lacking[point])}", since)
            elif not left or point in wholly:
                self._record(point, "", max(since, wholly.get(point, since)), renew=point in wholly)
        self._remember(since, sound=not damaged, left=bool(left))
        return VerifyReport(
            checked_chunks=findings.chunks,
            checked_bytes=findings.read_bytes,
            checked_points=len(seen.manifests) + len(seen.unreadable),
            damaged=tuple(damaged),
            counted_bytes=sum(self._sizes.values()) - self.plan_bytes,
            left_packs=len(left),
            left_bytes=sum(self._sizes[name] for name in left),
            read_back_since=since,
        )

    def _refuse_freed(self, broken: Iterable[PackName]) -> None:
        """Overtaken when a reclaim elsewhere freed packs meanwhile: what they held lies in packs that were not read."""
        freeing = noted(self._repo.blobs, FREEING) if self._repo.shared else set()
        if freed := sorted(name.key for name in broken if name in freeing):
            raise Overtaken(
                "another process freed packs while they were verified",
                where=freed[0],
                hint="run it again; what was read back counts",
            )

    def _lacking(self, seen: Survey, held: Held) -> tuple[Mapping[PointId, set[bytes]], Mapping[bytes, str]]:
        """What each restore point lacks. Looked for one by one only when something is missing at all."""
        if seen.reached is not None and not held.lacks_any(seen.reached):
            return {}, {}
        walker = Walker(self._repo, held)
        lacking = {manifest.id: walker.lacked_by(manifest) for manifest in seen.manifests}
        return {point: chunks for point, chunks in lacking.items() if chunks}, walker.why

    def _distrust(self, chunks: Iterable[bytes], packs: set[PackName], left: Sequence[PackName]) -> None:
        """What was found before and could not be read again stays distrusted."""
        before = self._repo.store.distrusted
        kept = before.packs & set(left)
        self._repo.store.distrust({*chunks, *(before.chunks if left else ())}, packs | kept)

    def _since(self, read: set[PackName]) -> datetime:
        """Every byte was read back or written at this time or later."""
        unread = [self._read_at.get(name) or self._written_at.get(name) for name in self.names if name not in read]
        return min((at for at in unread if at is not None), default=self._now)

    def _remember(self, since: datetime, *, sound: bool, left: bool) -> None:
        self._readings.covers(since)
        if self._scope is Scope.FULL and not left:
            self._readings.end_full(self._now)
        if sound and not left:
            self._readings.sound(self._now)

    def _record(self, point: PointId, damage: str, since: datetime, *, renew: bool = False) -> None:
        earlier = [m for m in self._repo.marks.of(point) if m.kind in (MarkKind.VERIFIED, MarkKind.DAMAGED)]
        lately = self._scope is Scope.INCREMENTAL
        if lately and not (renew or damage) and self._still_true(earlier):
            return
        _record(self._repo, point, damage, said_of(since) if since < self._now else "", self._now)

    def _still_true(self, earlier: Sequence[Mark]) -> bool:
        """Whether an incremental verification would say what the newest mark says: not each of them writes marks."""
        newest = max(earlier, key=lambda mark: (mark.sequence, mark.key), default=None)
        return newest is not None and newest.kind is MarkKind.VERIFIED and self._now - newest.at < REREAD_AFTER / 4


def _named(points: Iterable[PointId], names: Mapping[PointId, str]) -> tuple[str, ...]:
    return tuple(sorted({names[point] for point in points if point in names}))


def _verify_some(repo: Repository, points: Sequence[PointId], watch: _Watch, now: datetime) -> VerifyReport:
    found = check_points(repo, points, watch.step, watch.time_is_up)
    if found.lost:
        before = repo.store.distrusted
        repo.store.distrust(before.chunks | found.lost, before.packs)
    for point, damages in found.judged.items():
        _record(repo, point, "; ".join(damages[:3]), "", now)
    return VerifyReport(
        found.chunks,
        found.read_bytes,
        len(found.judged),
        tuple(found.damaged),
        left_points=found.left,
    )


def _record(repo: Repository, point: PointId, damage: str, said: str, now: datetime) -> None:
    earlier = [m for m in repo.marks.of(point) if m.kind in (MarkKind.VERIFIED, MarkKind.DAMAGED)]
    try:
        if damage:
            repo.add_mark(point, MarkKind.DAMAGED, now, damage)
        else:
            repo.add_mark(point, MarkKind.VERIFIED, now, said)
        failpoint("verify.recorded")
        repo.drop_marks(earlier)  # a newer verification replaces an older one
    except NoSuchPoint:
        log.info("restore point expired while it was verified: %s", point)
    except (NoSpace, StoreFailed) as error:
        log.error("result of the verification not recorded: %s", error)
    except StorageError as error:
        log.error("result of the verification of %s not recorded: %s", point, error)
