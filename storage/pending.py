"""A restore point that is being written: a value object for the engine, visible to nobody before its commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from policies.facts import PointId, RestorePoint
from storage import manifest as manifests
from storage.blobs import Blobs
from storage.blockmap import Root
from storage.chunkstore import ChunkStore
from storage.commitment import Reliance, announced
from storage.config import Config
from storage.errors import NoSuchPoint, Refused
from storage.failpoints import failpoint
from storage.format import MAX_MANIFEST_BYTES_PER_DISK, ObjectKind, PackKind
from storage.ingest import DiskIngest
from storage.locking import Locking
from storage.manifest import DiskHead, DiskRecord, Manifest, PointHead
from storage.pack import Writer
from storage.sealing import Sealing


class Home(Protocol):
    """The repository, as far as a pending restore point needs it."""

    shared: bool
    locking: Locking | None
    blobs: Blobs
    config: Config
    sealing: Sealing
    store: ChunkStore
    writer: Writer
    now: Callable[[], datetime]
    pending: set[PendingPoint]

    def manifest(self, point: PointId) -> Manifest: ...
    def committed(self, manifest: Manifest) -> None: ...
    def new_point_id(self, taken_at: datetime) -> PointId: ...


class PendingPoint:
    """Add disks, then `commit`. Leaving its `with` block uncommitted abandons it; chunks already sealed stay useful."""

    def __init__(self, home: Home, head: PointHead, point: PointId | None = None) -> None:
        self.head = head
        self.id = point or home.new_point_id(head.taken_at)
        self.bases: list[Root] = []
        self._base_points: list[PointId] = []
        self._home = home
        self._store = home.store
        self._session = home.store.session()
        self._sealed_before = len(home.store.live)
        self._disks: dict[str, DiskRecord | None] = {}
        self._unprotected: list[tuple[str, str]] = []
        self._configuration: list[bytes] = []
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abandon()

    @property
    def sealed_packs(self) -> int:
        """Packs that became durable since the point was begun, by whomever."""
        return max(0, len(self._store.live) - self._sealed_before)

    def disk(self, head: DiskHead, *, base: tuple[PointId, str] | None) -> DiskIngest:
        """Begin a disk. With a base (restore point, disk name) whatever is not written is as it was there."""
        self._check_open()
        if head.name in self._disks:
            raise ValueError(f"disk {head.name} is there already")
        record = self._base(base) if base is not None else None
        self._disks[head.name] = None
        return DiskIngest(
            self._store,
            self._session,
            head,
            block_bytes=self._home.config.block_bytes,
            fan_out=self._home.config.fan_out,
            base=record,
            done=self._take,
        )

    def unprotected(self, label: str, reason: str) -> None:
        """Record a disk that the restore point does not hold, and why."""
        self._unprotected.append((label, reason))

    def remember(self, attributes: Mapping[str, str]) -> None:
        """Add to what the head says of how the restore point came about: what is known only after it was begun."""
        self.head = replace(self.head, attributes={**self.head.attributes, **attributes})

    def configuration(self, data: bytes) -> None:
        """Keep the VM's configuration with the restore point."""
        self._check_open()
        step = self._home.config.block_bytes
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        items = [(self._home.sealing.chunk_id(piece), piece) for piece in pieces]
        self._store.add(self._session, PackKind.DATA, items)
        self._configuration = [chunk for chunk, _ in items]

    def commit(self) -> RestorePoint:
        """Make packs durable, write the manifest (from here on the restore point exists), tell the catalog.

        Overtaken, on a store that others write, too, when reclaim frees what it refers to; a new run is needed then.
        """
        self._check_open()
        unfinished = [name for name, record in self._disks.items() if record is None]
        if unfinished:
            raise ValueError(f"disks are not finished: {', '.join(unfinished)}")
        self._store.flush(self._session)
        failpoint("commit.packs_sealed")
        home = self._home
        manifest = Manifest(
            id=self.id,
            head=self.head,
            committed_at=home.now(),
            writer=home.writer.id.hex(),
            epoch=home.writer.epoch,
            fan_out=home.config.fan_out,
            block_bytes=home.config.block_bytes,
            disks=tuple(record for record in self._disks.values() if record is not None),
            unprotected=tuple(self._unprotected),
            configuration=tuple(self._configuration),
        )
        payload = manifests.encode(manifest)
        if len(payload) > MAX_MANIFEST_BYTES_PER_DISK * max(1, len(self._disks)):
            raise Refused(f"the manifest would have {len(payload)} bytes", hint="record fewer attributes")
        key = manifests.manifest_key(self.id)
        until = self.head.locked_until
        if until is not None and until <= home.now():
            until = None  # of a copy: its lock is over, and a store refuses one that ends in the past
        if home.locking is not None and until is not None:
            home.locking.protect(manifest, until)
            failpoint("commit.packs_locked")
        with self._announced(payload):
            home.blobs.put(key, home.sealing.close(ObjectKind.MANIFEST, key, payload))
            failpoint("commit.manifest_written")
        if home.locking is not None and until is not None:
            home.locking.extend({key: until})
        self._end()
        home.committed(manifest)
        failpoint("commit.catalog_written")
        return _as_point(manifest)

    def abandon(self) -> None:
        """Forget the restore point. Idempotent; does nothing after a commit."""
        if self._open:
            self._end()

    def _announced(self, payload: bytes) -> AbstractContextManager[None]:
        home = self._home
        if not home.shared:
            return nullcontext()
        reliance = Reliance(self._session.learnt, frozenset(self._session.touched), tuple(self._base_points))
        return announced(home.blobs, home.sealing, self.id, payload, reliance)

    def _end(self) -> None:
        self._open = False
        self._home.pending.discard(self)
        self._store.end(self._session)

    def _take(self, record: DiskRecord) -> None:
        self._disks[record.head.name] = record

    def _base(self, base: tuple[PointId, str]) -> DiskRecord:
        point, name = base
        manifest = self._home.manifest(point)
        if (manifest.fan_out, manifest.block_bytes) != (self._home.config.fan_out, self._home.config.block_bytes):
            raise Refused(f"restore point {point} has another block size", hint="read the disk in full")
        for record in manifest.disks:
            if record.head.name == name:
                self.bases.append(record.root)
                self._base_points.append(point)
                self._home.manifest(point)  # still there now that reclaim sees the base: it stays until we end
                return record
        raise NoSuchPoint(f"restore point {point} has no disk {name!r}")

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("this restore point is committed or abandoned")
        self._session.check()


def _as_point(manifest: Manifest) -> RestorePoint:
    head, said = manifest.head, manifest.head.attributes
    return RestorePoint(
        id=manifest.id,
        vm=head.vm,
        vm_name=head.vm_name,
        taken_at=head.taken_at,
        complete=head.complete,
        consistency=head.consistency,
        locked_until=head.locked_until,
        policy=said.get("policy", ""),
        rule=said.get("rule", ""),
        reason=said.get("reason", ""),
        read_bytes=sum(disk.read_bytes for disk in manifest.disks),
        stored_bytes=sum(disk.stored_bytes for disk in manifest.disks),
        disk_bytes=sum(disk.head.capacity_bytes for disk in manifest.disks),
    )
