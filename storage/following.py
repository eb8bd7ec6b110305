"""Other writers of a shared store: what they did is learnt by listing, and what they left half done is finished.

Expiring and holding meet like this. Whoever expires writes a tombstone, then lists the marks again and takes the
tombstone back if a hold or lock is among them; whoever holds writes the mark, then lists again and fails if there is a
tombstone. Of two that meet, at least one sees the other, and where both do, the restore point stays.
A tombstone is acted upon by others only after EXPIRY_SETTLE, and stays for TOMBSTONE_KEPT, so that each writer's
private catalog can tell an expired restore point from a lost one.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from policies.facts import PointId
from storage import manifest as manifests
from storage.blobs import Blobs
from storage.catalog import Catalog
from storage.catalog_loading import Changes
from storage.chunkstore import ChunkStore
from storage.errors import Missing, StorageError
from storage.expiry import find_lost, finish_expiry
from storage.filecalls import translated
from storage.manifest import Manifest
from storage.marks import Mark, MarkKind
from storage.pointmarks import PointMarks

FOLLOW_SECONDS = 900.0
"""What is told of restore points of other writers may be this old."""

EXPIRY_SETTLE = timedelta(minutes=15)
"""Longer than it takes to list the marks of a restore point and take a tombstone back, by the store's clock."""

TOMBSTONE_KEPT = timedelta(days=30)
"""A catalog that followed nobody for so long is made again instead of being believed."""

FOLLOWED = "followed"

log = logging.getLogger(__name__)


class Home(Protocol):
    """The repository, as far as following needs it."""

    work: Path
    blobs: Blobs
    private: Blobs
    shared: bool
    marks: PointMarks
    store: ChunkStore
    catalog: Catalog

    def now(self) -> datetime: ...
    def tell_catalog(self, changes: Changes) -> bool: ...
    def point_ids(self) -> set[PointId]: ...
    def manifest(self, point: PointId) -> Manifest: ...


def forget_outdated_catalog(work: Path, now: datetime) -> None:
    """Remove a catalog that tombstones may have come and gone behind; it is made again."""
    with suppress(OSError):
        followed = datetime.fromtimestamp((work / FOLLOWED).stat().st_mtime, UTC)
        if abs(now - followed) < TOMBSTONE_KEPT / 2:
            return
    with translated(str(work)):
        for name in ("catalog.duckdb", "catalog.duckdb.wal"):
            (work / name).unlink(missing_ok=True)


def followed_now(work: Path, now: datetime) -> None:
    """Remember that the catalog knows what the store knows."""
    with suppress(OSError):  # then the catalog is made again sooner than it had to be
        path = work / FOLLOWED
        path.touch()
        os.utime(path, (now.timestamp(), now.timestamp()))


def follow(home: Home, *, catalog_open: bool) -> None:
    """Learn what other writers did. The caller keeps our own expiries out meanwhile."""
    home.store.attach()
    home.marks.refresh()
    if catalog_open:
        home.catalog.catch_up()
    finish_for_others(home)
    if catalog_open:
        find_lost(home)
    followed_now(home.work, home.now())


def finish_for_others(home: Home) -> None:
    """Finish expiries whose writer died, take back those that a hold overtook, remove tombstones of long ago."""
    expired = home.marks.expired()
    if not expired:
        return
    listed = {PointId(key.removeprefix(manifests.PREFIX)) for key in home.blobs.list(manifests.PREFIX)}
    clock: datetime | None = None
    for point in sorted(expired):
        tombs = [mark for mark in home.marks.of(point) if mark.kind is MarkKind.EXPIRED]
        half_done = point in listed or len(home.marks.of(point)) > len(tombs)
        if not half_done and all(home.now() - tomb.at < TOMBSTONE_KEPT for tomb in tombs):
            continue
        clock = clock or home.blobs.clock()
        age = _age(home.blobs, tombs, clock)
        with suppress(StorageError):
            if age is not None and half_done and age >= EXPIRY_SETTLE:
                if point in listed:
                    settle(home, point)
                elif _is_expired(home, point):  # what marks it still has came too late
                    finish_expiry(home, point)
            elif age is not None and age >= TOMBSTONE_KEPT:
                home.marks.drop(tombs)
                home.tell_catalog(Changes(gone_marks=[tomb.key for tomb in tombs]))


def settle(home: Home, point: PointId) -> bool:
    """Carry an expiry out, or take its tombstone back when the restore point is held or locked; which it was.

    False also when another writer has taken the tombstone back since it was seen: then the restore point stays.
    """
    if not _is_expired(home, point):
        return False
    state = home.marks.state(point)
    if state.holds or (state.locked_until is not None and state.locked_until > home.now()):
        tombs = [mark for mark in home.marks.of(point) if mark.kind is MarkKind.EXPIRED]
        home.marks.drop(tombs)
        home.tell_catalog(Changes(gone_marks=[tomb.key for tomb in tombs]))
        log.warning("expiry taken back, as another writer holds the restore point: %s", point)
        return False
    finish_expiry(home, point)
    return True


def _is_expired(home: Home, point: PointId) -> bool:
    """Whether a restore point has a tombstone now."""
    home.marks.refresh(point)
    return home.marks.state(point).expired


def _age(blobs: Blobs, tombs: list[Mark], clock: datetime) -> timedelta | None:
    """The age of the youngest, by the store's clock; None when one is gone already."""
    try:
        return min(clock - datetime.fromtimestamp(blobs.age_stamp(tomb.key), UTC) for tomb in tombs)
    except (Missing, ValueError):
        return None
