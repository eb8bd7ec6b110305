"""Holding what change tracking says against what is read: every block that it does not name must be as it was."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

from connectors.disks import Extent, align, intersect, pieces, subtract
from engine.copying import PIECE_BYTES, Part, Sink
from engine.jobs import Check
from storage.errors import StorageError
from storage.reading import PointDisk


class Comparing:
    """A sink that passes everything on, and besides compares what `told` leaves out with the disk as it was before.

    The last restore point is read for it. When that cannot be read, nothing more is compared and the copy goes on.
    """

    def __init__(self, sink: Sink, before: PointDisk, told: Sequence[Extent]) -> None:
        self._sink, self._before = sink, before
        self._told = align(told, before.block_bytes, before.capacity_bytes)
        self._ends = [extent.end for extent in self._told]
        self._holes: list[Extent] = []
        self._lock = threading.Lock()
        self._untold = 0
        self._stopped = ""

    def write_parts(self, parts: Sequence[Part]) -> None:
        """Store them, and compare what change tracking calls unchanged."""
        self._sink.write_parts(parts)
        for offset, view in parts:
            for extent in self._unnamed(Extent(offset, len(view))):
                start = extent.offset - offset
                self._compare(extent.offset, view[start : start + extent.length])

    def zero(self, offset: int, length: int) -> None:
        """Compared by `result`: this may be called where nothing may wait."""
        self._sink.zero(offset, length)
        self._holes.append(Extent(offset, length))

    def result(self) -> Check:
        """What came of it, after the last write. Reads what the last restore point has where there are holes now."""
        used = [Extent(offset, length) for offset, length in self._extents()]
        was = intersect(subtract(self._holes, self._told), used)
        for piece in pieces(was, PIECE_BYTES):
            self._compare(piece.offset, memoryview(bytes(piece.length)))
        if self._stopped and not self._untold:
            return Check("impossible", f"not compared with change tracking: {self._stopped}")
        if not self._untold:
            return Check("agreed", "change tracking is right: nothing has changed but what it names")
        sentence = f"change tracking called {self._untold} bytes unchanged that had changed; they are stored as read"
        return Check("differed", sentence, self._untold)

    def _extents(self) -> list[tuple[int, int]]:
        try:
            return self._before.extents()
        except StorageError as error:
            self._stopped = str(error)
            return []

    def _unnamed(self, extent: Extent) -> list[Extent]:
        """The parts of it that change tracking does not name."""
        first = bisect_left(self._ends, extent.offset + 1)
        named = []
        while first < len(self._told) and self._told[first].offset < extent.end:
            named.append(self._told[first])
            first += 1
        return subtract([extent], named)

    def _compare(self, offset: int, now: memoryview) -> None:
        if self._stopped:
            return
        before = memoryview(bytearray(len(now)))
        try:
            self._before.read_into(offset, before)
        except StorageError as error:
            self._stopped = str(error)
            return
        if before == now:
            return
        step = self._before.block_bytes
        blocks = ((now[at : at + step], before[at : at + step]) for at in range(0, len(now), step))
        differ = sum(len(block) for block, was in blocks if block != was)
        with self._lock:
            self._untold += differ
