"""All marks of a repository, read once at open and kept in step with the store. Thread-safe.

Where other processes write marks, too, they are learnt by `refresh`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime

from policies.facts import PointId
from storage import marks
from storage.blobs import Blobs
from storage.errors import UNREADABLE, Damaged, Missing, Refused
from storage.failpoints import failpoint
from storage.format import ObjectKind
from storage.marks import Mark, MarkKind, MarkState
from storage.parallel import for_each
from storage.sealing import Sealing

TAKING = (MarkKind.EXPIRED, MarkKind.RELEASE)
"""Marks that take protection away: of a writer who may only add they count for nothing."""

READERS = 16
"""Marks read at once from a store that is far away."""

log = logging.getLogger(__name__)


class PointMarks:
    """The marks by restore point."""

    def __init__(
        self,
        blobs: Blobs,
        sealing: Sealing,
        now: Callable[[], datetime],
        *,
        shared: bool = False,
        trusted: Callable[[str], bool] = lambda key: True,
    ) -> None:
        self._blobs = blobs
        self._sealing = sealing
        self._now = now
        self._lock = threading.Lock()
        self._shared = shared
        self._trusted = trusted
        self._ignored: set[str] = set()
        self._marks: dict[PointId, list[Mark]] = {}
        self.refresh()

    def refresh(self, point: PointId | None = None) -> None:
        """Take in what other processes did to the marks of one restore point, or of all."""
        with self._lock:
            of_points = self._marks.values() if point is None else [self._marks.get(point, [])]
            known = {mark.key: mark for of_point in of_points for mark in of_point}
        listed = set(self._blobs.list(marks.PREFIX if point is None else f"{marks.PREFIX}{point}/"))
        found: list[Mark] = []

        def take(key: str) -> None:
            mark = self._read_guarded(key)
            if mark is not None and self._is_owners(mark) and not self._trusted(key):
                log.error("mark ignored: only the repository's owner may write it", extra={"mark": key})
                self._ignored.add(key)
            elif mark is not None:
                found.append(mark)

        for_each(sorted(listed - known.keys() - self._ignored), lambda: take, READERS if self._shared else 1)
        with self._lock:
            for key in known.keys() - listed:
                self._forget(known[key])
            for mark in found:
                of_point = self._marks.setdefault(mark.point, [])
                if all(other.key != mark.key for other in of_point):
                    of_point.append(mark)

    def read(self, key: str) -> Mark:
        """One mark from the store, checked; Damaged."""
        return marks.decode(key, self._sealing.open(ObjectKind.MARK, key, self._blobs.get(key)))

    def add(self, point: PointId, kind: MarkKind, at: datetime, text: str, until: datetime | None) -> Mark:
        """Write one mark."""
        with self._lock:
            known = self._marks.setdefault(point, [])
            mark = marks.new_mark(point, max((m.sequence for m in known), default=0) + 1, kind, at, text, until)
            self._blobs.put(mark.key, self._sealing.close(ObjectKind.MARK, mark.key, marks.encode(mark)))
            known.append(mark)
        return mark

    def put_back(self, mark: Mark) -> None:
        """Write a mark again that vanished from the store."""
        with self._lock:
            self._blobs.put(mark.key, self._sealing.close(ObjectKind.MARK, mark.key, marks.encode(mark)))
            self._marks.setdefault(mark.point, []).append(mark)

    def drop(self, gone: Iterable[Mark]) -> None:
        """Remove marks."""
        for mark in gone:
            try:
                self._blobs.delete(mark.key)
            except Refused:
                continue  # an append-only store: the newer mark counts as it is
            failpoint("mark.dropped")
            with self._lock:
                self._forget(mark)

    def of(self, point: PointId) -> list[Mark]:
        """The marks of a restore point."""
        with self._lock:
            return list(self._marks.get(point, ()))

    def state(self, point: PointId) -> MarkState:
        """What the marks of a restore point come to."""
        return marks.fold(self.of(point))

    def expired(self) -> set[PointId]:
        """Restore points that have a tombstone."""
        return self._with(MarkKind.EXPIRED)

    def lost(self) -> set[PointId]:
        """Restore points whose manifest was found gone, and that nobody has given up."""
        return self._with(MarkKind.LOST) - self.expired()

    def _is_owners(self, mark: Mark) -> bool:
        return mark.kind in TAKING or mark.sequence >= marks.OWNER_SEQUENCES

    def _forget(self, mark: Mark) -> None:
        left = [other for other in self._marks.get(mark.point, ()) if other.key != mark.key]
        if left:
            self._marks[mark.point] = left
        else:
            self._marks.pop(mark.point, None)

    def _with(self, kind: MarkKind) -> set[PointId]:
        with self._lock:
            return {point for point, of_point in self._marks.items() if any(m.kind is kind for m in of_point)}

    def keys(self) -> set[str]:
        """The key of every mark."""
        with self._lock:
            return {mark.key for of_point in self._marks.values() for mark in of_point}

    def _read_guarded(self, key: str) -> Mark | None:
        """A mark; what cannot be read is taken for what keeps more: a hold or a lock for a hold, lost for lost."""
        try:
            return self.read(key)
        except UNREADABLE as error:
            if self._shared and isinstance(error, Missing):
                return None  # removed by another process since it was listed
            log.warning("mark not readable: %s", error)
        try:
            point, sequence, kind = marks.parse_key(key)
        except Damaged:
            return None
        if kind is MarkKind.LOST:
            return Mark(key, point, sequence, kind, self._now())
        if kind in (MarkKind.HOLD, MarkKind.LOCK):
            return Mark(key, point, sequence, MarkKind.HOLD, self._now(), f"{kind} with an unreadable reason")
        return None
