"""Restore points of a second copy that retention wants gone, so that no copy brings them back. Private, may be deleted.

One small blob for each: what a copy finds missing and retention had marked or expired here stays away for as long as
the repository that it came from has it, unless somebody asks for it by its id.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from policies.facts import PointId
from storage.blobs import Blobs
from storage.errors import AlreadyExists, Damaged, StorageError

PREFIX = "forgotten/"

COPIED_FROM = "copied_from"
"""The attribute of a copied restore point that names the repository it came from."""

log = logging.getLogger(__name__)


def remember(private: Blobs, point: PointId, origin: str) -> None:
    """Retention wants this copy of a restore point gone. What cannot be written down is copied once more."""
    try:
        with suppress(AlreadyExists):
            private.put(PREFIX + point, origin.encode())
    except StorageError as error:
        log.warning("not remembered that retention expires this copy", extra={"point": point, "why": str(error)})


def take_back(private: Blobs, point: PointId) -> None:
    """Retention keeps it, or it was asked for."""
    try:
        private.delete(PREFIX + point)
    except StorageError as error:
        log.warning("still remembered as expired by retention", extra={"point": point, "why": str(error)})


def forgotten(private: Blobs) -> set[PointId]:
    """All that is remembered."""
    return {PointId(key.removeprefix(PREFIX)) for key in private.list(PREFIX)}


def prune(private: Blobs, origin: str, has: Collection[PointId]) -> None:
    """Forget what a repository lacks now that it came from."""
    for point in forgotten(private) - set(has):
        with suppress(Damaged):
            if private.get(PREFIX + point) == origin.encode():
                take_back(private, point)
