"""Packs: one being written by many threads, and the footers of those that are sealed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from storage import randomness
from storage.blobs import Blobs, BlobWriter
from storage.errors import Damaged, StoreFailed, Unsupported
from storage.failpoints import failpoint
from storage.format import (
    ENTRY,
    HEADER_BYTES,
    ID_BYTES,
    MAX_BLOCK_BYTES,
    MAX_PACK_CHUNKS,
    TRAILER_BYTES,
    Entry,
    PackHeader,
    PackKind,
    PackName,
    check_footer,
    pack_header,
    pack_trailer,
    parse_entry,
    parse_pack_header,
    parse_trailer,
)
from storage.sealing import Chunk, PackSeal, Sealing

FOOTER_CACHE_BYTES = 24 << 20
"""Footers kept in memory: those of about 150 full packs."""


class PackSource(Protocol):
    """What footers are read from: a store, or the ends of a pack that were kept."""

    def size(self, key: str) -> int: ...
    def read_into(self, key: str, offset: int, view: memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: an id for the process that owns the repository, and the count of owners so far."""

    id: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Footer:
    """What a sealed pack holds."""

    name: PackName
    header: PackHeader
    seal: PackSeal
    entries: bytes
    size: int

    def __len__(self) -> int:
        return len(self.entries) // ENTRY.size

    def entry(self, slot: int) -> Entry:
        """The chunk in a slot."""
        return parse_entry(self.entries, slot)

    def ids(self) -> list[bytes]:
        """The ids of all chunks, by slot."""
        return [self.entries[at : at + ID_BYTES] for at in range(0, len(self.entries), ENTRY.size)]

    def holds(self, slot: int, chunk: bytes) -> bool:
        """Whether this very chunk is in this slot."""
        return self.entries.startswith(chunk, slot * ENTRY.size)


class OpenPack:
    """A pack that is being filled. `reserve` under the caller's lock; `write` from any thread outside it."""

    def __init__(self, blobs: Blobs, sealing: Sealing, name: PackName, writer: Writer, now: datetime) -> None:
        self.name = name
        self.header = PackHeader(
            kind=name.kind, flags=sealing.flags, repository=sealing.repository, pack=name.id, writer=writer.id,
            epoch=writer.epoch, number=name.number, created=int(now.timestamp()), salt=sealing.salt(),
        )  # fmt: skip
        self.seal = sealing.pack(self.header)
        self.end = HEADER_BYTES
        self.slots = 0
        self._entries = bytearray()
        self._writers = 0
        self._sound = True
        self._idle = threading.Condition()
        self._ending = threading.Lock()
        self._ended = False
        self._file: BlobWriter = blobs.writer()
        try:
            self._file.write_at(0, [pack_header(self.header)])
        except BaseException:
            self._file.abandon()
            raise

    def has_room(self, stored: int, chunks: int, target_bytes: int) -> bool:
        """Whether a batch still fits. An empty pack takes any batch."""
        return not self.slots or (self.end + stored <= target_bytes and self.slots + chunks <= MAX_PACK_CHUNKS)

    def reserve(self, stored: int, chunks: int) -> tuple[int, int]:
        """(offset, first slot) for a batch, and a promise to `write` it."""
        at, slot = self.end, self.slots
        self.end += stored
        self.slots += chunks
        self._entries += bytes(chunks * ENTRY.size)
        with self._idle:
            self._writers += 1
        return at, slot

    def write(self, offset: int, first_slot: int, chunks: Sequence[Chunk]) -> None:
        """Seal chunks and fill what was reserved for them."""
        done = False
        try:
            entries, payloads = self.seal.close_chunks(chunks, offset)
            failpoint("pack.reserved")
            self._file.write_at(offset, payloads)
            self._entries[first_slot * ENTRY.size : first_slot * ENTRY.size + len(entries)] = entries
            failpoint("pack.written")
            done = True
        finally:
            with self._idle:
                self._sound &= done
                self._writers -= 1
                self._idle.notify_all()

    def read(self, slot: int) -> tuple[Entry, bytes] | None:
        """A chunk that is written but not sealed yet; None once the pack is published or abandoned."""
        with self._ending:
            if self._ended:
                return None
            entry = parse_entry(self._entries, slot)
            return entry, self._file.read_at(entry.offset, entry.stored)

    def close(self) -> Footer:
        """Wait for the writers, then write footer and trailer and publish; StoreFailed when one of them failed."""
        self._wait_for_writers()
        if not self._sound:
            raise StoreFailed("a write of this pack failed", where=self.name.key)
        entries = bytes(self._entries)
        stored = self.seal.close_footer(entries)
        trailer = pack_trailer(pack_header(self.header), stored, self.end, self.slots)
        with self._ending:
            self._file.write_at(self.end, [stored, trailer])
            failpoint("pack.before_publish")
            self._file.publish(self.name.key)
            self._ended = True
            failpoint("pack.sealed")
        return Footer(self.name, self.header, self.seal, entries, self.end + len(stored) + len(trailer))

    def abandon(self) -> None:
        """Forget the pack."""
        self._wait_for_writers()
        with self._ending:
            self._ended = True
            self._file.abandon()

    def _wait_for_writers(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._writers == 0)


def new_pack_name(number: int, kind: PackKind) -> PackName:
    """A name that no other pack has."""
    return PackName(number, randomness.token_bytes(16), kind)


def read_range(blobs: PackSource, key: str, offset: int, length: int) -> bytearray:
    """Part of a blob as new bytes."""
    data = bytearray(length)
    blobs.read_into(key, offset, memoryview(data))
    return data


def read_header(blobs: PackSource, name: PackName) -> PackHeader:
    """The header of a sealed pack, checked; Damaged when a byte of it changed or it belongs elsewhere."""
    return _header_of(bytes(read_range(blobs, name.key, 0, HEADER_BYTES)), name)


def _header_of(head: bytes, name: PackName) -> PackHeader:
    header = parse_pack_header(head, name.key)
    if (header.pack, header.number, header.kind) != (name.id, name.number, name.kind):
        raise Damaged("another pack lies in this place", where=name.key)
    return header


def read_footer(blobs: PackSource, sealing: Sealing, name: PackName) -> Footer:
    """Header and footer of a sealed pack, checked; Damaged when a byte of them changed or they belong elsewhere."""
    key = name.key
    size = blobs.size(key)
    if size < HEADER_BYTES + TRAILER_BYTES:
        raise Damaged("the pack is too short", where=key)
    head = bytes(read_range(blobs, key, 0, HEADER_BYTES))
    header = _header_of(head, name)
    seal = sealing.pack(header)
    try:
        trailer = parse_trailer(bytes(read_range(blobs, key, size - TRAILER_BYTES, TRAILER_BYTES)), key)
    except Unsupported as error:  # the header, which has a digest of its own, says a version that we read
        raise Damaged("the pack's trailer is not what was written", where=key) from error
    if trailer.footer_offset + trailer.footer_bytes + TRAILER_BYTES != size or trailer.footer_offset < HEADER_BYTES:
        raise Damaged("the pack's length is not what was written", where=key)
    stored = bytes(read_range(blobs, key, trailer.footer_offset, trailer.footer_bytes))
    check_footer(trailer, head, stored, key)
    entries = seal.open_footer(stored, key)
    footer = Footer(name, header, seal, entries, size)
    if len(entries) != trailer.chunks * ENTRY.size:
        raise Damaged("the pack's footer has the wrong length", where=key)
    return footer


def check_tiling(footer: Footer) -> None:
    """Damaged unless the chunks fill the pack without gaps, so that no byte of it is unchecked."""
    at = HEADER_BYTES
    for slot in range(len(footer)):
        entry = footer.entry(slot)
        if entry.offset != at or entry.raw > MAX_BLOCK_BYTES:
            raise Damaged("the pack's chunks do not follow each other", where=footer.name.key)
        at += entry.stored
    if at + len(footer.entries) + footer.seal.overhead + TRAILER_BYTES != footer.size:
        raise Damaged("the pack's chunks do not fill it", where=footer.name.key)


class Footers:
    """Footers by pack, the latest used ones in memory. Thread-safe."""

    def __init__(self, blobs: Blobs, sealing: Sealing) -> None:
        self._blobs = blobs
        self._sealing = sealing
        self._lock = threading.Lock()
        self._cache: OrderedDict[PackName, Footer] = OrderedDict()
        self._bytes = 0

    def get(self, name: PackName) -> Footer:
        """The footer of a sealed pack, or Damaged."""
        with self._lock:
            footer = self._cache.get(name)
            if footer is not None:
                self._cache.move_to_end(name)
                return footer
        footer = self._read(name)
        self.remember(footer)
        return footer

    def glance(self, name: PackName) -> tuple[PackHeader, int]:
        """A sealed pack's header and size, or Damaged. Cheaper than its footer, which is not looked at."""
        with self._lock:
            footer = self._cache.get(name)
        return (footer.header, footer.size) if footer is not None else self._glance(name)

    def _glance(self, name: PackName) -> tuple[PackHeader, int]:
        return read_header(self._blobs, name), self._blobs.size(name.key)

    def expect(self, names: Iterable[PackName]) -> None:
        """These are asked for next: where that is worth it, they are fetched ahead."""

    def _read(self, name: PackName) -> Footer:
        return read_footer(self._blobs, self._sealing, name)

    def remember(self, footer: Footer) -> None:
        """Keep a footer that is known already."""
        with self._lock:
            if footer.name not in self._cache:
                self._bytes += len(footer.entries)
            self._cache[footer.name] = footer
            while self._bytes > FOOTER_CACHE_BYTES and len(self._cache) > 1:
                self._bytes -= len(self._cache.popitem(last=False)[1].entries)

    def forget(self, name: PackName) -> None:
        """Drop the footer of a pack that is gone."""
        with self._lock:
            footer = self._cache.pop(name, None)
            if footer is not None:
                self._bytes -= len(footer.entries)
