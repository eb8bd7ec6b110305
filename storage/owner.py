"""One process owns a work folder, which is a local repository itself: a file lock decides, owner.json tells who."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from storage import randomness
from storage.errors import Locked
from storage.failpoints import failpoint
from storage.filecalls import as_storage_error, translated
from storage.moments import stamp
from storage.pack import Writer

log = logging.getLogger(__name__)


class Ownership:
    """Held from construction to `release`; the lock falls with the process."""

    def __init__(self, root: Path, owner: str, now: datetime, *, place: str = "") -> None:
        self._path = root / "owner.json"
        with translated(str(root)):
            self._fd = _open_lock(root / "lock")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            who = self._read()
            raise Locked(
                f"in use by pid {who.get('pid', 'unknown')} ({who.get('owner', 'unknown')}) on {who.get('host', '?')}",
                where=place or str(root),
                hint="ask that process, or wait until it ends",
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise as_storage_error(error, str(root / "lock")) from error
        before = self._read().get("epoch")
        epoch = before + 1 if isinstance(before, int) else 1
        self.writer = Writer(randomness.token_bytes(16), epoch)
        document = {
            "pid": os.getpid(), "host": os.uname().nodename, "owner": owner, "since": stamp(now),
            "writer": self.writer.id.hex(), "epoch": epoch,
        } | ({"place": place} if place else {})  # fmt: skip
        try:
            self._tell(json.dumps(document))
        except OSError as error:  # a full disk must not keep anybody from restoring
            log.warning("owner not recorded: %s", as_storage_error(error, str(self._path)))

    def _tell(self, document: str) -> None:
        temporary = self._path.with_suffix(".part")
        try:
            temporary.write_text(document)
            failpoint("owner.written")
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            with self._path.open("r+") as file:  # its room is there already
                file.write(document)
                file.truncate()

    def _read(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_text())
            if isinstance(found, dict):
                return found
        return {}

    def release(self) -> None:
        """Let the next process in."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open_lock(path: Path) -> int:
    """A lock can be held on a file that can only be read, too: that of a copy on a read-only file system."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        return os.open(path if path.exists() else path.parent, os.O_RDONLY)
