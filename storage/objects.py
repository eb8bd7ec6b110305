"""Blobs in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Creation is conditional on the store's side, so that many writers agree on who was first. Packs grow in a local spool
folder and are published by one conditional put. A put whose answer got lost is compared with what is there.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from storage import randomness
from storage.errors import AccessRefused, AlreadyExists, Changed, Damaged, Missing, Refused
from storage.filecalls import Buffer, translated
from storage.objectcalls import Again, Calls, Patience
from storage.spoolfiles import SpoolFile

PACKS = "packs/"
CLOCK_KEY = "clock"
"""Overwritten whenever somebody asks for the store's time; its content says nothing."""


class Locks(Protocol):
    """What can tell how long an object is locked."""

    def until(self, key: str) -> datetime | None:
        """The end of its lock; None when it has none. Missing."""
        ...


COMPARE_BYTES = 4 << 20
PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4


class ObjectBlobs:
    """`reads` and `writes` are obstore's stores of one place, with timeouts that suit small and large bodies.

    `root` names the place in messages. `spool` is a local folder of this process alone; writers need it.
    """

    shared = True

    def __init__(
        self,
        reads: Any,
        writes: Any,
        place: str,
        *,
        spool: Path | None = None,
        patience: Patience | None = None,
        multipart: bool = False,
    ) -> None:
        self.root = place
        self.spool = spool
        self.locks: Locks | None = None
        self.calls = Calls(place, patience)
        self._reads = reads
        self._writes = writes
        self._multipart = multipart
        self._packs: dict[str, tuple[int, float]] = {}  # a pack never changes: (bytes, published), as last listed

    def put(self, key: str, data: bytes) -> None:
        self.calls.ask("put", key, lambda again: self._create(key, data, again))

    def _create(self, key: str, data: Buffer | mmap.mmap, again: bool) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._writes, key, data, mode="create")
        except AlreadyExistsError as error:
            if "status code: 409" in str(error):
                raise Again("409, as another request for this object is under way") from None
            if again and self._is(key, data):
                return  # the try before had its effect, and only its answer got lost
            raise AlreadyExists("this blob is there already", where=key) from None

    def _is(self, key: str, data: Buffer | mmap.mmap) -> bool:
        import obstore

        try:
            if obstore.head(self._reads, key)["size"] != len(data):
                return False
            for start in range(0, len(data), COMPARE_BYTES):
                part = data[start : start + COMPARE_BYTES]
                if bytes(obstore.get_range(self._reads, key, start=start, length=len(part))) != bytes(part):
                    return False
        except FileNotFoundError:
            raise Again("it was there, and then it was not") from None
        return True

    def replace(self, key: str, data: bytes) -> None:
        import obstore

        self.calls.ask("put", key, lambda _: obstore.put(self._writes, key, data, mode="overwrite"))

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        if expected is None:
            try:
                self.put(key, data)
            except AlreadyExists:
                raise _changed(key) from None
            return
        self.calls.ask("put", key, lambda again: self._replace_if(key, data, expected, again))

    def _replace_if(self, key: str, data: bytes, expected: bytes, again: bool) -> None:
        import obstore

        try:
            found = obstore.get(self._reads, key)
            there = bytes(found.bytes())
        except FileNotFoundError:
            raise _changed(key) from None
        if again and there == data:
            return
        if there != expected:
            raise _changed(key)
        meta = found.meta
        version = {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
        obstore.put(self._writes, key, data, mode=version)  # type: ignore[arg-type]

    def get(self, key: str) -> bytes:
        import obstore

        return self.calls.ask("get", key, lambda _: bytes(obstore.get(self._reads, key).bytes()))

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        import obstore

        length = len(view)
        if not length:
            return
        data = self.calls.ask(
            "get", key, lambda _: memoryview(obstore.get_range(self._reads, key, start=offset, length=length))
        )
        if len(data) != length:
            raise Damaged("this blob is shorter than what was written", where=key)
        view[:] = data

    def size(self, key: str) -> int:
        return self._packs[key][0] if key in self._packs else self._head(key)[0]

    def age_stamp(self, key: str) -> float:
        return self._packs[key][1] if key in self._packs else self._head(key)[1]

    def _head(self, key: str) -> tuple[int, float]:
        import obstore

        meta = self.calls.ask("head", key, lambda _: obstore.head(self._reads, key))
        return meta["size"], meta["last_modified"].timestamp()

    def clock(self) -> datetime:
        self.replace(CLOCK_KEY, randomness.token_bytes(8))
        return datetime.fromtimestamp(self._head(CLOCK_KEY)[1], UTC)  # of our write or of a later one

    def list(self, prefix: str) -> Iterator[str]:
        import obstore

        def collect(_: bool) -> list[Any]:
            found: list[Any] = []
            for page in obstore.list(self._reads, prefix, chunk_size=1000):
                if found:
                    self.calls.counts["list"] += 1
                found += page
            return found

        listed = self.calls.ask("list", prefix, collect)
        if prefix == PACKS:
            self._packs = {meta["path"]: (meta["size"], meta["last_modified"].timestamp()) for meta in listed}
        yield from [meta["path"] for meta in listed]

    def delete(self, key: str) -> None:
        import obstore

        until = self.locks.until(key) if self.locks is not None and key.startswith(PACKS) else None
        if until is not None and until > self.clock():  # a version stays, but the name would be gone
            raise Refused(f"it is locked until {until:%Y-%m-%d %H:%M} UTC", where=key)
        self._packs.pop(key, None)
        try:
            self.calls.ask("delete", key, lambda _: obstore.delete(self._writes, key))
        except Missing:
            return
        except AccessRefused as error:
            raise Refused("the store forbids to delete this", where=key, hint=error.what) from None

    def writer(self) -> ObjectWriter:
        with translated("spool"):
            return ObjectWriter(self)

    def publish(self, key: str, data: mmap.mmap) -> None:
        """Create a large blob; see `Blobs.put`."""
        import obstore

        def by_parts(again: bool) -> None:
            try:
                there = obstore.head(self._reads, key)
            except FileNotFoundError:
                there = None
            if there is not None:
                if again and self._is(key, data):
                    return
                raise AlreadyExists("this blob is there already", where=key)
            obstore.put(
                self._writes, key, data, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )

        if self._multipart and len(data) > PART_BYTES:
            self.calls.ask("put", key, by_parts)
        else:
            self.calls.ask("put", key, lambda again: self._create(key, data, again))

    def free_bytes(self) -> int | None:
        return None

    def clean(self) -> int:
        removed = 0
        if self.spool is not None:
            with translated(str(self.spool)):
                self.spool.mkdir(parents=True, exist_ok=True)
                for path in self.spool.iterdir():
                    if path.is_file() and not path.is_symlink():
                        path.unlink()
                        removed += 1
        return removed

    def check(self) -> None:
        """NoRepository when there is no bucket, AccessRefused when the login is not good."""
        import obstore

        self.calls.ask("list", "", lambda _: obstore.list_with_delimiter(self._reads))


def _changed(key: str) -> Changed:
    return Changed("another writer changed this meanwhile", where=key, hint="run it again")


class ObjectWriter(SpoolFile):
    """A file in the spool folder. It need not outlive this process, so nothing is synced."""

    def __init__(self, blobs: ObjectBlobs) -> None:
        if blobs.spool is None:
            raise ValueError("this store has no spool folder")
        self._blobs = blobs
        self._path = blobs.spool / randomness.token_hex(8)
        super().__init__(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), str(self._path))

    def publish(self, key: str) -> None:
        if os.fstat(self._fd).st_size == 0:
            self._blobs.put(key, b"")
        else:
            with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as data:
                self._blobs.publish(key, data)
        self.abandon()

    def abandon(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._close()
