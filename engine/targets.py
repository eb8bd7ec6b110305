"""A file or block device that becomes a disk of a restore point, or stays what it was."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.failures import BadInput, Declined
from storage.reading import PointDisk
from storage.restore import restore_disk

_BLKGETSIZE64 = 0x80081272


def restore_to_file(
    disk: PointDisk, target: Path, *, force: bool, threads: int = 2, progress: Callable[[int], None] | None = None
) -> int:
    """Write the whole disk to the target, verified and durable; returns the bytes that held data.

    A file appears under its name only when it is complete; with force it replaces the one that is there. A block
    device needs force, room enough, and nobody else who uses it. Declined when the target is in the way.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:
        raise BadInput(f"cannot be looked at: {error.strerror}", where=str(target)) from None
    if stat.S_ISDIR(mode):
        raise BadInput("this is a directory", where=str(target), hint="name the file to write")
    if mode and not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise BadInput("this is neither a file nor a block device", where=str(target))
    if mode and not force:
        kind = "block device" if stat.S_ISBLK(mode) else "file"
        raise Declined(f"there is a {kind} already", where=str(target), hint="--force overwrites it")
    opened = _device(target, disk.capacity_bytes) if stat.S_ISBLK(mode) else _file(target)
    with opened as fd:
        written = restore_disk(disk, fd, threads=threads, progress=progress)
        os.fsync(fd)
    return written


@contextmanager
def _file(target: Path) -> Iterator[int]:
    """A file that takes the target's name when the block ends well, and is gone when it does not."""
    partial = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"cannot be made: {error.strerror}", where=str(target)) from None
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _device(target: Path, capacity_bytes: int) -> Iterator[int]:
    try:
        # Exclusive: the kernel refuses a device that is mounted or otherwise in use.
        fd = os.open(target, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"cannot be opened for writing: {error.strerror}", where=str(target)) from None
    try:
        (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
        if size < capacity_bytes:
            raise Declined(f"holds {size} bytes, the disk {capacity_bytes}", where=str(target))
        yield fd
    finally:
        os.close(fd)
