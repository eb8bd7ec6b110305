"""An append-only repository as its writer sees it: it reads the directory itself and adds through the keeper."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.blobs import LocalBlobs
from storage.errors import AlreadyExists, Changed, Refused, StoreFailed
from storage.filecalls import translated
from storage.keeping import Terms, frame, raised, receive
from storage.spoolfiles import SpoolFile

HINT = "start it as the user who owns the repository: backstay repo keep DIR --writer USER"


ANSWER_SECONDS = 300.0
"""A keeper that syncs a large pack on a slow disk takes its time; one that was stopped must not hang its writer."""

Answer = tuple[dict[str, Any], list[int]]
"""What the keeper said, and open files that came with it."""


class KeptBlobs:
    """The `Blobs` of a writer. What would change or remove something is Refused."""

    append_only = True

    def __init__(self, root: Path, terms: Terms) -> None:
        self.root = root
        self._files = LocalBlobs(root)
        self._terms = terms
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def put(self, key: str, data: bytes) -> None:
        self.ask({"op": "put", "key": key, "bytes": len(data)}, data)

    def replace(self, key: str, data: bytes) -> None:
        raise Refused("this repository is append-only", where=key)

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        if expected is not None:
            raise Refused("this repository is append-only: its owner changes keys", where=key)
        try:
            self.put(key, data)
        except AlreadyExists:
            raise Changed("this blob is no longer what it was when it was read", where=key) from None

    def get(self, key: str) -> bytes:
        return self._files.get(key)

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        self._files.read_into(key, offset, view)

    def size(self, key: str) -> int:
        return self._files.size(key)

    def age_stamp(self, key: str) -> float:
        return self._files.age_stamp(key)

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.ask({"op": "clock"})[0]["at"], UTC)

    def list(self, prefix: str) -> Iterator[str]:
        return self._files.list(prefix)

    def delete(self, key: str) -> None:
        self.ask({"op": "delete", "key": key})

    def writer(self) -> KeptWriter:
        answer, descriptors = self.ask({"op": "begin"})
        return KeptWriter(self, str(answer["token"]), descriptors[0])

    def free_bytes(self) -> int | None:
        return self._files.free_bytes()

    def clean(self) -> int:
        return 0

    def close(self) -> None:
        """Hang up; what was begun and not published goes."""
        with self._lock:
            self._hang_up()

    def ask(self, message: dict[str, Any], payload: bytes = b"") -> Answer:
        """The keeper's answer. StoreFailed when there is none, and whatever error the keeper tells."""
        with self._lock:
            try:
                connection = self._sent(frame(message) + payload)
                received = receive(connection)
                if received is None:
                    raise ConnectionError("it hung up")
            except (OSError, ValueError) as error:
                self._hang_up()
                raise StoreFailed(
                    f"the keeper does not answer: {error}", where=str(self._terms.socket), hint=HINT
                ) from None
        answer, descriptors = received
        if "error" in answer:
            for descriptor in descriptors:
                os.close(descriptor)
            raise raised(answer)
        return answer, descriptors

    def _sent(self, request: bytes) -> socket.socket:
        """The connection on which the keeper has a request; a new one where the old one died while it was idle."""
        if self._connection is not None:
            try:
                if not _is_over(self._connection):
                    self._connection.sendall(request)
                    return self._connection
            except ConnectionError:
                pass  # what was not sent to its end was not done
            self._hang_up()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(ANSWER_SECONDS)
        self._connection.connect(str(self._terms.socket))
        self._connection.sendall(request)
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_over(connection: socket.socket) -> bool:
    """Whether the other side of an idle connection has hung up."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(ANSWER_SECONDS)


class KeptWriter(SpoolFile):
    """A file of the keeper's, open for writing here until it is published."""

    def __init__(self, blobs: KeptBlobs, token: str, descriptor: int) -> None:
        self._blobs = blobs
        self._token = token
        super().__init__(descriptor, "spool")

    def publish(self, key: str) -> None:
        with translated(key):
            os.fdatasync(self._fd)
        self._close()
        self._blobs.ask({"op": "publish", "token": self._token, "key": key})

    def abandon(self) -> None:
        if self._fd >= 0:
            self._close()
            with suppress(StoreFailed, Refused):
                self._blobs.ask({"op": "abandon", "token": self._token})
