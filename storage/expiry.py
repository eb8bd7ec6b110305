"""Restore points that go: expired ones, which a tombstone explains, and lost ones, which nothing does.

The catalog is never the truth, but it is a witness: a restore point that it knows and whose manifest nobody expired is
recorded as lost, by a mark, so that the loss outlives the catalog. Only a person gives it up.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Protocol

from policies.facts import PointId, RestorePoint
from storage import manifest as manifests
from storage import untold
from storage.blobs import Blobs
from storage.catalog import Catalog
from storage.catalog_loading import Changes
from storage.catalog_rows import lost_text, mark_of, unknown_point
from storage.errors import Damaged, Missing, StorageError
from storage.failpoints import failpoint
from storage.manifest import Manifest
from storage.marks import MarkKind
from storage.pointmarks import PointMarks

EXPIRIES_KEY = "expiries"
"""Holds the key of the latest finished expiry's tombstone. A catalog that says otherwise is no witness."""

log = logging.getLogger(__name__)


class Home(Protocol):
    """The repository, as far as going restore points need it."""

    blobs: Blobs
    private: Blobs
    shared: bool
    marks: PointMarks
    catalog: Catalog

    def now(self) -> datetime: ...
    def point_ids(self) -> set[PointId]: ...
    def manifest(self, point: PointId) -> Manifest: ...
    def tell_catalog(self, changes: Changes) -> bool: ...


def latest_expiry(blobs: Blobs) -> str:
    """The key of the latest finished expiry's tombstone; empty when there was none or nobody knows."""
    try:
        return blobs.get(EXPIRIES_KEY).decode("ascii", "replace")
    except Damaged:
        return ""


def finish_expiry(home: Home, point: PointId) -> None:
    """Remove all of a restore point that has a tombstone; the tombstone last, when the catalog needs it no more.

    On a shared store the tombstone stays: the catalogs of other writers need it.
    """
    home.blobs.delete(manifests.manifest_key(point))
    failpoint("expire.manifest_removed")
    gone = sorted(home.marks.of(point), key=lambda mark: (mark.kind is MarkKind.EXPIRED, mark.sequence))
    tombstone = gone[-1]
    if home.shared:
        gone = [mark for mark in gone if mark.kind is not MarkKind.EXPIRED]
    stays = [tombstone] if home.shared else []
    keys = [mark.key for mark in gone]
    changes = Changes(marks=stays, gone_points=[point], gone_marks=keys, expiry=tombstone.key)
    if not home.tell_catalog(changes):
        return  # the tombstone stays and explains the missing manifest when the catalog opens again
    failpoint("expire.catalog")
    try:
        home.private.replace(EXPIRIES_KEY, tombstone.key.encode())
        untold.forget(home.private, point)
        home.marks.drop(gone)
    except StorageError as error:
        log.warning("expiry of %s is finished at the next open: %s", point, error)


def put_holds_back(home: Home) -> None:
    """Holds and locks that vanished from the store, written again as the catalog remembers them.

    One that was released since is no danger: the release is a later mark.
    """
    rows = home.catalog.query("SELECT * FROM marks WHERE kind IN ('hold', 'release', 'lock')")
    there, keys = home.point_ids(), home.marks.keys()
    for mark in map(mark_of, rows):
        if mark.point in there and mark.key not in keys:
            log.error("%s of restore point %s was gone and is put back: %s", mark.kind, mark.point, mark.text)
            home.marks.put_back(mark)


def _is_there(blobs: Blobs, point: PointId) -> bool:
    try:
        blobs.size(manifests.manifest_key(point))
    except Missing:
        return False
    return True


def find_lost(home: Home) -> list[RestorePoint]:
    """Restore points whose manifest is gone without a tombstone, as far as anybody knows of them.

    New ones are recorded, those whose manifest came back taken back. The caller keeps expiries out meanwhile.
    """
    told = home.catalog.point_ids() if home.catalog.witness else set()  # before the manifests: no commit falls between
    there, gone = home.point_ids(), home.marks.expired()
    for point in sorted(there & home.marks.lost()):
        outdated = [mark for mark in home.marks.of(point) if mark.kind is MarkKind.LOST]
        home.marks.drop(outdated)
        home.tell_catalog(Changes(manifests=[home.manifest(point)], gone_marks=[mark.key for mark in outdated]))
        log.warning("the manifest of restore point %s is back", point)
    new = told - there - gone - home.marks.lost()
    if new and home.shared:  # expired elsewhere since we looked: then there is a tombstone now
        home.marks.refresh()
        new -= home.marks.expired()
    if home.shared and (rows := told & home.marks.lost() - there):  # found lost by another writer
        home.tell_catalog(Changes(gone_points=sorted(rows)))
    new = {point for point in new if not _is_there(home.blobs, point)}  # one bad listing does not lose a point
    if not new and not home.marks.lost():
        return []
    known = {point.id: point for point in home.catalog.points()} if home.catalog.witness else {}
    for point in sorted(new):
        log.error("restore point %s of %s is lost: its manifest is gone", point, known[point].vm_name)
        try:
            mark = home.marks.add(point, MarkKind.LOST, home.now(), lost_text(known[point]), None)
        except StorageError as error:
            log.error("this loss could not be recorded: %s", error)
        else:
            home.tell_catalog(Changes(marks=[mark], gone_points=[point]))
    return [known.get(point) or unknown_point(point, home.now()) for point in sorted(home.marks.lost() | new)]
