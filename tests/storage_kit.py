"""Small disks, repositories and a store that fails on purpose, for the tests of `storage`."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from policies.facts import PointId, RestorePoint, VmId
from storage import keyslots
from storage.blobs import Blobs, BlobWriter, LocalBlobs
from storage.errors import NoSpace, StorageError, StoreFailed
from storage.filecalls import Buffer
from storage.places import Place
from storage.repository import DiskHead, PointHead, Repository, create, open_repository
from storage.restore import restore_disk

Location = TypeVar("Location", bound=Place)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BLOCK = 4096
DISK = "Hard disk 1"
PASSPHRASE = "correct horse"


def later(**delta: float) -> datetime:
    """A moment after NOW."""
    return NOW + timedelta(**delta)


def make(location: Location, *, encrypted: bool = False, block_bytes: int = BLOCK) -> Location:
    """A new repository; its passphrase is cheap to check."""
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256):
        create(location, now=NOW, passphrase=PASSPHRASE if encrypted else None, block_bytes=block_bytes)
    return location


def opened(location: Place, *, now: datetime = NOW, blobs: Blobs | None = None) -> Repository:
    """The repository, open."""
    return open_repository(location, now=now, passphrase=lambda: PASSPHRASE, owner="test", blobs=blobs)


def image(seed: int, blocks: int, *, used: float = 0.6, block_bytes: int = BLOCK, tail: int = 0) -> bytearray:
    """A disk of which a part is used, half of each block compressible."""
    chance = random.Random(seed)
    disk = bytearray(blocks * block_bytes + tail)
    for block in range(blocks):
        if chance.random() < used:
            start = block * block_bytes
            disk[start : start + block_bytes // 2] = chance.randbytes(block_bytes // 2)
    if tail:
        disk[-tail:] = chance.randbytes(tail)
    return disk


def changed(disk: bytearray, seed: int, blocks: Iterable[int], *, block_bytes: int = BLOCK) -> bytearray:
    """The disk with other content in some blocks."""
    chance = random.Random(seed)
    copy = bytearray(disk)
    for block in blocks:
        end = min((block + 1) * block_bytes, len(copy))
        copy[block * block_bytes : end] = chance.randbytes(end - block * block_bytes)
    return copy


def back_up(
    repo: Repository,
    disk: bytearray,
    *,
    vm: str = "vm-1",
    name: str = "web",
    at: datetime = NOW,
    base: PointId | None = None,
    blocks: Iterable[int] | None = None,
    policy: str = "gold",
) -> RestorePoint:
    """One restore point of one disk: in full, or only some blocks on top of a base."""
    with repo.new_point(PointHead(VmId(vm), name, at, attributes={"policy": policy})) as pending:
        ingest = pending.disk(DiskHead(DISK, len(disk), uuid="u-1"), base=(base, DISK) if base else None)
        size = repo.block_bytes
        for block in range(-(-len(disk) // size)) if blocks is None else blocks:
            ingest.write(block * size, memoryview(disk)[block * size : (block + 1) * size])
        ingest.finish()
        return pending.commit()


def read_back(repo: Repository, point: PointId, name: str = DISK) -> bytes:
    """The disk as the random-access path reads it."""
    disk = repo.read_disk(point, name)
    data = bytearray(disk.capacity_bytes)
    disk.read_into(0, memoryview(data))
    return bytes(data)


def restored(repo: Repository, point: PointId, target: Path, name: str = DISK) -> bytes:
    """The disk as a restore writes it."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        restore_disk(repo.read_disk(point, name), fd)
    finally:
        os.close(fd)
    return target.read_bytes()


def in_threads(work: Callable[[int], None], count: int = 4) -> list[StorageError]:
    """Call work with 0, 1, … at once; returns the errors that it raised."""
    errors: list[StorageError] = []

    def run(number: int) -> None:
        try:
            work(number)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def files(location: Path, *parts: str) -> list[Path]:
    """Every file of the repository below some folders."""
    return sorted(path for part in parts for path in (location / part).rglob("*") if path.is_file())


class FaultyBlobs:
    """A local store whose n-th operation fails, and every later one too unless it fails once.

    With `late` the operation has its effect and then fails, as when an answer gets lost.
    """

    def __init__(
        self,
        root: Path,
        fail_at: int,
        *,
        error: type[StorageError] = StoreFailed,
        once: bool = False,
        late: bool = False,
    ) -> None:
        self.inner = LocalBlobs(root)
        self.root = root
        self.operations = 0
        self.fired = False
        self._fail_at = fail_at
        self._error = error
        self._once = once
        self._late = late

    def turn(self, what: str, late: bool) -> None:
        """Count an operation before and after its effect; fail when it is the one."""
        if late == self._late:
            self.operations += 1
            if self.operations == self._fail_at or (self.operations > self._fail_at and not self._once):
                self.fired = True
                raise self._error("made to fail", where=what)

    def put(self, key: str, data: bytes) -> None:
        self.turn(key, False)
        self.inner.put(key, data)
        self.turn(key, True)

    def replace(self, key: str, data: bytes) -> None:
        self.turn(key, False)
        self.inner.replace(key, data)
        self.turn(key, True)

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        self.turn(key, False)
        self.inner.replace_if(key, data, expected)
        self.turn(key, True)

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        self.turn(key, False)
        self.inner.read_into(key, offset, view)
        self.turn(key, True)

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def age_stamp(self, key: str) -> float:
        return self.inner.age_stamp(key)

    def clock(self) -> datetime:
        return self.inner.clock()

    def list(self, prefix: str) -> Iterator[str]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.turn(key, False)
        self.inner.delete(key)
        self.turn(key, True)

    def writer(self) -> BlobWriter:
        self.turn("spool", False)
        writer = FaultyWriter(self, self.inner.writer())
        self.turn("spool", True)
        return writer

    def free_bytes(self) -> int:
        return self.inner.free_bytes()

    def clean(self) -> int:
        return self.inner.clean()


class FaultyWriter:
    """A writer that fails with its store."""

    def __init__(self, store: FaultyBlobs, inner: BlobWriter) -> None:
        self._store = store
        self._inner = inner

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._store.turn("write", False)
        self._inner.write_at(offset, buffers)
        self._store.turn("write", True)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._inner.read_at(offset, length)

    def publish(self, key: str) -> None:
        self._store.turn(key, False)
        self._inner.publish(key)
        self._store.turn(key, True)

    def abandon(self) -> None:
        self._inner.abandon()


ERRORS: tuple[type[StorageError], ...] = (NoSpace, StoreFailed)
