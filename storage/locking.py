"""Locks of restore points, carried to the objects that they need: nobody removes a pack beneath a locked point.

A restore point that is locked by its manifest or by a mark is as safe as the packs that it reaches. Before such a
point is committed every pack of it gets a lock that lasts as long; a timer does the same for points whose lock was made
longer since, and for packs that came later.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from storage.blobs import Blobs
from storage.chunkstore import ChunkStore
from storage.errors import Damaged, Missing, StorageError
from storage.manifest import Manifest, manifest_key
from storage.moments import stamp
from storage.nodes import StoredNodes
from storage.parallel import for_each
from storage.reachability import Reached

KNOWN_KEY = "locks"
"""In the private folder: the end of each lock that this process has seen. A lock can only become longer."""

CALLS_AT_ONCE = 16

log = logging.getLogger(__name__)


class Locks(Protocol):
    """What locks objects."""

    def until(self, key: str) -> datetime | None:
        """The end of a blob's lock; None when it has none."""
        ...

    def extend(self, key: str, until: datetime) -> None:
        """Lock a blob at least up to a time."""
        ...


class Locking:
    """The locks of one repository. Thread-safe. `name_of` gives the name in the store of a readable key."""

    def __init__(
        self, locks: Locks, store: ChunkStore, private: Blobs, fan_out: int, name_of: Callable[[str], str]
    ) -> None:
        self._locks = locks
        self._store = store
        self._private = private
        self._fan_out = fan_out
        self._name_of = name_of
        self._lock = threading.Lock()
        self._known = _read_known(private)

    def protect(self, manifest: Manifest, until: datetime) -> int:
        """Lock every pack that a restore point reaches at least up to a time; returns how many got longer locks.

        Its packs have to be sealed. Damaged when its map cannot be read.
        """
        self._store.index_sealed()
        reached = Reached(StoredNodes(self._store), self._fan_out)
        return self.extend(dict.fromkeys(self._packs(reached, manifest), until))

    def extend(self, wanted: Mapping[str, datetime]) -> int:
        """Lock these blobs up to their times where they are not locked for so long; returns how many were not."""
        with self._lock:
            known = self._known
            short = [(key, until) for key, until in wanted.items() if key not in known or known[key] < until]
        done: dict[str, datetime] = {}

        def lock(item: tuple[str, datetime]) -> None:
            key, until = item
            self._locks.extend(self._name_of(key), until)
            done[key] = until

        try:
            for_each(short, lambda: lock, min(CALLS_AT_ONCE, max(1, len(short))))
        finally:
            if done:
                self._remember(done)
        return len(done)

    def spans(self, locked: Sequence[tuple[Manifest, datetime]]) -> dict[str, datetime]:
        """For how long each pack has to be locked that some of these restore points reach, and their manifests.

        A restore point whose map cannot be read leaves its packs out.
        """
        wanted: dict[str, datetime] = {}
        reached = Reached(StoredNodes(self._store), self._fan_out)
        self._store.index_sealed()
        for manifest, until in sorted(locked, key=lambda one: one[1], reverse=True):
            wanted[manifest_key(manifest.id)] = until
            try:
                for key in self._packs(reached, manifest):
                    wanted.setdefault(key, until)
            except Damaged as error:
                log.error("what a locked restore point needs cannot be told", extra={"why": str(error)})
                reached = Reached(StoredNodes(self._store), self._fan_out)  # that one passed over what it did not read
        return wanted

    def until(self, key: str) -> datetime | None:
        """The end of a blob's lock as the store says; None when it has none or is gone."""
        try:
            return self._locks.until(self._name_of(key))
        except Missing:
            return None

    def _packs(self, reached: Reached, manifest: Manifest) -> list[str]:
        """The keys of the packs that hold what has been reached once a restore point is added."""
        import numpy as np

        reached.add_chunks(manifest.configuration)
        for disk in manifest.disks:
            reached.add_root(disk.root)
        _, numbers, _ = self._store.candidates(reached.sorted())
        live = self._store.live
        return [live[number].key for number in np.unique(numbers).tolist() if number in live]

    def _remember(self, done: Mapping[str, datetime]) -> None:
        with self._lock:
            self._known |= done
            document = {key: stamp(until) for key, until in sorted(self._known.items())}
        try:
            self._private.replace(KNOWN_KEY, json.dumps(document, separators=(",", ":")).encode())
        except StorageError as error:
            log.debug("known locks not written down; they are asked for again: %s", error)


def _read_known(private: Blobs) -> dict[str, datetime]:
    try:
        document: dict[str, Any] = json.loads(private.get(KNOWN_KEY))
        return {str(key): datetime.fromisoformat(until) for key, until in document.items()}
    except (Damaged, ValueError, TypeError, AttributeError):
        return {}
