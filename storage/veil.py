"""Opaque names: in an encrypted repository no name in the store tells a time, a kind of mark, or which belong together.

A thin layer between the repository, which goes on with readable keys, and its store. AES-SIV gives a name always the
same form, so that a blob is found and created once under it, and turns it back when names are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from storage.blobs import Blobs, BlobWriter
from storage.sealing import Sealing

VEILED = ("manifests/", "marks/")
"""Whose names tell something. All others are numbers and random ids already."""

FOREIGN = "?"
"""Before a name that is not one of ours: it is listed, so that verification finds it, and reaches what it names."""

NAME_KEY_BYTES = 64
PADDING_BYTES = 32
"""Names are filled up to a multiple of this, so that their length does not tell the kind of a mark."""


def veiled(blobs: Blobs, sealing: Sealing) -> Blobs:
    """The store as the repository sees it: itself when plain."""
    return VeiledBlobs(blobs, sealing) if sealing.encrypted else blobs


class VeiledBlobs:
    """The `Blobs` of an encrypted repository. Errors of the store tell the names that lie there."""

    def __init__(self, inner: Blobs, sealing: Sealing) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        self.inner = inner
        self._siv = AESSIV(sealing.name_key)

    def outer(self, key: str) -> str:
        """The name in the store of a readable key, or of a folder that ends with a slash."""
        prefix = _veiled_prefix(key)
        if not prefix:
            return key
        known, parts = prefix, []
        for part in key.removeprefix(prefix).split("/"):
            parts.append(self._close(known, part))
            known += f"{part}/"
        return prefix + "/".join(parts)

    def readable(self, name: str) -> str:
        """The key that a name in the store stands for."""
        prefix = _veiled_prefix(name)
        if not prefix:
            return name
        known = prefix
        for part in name.removeprefix(prefix).split("/"):
            known += f"{self._open(known, part)}/"
        return known.removesuffix("/")

    def _close(self, folder: str, part: str) -> str:
        if not part:
            return ""
        if part.startswith(FOREIGN):
            return part[1:]
        data = part.encode(errors="surrogateescape")
        data += bytes(-len(data) % PADDING_BYTES)
        return self._siv.encrypt(data, [folder.encode(errors="surrogateescape")]).hex()

    def _open(self, folder: str, part: str) -> str:
        from cryptography.exceptions import InvalidTag

        try:
            data = self._siv.decrypt(bytes.fromhex(part), [folder.encode(errors="surrogateescape")])
        except (InvalidTag, ValueError):
            return FOREIGN + part
        found = data.rstrip(b"\0").decode(errors="surrogateescape")
        return found if self._close(folder, found) == part else FOREIGN + part

    def put(self, key: str, data: bytes) -> None:
        self.inner.put(self.outer(key), data)

    def replace(self, key: str, data: bytes) -> None:
        self.inner.replace(self.outer(key), data)

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        self.inner.replace_if(self.outer(key), data, expected)

    def get(self, key: str) -> bytes:
        return self.inner.get(self.outer(key))

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        self.inner.read_into(self.outer(key), offset, view)

    def size(self, key: str) -> int:
        return self.inner.size(self.outer(key))

    def age_stamp(self, key: str) -> float:
        return self.inner.age_stamp(self.outer(key))

    def clock(self) -> datetime:
        return self.inner.clock()

    def list(self, prefix: str) -> Iterator[str]:
        return map(self.readable, self.inner.list(self.outer(prefix)))

    def delete(self, key: str) -> None:
        self.inner.delete(self.outer(key))

    def writer(self) -> BlobWriter:
        return self.inner.writer()  # for packs alone, whose names need no veil

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def clean(self) -> int:
        return self.inner.clean()


def _veiled_prefix(key: str) -> str:
    return next((prefix for prefix in VEILED if key.startswith(prefix)), "")
