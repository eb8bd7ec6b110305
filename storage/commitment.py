"""How a manifest is created where several processes write one store, so that no reclaim elsewhere cuts under it.

The writer first announces the manifest (`committing/RANDOM` holds all of it), then looks whether a pack that it counts
on is being freed, then creates the manifest. Reclaim first notes `freeing/PACK`, then lists manifests, announcements
and manifests again, then deletes what none of them reaches. So of two that meet, at least one sees the other.
docs/decisions/0004-reclaim-in-two-phases.md has the argument. A local repository has one owner and needs none of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from policies.facts import PointId
from storage import manifest as manifests
from storage import randomness
from storage.blobs import Blobs
from storage.condemned import FREEING, noted, stored_at
from storage.errors import UNREADABLE, AlreadyExists, Missing, Overtaken, StorageError
from storage.failpoints import failpoint
from storage.format import ObjectKind, PackName
from storage.manifest import Manifest
from storage.sealing import Sealing

COMMITTING = "committing/"

SESSION_LIMIT = timedelta(hours=20)
"""A restore point is committed this long after its writer learnt of the packs, or not at all.

Well below the 24 hours that a pack stays condemned and the 48 (`FREED_KEPT`) in which it is told that it was freed.
"""

ANNOUNCED_KEPT = timedelta(days=7)
"""An announcement whose writer died keeps what it reaches for so long."""

AGAIN = "run the backup again: the packs that it wrote are kept and found again where they are not being freed"

log = logging.getLogger(__name__)


def boot_seconds() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a process knew of the store's packs at one moment (by `boot_seconds`).

    `freed` are packs that had a note of being freed and were gone already.
    """

    at: float = 0.0
    freed: frozenset[PackName] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, slots=True)
class Reliance:
    """What a restore point counts on: packs that it refers to, and restore points whose trees it shares."""

    learnt: Learnt
    packs: Collection[int]
    bases: Sequence[PointId]


@contextmanager
def announced(blobs: Blobs, sealing: Sealing, point: PointId, payload: bytes, reliance: Reliance) -> Iterator[None]:
    """Create the manifest inside. Overtaken when what it counts on is being freed; then it was not created."""
    key = COMMITTING + randomness.token_hex(16)
    blobs.put(key, sealing.close(ObjectKind.COMMITTING, key, payload))
    failpoint("commit.announced")
    try:
        check(blobs, reliance)
        yield
    except (Overtaken, AlreadyExists):
        with suppress(StorageError):
            blobs.delete(key)
        raise
    try:
        blobs.size(key)
    except Missing:
        blobs.delete(manifests.manifest_key(point))
        raise Overtaken("this commit took days and was given up meanwhile", where=key, hint=AGAIN) from None
    try:
        blobs.delete(key)
    except StorageError as error:
        log.warning("announcement left behind; reclaim removes it: %s", error)
    failpoint("commit.announcement_removed")


def check(blobs: Blobs, reliance: Reliance) -> None:
    """Overtaken when a pack that the restore point counts on is being freed, or that cannot be told any more."""
    freeing = noted(blobs, FREEING) - reliance.learnt.freed
    if touched := sorted(name.key for name in freeing if name.number in reliance.packs):
        raise Overtaken("packs that it refers to are being freed", where=touched[0], hint=AGAIN)
    if freeing:
        for point in reliance.bases:
            try:
                blobs.size(manifests.manifest_key(point))
            except Missing:
                raise Overtaken(
                    f"restore point {point}, which it builds on, expired while packs are being freed", hint=AGAIN
                ) from None
    age = timedelta(seconds=boot_seconds() - reliance.learnt.at)
    if age > SESSION_LIMIT:
        raise Overtaken(
            f"it is {age} since the packs were listed, more than the {SESSION_LIMIT} in which to commit", hint=AGAIN
        )


def announcements(blobs: Blobs, sealing: Sealing) -> list[Manifest]:
    """The manifests that some process is about to create. Damaged when one cannot be read."""
    found = []
    for key in set(blobs.list(COMMITTING)):
        with suppress(Missing):  # created or given up meanwhile
            found.append(_read(blobs, sealing, key))
    return found


def unreadable(blobs: Blobs, sealing: Sealing) -> dict[str, StorageError]:
    """The announcements that cannot be read, with why. Reclaim waits for them: they may keep anything."""
    found: dict[str, StorageError] = {}
    for key in sorted(blobs.list(COMMITTING)):
        try:
            _read(blobs, sealing, key)
        except Missing:
            continue
        except UNREADABLE as error:
            found[key] = error
    return found


def drop_abandoned(blobs: Blobs, clock: datetime) -> set[str]:
    """Remove announcements of writers that died long ago, and return their keys."""
    gone = set()
    for key in list(blobs.list(COMMITTING)):
        since = stored_at(blobs, key)
        if since is not None and clock - since >= ANNOUNCED_KEPT:
            blobs.delete(key)
            gone.add(key)
    return gone


def _read(blobs: Blobs, sealing: Sealing, key: str) -> Manifest:
    return manifests.decode(sealing.open(ObjectKind.COMMITTING, key, blobs.get(key)), key)
