"""Stream-optimised VMDKs, written as they are sent: what vSphere imports disks as.

Grains are stored, as zlib stores what it cannot compress. So the length of the whole stream is known from the map of
the disk alone, before its first byte: hosts are told it, and no client is known to do without. The layout is that of
VMware's "Virtual Disk Format 5.0"; each grain table comes after its grains, directory and footer at the end. Memory is
one grain, one table, and a word for every 32 MiB of the disk.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from connectors.disks import Extent, align
from connectors.errors import WriteFailed

SECTOR = 512
GRAIN_BYTES = 64 << 10
ENTRIES = 512
"""Of a grain table, which so describes 32 MiB."""

OVERHEAD_SECTORS = 128
MOST_SECTORS = (1 << 32) - 1
"""Tables name places in the stream by sector, in 32 bits."""

_AT_END = 0xFFFFFFFFFFFFFFFF
_HEADER = struct.Struct("<IIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")
_GRAIN_MARKER = struct.Struct("<QI")
_TABLE, _DIRECTORY, _FOOTER, _END = 1, 2, 3, 0

_FIRST_STORED = 0xFFFF
"""A stored block of deflate holds at most so many bytes: a grain is this and one byte more."""

_BEFORE = _GRAIN_MARKER.size + 2 + 5
_BETWEEN = b"\x01" + struct.pack("<HH", GRAIN_BYTES - _FIRST_STORED, 0xFFFF ^ (GRAIN_BYTES - _FIRST_STORED))
_PACKED_BYTES = 2 + 5 + _FIRST_STORED + len(_BETWEEN) + (GRAIN_BYTES - _FIRST_STORED) + 4
_GRAIN_SECTORS = -(-(_GRAIN_MARKER.size + _PACKED_BYTES) // SECTOR)
_TABLE_SECTORS = 1 + ENTRIES * 4 // SECTOR


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A stream before it is written: its grains as runs of (first, count), and its whole length in bytes."""

    capacity_bytes: int
    runs: tuple[tuple[int, int], ...]
    grains: int
    length: int

    @property
    def refusal(self) -> str:
        """Why the disk cannot be sent so, as a sentence; empty when it can."""
        if self.capacity_bytes % SECTOR:
            return f"the disk's {self.capacity_bytes} bytes are no whole sectors"
        if self.length // SECTOR > MOST_SECTORS:
            return f"{self.grains * GRAIN_BYTES} bytes of data are more than one stream can hold, which is 2 TiB"
        return ""


def plan_stream(capacity_bytes: int, extents: Iterable[Extent]) -> StreamPlan:
    """The stream of a disk whose data lies in these extents; what lies between is zero. Pure."""
    mapped = align(extents, GRAIN_BYTES, capacity_bytes)
    runs = tuple((e.offset // GRAIN_BYTES, -(-e.end // GRAIN_BYTES) - e.offset // GRAIN_BYTES) for e in mapped)
    grains = sum(count for _, count in runs)
    tables = len(
        {table for first, count in runs for table in range(first // ENTRIES, (first + count - 1) // ENTRIES + 1)}
    )
    directory = -(-_tables_of(capacity_bytes) * 4 // SECTOR)
    sectors = OVERHEAD_SECTORS + grains * _GRAIN_SECTORS + tables * _TABLE_SECTORS + (1 + directory) + 2 + 1
    return StreamPlan(capacity_bytes, runs, grains, sectors * SECTOR)


class StreamWriter:
    """Writes a planned stream to `sink`, piece by piece: begin, write in the order of the disk, finish.

    What is given to `sink` is good until it returns. Not thread-safe.
    """

    def __init__(self, plan: StreamPlan, sink: Callable[[memoryview], None], where: str) -> None:
        self.plan = plan
        self._sink = sink
        self._where = where
        self._expected = _numbers(plan)
        self._sector = 0
        self._offset = 0
        self._grain = -1
        self._buffer = bytearray(_GRAIN_SECTORS * SECTOR)
        self._table = array("I", bytes(4 * ENTRIES))
        self._table_number = -1
        self._directory = array("I", bytes(4 * _tables_of(plan.capacity_bytes)))

    def begin(self) -> None:
        """The header and the descriptor."""
        sectors = self.plan.capacity_bytes // SECTOR
        head = self._header(_AT_END) + _descriptor(sectors)
        self._put(head.ljust(OVERHEAD_SECTORS * SECTOR, b"\0"))

    def write(self, offset: int, view: memoryview) -> None:
        """All of view at offset, which lies behind what was written before. WriteFailed outside the plan."""
        end = offset + view.nbytes
        if offset < self._offset or end > self.plan.capacity_bytes:
            raise self._wrong(f"{view.nbytes} bytes at offset {offset} cannot be written behind offset {self._offset}")
        at = offset
        while at < end:
            number, within = divmod(at, GRAIN_BYTES)
            if number != self._grain:
                self._emit()
                self._take(number)
            count = min(GRAIN_BYTES - within, end - at)
            self._fill(within, view[at - offset : at - offset + count])
            at += count
        self._offset = end

    def finish(self) -> None:
        """The last grain, its table, the directory, the footer and the end. WriteFailed when a grain is missing."""
        self._emit()
        if (left := next(self._expected, None)) is not None:
            raise self._wrong(f"the disk was not written at offset {left * GRAIN_BYTES}")
        self._end_table()
        words = _padded(_little(self._directory))
        self._put(_marker(len(words) // SECTOR, _DIRECTORY))
        directory = self._sector
        self._put(words)
        self._put(_marker(1, _FOOTER) + self._header(directory) + _marker(0, _END))
        if self._sector * SECTOR != self.plan.length:
            raise self._wrong(f"the stream has {self._sector * SECTOR} bytes, not {self.plan.length}")

    def _take(self, number: int) -> None:
        if next(self._expected, -1) != number:
            raise self._wrong(f"the disk is not to be written at offset {number * GRAIN_BYTES} now")
        if number // ENTRIES != self._table_number:
            self._end_table()
            self._table_number = number // ENTRIES
        self._grain = number
        head = _GRAIN_MARKER.pack(number * (GRAIN_BYTES // SECTOR), _PACKED_BYTES)
        first = b"\x00" + struct.pack("<HH", _FIRST_STORED, 0xFFFF ^ _FIRST_STORED)
        self._buffer[:] = (head + b"\x78\x01" + first).ljust(len(self._buffer), b"\0")
        between = _BEFORE + _FIRST_STORED
        self._buffer[between : between + len(_BETWEEN)] = _BETWEEN

    def _fill(self, within: int, data: memoryview) -> None:
        """Bytes of the grain, which lies in two pieces."""
        first = max(0, min(len(data), _FIRST_STORED - within))
        self._buffer[_BEFORE + within : _BEFORE + within + first] = data[:first]
        if first < len(data):
            behind = _BEFORE + len(_BETWEEN) + within + first
            self._buffer[behind : behind + len(data) - first] = data[first:]

    def _emit(self) -> None:
        if self._grain < 0:
            return
        whole = memoryview(self._buffer)
        last = _BEFORE + _FIRST_STORED + len(_BETWEEN)
        summed = zlib.adler32(whole[last : last + 1], zlib.adler32(whole[_BEFORE : _BEFORE + _FIRST_STORED]))
        struct.pack_into(">I", self._buffer, last + 1, summed)
        self._table[self._grain % ENTRIES] = self._sector
        self._grain = -1
        self._put(whole)

    def _end_table(self) -> None:
        if self._table_number < 0:
            return
        self._put(_marker(ENTRIES * 4 // SECTOR, _TABLE))
        self._directory[self._table_number] = self._sector
        self._put(_little(self._table))
        self._table, self._table_number = array("I", bytes(4 * ENTRIES)), -1

    def _put(self, data: bytes | memoryview) -> None:
        self._sink(memoryview(data))
        self._sector += len(data) // SECTOR

    def _header(self, directory: int) -> bytes:
        # Version 3: newer hosts refuse older ones.
        flags, grain = 1 | 1 << 16 | 1 << 17, GRAIN_BYTES // SECTOR
        sectors = self.plan.capacity_bytes // SECTOR
        head = _HEADER.pack(
            0x564D444B, 3, flags, sectors, grain, 1, 20, ENTRIES, 0, directory, OVERHEAD_SECTORS, 0, b"\n \r\n", 1
        )  # fmt: skip
        return _padded(head)

    def _wrong(self, what: str) -> WriteFailed:
        return WriteFailed(what, where=self._where)


def _numbers(plan: StreamPlan) -> Iterator[int]:
    for first, count in plan.runs:
        yield from range(first, first + count)


def _tables_of(capacity_bytes: int) -> int:
    return -(-capacity_bytes // (GRAIN_BYTES * ENTRIES))


def _descriptor(sectors: int) -> bytes:
    heads, each = 255, 63
    return (
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="streamOptimized"\n\n'
        f'# Extent description\nRW {sectors} SPARSE "disk.vmdk"\n\n# The Disk Data Base\n#DDB\n\n'
        f'ddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "{max(1, sectors // (heads * each))}"\n'
        f'ddb.geometry.heads = "{heads}"\nddb.geometry.sectors = "{each}"\nddb.adapterType = "lsilogic"\n'
    ).encode()


def _marker(sectors: int, kind: int) -> bytes:
    return _padded(_MARKER.pack(sectors, 0, kind))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def _little(words: array[int]) -> bytes:
    if words.itemsize != 4:
        return struct.pack(f"<{len(words)}I", *words)
    return words.tobytes()
