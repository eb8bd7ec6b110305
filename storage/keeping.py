"""What an append-only repository's keeper and its writers say to each other, over a Unix socket.

A frame is a length (4 bytes, little endian) and a JSON object; a request `put` is followed by as many bytes as it says.
The answer to `begin` carries a file descriptor.
"""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage import errors
from storage.errors import Damaged, StorageError, StoreFailed, no_permission

if TYPE_CHECKING:
    import socket

KEEPER_FILE = "keeper.json"
"""Makes a directory an append-only repository: where its keeper listens, and who may write through it."""

WRITTEN_MODE = 0o440
"""Of what a writer added."""

OWNED_MODE = 0o640
"""Of what the owner wrote itself: with the owner's write bit, which nobody else can set."""

LARGEST_BLOB_BYTES = 64 << 20
"""Of a blob that is put at once: a manifest of a thousand disks."""

LARGEST_PACK_BYTES = 1 << 30
_LARGEST_FRAME = 64 << 10

_KEYS = re.compile(
    r"config|config\.copy|packs/[0-9a-f]{2}/[0-9a-f]{8}-[0-9a-f]{32}\.(data|tree)|numbers/[0-9a-f]{6}"
    r"|(manifests|committing)/[0-9a-z-]{1,512}|marks/[0-9a-z-]{1,512}/[0-9a-z-]{1,512}"
)
_DELETABLE = re.compile(r"committing/[0-9a-z-]{1,512}")


def may_create(key: str) -> bool:
    """Whether a writer may create a blob under this key."""
    return _KEYS.fullmatch(key) is not None


def may_delete(key: str) -> bool:
    """Whether a writer may remove it: only what announces a commit that is under way."""
    return _DELETABLE.fullmatch(key) is not None


@dataclass(frozen=True, slots=True)
class Terms:
    """What `keeper.json` says. Who owns the directory owns deletion."""

    socket: Path
    writer_uid: int
    owner_uid: int


def terms_of(root: Path) -> Terms | None:
    """The terms of an append-only repository; None for any other directory. Damaged when they cannot be read."""
    path = root / KEEPER_FILE
    try:
        document = json.loads(path.read_bytes())
        owner = root.stat()
        if stat.S_IMODE(owner.st_mode) & 0o022:
            raise Damaged("others than its owner may write here: it is not append-only", where=str(root))
        return Terms(Path(document["socket"]), int(document["writer_uid"]), owner.st_uid)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise no_permission(error, str(root)) from None
    except OSError as error:
        raise StoreFailed(f"it cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError):
        raise Damaged("this does not say where a keeper listens", where=str(path)) from None


def made_by_owner(root: Path, name: str) -> bool:
    """Whether the owner of an append-only repository wrote this blob itself, not a writer through the keeper."""
    try:
        return bool((root / name).stat().st_mode & 0o200)
    except OSError:
        return False


def frame(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "little") + body


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message and the descriptors that came with it; None when the other side has hung up.

    ValueError for what is no message.
    """
    import socket  # most processes meet no keeper

    head, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
    if not head:
        return None
    head += receive_exactly(connection, 4 - len(head))
    length = int.from_bytes(head, "little")
    if length > _LARGEST_FRAME:
        raise ValueError(f"a message of {length} bytes")
    message = json.loads(receive_exactly(connection, length))
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message, descriptors


def receive_exactly(connection: socket.socket, length: int) -> bytes:
    """So many bytes; ConnectionError when the other side hangs up before."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise ConnectionError("the other side hung up")
        view = view[got:]
    return bytes(data)


def told(error: StorageError) -> dict[str, Any]:
    """An error as a message."""
    return {"error": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}


def raised(message: dict[str, Any]) -> StorageError:
    """The error that a message tells."""
    kind = getattr(errors, str(message["error"]), StoreFailed)
    if not (isinstance(kind, type) and issubclass(kind, StorageError)):
        kind = StoreFailed
    return kind(str(message.get("what", "")), where=str(message.get("where", "")), hint=str(message.get("hint", "")))
