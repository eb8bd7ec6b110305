"""What is in the repositories and the second copies, what was read back of it, and what retention took away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from metrics.labels import REBUILD_REASONS, RepositoryState, VerifyState
from metrics.making import Maker, one_of, stamp


class RepositoryMetrics:
    """The series of repositories, by their names."""

    def __init__(self, maker: Maker, now: Callable[[], datetime]) -> None:
        self._now = now
        self._size = maker.gauge(
            "repository_size_bytes",
            "Bytes held, as stored and as VMs see them",
            repository=(),
            kind=("stored", "logical"),
        )
        self._free = maker.gauge("repository_free_bytes", "Free space where it lies", repository=())
        self._chunks = maker.gauge("repository_chunks", "Chunks", repository=())
        self._packs = maker.gauge("repository_packs", "Packs", repository=())
        self._points = maker.gauge("restore_points", "Restore points", repository=())
        self._held = maker.gauge("restore_points_held", "Restore points under a hold", repository=())
        self._damaged_points = maker.gauge(
            "restore_points_damaged", "Restore points known to be damaged", repository=()
        )
        self._damaged = maker.gauge("damaged_objects", "Objects in which a changed byte was found", repository=())
        self._verified = maker.gauge(
            "verify_last_success_timestamp_seconds",
            "When a verification last found no damage; 0 for never",
            repository=(),
        )
        self._read_back = maker.gauge(
            "verify_read_back_since_timestamp_seconds",
            "Every stored byte was read back, or written, at this time or later; 0 for unknown",
            repository=(),
        )
        self._verify_left = maker.gauge(
            "verify_left_bytes", "Bytes that the newest verification left for its next window", repository=()
        )
        self._verify_state = maker.gauge(
            "verify_state", "1 for the newest verification's state", repository=(), state=tuple(VerifyState)
        )
        self._verify_every = maker.gauge(
            "verify_every_seconds", "How often the policy wants restore points read back", policy=()
        )
        self._verify_oldest = maker.gauge(
            "verify_oldest_reading_timestamp_seconds",
            "When the restore point of the policy that was longest not read back was read, or taken; 0 without one",
            policy=(),
        )
        self._verify_overdue = maker.gauge(
            "verify_overdue_points", "Restore points not read back for longer than the policy wants", policy=()
        )
        self._copy_missing = maker.gauge(
            "copy_missing_points", "Restore points that a second copy should have and has not", copy=()
        )
        self._copied = maker.gauge(
            "copy_last_success_timestamp_seconds",
            "When a second copy last lacked nothing; 0 for never",
            copy=(),
        )
        self._points_expired = maker.counter("restore_points_expired_total", "Restore points that retention expired")
        self._reclaimed = maker.counter("reclaimed_bytes_total", "Freed by reclaim")
        self._rebuilds = maker.counter("catalog_rebuilds_total", "Catalogs made again", reason=REBUILD_REASONS)

    def seen(self, state: RepositoryState) -> None:
        """One repository as it is now."""
        name = state.repository
        self._size.labels(name, "stored").set(state.stored_bytes)
        self._size.labels(name, "logical").set(state.logical_bytes)
        if state.free_bytes is not None:
            self._free.labels(name).set(state.free_bytes)
        self._chunks.labels(name).set(state.chunks)
        self._packs.labels(name).set(state.packs)
        self._points.labels(name).set(state.points)
        self._held.labels(name).set(state.held_points)
        self._damaged_points.labels(name).set(state.damaged_points)
        self._damaged.labels(name).set(state.damaged_objects)
        self._verified.labels(name).set(stamp(state.last_verified))
        self._read_back.labels(name).set(stamp(state.read_back_since))
        self._verify_left.labels(name).set(state.verify_left_bytes)
        for verify in VerifyState:
            self._verify_state.labels(name, verify).set(verify is state.verify)

    def verification_wanted(self, wishes: Mapping[str, tuple[float, int, datetime | None]]) -> None:
        """For each policy that wants restore points read back: how often in seconds, how many are overdue, the oldest
        reading. The series of all other policies end."""
        for metric in (self._verify_every, self._verify_oldest, self._verify_overdue):
            metric.clear()
        for policy, (every, overdue, oldest) in wishes.items():
            self._verify_every.labels(policy).set(every)
            self._verify_oldest.labels(policy).set(stamp(oldest))
            self._verify_overdue.labels(policy).set(overdue)

    def copy_lacks(self, name: str, missing: int) -> None:
        """A second copy lacks so many restore points now; lacking none is a success."""
        self._copy_missing.labels(name).set(missing)
        self._copied.labels(name)
        if not missing:
            self._copied.labels(name).set(self._now().timestamp())

    def points_expired(self, count: int) -> None:
        """Retention expired this many restore points."""
        self._points_expired.inc(count)

    def reclaimed(self, freed: int) -> None:
        """Reclaim freed this many bytes."""
        self._reclaimed.inc(freed)

    def catalog_rebuilt(self, reason: str) -> None:
        """A catalog was made again; `reason` is a kind, not a sentence."""
        self._rebuilds.labels(one_of(reason, REBUILD_REASONS)).inc()
