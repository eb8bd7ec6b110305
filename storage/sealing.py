"""Hashes, digests and encryption of one repository: what binds bytes to repository, type and id.

A plain repository has BLAKE3 against accidents. An encrypted one has AES-256-GCM: a subkey for each pack and small
object from a random salt, nonces that count within it, and keyed chunk ids, so that the store learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol

from blake3 import blake3
from isal.isal_zlib import crc32

from storage import randomness
from storage.errors import Damaged
from storage.filecalls import Buffer
from storage.format import (
    ENTRY,
    ENVELOPE,
    FLAG_ENCRYPTED,
    Entry,
    Envelope,
    ObjectKind,
    PackHeader,
    pack_envelope,
    pack_header,
    parse_envelope,
)
from storage.keyderivation import KEY_BYTES

TAG_BYTES = 16
_FOOTER_NONCE = b"\xff" * 12
_OBJECT_NONCE = bytes(12)


Chunk = tuple[bytes, int, int, Buffer]
"""A chunk on its way into a pack: id, raw length, codec, and its bytes as encoded but not sealed yet."""


class Aead(Protocol):
    """What AESGCM offers."""

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None) -> bytes: ...


def derive(context: str, *material: bytes, length: int = KEY_BYTES) -> bytes:
    """A key for one purpose from key material."""
    return blake3(b"".join(material), derive_key_context=f"backstay 2026 format 1 {context}").digest(length)


class PackSeal:
    """How the payloads and the footer of one pack are stored. `overhead` is added to each payload.

    Without encryption an entry has the CRC-32 of the payload: it sees the flips that a decompressor shrugs off.
    """

    def __init__(self, header: PackHeader, aead: Aead | None) -> None:
        self._head = pack_header(header)
        self._aead = aead
        self.overhead = TAG_BYTES if aead else 0
        self._invalid: type[Exception] = _invalid_tag() if aead else Exception

    def close_chunks(self, chunks: Sequence[Chunk], offset: int) -> tuple[bytes, list[Buffer]]:
        """The footer's entries and the stored bytes of chunks that follow each other from this offset of the pack.

        A nonce is the chunk's offset in the pack, so it never repeats.
        """
        aead, entry = self._aead, ENTRY.pack
        places = list(accumulate([len(data) + self.overhead for *_, data in chunks], initial=offset))
        if aead is None:
            payloads = [data for *_, data in chunks]
            checks = [crc32(data) for data in payloads]
        else:
            payloads = [
                aead.encrypt(at.to_bytes(12, "little"), data, self._head + chunk)
                for (chunk, _, _, data), at in zip(chunks, places, strict=False)
            ]
            checks = [0] * len(payloads)
        entries = [
            entry(chunk, at, len(data), codec << 24 | raw, check)
            for (chunk, raw, codec, _), at, data, check in zip(chunks, places, payloads, checks, strict=False)
        ]
        return b"".join(entries), payloads

    def open_chunk(self, entry: Entry, stored: Buffer, where: str) -> Buffer:
        """What close_chunks was given, or Damaged."""
        if self._aead is None:
            if crc32(stored) != entry.check:
                raise Damaged("the stored bytes of a chunk are not what was written", where=where)
            return stored
        try:
            return self._aead.decrypt(entry.offset.to_bytes(12, "little"), stored, self._head + entry.id)
        except self._invalid:
            raise Damaged("encrypted bytes are not what was written here", where=where) from None

    def close_footer(self, footer: bytes) -> bytes:
        """The stored footer."""
        return footer if self._aead is None else self._aead.encrypt(_FOOTER_NONCE, footer, self._head)

    def open_footer(self, stored: bytes, where: str) -> bytes:
        """What close_footer was given, or Damaged."""
        if self._aead is None:
            return stored
        try:
            return self._aead.decrypt(_FOOTER_NONCE, stored, self._head)
        except self._invalid:
            raise Damaged("encrypted bytes are not what was written here", where=where) from None


class Sealing:
    """The keys and hashes of one repository. Without a master key the repository is plain."""

    def __init__(self, repository: bytes, master: bytes | None) -> None:
        self.repository = repository
        self.master = master
        """For key slots alone."""
        self.encrypted = master is not None
        self.flags = FLAG_ENCRYPTED if master is not None else 0
        node_key = derive("node id", master or b"", repository)
        self._chunk_key = derive("chunk id", master, repository) if master is not None else None
        self._pack_key = derive("pack", master, repository) if master is not None else b""
        self._object_key = derive("object", master, repository) if master is not None else b""
        self.name_key = derive("object name", master, repository, length=64) if master is not None else b""
        self.config_key = derive("config", master, repository) if master is not None else b""
        self._chunk_hash = partial(blake3, key=self._chunk_key) if self._chunk_key is not None else blake3
        self._node_hash: Callable[[Buffer], blake3] = partial(blake3, key=node_key)

    def chunk_id(self, data: Buffer) -> bytes:
        """The id of a chunk of a disk."""
        return self._chunk_hash(data).digest()

    def node_id(self, data: Buffer) -> bytes:
        """The id of a block map's node: another key, so that a disk's content cannot pose as a node."""
        return self._node_hash(data).digest()

    def salt(self) -> bytes:
        """The salt for a new pack or object."""
        return randomness.token_bytes(32) if self.encrypted else bytes(32)

    def pack(self, header: PackHeader) -> PackSeal:
        """The seal of one pack; Damaged if the pack belongs to another repository or is not encrypted as this one."""
        if header.repository != self.repository or header.flags != self.flags:
            raise Damaged("this pack belongs to another repository", where=header.pack.hex())
        if not self.encrypted:
            return PackSeal(header, None)
        return PackSeal(header, cipher(derive("pack salt", self._pack_key, header.salt)))

    def close(self, kind: ObjectKind, name: str, payload: bytes) -> bytes:
        """A small object as stored, bound to this repository, its kind and its name."""
        return self._close(kind, name, payload, self.encrypted)

    def close_plain(self, kind: ObjectKind, name: str, payload: bytes) -> bytes:
        """The same without encryption, for what must be read before the key is known."""
        return self._close(kind, name, payload, False)

    def _close(self, kind: ObjectKind, name: str, payload: bytes, encrypted: bool) -> bytes:
        salt = self.salt() if encrypted else bytes(32)
        head = pack_envelope(Envelope(kind, FLAG_ENCRYPTED if encrypted else 0, len(payload), self.repository, salt))
        if encrypted:
            aead = cipher(derive("object salt", self._object_key, salt))
            return head + aead.encrypt(_OBJECT_NONCE, payload, head + name.encode())
        return head + payload + _object_digest(head, name, payload)

    def open(self, kind: ObjectKind, name: str, data: bytes) -> bytes:
        """The payload of a small object, or Damaged."""
        envelope = parse_envelope(data, name)
        if envelope.kind != kind or envelope.repository != self.repository or envelope.flags != self.flags:
            raise Damaged("this object belongs to another place or repository", where=name)
        if not self.encrypted:
            return open_plain(kind, name, data)
        head, sealed = data[: ENVELOPE.size], data[ENVELOPE.size :]
        from cryptography.exceptions import InvalidTag

        try:
            aead = cipher(derive("object salt", self._object_key, envelope.salt))
            return aead.decrypt(_OBJECT_NONCE, sealed, head + name.encode())
        except InvalidTag:
            raise Damaged("the object is not what was written here", where=name) from None


def open_plain(kind: ObjectKind, name: str, data: bytes, where: str = "") -> bytes:
    """The payload of a small object that is not encrypted, or Damaged; `where` if it lies under another name."""
    envelope = parse_envelope(data, where or name)
    head = data[: ENVELOPE.size]
    payload = data[ENVELOPE.size : ENVELOPE.size + envelope.payload_bytes]
    if (
        envelope.kind != kind
        or envelope.flags
        or data[ENVELOPE.size :] != payload + _object_digest(head, name, payload)
    ):
        raise Damaged("the object is not what was written here", where=where or name)
    return payload


def _object_digest(head: bytes, name: str, payload: bytes) -> bytes:
    hasher = blake3(head, derive_key_context="backstay 2026 format 1 object digest")
    hasher.update(len(name.encode()).to_bytes(4, "little") + name.encode())
    hasher.update(payload)
    return hasher.digest()


def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag

    return InvalidTag


def cipher(key: bytes) -> Aead:
    """AES-256-GCM: the one place where a key meets its cipher."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
