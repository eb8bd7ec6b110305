"""Large blobs under construction, as files of a spool folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from storage import directio
from storage.directio import DirectTail
from storage.errors import Damaged
from storage.failpoints import failpoint
from storage.filecalls import Buffer, read_full, translated, write_all


class SpoolFile:
    """An open file in which a large blob grows, under a descriptor that it owns."""

    def __init__(self, descriptor: int, where: str) -> None:
        self._fd = descriptor
        self._where = where

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `BlobWriter`."""
        with translated(self._where):
            write_all(self._fd, offset, buffers)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `BlobWriter`."""
        data = bytearray(length)
        with translated(self._where):
            if not read_full(self._fd, offset, memoryview(data)):
                raise Damaged("a spooled pack is shorter than what was written", where=self._where)
        return bytes(data)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


class LocalWriter(SpoolFile):
    """A file in the spool folder; what lies behind its first segment goes around the page cache where that works."""

    def __init__(self, path: Path, mode: int, name: Callable[[Path, str], None]) -> None:
        """`name` gives the file its key, durably."""
        self._path = path
        self._name = name
        self._tail: DirectTail | None = None
        self._tailless = False
        self._beginning = threading.Lock()
        super().__init__(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), str(path))

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `BlobWriter`."""
        end, first = offset + sum(map(len, buffers)), directio.SEGMENT_BYTES
        tail = self._direct() if end > first else None
        if tail is None:
            super().write_at(offset, buffers)
            return
        with translated(self._where):
            if offset < first:
                whole = memoryview(b"".join(buffers))
                write_all(self._fd, offset, [whole[: first - offset]])
                offset, buffers = first, [whole[first - offset :]]
            tail.write_at(offset, buffers)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `BlobWriter`."""
        first = directio.SEGMENT_BYTES
        if self._tail is None or offset + length <= first:
            return super().read_at(offset, length)
        before = super().read_at(offset, first - offset) if offset < first else b""
        with translated(self._where):
            data = before + self._tail.read_at(max(offset, first), length - len(before), self._fd)
        if len(data) < length:
            raise Damaged("a spooled pack is shorter than what was written", where=self._where)
        return data

    def publish(self, key: str) -> None:
        with translated(self._where):
            if self._tail is not None:
                self._tail.finish(self._fd)
            os.fdatasync(self._fd)
            failpoint("blob.synced")
            self._name(self._path, key)
            self._close()

    def abandon(self) -> None:
        if self._tail is not None:
            self._tail.abandon()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._close()

    def _direct(self) -> DirectTail | None:
        with self._beginning:
            if self._tail is None and not self._tailless:
                try:
                    self._tail = DirectTail(self._path)
                except OSError:
                    self._tailless = True
            return self._tail
