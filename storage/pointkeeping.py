"""What happens to restore points after their commit: marks, and expiry. The part of a repository that keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from policies.facts import PointId
from storage import following, forgotten
from storage import manifest as manifests
from storage.blobs import Blobs
from storage.catalog import Catalog
from storage.catalog_loading import Changes
from storage.chunkstore import ChunkStore
from storage.errors import UNREADABLE, Damaged, Missing, NoSuchPoint, Refused
from storage.expiry import finish_expiry
from storage.failpoints import failpoint
from storage.format import ObjectKind
from storage.manifest import Manifest
from storage.marks import LASTING, Mark, MarkKind, MarkState
from storage.moments import legible
from storage.pointmarks import PointMarks
from storage.points import HINT, detail_of
from storage.sealing import Sealing

GIVE_UP = "put the file back, or give the restore point up: backstay expire POINT --lost"


class PointKeeping:
    """Manifests and marks of an open repository. `_lock` keeps expiries apart from whoever relies on what is there."""

    blobs: Blobs
    private: Blobs
    work: Path
    shared: bool
    append_only: bool
    sealing: Sealing
    marks: PointMarks
    store: ChunkStore
    catalog: Catalog
    now: Callable[[], datetime]
    tell_catalog: Callable[[Changes], bool]
    _lock: threading.RLock

    def mark_hold(self, point: PointId, reason: str, now: datetime) -> None:
        """Keep this restore point until the hold is released. Idempotent for one reason."""
        self._look_again(point)
        reason = legible(reason)
        if reason in self.mark_state(point).holds:
            self._require(point)
        else:
            self.add_mark(point, MarkKind.HOLD, now, reason)

    def release(self, point: PointId, reason: str | None, now: datetime) -> None:
        """Release the hold with this reason, or all holds. Refused when there is no such hold."""
        self._refuse_taking(point)
        self._look_again(point)
        holds = self.mark_state(point).holds
        reason = None if reason is None else legible(reason)
        if not holds or (reason is not None and reason not in holds):
            raise Refused(f"restore point {point} has no such hold", hint=f"its holds: {', '.join(holds) or 'none'}")
        # Where others may hold it at this moment, only what was seen is released.
        for known in holds if self.shared and reason is None else (reason or "",):
            self.add_mark(point, MarkKind.RELEASE, now, known)

    def mark_lock(self, point: PointId, until: datetime, reason: str, now: datetime) -> None:
        """Lock this restore point up to a time; a lock can be made longer, never shorter."""
        self.add_mark(point, MarkKind.LOCK, now, reason, until)

    def mark_expiring(self, point: PointId, reason: str, now: datetime) -> None:
        """Record that retention wants this restore point gone."""
        if self.mark_state(point).expiring_since is None:
            self.add_mark(point, MarkKind.EXPIRING, now, reason)
            self._keep_away(point)

    def marked_since(self, point: PointId) -> datetime | None:
        """Since when retention wants it gone, by the store's clock, which no writer sets; None when it does not."""
        if self.mark_state(point).expiring_since is None:
            return None
        ordered = sorted(self.marks.of(point), key=lambda mark: (mark.sequence, mark.key))
        in_force: Mark | None = None
        for mark in ordered:
            if mark.kind is MarkKind.UNMARK:
                in_force = None
            elif mark.kind is MarkKind.EXPIRING:
                in_force = in_force or mark
        assert in_force is not None
        return datetime.fromtimestamp(self.blobs.age_stamp(in_force.key), UTC)

    def unmark(self, point: PointId, reason: str, now: datetime) -> None:
        """Retention no longer wants it gone."""
        if self.mark_state(point).expiring_since is not None:
            self.add_mark(point, MarkKind.UNMARK, now, reason)
            forgotten.take_back(self.private, point)

    def expire(
        self, point: PointId, reason: str, now: datetime, *, lost: bool = False, by_retention: bool = False
    ) -> None:
        """Forget a restore point: tombstone, manifest, catalog. Refused while it is held or locked.

        One whose manifest got lost is given up only with `lost`, which stands for a person's word. What goes
        `by_retention` no copy brings back.
        """
        with self._lock:
            self._refuse_taking(point)
            self._look_again(point)
            self._require(point)
            state = self.mark_state(point)
            if lost and not state.lost:
                raise Refused(f"restore point {point} is not lost", hint="expire it as any other")
            if state.lost and not lost:
                raise Refused(
                    f"restore point {point} is lost, not old", where=manifests.manifest_key(point), hint=GIVE_UP
                )
            if state.holds:
                raise Refused(f"restore point {point} is held: {', '.join(state.holds)}", hint="release it first")
            until = self._locked_until(point, state)
            if until is not None and until > now:
                raise Refused(f"restore point {point} is locked until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
            if by_retention:
                self._keep_away(point)
            self.add_mark(point, MarkKind.EXPIRED, now, reason, into_catalog=False)
            failpoint("expire.marked")
            if not self.shared:
                finish_expiry(self, point)
            elif not following.settle(self, point):
                raise Refused(f"restore point {point} was held by another writer at this moment")

    def _keep_away(self, point: PointId) -> None:
        with suppress(*UNREADABLE, NoSuchPoint):  # a damaged copy is brought back
            origin = self.manifest(point).head.attributes.get(forgotten.COPIED_FROM)
            if origin is not None and not self.mark_state(point).damaged:
                forgotten.remember(self.private, point, origin)

    def _refuse_taking(self, point: PointId) -> None:
        if self.append_only:
            raise Refused(
                "this repository is append-only for this user",
                where=point,
                hint="run the command as the user who owns its directory",
            )

    def add_mark(
        self,
        point: PointId,
        kind: MarkKind,
        at: datetime,
        text: str = "",
        until: datetime | None = None,
        *,
        into_catalog: bool = True,
    ) -> None:
        """Write one mark, then tell the catalog; NoSuchPoint, also when the restore point has just expired."""
        with self._lock:
            self._look_again(point)
            self._require(point)
            mark = self.marks.add(point, kind, at, text, until)
            failpoint("mark.written")
            if kind in LASTING:  # an expiry elsewhere that did not see it comes first
                self._look_again(point)
                if self.mark_state(point).expired:
                    raise NoSuchPoint(f"restore point {point} was expired by another writer at this moment")
            if into_catalog:
                self.tell_catalog(Changes(marks=[mark]))

    def drop_marks(self, gone: Sequence[Mark]) -> None:
        """Remove marks that a newer one has replaced."""
        self.marks.drop(gone)
        if gone:
            self.tell_catalog(Changes(gone_marks=[mark.key for mark in gone]))

    def mark_state(self, point: PointId) -> MarkState:
        """What the marks of a restore point come to."""
        return self.marks.state(point)

    def point_ids(self) -> set[PointId]:
        """Every restore point that has a manifest, apart from those being expired."""
        return self._listed_points() - self.marks.expired()

    def _listed_points(self) -> set[PointId]:
        return {PointId(key.removeprefix(manifests.PREFIX)) for key in self.blobs.list(manifests.PREFIX)}

    def manifest(self, point: PointId) -> Manifest:
        """One manifest, checked; NoSuchPoint, Damaged."""
        key = manifests.manifest_key(point)
        try:
            if "/" in point or self.mark_state(point).expired:
                raise Missing("expired")
            manifest = manifests.decode(self.sealing.open(ObjectKind.MANIFEST, key, self.blobs.get(key)), key)
        except Missing:
            if self.mark_state(point).lost:
                raise Missing("the manifest is gone and nobody expired it", where=key, hint=GIVE_UP) from None
            raise NoSuchPoint(f"there is no restore point {point}", hint=HINT) from None
        if manifest.id != point:
            raise Damaged("another restore point's manifest lies in this place", where=key)
        return manifest

    def _look_again(self, point: PointId) -> None:
        """What other writers marked this restore point with meanwhile."""
        if self.shared:
            self.marks.refresh(point)

    def _locked_until(self, point: PointId, state: MarkState) -> datetime | None:
        """The end of its lock; a manifest that cannot be read locks nothing, as nothing is left to restore."""
        try:
            return detail_of(self.manifest(point), state).locked_until
        except Damaged:
            return state.locked_until

    def _require(self, point: PointId) -> None:
        state = self.mark_state(point)
        try:
            if "/" in point or state.expired:
                raise Missing("expired")
            if not state.lost:
                self.blobs.size(manifests.manifest_key(point))
        except Missing:
            raise NoSuchPoint(f"there is no restore point {point}", hint=HINT) from None
