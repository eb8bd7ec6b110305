"""The repository: the one door for the engine.

create(location, now=now)
with open_repository(location, now=clock) as repository:
    with repository.new_point(head) as pending:
        ingest = pending.disk(disk, base=None)
        ingest.write(offset, view)      # from several threads
        ingest.finish()
        point = pending.commit()        # packs, then the manifest, then the catalog
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

from policies.facts import PointId, RestorePoint, VmId
from storage import following, lookback, randomness, untold
from storage import manifest as manifests
from storage.blobs import Blobs
from storage.blockmap import Root
from storage.catalog import Catalog
from storage.catalog_loading import Changes
from storage.catalog_source import CatalogSource
from storage.chunkstore import ChunkStore
from storage.commitment import boot_seconds
from storage.creation import BLOCK_BYTES, create
from storage.errors import UNREADABLE, NoSpace, NoSuchPoint, StorageError, StoreFailed
from storage.expiry import find_lost, finish_expiry, put_holds_back
from storage.footerfiles import KeptFooters
from storage.format import PackName
from storage.index import Index
from storage.locking import Locking
from storage.manifest import DiskHead, DiskRecord, DiskStats, Manifest, PointHead
from storage.numbering import ClaimedNumbers
from storage.opening import Opened, open_checked
from storage.pending import PendingPoint
from storage.places import ObjectPlace, Place
from storage.pointkeeping import GIVE_UP, PointKeeping
from storage.pointmarks import PointMarks
from storage.points import PointDetail, RepositorySizes, detail_of, resolve
from storage.reading import PointDisk
from storage.veil import VeiledBlobs, veiled

__all__ = [
    "BLOCK_BYTES",
    "GIVE_UP",
    "DiskHead",
    "DiskRecord",
    "DiskStats",
    "PendingPoint",
    "PointDetail",
    "PointDisk",
    "PointHead",
    "Repository",
    "RepositorySizes",
    "create",
    "open_repository",
]

log = logging.getLogger(__name__)

RELEARN_SECONDS = 3600
"""A restore point that is begun on a shared store knows of packs what was true this long ago."""


def open_repository(
    location: Place | str,
    *,
    passphrase: Callable[[], str] | None = None,
    now: Callable[[], datetime] | datetime,
    owner: str = "command",
    blobs: Blobs | None = None,
    state_dir: Path | None = None,
    must_be_encrypted: bool = False,
) -> Repository:
    """Open, take ownership, and finish whatever a crash interrupted. `passphrase` may give a key file's line as well.

    With `must_be_encrypted` a plain one is WrongKey: else whoever has the store could put one in the place of an
    encrypted one, and be given everything in the clear.
    NoRepository, Locked (it names the pid), WrongKey, Unsupported, Damaged; AccessRefused and StoreFailed by an object
    store.
    """
    fixed = now
    clock: Callable[[], datetime] = (lambda: fixed) if isinstance(fixed, datetime) else fixed
    opened = open_checked(
        location, passphrase=passphrase, now=clock(), owner=owner, blobs=blobs, state_dir=state_dir,
        must_be_encrypted=must_be_encrypted,
    )  # fmt: skip
    return repository_of(opened, clock)


def repository_of(opened: Opened, clock: Callable[[], datetime]) -> Repository:
    """The repository over a store that was opened; it is let go again when that fails."""
    try:
        return Repository(opened, clock)
    except BaseException:
        opened.ownership.release()
        raise


class Repository(PointKeeping):
    """An open repository. Thread-safe. Close it, or use it in a `with` block."""

    def __init__(self, opened: Opened, now: Callable[[], datetime]) -> None:
        self.location = opened.place
        self.work = opened.work
        self.shared = opened.shared  # whether other processes write this store, too
        self.append_only = opened.append_only
        self.blobs = blobs = veiled(opened.blobs, opened.sealing)
        self.private = opened.private
        self.config = opened.config
        self.sealing = sealing = opened.sealing
        self.now = now
        self.writer = opened.ownership.writer
        self._ownership = opened.ownership
        self._lock = threading.RLock()
        self._warming: threading.Thread | None = None
        self.maintenance = threading.Lock()
        self.pending: set[PendingPoint] = set()
        self._reading: WeakSet[PointDisk] = WeakSet()
        blobs.clean()
        name_of = blobs.outer if isinstance(blobs, VeiledBlobs) else str
        self.marks = PointMarks(
            blobs, sealing, now, shared=self.shared, trusted=lambda key: opened.trusted(name_of(key))
        )
        self.store = ChunkStore(
            blobs,
            sealing,
            Index(self.work / "index", sealing.repository),
            writer=self.writer,
            now=now,
            private=self.private,
            numbers=ClaimedNumbers(blobs, self.writer, self.work / "numbers") if self.shared else None,
        )
        self.locking = (
            Locking(opened.locks, self.store, self.private, self.config.fan_out, name_of) if opened.locks else None
        )
        self.store.on_sealed = self._tell_of_packs
        if isinstance(self.location, ObjectPlace):
            self.store.footers = KeptFooters(blobs, sealing, self.work / "footers")
        for damage in self.store.attach():
            log.warning("pack left out of the index", extra={"why": damage})
        if self.shared:
            following.forget_outdated_catalog(self.work, now())
        self.catalog = Catalog(self.work / "catalog.duckdb", self.work / "spool", CatalogSource(self))
        self._catalog_open = False
        with suppress(StoreFailed):  # on a read-only file system it stays; nobody is shown it
            for point in self.marks.expired() if not self.shared else ():
                blobs.delete(manifests.manifest_key(point))  # the rest when the catalog opens

    @property
    def repository_id(self) -> str:
        """The id that every object of the repository carries."""
        return self.config.repository.hex()

    @property
    def block_bytes(self) -> int:
        """The block size."""
        return self.config.block_bytes

    @property
    def encrypted(self) -> bool:
        """Whether everything is encrypted."""
        return self.config.encrypted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abandon what is pending, close the catalog, let the next owner in. Idempotent."""
        for pending in list(self.pending):
            pending.abandon()
        if self._warming is not None:
            self._warming.join()
        self.store.close()
        self.catalog.close()
        self._ownership.release()

    # --- restore points ---

    def points(self, vm: VmId | None = None) -> list[RestorePoint]:
        """All restore points, or those of one VM, newest last; what other writers did may take FOLLOW_SECONDS."""
        self._follow()
        return self.opened_catalog().points(vm)

    def find(self, reference: str) -> PointId:
        """The restore point that an id, the unique beginning of an id, or NAME@latest means; NoSuchPoint."""
        return resolve(reference, self.point_ids() | self.marks.lost(), self.points)

    def detail(self, point: PointId) -> PointDetail:
        """Everything about one restore point; NoSuchPoint, Damaged."""
        return detail_of(self.manifest(point), self.mark_state(point))

    def latest(self, vm: VmId) -> PointDetail | None:
        """The newest complete and undamaged restore point of a VM, to be the base of an incremental."""
        if not (self._catalog_open or self.shared):
            with suppress(*UNREADABLE, NoSuchPoint):
                found = lookback.newest(self.point_ids(), vm, self.detail)
                if found is not None:
                    return found
        for point in reversed(self.points(vm)):
            if point.complete and not point.damaged:
                try:
                    return self.detail(point.id)
                except UNREADABLE as error:  # nobody has verified since it happened
                    log.error("restore point passed over: %s", error)
        return None

    base_of = latest

    def new_point(self, head: PointHead, *, point: PointId | None = None) -> PendingPoint:
        """Begin a restore point, which nobody sees before `commit`. A copy keeps the id that it has elsewhere."""
        if self.shared:
            self._warm_catalog()
            if boot_seconds() - self.store.learnt.at > RELEARN_SECONDS:
                self.refresh()
        pending = PendingPoint(self, head, point)
        self.pending.add(pending)  # one step; the lock is the catalog's for the tenth of a second that it opens
        return pending

    def refresh(self) -> None:
        """Learn what other processes did to the store since it was last listed."""
        if self.shared:
            with self._lock:
                following.follow(self, catalog_open=self._catalog_open)

    def _follow(self) -> None:
        if self.shared and boot_seconds() - self.store.learnt.at > following.FOLLOW_SECONDS:
            self.refresh()

    def read_disk(self, point: PointId, disk_name: str) -> PointDisk:
        """One disk of a restore point, for reading; NoSuchPoint if either is not there."""
        manifest = self.manifest(point)
        for record in manifest.disks:
            if record.head.name == disk_name:
                disk = PointDisk(self.store, manifest, record)
                with self._lock:
                    self._reading.add(disk)
                self.manifest(point)  # still there now that reclaim sees the reader: its chunks stay until it ends
                return disk
        names = ", ".join(record.head.name for record in manifest.disks)
        raise NoSuchPoint(f"restore point {point} has no disk {disk_name!r}; it has: {names}")

    def configuration(self, point: PointId) -> bytes:
        """The VM's configuration as the restore point keeps it; empty if it has none."""
        return b"".join(map(bytes, self.store.read_many(self.manifest(point).configuration)))

    def sizes(self) -> RepositorySizes:
        """How much is stored."""
        stored, chunks, packs = self.opened_catalog().query(
            "SELECT coalesce(sum(bytes), 0)::UBIGINT, coalesce(sum(chunks), 0)::UBIGINT, count(*) FROM packs"
        )[0]
        points, logical = self.catalog.query("SELECT count(*), coalesce(sum(disk_bytes), 0)::UBIGINT FROM points")[0]
        return RepositorySizes(stored, chunks, packs, points, logical, self.blobs.free_bytes())

    def renew_locks(self, now: datetime) -> int:
        """Lock in the store what locked restore points need, where it is not locked for as long; how many were not.

        For restore points whose lock was made longer, and for what was copied into new packs. Nothing to do without
        Object Lock.
        """
        if self.locking is None:
            return 0
        locked = [(point.id, point.locked_until) for point in self.points()]
        current = [(self.manifest(point), until) for point, until in locked if until is not None and until > now]
        return self.locking.extend(self.locking.spans(current))

    # --- for the modules of this package ---

    def opened_catalog(self) -> Catalog:
        """The catalog, opened and caught up."""
        with self._lock:
            if not self._catalog_open:
                self.catalog.open()
                self._catalog_open = True
                with suppress(StoreFailed, NoSpace):
                    put_holds_back(self)
                    if self.append_only:
                        following.followed_now(self.work, self.now())
                    elif self.shared:
                        following.finish_for_others(self)
                        following.followed_now(self.work, self.now())
                    else:
                        for point in sorted(self.marks.expired()):
                            finish_expiry(self, point)
                self.lost_points()
        return self.catalog

    def lost_points(self) -> list[RestorePoint]:
        """Restore points whose manifest is gone without an expiry; looked for now, and recorded."""
        with self._lock:
            try:
                self.opened_catalog()
            except NoSpace as error:  # what frees the disk must go on
                log.warning("no catalog tells of lost restore points: %s", error)
            return find_lost(self)

    def in_use(self) -> tuple[list[Root], set[PointId]]:
        """Roots that points under way may share nodes with or that are being read, and all points, at one moment.

        Points that are being expired are among them while they have a manifest.
        """
        with self._lock:  # no point expires between the two
            bases = [root for pending in list(self.pending) for root in list(pending.bases)]
            bases += [disk.record.root for disk in self._reading]
            return bases, self._listed_points()  # in this order: what is committed meanwhile is in one of the two

    def committed(self, manifest: Manifest) -> None:
        """The catalog takes a new restore point and every pack that it does not know yet; a closed one finds a note.

        Of a shared store each writer's catalog has to hear at once, as tombstones of others come and go.
        """
        if not self.shared:
            with self._lock:  # a catalog that is being opened by another thread misses no note
                if not self._catalog_open:
                    untold.note(self.private, self.sealing, manifest)
                    return
        self.tell_catalog(Changes(packs=list(self.store.live.values()), manifests=[manifest]))

    def tell_catalog(self, changes: Changes) -> bool:
        """Carry a change over. What has happened has happened: a catalog that fails catches up when it opens again."""
        try:
            return self.opened_catalog().apply(changes)
        except StorageError as error:
            log.warning("catalog behind: %s", error)
            return False

    def new_point_id(self, taken_at: datetime) -> PointId:
        """A fresh id that sorts by time."""
        return PointId(f"{taken_at.astimezone(UTC):%Y%m%dt%H%M%Sz}-{randomness.token_hex(4)}")

    def _tell_of_packs(self, packs: Sequence[PackName]) -> None:
        """Tell an open catalog of packs while more are filled."""
        if self._catalog_open:
            self.tell_catalog(Changes(packs=packs))

    def _warm_catalog(self) -> None:
        """Open the catalog while data is being read: importing DuckDB takes a quarter of a second."""
        with self._lock:
            if not self._catalog_open and self._warming is None:
                self._warming = threading.Thread(target=self._open_quietly, name="catalog opener", daemon=True)
                self._warming.start()

    def _open_quietly(self) -> None:
        try:
            self.opened_catalog()
        except StorageError:
            log.debug("catalog not opened ahead; the commit will try again", exc_info=True)
