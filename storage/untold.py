"""Restore points that were committed while nobody had the catalog open. Private, may be deleted.

Loading DuckDB and telling it of a full backup is a twentieth of that backup's time, so a command that needs no catalog
leaves it closed. A copy of the manifest waits here for whoever opens the catalog next: a restore point whose manifest
went missing in between is found to be lost all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from policies.facts import PointId
from storage import manifest as manifests
from storage.blobs import Blobs
from storage.errors import AlreadyExists, StorageError
from storage.failpoints import failpoint
from storage.format import ObjectKind
from storage.manifest import Manifest
from storage.sealing import Sealing

PREFIX = "untold/"

log = logging.getLogger(__name__)


def note(private: Blobs, sealing: Sealing, manifest: Manifest) -> None:
    """Keep a copy for the catalog. One that cannot be written is one witness less; the restore point is there."""
    key = PREFIX + manifest.id
    try:
        with suppress(AlreadyExists):
            private.put(key, sealing.close(ObjectKind.MANIFEST, key, manifests.encode(manifest)))
            failpoint("commit.catalog_noted")
    except StorageError as error:
        log.warning("catalog behind: %s", error)


def noted(private: Blobs) -> set[PointId]:
    """The restore points that the catalog has not been told of."""
    return {PointId(key.removeprefix(PREFIX)) for key in private.list(PREFIX)}


def read(private: Blobs, sealing: Sealing, point: PointId) -> Manifest:
    """The copy; Missing, Damaged."""
    key = PREFIX + point
    return manifests.decode(sealing.open(ObjectKind.MANIFEST, key, private.get(key)), key)


def forget(private: Blobs, point: PointId) -> None:
    """It expired, or the catalog knows it. A note that outlived its tombstone would call it lost."""
    private.delete(PREFIX + point)


def told(private: Blobs, points: Collection[PointId]) -> None:
    """The catalog knows these."""
    try:
        for point in points:
            forget(private, point)
    except StorageError as error:
        log.warning("told to the catalog once more at its next open: %s", error)
