"""By which page of it a chunk is found again: a small table from samples of pages to the places of chunks.

It finds what deduplication on a fixed grid misses: files that lie elsewhere within their blocks, blocks of which one
page changed. It is derived, private and may be deleted; then less is found, and nothing is lost. What it finds is
a guess that bytes confirm. Its size is bounded: in a large repository newer places push out older ones.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from isal.isal_zlib import crc32

from storage.blobs import Blobs
from storage.errors import Damaged, StorageError, Unsupported
from storage.filecalls import Buffer
from storage.format import ENVELOPE, ObjectKind
from storage.sealing import Sealing

log = logging.getLogger(__name__)

KEY = "pages"
PAGE_BYTES = 4096
SPAN_BYTES = 16 * PAGE_BYTES
"""One page for each part of this length stands for it in the table."""

FIRST_BITS = 10
LAST_BITS = 19
"""The table has at most half a million places of ten bytes: all chunks of 32 GiB of new data, a sample of more."""

_ZEROS = crc32(bytes(512))
_EMPTY = 0xFFFFFFFF
_STEPS = 8
"""How far from its own place in the table a key may stand."""

_HEAD = Struct("<II")
_MAX_STORED_BYTES = ENVELOPE.size + _HEAD.size + (10 << LAST_BITS) + 32


def page_key(data: Buffer, page: int) -> int:
    """What a page is found by: the CRC-32 of two parts of it. Pages of zeros, and others, may have the same.

    Small files have the first part; the second tells large ones apart that begin in the same way.
    """
    at = page * PAGE_BYTES
    return crc32(data[at + 2048 : at + 2304], crc32(data[at + 128 : at + 384]))


def _samples(data: Buffer) -> Iterator[int]:
    """For each part of a chunk the key of a page that is not zeros; pages in the middle first."""
    pages = len(data) // PAGE_BYTES
    for start in range(0, pages, SPAN_BYTES // PAGE_BYTES):
        end = min(start + SPAN_BYTES // PAGE_BYTES, pages)
        middle = (start + end) // 2
        keys = (page_key(data, page) for page in (*range(middle, end), *range(start, middle)))
        key = next((key for key in keys if key != _ZEROS), _ZEROS)
        if key != _ZEROS:
            yield key


class _Table(NamedTuple):
    """2 ** bits places, in columns; swapped as a whole, so that lookups need no lock."""

    bits: int
    keys: array[int]
    numbers: array[int]
    slots: array[int]

    @classmethod
    def empty(cls, bits: int) -> _Table:
        return cls(bits, array("I", bytes(4 << bits)), array("I", b"\xff" * (4 << bits)), array("H", bytes(2 << bits)))

    def put(self, places: Iterable[tuple[int, int, int]]) -> int:
        """Enter places (key, pack number, slot), at worst over others; how many more there are now."""
        bits, keys, numbers, slots = self
        mask = (1 << bits) - 1
        more = 0
        for key, number, slot in places:
            own = at = key & mask
            if numbers[at] != _EMPTY and keys[at] != key:
                for step in range(1, _STEPS):
                    at = own + step & mask
                    if numbers[at] == _EMPTY or keys[at] == key:
                        break
                else:
                    at = own
            if numbers[at] == _EMPTY:
                more += 1
            keys[at], numbers[at], slots[at] = key, number, slot
        return more

    def places(self) -> Iterator[tuple[int, int, int]]:
        """What was entered."""
        return (row for row in zip(self.keys, self.numbers, self.slots, strict=True) if row[1] != _EMPTY)


class PageTable:
    """Places of chunks by pages. Read when first asked for. Any thread may look up and expect, one at a time learns."""

    def __init__(self, blobs: Blobs, sealing: Sealing) -> None:
        self._blobs = blobs
        self._sealing = sealing
        self._loaded = self._changed = False
        self._loading = threading.Lock()
        self._expected: dict[bytes, tuple[int, ...]] = {}
        self._used = 0
        self._table = _Table.empty(FIRST_BITS)

    def empty(self) -> bool:
        """Whether nothing can be found."""
        self._load()
        return not self._used

    def find(self, key: int) -> int | None:
        """Pack number and slot (the lower 16 bits) of a chunk that has such a page."""
        bits, keys, numbers, slots = self._table
        mask = (1 << bits) - 1
        at = key & mask
        for _ in range(_STEPS):
            number = numbers[at]
            if number == _EMPTY:
                return None
            if keys[at] == key:
                return number << 16 | slots[at]
            at = at + 1 & mask
        return None

    def expect(self, chunks: Iterable[tuple[bytes, Buffer]]) -> None:
        """These chunks, with their bytes, are being stored; once its pack is sealed, `learn` enters each of them."""
        expected = self._expected
        for chunk, data in chunks:
            if len(data) == SPAN_BYTES and (key := page_key(data, 8)) != _ZEROS:
                expected[chunk] = (key,)
            elif keys := tuple(_samples(data)):
                expected[chunk] = keys

    def learn(self, number: int, chunks: Iterable[bytes]) -> None:
        """A sealed pack holds these chunks, by slot."""
        if not self._expected:
            return
        self._load()
        take = self._expected.pop
        places = [(key, number, slot) for slot, chunk in enumerate(chunks) for key in take(chunk, ())]
        self._make_room(len(places))
        self._used += self._table.put(places)
        self._changed = self._changed or bool(places)

    def save(self) -> None:
        """Keep what was learnt. A table that cannot be written is one that finds less."""
        if not self._changed:
            return
        self._changed = False
        bits, *columns = self._table
        payload = b"".join([_HEAD.pack(bits, self._used), *(column.tobytes() for column in columns)])
        try:
            self._blobs.replace(KEY, self._sealing.close(ObjectKind.PAGES, KEY, payload))
        except StorageError as error:
            self._changed = True
            log.warning("table of pages not written: %s", error)

    def expect_nothing(self) -> None:
        """No chunk is on its way any more."""
        self._expected.clear()

    def _load(self) -> None:
        if self._loaded:
            return
        with self._loading:  # nobody enters a place, and saves, before what was kept is there
            if not self._loaded:
                self._read()
                self._loaded = True

    def _read(self) -> None:
        try:
            if self._blobs.size(KEY) > _MAX_STORED_BYTES:
                raise Damaged("the table of pages is too long", where=KEY)
            payload = memoryview(self._sealing.open(ObjectKind.PAGES, KEY, self._blobs.get(KEY)))
            bits, used = _HEAD.unpack_from(payload) if len(payload) >= _HEAD.size else (0, 0)
            if not FIRST_BITS <= bits <= LAST_BITS or len(payload) != _HEAD.size + (10 << bits):
                raise Damaged("the table of pages has the wrong length", where=KEY)
            columns = bytes(payload[_HEAD.size :])
            keys, numbers, slots = columns[: 4 << bits], columns[4 << bits : 8 << bits], columns[8 << bits :]
            self._table = _Table(bits, array("I", keys), array("I", numbers), array("H", slots))
            self._used = used
        except StorageError as error:
            told = logging.DEBUG if isinstance(error, (Damaged, Unsupported)) else logging.WARNING
            log.log(told, "begins with an empty table of pages: %s", error)

    def _make_room(self, more: int) -> None:
        """Let the table be half empty also with so many places more, as far as it may grow."""
        bits = self._table.bits
        while self._used + more << 1 > 1 << bits and bits < LAST_BITS:
            bits = min(bits + 2, LAST_BITS)
        if bits > self._table.bits:
            larger = _Table.empty(bits)
            self._used = larger.put(self._table.places())
            self._table = larger
