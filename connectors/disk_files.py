"""Disks that are files: raw images and block devices, read and written by positioned calls from any thread.

Quick to load: a command that reads a file needs no event loop.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from connectors.disks import Extent, merge
from connectors.errors import ConnectorError, Gone, NotPermitted, ReadFailed, TransportFailed, WriteFailed


class _DiskFile:
    """An open file or block device of a fixed size."""

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._fd = _open(path, flags)
        try:
            mode = os.fstat(self._fd).st_mode
            self.is_device = stat.S_ISBLK(mode)
            if not (self.is_device or stat.S_ISREG(mode)):
                raise TransportFailed("is neither a file nor a block device", where=str(path))
            self.capacity_bytes = self._size()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; nothing may be under way."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _size(self) -> int:
        # A block device has no size in its inode, but it has an end.
        return os.lseek(self._fd, 0, os.SEEK_END) if self.is_device else os.fstat(self._fd).st_size

    def _check(self, offset: int, length: int, error: type[ConnectorError]) -> None:
        if offset < 0 or offset + length > self.capacity_bytes:
            raise error(f"{length} bytes at offset {offset} do not lie on the disk", where=str(self.path))


class FileReader(_DiskFile):
    """A BlockingReader over a raw image or a block device."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_RDONLY)

    def extents(self) -> list[Extent]:
        """What the file system holds data for; all of a block device, which cannot tell."""
        if self.is_device:
            return merge([Extent(0, self.capacity_bytes)])
        found: list[Extent] = []
        end = 0
        while end < self.capacity_bytes:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    break
                if exc.errno == errno.EINVAL:
                    return merge([Extent(0, self.capacity_bytes)])
                raise ReadFailed(f"looking for holes: {exc.strerror}", where=str(self.path)) from exc
            found.append(Extent(start, min(end, self.capacity_bytes) - start))
        return merge(found)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on; ReadFailed where the file ends early or changed its size meanwhile."""
        length = view.nbytes
        self._check(offset, length, ReadFailed)
        done = 0
        try:
            while done < length:
                count = os.preadv(self._fd, [view[done:] if done else view], offset + done)
                if count == 0:
                    break
                done += count
            size = self.capacity_bytes if self.is_device else os.fstat(self._fd).st_size
        except OSError as exc:
            raise ReadFailed(
                f"reading {length} bytes at offset {offset + done}: {exc.strerror}", where=str(self.path)
            ) from exc
        if size != self.capacity_bytes or done < length:
            raise ReadFailed(
                f"changed its size from {self.capacity_bytes} to {size} bytes while it was read"
                if size != self.capacity_bytes
                else f"ended after {done} of {length} bytes at offset {offset}",
                where=str(self.path),
                hint="back up a disk that is not in use, or a snapshot of it",
            )


class FileWriter(_DiskFile):
    """A BlockingWriter over an existing file or block device, which keeps its size."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_RDWR)

    @classmethod
    def create(cls, path: Path, capacity_bytes: int) -> FileWriter:
        """A new sparse file; WriteFailed when one is there already."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise WriteFailed(f"cannot be made: {exc.strerror}", where=str(path)) from exc
        try:
            os.ftruncate(fd, capacity_bytes)
        except OSError as exc:
            with suppress(OSError):
                path.unlink()
            raise WriteFailed(f"cannot be {capacity_bytes} bytes long: {exc.strerror}", where=str(path)) from exc
        finally:
            os.close(fd)
        return cls(path)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, as it is on the disk now."""
        self._check(offset, view.nbytes, ReadFailed)
        done = 0
        try:
            while done < view.nbytes:
                count = os.preadv(self._fd, [view[done:] if done else view], offset + done)
                if count == 0:
                    raise ReadFailed(f"ended at offset {offset + done}", where=str(self.path))
                done += count
        except OSError as exc:
            raise ReadFailed(f"reading at offset {offset + done}: {exc.strerror}", where=str(self.path)) from exc

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of view at offset."""
        length = view.nbytes
        self._check(offset, length, WriteFailed)
        done = 0
        try:
            while done < length:
                done += os.pwritev(self._fd, [view[done:] if done else view], offset + done)
        except OSError as exc:
            raise WriteFailed(
                f"writing {length} bytes at offset {offset + done}: {exc.strerror}", where=str(self.path)
            ) from exc

    def flush(self) -> None:
        """Return when everything written is durable."""
        try:
            os.fsync(self._fd)
        except OSError as exc:
            raise WriteFailed(f"flushing: {exc.strerror}", where=str(self.path)) from exc


def is_nbd(source: str) -> bool:
    """Whether source is an NBD address rather than a path."""
    return source.startswith(("nbd:", "nbds:", "nbd+unix:", "nbds+unix:"))


def _open(path: Path, flags: int) -> int:
    try:
        # A named pipe must be refused, not waited for.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise Gone("there is no such file", where=str(path)) from exc
    except PermissionError as exc:
        hint = "run as a user who may, or change the file's permissions"
        raise NotPermitted(f"may not be opened: {exc.strerror}", where=str(path), hint=hint) from exc
    except OSError as exc:
        raise TransportFailed(f"cannot be opened: {exc.strerror}", where=str(path)) from exc
