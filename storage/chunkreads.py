"""The way out of the packs: chunks by id, verified, in few large reads. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from storage.allocation import keep_freed_memory
from storage.blobs import Blobs
from storage.codec import decode
from storage.errors import Damaged, Missing
from storage.filecalls import Buffer
from storage.format import MAX_BLOCK_BYTES, Entry, PackName
from storage.index import Index
from storage.pack import Footer, Footers, OpenPack
from storage.runs import Columns
from storage.sealing import Sealing

READ_GAP_BYTES = 32 << 10
"""Two chunks this near to each other in a pack are read by one call."""

READ_SPAN_BYTES = 4 << 20
PENDING = -1
"""The place of a chunk that some thread is about to store."""


class _Scratch(threading.local):
    """A buffer for each thread, as fresh memory costs page faults."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_SPAN_BYTES)

    def view(self, length: int) -> memoryview:
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]


_scratch = _Scratch()


class ChunkReads:
    """What is known of chunks: sealed packs, the index over them, and what this process has not sealed yet."""

    def __init__(
        self,
        blobs: Blobs,
        sealing: Sealing,
        index: Index,
        *,
        reattach: Callable[[], bool],
        relearn: Callable[[], bool],
    ) -> None:
        """For a chunk that is in no pack: `reattach` mends the index, `relearn` lists the packs that others write.

        Both tell whether more may be known now.
        """
        keep_freed_memory()
        self.blobs = blobs
        self.sealing = sealing
        self.footers = Footers(blobs, sealing)
        self.live: dict[int, PackName] = {}
        self._index = index
        self._reattach = reattach
        self._relearn = relearn
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._delta: dict[bytes, int] = {}
        self._open: dict[int, OpenPack] = {}

    def locate(self, chunk: bytes) -> tuple[PackName, int] | None:
        """The sealed pack and slot of a chunk; None when no pack has it."""
        return next(self._places(chunk), None)

    def _places(self, chunk: bytes) -> Iterator[tuple[PackName, int]]:
        """Every sealed place of a chunk, the newest first."""
        place = self._delta.get(chunk)
        if place is not None and place != PENDING and (name := self.live.get(place >> 16)) is not None:
            yield name, place & 0xFFFF
        for number, slot in reversed(self._index.find(chunk)):
            name = self.live.get(number)
            if name is None:
                continue
            try:
                if self.footers.get(name).holds(slot, chunk):
                    yield name, slot
            except Damaged:
                continue

    def holders(self, chunk: bytes) -> Iterator[PackName]:
        """The sealed packs that have a chunk, the newest first."""
        return (name for name, _ in self._places(chunk))

    def candidates(self, heads: Any) -> tuple[Any, Any, Any]:
        """What `Index.find_many` finds for many 64-bit prefixes."""
        return self._index.find_many(heads)

    def indexed(self, entries: int) -> Iterator[Columns]:
        """What `Index.slices` gives."""
        return self._index.slices(entries)

    def footer_of(self, number: int) -> Footer | None:
        """The footer of the pack that has this number now; None if there is none, or it is damaged."""
        name = self.live.get(number)
        with suppress(Damaged):
            return self.footers.get(name) if name is not None else None
        return None

    def read(self, chunk: bytes) -> bytes:
        """One chunk, verified."""
        return bytes(self.read_many([chunk])[0])

    def read_many(self, chunks: Sequence[bytes], *, node: bool = False) -> list[Buffer]:
        """The chunks, each verified against its id, read in few large calls; Damaged when one is not intact.

        Finds chunks that are not sealed yet, too.
        """
        return [data for data in self.read_each(chunks, node=node, strict=True) if not isinstance(data, Damaged)]

    def read_each(self, chunks: Sequence[bytes], *, node: bool = False, strict: bool) -> list[Buffer | Damaged]:
        """As read_many; unless strict, a chunk that is not intact leaves its error in its place."""
        hash_of = self.sealing.node_id if node else self.sealing.chunk_id
        result: list[Buffer | Damaged] = [b""] * len(chunks)
        wanted: list[tuple[int, int, int, Footer, Entry]] = []
        for at, chunk in enumerate(chunks):
            if self._open and (unsealed := self._read_unsealed(chunk)) is not None:
                result[at] = unsealed
                continue
            try:
                footer, entry = self._entry(chunk)
                wanted.append((footer.name.number, entry.offset, at, footer, entry))
            except Damaged as error:
                if strict:
                    raise
                result[at] = error
        wanted.sort(key=lambda w: w[:3])
        for group in coalesce(wanted):
            start, end = group[0][1], max(w[1] + w[4].stored for w in group)
            data = _scratch.view(end - start)
            try:
                self.blobs.read_into(group[0][3].name.key, start, data)
                lost = None
            except Damaged as error:
                lost = error
                if isinstance(error, Missing):
                    self._relearn()  # reclaim elsewhere may have copied what it held
            for _, offset, at, footer, entry in group:
                try:
                    if lost is not None:
                        raise lost
                    stored = data[offset - start : offset - start + entry.stored]
                    plain = open_entry(footer, entry, stored, hash_of)
                    result[at] = bytes(plain) if plain is stored else plain  # the scratch buffer is used again
                except Damaged as error:
                    other = self.other_copy(chunks[at], {footer.name}, hash_of)
                    if other is None and strict:
                        raise
                    result[at] = error if other is None else other
        return result

    def other_copy(
        self, chunk: bytes, apart_from: Collection[PackName], hash_of: Callable[[Buffer], bytes]
    ) -> Buffer | None:
        """The chunk, verified, from another pack than these: damaged ones, or ones that reclaim removes."""
        for name, slot in self._places(chunk):
            if name in apart_from:
                continue
            with suppress(Damaged):
                footer = self.footers.get(name)
                entry = footer.entry(slot)
                data = bytearray(entry.stored)
                self.blobs.read_into(name.key, entry.offset, memoryview(data))
                return open_entry(footer, entry, data, hash_of)
        return None

    def _read_unsealed(self, chunk: bytes) -> Buffer | None:
        with self._lock:
            place = self._delta.get(chunk, PENDING)
            pack = self._open.get(place >> 16) if place != PENDING else None
        found = pack.read(place & 0xFFFF) if pack is not None else None
        if pack is None:
            return None
        if found is None:
            with self._changed:
                self._changed.wait_for(lambda: pack.name.number not in self._open)
            return None
        entry, stored = found
        where = pack.name.key
        return decode(entry.codec, pack.seal.open_chunk(entry, stored, where), entry.raw, where)

    def _entry(self, chunk: bytes) -> tuple[Footer, Entry]:
        place = self.locate(chunk)
        for look_again in (self._reattach, self._relearn):
            if place is None and look_again():
                place = self.locate(chunk)
        if place is None:
            raise Missing(f"chunk {chunk.hex()} is in no pack", where="packs/")
        footer = self.footers.get(place[0])
        entry = footer.entry(place[1])
        if entry.raw > MAX_BLOCK_BYTES:
            raise Damaged("a chunk claims to be too long", where=place[0].key)
        return footer, entry


def open_entry(footer: Footer, entry: Entry, stored: Buffer, hash_of: Callable[[Buffer], bytes]) -> Buffer:
    """A chunk from its stored bytes, checked on every level; Damaged."""
    where = footer.name.key
    plain = decode(entry.codec, footer.seal.open_chunk(entry, stored, where), entry.raw, where)
    if hash_of(plain) != entry.id:
        raise Damaged(f"chunk {entry.id.hex()} is not what was written", where=where)
    return plain


Wanted = tuple[int, int, int, Footer, Entry]


def coalesce(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """Groups of sorted chunks that one read fetches: same pack, small gaps, bounded length."""
    groups: list[list[Wanted]] = []
    end = 0
    for item in wanted:
        number, offset, _, _, entry = item
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[0][0] == number
            and offset - end <= READ_GAP_BYTES
            and offset + entry.stored - last[0][1] <= READ_SPAN_BYTES
        ):
            last.append(item)
            end = max(end, offset + entry.stored)
        else:
            groups.append([item])
            end = offset + entry.stored
    return groups
