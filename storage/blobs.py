"""The dumb key-value store beneath a repository, and the local directory as one.

The contract is narrow on purpose: an object store can keep it. Keys are relative paths of plain ASCII.
Foreign errors become NoSpace or StoreFailed here and nowhere else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from storage import randomness
from storage.errors import AlreadyExists, Changed, Damaged, Missing, NoSpace
from storage.failpoints import failpoint
from storage.filecalls import Buffer, read_full, sync_folder, translated, write_all
from storage.spoolfiles import LocalWriter

RESERVE = "reserve"
RESERVE_BYTES = 256 << 10


class BlobWriter(Protocol):
    """One large blob under construction, invisible until it is published."""

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers one after the other from offset on. Thread-safe for disjoint places."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes that were written before."""
        ...

    def publish(self, key: str) -> None:
        """Make the blob durable and visible under key. AlreadyExists if the key is taken."""
        ...

    def abandon(self) -> None:
        """Forget what was written. Idempotent; never fails."""
        ...


class Blobs(Protocol):
    """Create-once blobs. What a call did is durable when it returns."""

    def put(self, key: str, data: bytes) -> None:
        """Create; AlreadyExists if the key is taken."""
        ...

    def replace(self, key: str, data: bytes) -> None:
        """Create or overwrite, atomically. Only for the config and for what is derived."""
        ...

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        """Overwrite, atomically, what still is `expected` (None: nothing is there yet); Changed if it is not."""
        ...

    def get(self, key: str) -> bytes:
        """All bytes of a blob, or Missing."""
        ...

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        """Fill view from offset on; Missing, or Damaged when the blob is too short. Thread-safe."""
        ...

    def size(self, key: str) -> int:
        """The number of bytes, or Missing."""
        ...

    def age_stamp(self, key: str) -> float:
        """When the blob was published, in Unix seconds by the store's own clock."""
        ...

    def clock(self) -> datetime:
        """What time it is by the clock that `age_stamp` goes by."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Every key below a folder (`packs/`), in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove; no error if it is gone already."""
        ...

    def writer(self) -> BlobWriter:
        """Begin a large blob."""
        ...

    def free_bytes(self) -> int | None:
        """Room left; None when the store cannot tell."""
        ...

    def clean(self) -> int:
        """Remove what writers left behind that did not live to publish. Only for the owner; returns how many."""
        ...


class LocalBlobs:
    """A directory. Blobs are written to `spool/`, synced, then linked to their name, and the folder is synced.

    The file `reserve` keeps a little room: when the disk is full, marks get it, so that restore points can expire.
    Files are made with `mode`, which the process's umask narrows.
    """

    def __init__(self, root: Path, *, mode: int = 0o600) -> None:
        self.root = root
        self.spool = root / "spool"
        self.mode = mode

    def _path(self, key: str) -> Path:
        return self.root / key

    def name(self, temporary: Path, key: str) -> None:
        """Give a finished file of the spool folder its name, durably. AlreadyExists if it is taken; OSError."""
        target = self._path(key)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            failpoint("blob.folder_made")
            sync_folder(target.parent.parent)
        try:
            os.link(temporary, target)
            failpoint("blob.linked")
            temporary.unlink()
        except FileExistsError:
            raise AlreadyExists("this blob is there already", where=key) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            if target.exists():  # a file system without hard links; the owner's lock makes this check enough
                raise AlreadyExists("this blob is there already", where=key) from None
            temporary.rename(target)
        failpoint("blob.named")
        sync_folder(target.parent)

    def _spooled(self, data: bytes) -> Path:
        temporary = self.spool / randomness.token_hex(8)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode)
        try:
            write_all(fd, 0, [data])
            os.fsync(fd)
        except OSError:
            temporary.unlink()
            raise
        finally:
            os.close(fd)
        failpoint("blob.spooled")
        return temporary

    def put(self, key: str, data: bytes) -> None:
        try:
            self._put(key, data)
        except NoSpace:
            if not key.startswith(("marks/", "condemned/")) or not self._release_reserve():
                raise
            self._put(key, data)

    def _put(self, key: str, data: bytes) -> None:
        with translated(str(self._path(key))):
            temporary = self._spooled(data)
            try:
                self.name(temporary, key)
            finally:
                temporary.unlink(missing_ok=True)

    def _release_reserve(self) -> bool:
        """Give the room away that is kept for marks: an expiry is what frees a full disk."""
        try:
            (self.root / RESERVE).unlink()
        except OSError:
            return False
        return True

    def _keep_reserve(self) -> None:
        with suppress(OSError):
            fd = os.open(self.root / RESERVE, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)

    def replace(self, key: str, data: bytes) -> None:
        with translated(str(self._path(key))):
            temporary = self._spooled(data)
            try:
                temporary.replace(self._path(key))
                failpoint("blob.replaced")
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(self._path(key).parent)

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        with translated(key):  # one process owns a directory: nobody changes it between the two
            path = self._path(key)
            if (path.read_bytes() if path.exists() else None) != expected:
                raise Changed("this blob is no longer what it was when it was read", where=key, hint="run it again")
        self.replace(key, data)

    def get(self, key: str) -> bytes:
        with translated(key):
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                raise Missing("this blob is missing", where=key) from None

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        with translated(key):
            try:
                fd = os.open(self._path(key), os.O_RDONLY)
            except FileNotFoundError:
                raise Missing("this blob is missing", where=key) from None
            try:
                if not read_full(fd, offset, view):
                    raise Damaged("this blob is shorter than what was written", where=key)
            finally:
                os.close(fd)

    def size(self, key: str) -> int:
        with translated(key):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                raise Missing("this blob is missing", where=key) from None

    def age_stamp(self, key: str) -> float:
        with translated(key):
            try:
                return self._path(key).stat().st_mtime
            except FileNotFoundError:
                raise Missing("this blob is missing", where=key) from None

    def clock(self) -> datetime:
        """By the server that holds the directory; a full disk still tells it through a file that is there."""
        path = self.spool / randomness.token_hex(8)
        with translated("spool"):
            try:
                path.touch(0o600)
                moment = path.stat().st_mtime
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                os.utime(self.spool)
                moment = self.spool.stat().st_mtime
            finally:
                path.unlink(missing_ok=True)
        return datetime.fromtimestamp(moment, UTC)

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._path(prefix)
        with translated(prefix):
            try:
                found = list(os.scandir(folder))
            except FileNotFoundError:
                return
        for entry in found:
            key = prefix + entry.name
            if entry.is_dir():
                yield from self.list(key + "/")
            else:
                yield key

    def delete(self, key: str) -> None:
        path = self._path(key)
        with translated(key):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            failpoint("blob.unlinked")
            sync_folder(path.parent)
            if key.startswith("marks/"):
                with suppress(OSError):
                    path.parent.rmdir()

    def writer(self) -> LocalWriter:
        with translated("spool"):
            return LocalWriter(self.spool / randomness.token_hex(8), self.mode, self.name)

    def free_bytes(self) -> int:
        with translated("spool"):
            room = os.statvfs(self.root)
            return room.f_bavail * room.f_frsize

    def clean(self) -> int:
        removed = 0
        with translated("spool"):
            self.spool.mkdir(exist_ok=True)
            for path in self.spool.iterdir():
                if path.is_dir() and not path.is_symlink():
                    continue  # not ours
                try:
                    path.unlink()
                except OSError as error:
                    if error.errno != errno.EROFS:
                        raise
                    break
                removed += 1
        self._keep_reserve()
        return removed
