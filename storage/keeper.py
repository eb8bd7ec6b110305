"""The keeper of an append-only repository: a process of the user who owns it, through whom another user adds blobs.

The writer's user can read the directory and nothing else. A large blob is a file of the keeper's that the writer gets
an open descriptor of; before it appears under its name the kernel has to grant a read lease, which it refuses for as
long as any descriptor or mapping can still write. So a writer that was taken over can add, and nothing it can do
changes or removes what is there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage import marks, randomness
from storage.blobs import LocalBlobs
from storage.errors import AlreadyExists, Damaged, NoRepository, Refused, StorageError, StoreFailed
from storage.failpoints import failpoint
from storage.filecalls import translated
from storage.format import CONFIG_COPY_KEY, CONFIG_KEY, parse_pack_key
from storage.keeping import (
    KEEPER_FILE,
    LARGEST_BLOB_BYTES,
    LARGEST_PACK_BYTES,
    OWNED_MODE,
    WRITTEN_MODE,
    Terms,
    frame,
    may_create,
    may_delete,
    receive,
    receive_exactly,
    terms_of,
    told,
)
from storage.numbering import BLOCK_BITS
from storage.numbering import PREFIX as NUMBERS

log = logging.getLogger(__name__)

MAX_SPOOLED = 64
"""Large blobs that one connection may have begun."""

MAX_CONNECTIONS = 64
"""Writers served at once, so that none takes all descriptors and threads from its keeper."""

MAX_CLAIMED_AHEAD = 16
"""How many blocks of pack numbers a claim may leave out: a writer could else use up all of them with one."""

VEILED = re.compile(r"[0-9a-f]{96,512}")
"""How storage/veil.py names what an encrypted repository hides: 16 bytes and a multiple of 32."""

STILL_WRITTEN_SECONDS = 5.0
"""A process that the writer has just forked may hold the file open for a moment longer."""


def establish(root: Path, terms_socket: Path, writer_uid: int) -> Terms:
    """Make a repository append-only, or check that it is already so on the same terms. Call as its owner.

    NoRepository, Refused.
    """
    if not (root / CONFIG_KEY).exists() and not (root / CONFIG_COPY_KEY).exists():
        raise NoRepository("there is no repository here", where=str(root), hint="make one with: backstay repo init")
    with translated(str(root)):
        if root.stat().st_uid != os.geteuid():
            raise Refused("only the user who owns the directory can keep it", where=str(root))
        if writer_uid == os.geteuid():
            raise Refused("the writer is to be another user than the one who owns the directory", where=str(root))
        known = terms_of(root)
        wanted = Terms(terms_socket, writer_uid, os.geteuid())
        if known is not None and known.writer_uid != writer_uid:
            raise Refused(f"user {known.writer_uid} writes here, not {writer_uid}", where=str(root / KEEPER_FILE))
        if known != wanted:
            root.chmod(0o2750)
            document = json.dumps({"socket": str(terms_socket), "writer_uid": writer_uid}).encode()
            LocalBlobs(root, mode=OWNED_MODE).replace(KEEPER_FILE, document)
        _open_up(root)
    return wanted


def _open_up(root: Path) -> None:
    """Let the group read what was made before; new files inherit the group from their folder."""
    group = root.stat().st_gid
    for path in root.rglob("*"):
        if path.is_symlink() or path.is_relative_to(root / "spool"):
            continue
        found = path.stat()
        mode = 0o2750 if path.is_dir() else (found.st_mode & 0o200) | 0o440
        if found.st_gid != group:
            os.chown(path, -1, group)
        if found.st_mode & 0o7777 != mode:
            path.chmod(mode)


@dataclass(slots=True)
class Keeper:
    """Serves until `stop` is set. `ready` is set when it listens."""

    root: Path
    terms: Terms
    stop: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    _places: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_CONNECTIONS))

    def serve(self) -> None:
        """Listen and answer, one thread for each writer's connection. StoreFailed when it cannot listen."""
        os.umask(0o027)
        blobs = LocalBlobs(self.root, mode=WRITTEN_MODE)
        blobs.clean()
        self._probe_leases()
        path = self.terms.socket
        with translated(str(path)), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o666)  # who may speak is asked of the kernel, connection by connection
            listener.listen(16)
            listener.settimeout(0.2)
            self.ready.set()
            try:
                while not self.stop.is_set():
                    with suppress(TimeoutError):
                        connection, _ = listener.accept()
                        self._admit(connection, blobs)
            finally:
                path.unlink(missing_ok=True)

    def _admit(self, connection: socket.socket, blobs: LocalBlobs) -> None:
        connection.settimeout(None)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", peer)
        if uid not in (self.terms.writer_uid, self.terms.owner_uid):
            log.warning("connection refused", extra={"pid": pid, "uid": uid})
            connection.close()
            return
        if not self._places.acquire(blocking=False):
            log.warning("connection refused: there are too many", extra={"pid": pid, "uid": uid})
            connection.close()
            return
        talk = _Conversation(connection, blobs, self.root)
        threading.Thread(target=self._serve_one, args=(talk,), name=f"writer {pid}", daemon=True).start()

    def _serve_one(self, talk: _Conversation) -> None:
        try:
            talk.run()
        finally:
            self._places.release()

    def _probe_leases(self) -> None:
        """StoreFailed on a file system that cannot tell whether somebody may still write."""
        path = self.root / "spool" / randomness.token_hex(8)
        with translated(str(self.root)):
            writing = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, WRITTEN_MODE)
            try:
                held = _is_written(path)
            finally:
                os.close(writing)
                free = not _is_written(path)
                path.unlink()
        if not (held and free):
            raise StoreFailed(
                "this file system does not tell whether a file is still open for writing",
                where=str(self.root),
                hint="an append-only repository needs a local file system such as ext4 or XFS",
            )


def _is_written(path: Path) -> bool:
    """Whether any descriptor or mapping of any process may write to a file of ours."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        raise
    finally:
        os.close(fd)  # which gives the lease back
    return False


class _Conversation:
    """One writer's connection. What it began and did not publish goes with it."""

    def __init__(self, connection: socket.socket, blobs: LocalBlobs, root: Path) -> None:
        self._connection = connection
        self._blobs = blobs
        self._root = root
        self._spooled: dict[str, Path] = {}

    def run(self) -> None:
        """Answer until the writer hangs up."""
        try:
            with self._connection:
                while (received := receive(self._connection)) is not None:
                    message, descriptors = received
                    for descriptor in descriptors:
                        os.close(descriptor)
                    self._answer(message)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.warning("connection given up: %s", error)
        finally:
            for path in self._spooled.values():
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _answer(self, message: dict[str, Any]) -> None:
        descriptors: list[int] = []
        try:
            answer = self._do(message, descriptors)
        except StorageError as error:
            answer = told(error)
        try:
            socket.send_fds(self._connection, [frame(answer)], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _do(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        match message["op"]:
            case "put":
                self._put(str(message["key"]), int(message["bytes"]))
            case "begin":
                return {"token": self._begin(descriptors)}
            case "publish":
                self._publish(str(message["token"]), str(message["key"]))
            case "abandon":
                with translated("spool"):
                    self._spooled.pop(str(message["token"])).unlink(missing_ok=True)
            case "delete":
                key = str(message["key"])
                if not may_delete(key):
                    raise _refused(key)
                self._blobs.delete(key)
            case "clock":
                return {"at": self._blobs.clock().timestamp()}
            case other:
                raise ValueError(f"unknown request {other!r}")
        return {}

    def _put(self, key: str, length: int) -> None:
        if not 0 <= length <= LARGEST_BLOB_BYTES:
            raise ValueError(f"a blob of {length} bytes")
        data = receive_exactly(self._connection, length)
        if not may_create(key) or key.startswith("packs/"):
            raise _refused(key)
        if key.startswith(NUMBERS) and not self._is_near(int(key.removeprefix(NUMBERS), 16)):
            raise _refused(key)
        if key.startswith(marks.PREFIX) and not _is_mark(key):
            raise _refused(key)
        self._blobs.put(key, data)
        failpoint("keeper.put")

    def _begin(self, descriptors: list[int]) -> str:
        if len(self._spooled) >= MAX_SPOOLED:
            raise Refused(f"{MAX_SPOOLED} packs are being written already", where=str(self._root))
        token = randomness.token_hex(16)
        path = self._root / "spool" / token
        with translated("spool"):
            descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, WRITTEN_MODE))
        self._spooled[token] = path
        return token

    def _publish(self, token: str, key: str) -> None:
        path = self._spooled.get(token)
        if path is None:
            raise StoreFailed("what was begun is gone, as the keeper was started anew", where=key, hint="run it again")
        pack = parse_pack_key(key)
        if pack is None or not may_create(key) or not self._is_claimed(pack.number >> BLOCK_BITS):
            raise _refused(key)
        with translated(key):
            if path.stat().st_size > LARGEST_PACK_BYTES:
                raise _refused(key)
            until = time.monotonic() + STILL_WRITTEN_SECONDS
            while _is_written(path):
                if time.monotonic() > until:
                    raise Refused("somebody may still write to it", where=key, hint="close it first")
                time.sleep(0.02)
            sync_file(path)
            failpoint("keeper.synced")
            try:
                self._blobs.name(path, key)
            except AlreadyExists:
                path.unlink(missing_ok=True)
                raise
            finally:
                self._spooled.pop(token)

    def _is_claimed(self, block: int) -> bool:
        return (self._root / f"{NUMBERS}{block:06x}").exists()

    def _is_near(self, block: int) -> bool:
        """Whether a claim follows upon what was claimed or used before."""
        claimed = [int(key.removeprefix(NUMBERS), 16) for key in self._blobs.list(NUMBERS)]
        packs = map(parse_pack_key, self._blobs.list("packs/"))
        used = [pack.number >> BLOCK_BITS for pack in packs if pack is not None]
        return block <= max([*claimed, *used], default=0) + MAX_CLAIMED_AHEAD


def _is_mark(key: str) -> bool:
    """Whether a name is that of a mark; what an encrypted one says only its readers know."""
    if not VEILED.fullmatch(key.rpartition("/")[2]):
        try:
            marks.parse_key(key)
        except Damaged:
            return False
    return True


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refused(key: str) -> Refused:
    return Refused("this repository is append-only: its keeper adds, and removes or changes nothing", where=key)
