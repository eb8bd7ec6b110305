"""Stream-optimised VMDKs, read as they arrive: what vSphere exports disks as.

The layout is that of VMware's "Virtual Disk Format 5.0": a header, then markers, each followed by a compressed grain
or by tables, and an end marker. Memory is bounded by one grain and the grain directory, some words for every 32 MiB of
the disk. Grains hold zlib data, whatever the specification says of RFC 1951 alone; both are read.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from connectors.errors import ReadFailed

SECTOR = 512
MAGIC = 0x564D444B
AT_END = 0xFFFFFFFFFFFFFFFF
"""A grain directory's offset in a header that comes before it."""

MOST_GRAIN_SECTORS = 2048
MOST_ENTRIES = 4096
MOST_CAPACITY_SECTORS = (128 << 40) // SECTOR
"""Twice the largest disk of vSphere."""

_HEADER = struct.Struct("<IIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")
_NEWLINES = b"\n \r\n"
_NEWLINE_TEST, _REDUNDANT, _COMPRESSED, _MARKERS = 1, 2, 1 << 16, 1 << 17
_END, _TABLE, _DIRECTORY, _FOOTER = range(4)
_KINDS = ("the end", "a grain table", "the grain directory", "the footer")
_PIECE = 64 * 1024


class Source(Protocol):
    """Where the stream comes from."""

    def read(self, count: int, /) -> bytes:
        """At most count bytes; fewer only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """What the stream says of itself; sizes in sectors but for `entries`, those of a grain table."""

    flags: int
    capacity: int
    grain: int
    entries: int
    directory: int
    overhead: int


class VmdkStream:
    """A stream whose header is read and right. Everything that is wrong with it is a ReadFailed that says where.

    What the tables at the end name is compared, as sums over grains and their places, with what came, so that a
    stream that lost or moved some is found out. Tables before the grains, as qemu-img writes them, are passed over.
    What follows the end is not looked at.
    """

    def __init__(self, source: Source, where: str) -> None:
        self._source = source
        self._where = where
        self._at = 0
        self._header = self._read_header("its header")
        self.capacity_bytes = self._header.capacity * SECTOR
        self.grain_bytes = self._header.grain * SECTOR
        self._seen = (0, 0, 0)
        self._tables: dict[int, tuple[int, int, int]] = {}
        self._directory: tuple[int, list[int]] | None = None
        self._footer: Header | None = None

    def grains(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of each grain that is there, going forward; what lies between is zero. Once only.

        The end comes only after everything was found right.
        """
        left = self._header.overhead * SECTOR - self._at
        while left > 0:
            left -= len(self._take(min(left, _PIECE), "what comes before its grains"))
        before = -1
        while True:
            sector = self._at // SECTOR
            marker = self._take(SECTOR, "a marker")
            value, size, kind = _MARKER.unpack_from(marker)
            if size:
                if value <= before:
                    raise self._wrong(f"goes back to sector {value} after {before}")
                before = value
                count, places, sums = self._seen
                place = sector & 0xFFFFFFFF
                self._seen = count + 1, places + place, sums + place * (value // self._header.grain)
                yield value * SECTOR, self._grain(marker, value, size)
            elif kind == _END:
                if value:
                    raise self._wrong(f"ends with a marker of {value} sectors")
                self._check()
                return
            else:
                self._metadata(value, kind)

    def _grain(self, marker: bytes, sector: int, size: int) -> bytes:
        header, limit = self._header, self.grain_bytes
        if sector % header.grain or sector >= header.capacity:
            raise self._wrong(f"has a grain at sector {sector}, where none can be")
        if size > 2 * limit + SECTOR:
            raise self._wrong(f"has a grain of {size} bytes at sector {sector}")
        begun = _MARKER.size - 4
        padded = -(-(begun + size) // SECTOR) * SECTOR
        packed = (marker + self._take(padded - SECTOR, "a grain"))[begun : begun + size]
        data = _unpacked(packed, limit)
        needed = min(limit, (header.capacity - sector) * SECTOR)
        if data is None or len(data) < needed:
            raise self._wrong(f"has a damaged grain at sector {sector}")
        return data[:needed]

    def _metadata(self, sectors: int, kind: int) -> None:
        header = self._header
        count = -(-header.capacity // (header.grain * header.entries))
        words = {_TABLE: header.entries, _DIRECTORY: count, _FOOTER: SECTOR // 4}.get(kind)
        if words is None:
            raise self._wrong(f"has a marker of kind {kind}, which there is not")
        if sectors != -(-words * 4 // SECTOR) or (self._directory is not None and kind != _FOOTER):
            raise self._wrong(f"has {_KINDS[kind]} of {sectors} sectors where it cannot be")
        sector = self._at // SECTOR
        if kind == _FOOTER:
            self._footer = self._read_header(_KINDS[kind])
            return
        values = _words(self._take(sectors * SECTOR, _KINDS[kind]), words)
        if kind == _DIRECTORY:
            self._directory = sector, values
            return
        if len(self._tables) > count:
            raise self._wrong("has more grain tables than its disk has room for")
        named = [(number, place) for number, place in enumerate(values) if place > 1]  # 1 is a grain of zeros
        sums = sum(number * place for number, place in named)
        self._tables[sector & 0xFFFFFFFF] = len(named), sum(place for _, place in named), sums

    def _check(self) -> None:
        """Hold the tables against what came, at the end."""
        header = self._header
        if header.directory != AT_END:
            return
        if self._directory is None or self._footer is None:
            raise self._wrong("ends without its grain directory and footer")
        sector, tables = self._directory
        footer = self._footer
        if (footer.capacity, footer.grain, footer.entries) != (header.capacity, header.grain, header.entries):
            raise self._wrong("has a footer that is not its header's")
        if footer.flags & _REDUNDANT:
            return
        if footer.directory != sector or sorted(filter(None, tables)) != sorted(self._tables):
            raise self._wrong("has a grain directory that does not name its tables")
        counts = places = sums = 0
        for number, at in enumerate(tables):
            count, of_table, within = self._tables.get(at, (0, 0, 0))
            counts, places = counts + count, places + of_table
            sums += number * header.entries * of_table + within
        if self._seen != (counts, places, sums):
            raise self._wrong("lacks grains that its tables name, or has others")

    def _read_header(self, what: str) -> Header:
        found = _HEADER.unpack_from(self._take(SECTOR, what))
        magic, version, flags, capacity, grain, _, _, entries, _, directory, overhead, _, newlines, algorithm = found
        if magic != MAGIC or version not in (1, 2, 3):
            raise self._wrong(f"does not begin as a VMDK does, in {what}")
        if flags & _NEWLINE_TEST and newlines != _NEWLINES:
            raise self._wrong("was changed on its way, as text is")
        if not (flags & _COMPRESSED and flags & _MARKERS and algorithm == 1):
            raise self._wrong("is no stream-optimised VMDK")
        if not (8 <= grain <= MOST_GRAIN_SECTORS and grain & (grain - 1) == 0 and 0 < entries <= MOST_ENTRIES):
            raise self._wrong(f"has grains of {grain} sectors in tables of {entries}, which cannot be")
        if not 0 < capacity <= MOST_CAPACITY_SECTORS or overhead < 1:
            raise self._wrong(f"tells of a disk of {capacity} sectors behind {overhead}, which cannot be")
        return Header(flags, capacity, grain, entries, directory, overhead)

    def _take(self, count: int, what: str) -> bytes:
        pieces = []
        left = count
        while left:
            piece = self._source.read(left)
            if not piece:
                raise ReadFailed(f"the stream was cut off at byte {self._at}, in {what}", where=self._where)
            left -= len(piece)
            self._at += len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wrong(self, what: str) -> ReadFailed:
        return ReadFailed(f"the stream {what} (byte {self._at})", where=self._where)


class Forward:
    """A disk's bytes out of a stream, by reads that only go forward. Not thread-safe."""

    def __init__(self, stream: VmdkStream, where: str) -> None:
        self.capacity_bytes = stream.capacity_bytes
        self.offset = 0
        """Where the next read begins."""
        self._where = where
        self._grains = stream.grains()
        self._begin, self._data = 0, b""
        self._sound = True

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on; before the last byte of the disk is given, the stream's end is found right."""
        if offset < self.offset or offset + view.nbytes > self.capacity_bytes:
            raise ReadFailed(
                f"{view.nbytes} bytes at offset {offset} were asked for, and the stream stands at {self.offset}",
                where=self._where,
            )
        at, end = offset, offset + view.nbytes
        while at < end or (end == self.capacity_bytes and self._begin < end):
            if at < self._begin:
                zeros = min(self._begin, end) - at
                view[at - offset : at - offset + zeros] = bytes(zeros)
                at += zeros
            elif (there := self._begin + len(self._data)) > at:
                some = min(there, end) - at
                view[at - offset : at - offset + some] = self._data[at - self._begin : at - self._begin + some]
                at += some
            else:
                self._begin, self._data = self._next()
        self.offset = end

    def _next(self) -> tuple[int, bytes]:
        """The next grain, or an empty one behind the disk; never after one that failed."""
        if not self._sound:
            raise ReadFailed("the stream has failed before", where=self._where)
        self._sound = False
        found = next(self._grains, (self.capacity_bytes, b""))
        self._sound = True
        return found


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """What was compressed, with zlib's frame or without; None for what is damaged or longer than limit."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        unpacker = zlib.decompressobj(window)
        try:
            data = unpacker.decompress(packed, limit + 1)
        except zlib.error:
            continue
        if unpacker.eof and len(data) <= limit:
            return data
    return None


def _words(data: bytes, count: int) -> list[int]:
    found = array("I", data[: count * 4])
    if found.itemsize != 4:
        return list(struct.unpack_from(f"<{count}I", data))
    return found.tolist()
