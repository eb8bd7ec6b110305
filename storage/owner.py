"""One process owns a local repository: a file lock decides, owner.json tells who."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from storage.blobs import translated
from storage.errors import Locked
from storage.manifest import stamp
from storage.pack import Writer


class Ownership:
    """Held from construction to `release`; the lock falls with the process."""

    def __init__(self, root: Path, owner: str, now: datetime) -> None:
        self._path = root / "owner.json"
        with translated(str(root)):
            self._fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            who = self._read()
            raise Locked(
                f"in use by pid {who.get('pid', 'unknown')} ({who.get('owner', 'unknown')}) on {who.get('host', '?')}",
                where=str(root),
                hint="ask that process, or wait until it ends",
            ) from None
        epoch = int(str(self._read().get("epoch", 0))) + 1
        self.writer = Writer(secrets.token_bytes(16), epoch)
        document = {
            "pid": os.getpid(), "host": socket.gethostname(), "owner": owner, "since": stamp(now),
            "writer": self.writer.id.hex(), "epoch": epoch,
        }  # fmt: skip
        temporary = self._path.with_suffix(".part")
        with translated(str(self._path)):
            temporary.write_text(json.dumps(document))
            temporary.replace(self._path)

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
