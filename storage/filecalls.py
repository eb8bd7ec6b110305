"""Calls to the file system that the store and its neighbours share, and foreign errors as ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storage.errors import NoSpace, StorageError, StoreFailed, no_permission

Buffer = bytes | bytearray | memoryview


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn an OSError into ours."""
    try:
        yield
    except OSError as error:
        raise as_storage_error(error, where) from error


def as_storage_error(error: OSError, where: str) -> StorageError:
    """Ours for an OSError: NoSpace or StoreFailed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("no space left", where=where, hint="free some space, for example by reclaim, then run again")
    if isinstance(error, PermissionError):
        return no_permission(error, where)
    return StoreFailed(f"the store reported: {error.strerror or error}", where=where)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, offset: int, buffers: Sequence[Buffer]) -> None:
    """pwritev until everything is written."""
    pending = list(buffers)
    while pending:
        done = os.pwritev(fd, pending[:512], offset)
        offset += done
        while pending and done >= len(pending[0]):
            done -= len(pending.pop(0))
        if done:
            pending[0] = memoryview(pending[0])[done:]


def read_full(fd: int, offset: int, view: memoryview) -> bool:
    """Fill view from a file; False when the file ends before."""
    while len(view):
        done = os.preadv(fd, [view], offset)
        if done == 0:
            return False
        view = view[done:]
        offset += done
    return True
