"""Extents of a disk, their algebra, and what reads and writes disks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`length` bytes of a disk from `offset` on; both at least 0."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind the extent."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Incremental:
    """Only these extents changed since the base; sorted, disjoint."""

    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """The disk is to be read in full, and why; `kind` is the kind of why, a word that can be counted, where known."""

    reason: str
    kind: str = ""


Changes = Incremental | Whole


class BlockingReader(Protocol):
    """A disk that is read by positioned, blocking calls from any thread (a file, a block device)."""

    capacity_bytes: int

    def extents(self) -> Iterable[Extent]:
        """The parts that may hold data, sorted and disjoint; what lies between reads as zeros."""
        ...

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, or raise ReadFailed; never short. Thread-safe."""
        ...


class AsyncReader(Protocol):
    """A disk that is read over a connection with several requests under way (NBD)."""

    capacity_bytes: int

    async def extents(self) -> list[Extent]:
        """The parts that may hold data, sorted and disjoint; what lies between reads as zeros."""
        ...

    async def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, or raise ReadFailed; never short. Several calls may be under way."""
        ...


DiskReader = BlockingReader | AsyncReader


class BlockingWriter(Protocol):
    """A disk that is written by positioned, blocking calls from any thread."""

    capacity_bytes: int

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, or raise ReadFailed; never short. Thread-safe."""
        ...

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of view at offset. Thread-safe."""
        ...

    def flush(self) -> None:
        """Return when everything written is durable."""
        ...


class AsyncWriter(Protocol):
    """A disk that is written over a connection."""

    capacity_bytes: int

    async def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, or raise ReadFailed; never short. Several calls may be under way."""
        ...

    async def write(self, offset: int, view: memoryview) -> None:
        """Write all of view at offset. Several calls may be under way."""
        ...

    async def flush(self) -> None:
        """Return when everything written is durable."""
        ...


DiskWriter = BlockingWriter | AsyncWriter


def merge(extents: Iterable[Extent]) -> list[Extent]:
    """Sorted, disjoint, non-empty extents that cover the same bytes; touching ones become one."""
    merged: list[Extent] = []
    for extent in sorted(e for e in extents if e.length > 0):
        if merged and extent.offset <= merged[-1].end:
            last = merged[-1]
            merged[-1] = Extent(last.offset, max(last.end, extent.end) - last.offset)
        else:
            merged.append(extent)
    return merged


def align(extents: Iterable[Extent], block_bytes: int, capacity_bytes: int) -> list[Extent]:
    """The extents grown to whole blocks of the grid, cut at the end of the disk, merged."""
    grown = []
    for extent in extents:
        if extent.length > 0 and extent.offset < capacity_bytes:
            start = extent.offset - extent.offset % block_bytes
            end = min(-(-extent.end // block_bytes) * block_bytes, capacity_bytes)
            grown.append(Extent(start, end - start))
    return merge(grown)


def intersect(left: Iterable[Extent], right: Iterable[Extent]) -> list[Extent]:
    """The bytes that both cover."""
    a, b = merge(left), merge(right)
    found: list[Extent] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i].offset, b[j].offset), min(a[i].end, b[j].end)
        if start < end:
            found.append(Extent(start, end - start))
        if a[i].end <= b[j].end:
            i += 1
        else:
            j += 1
    return found


def subtract(left: Iterable[Extent], right: Iterable[Extent]) -> list[Extent]:
    """The bytes of left that right does not cover."""
    rest: list[Extent] = []
    holes = merge(right)
    at = 0
    for extent in merge(left):
        start = extent.offset
        while at < len(holes) and holes[at].offset < extent.end:
            hole = holes[at]
            if hole.offset > start:
                rest.append(Extent(start, hole.offset - start))
            start = max(start, hole.end)
            if hole.end > extent.end:
                break  # it may reach into the next extent
            at += 1
        if start < extent.end:
            rest.append(Extent(start, extent.end - start))
    return rest


def pieces(extents: Iterable[Extent], piece_bytes: int) -> Iterator[Extent]:
    """The extents cut into pieces of at most piece_bytes that end on the grid of piece_bytes."""
    for extent in extents:
        start = extent.offset
        while start < extent.end:
            end = min(start - start % piece_bytes + piece_bytes, extent.end)
            yield Extent(start, end - start)
            start = end


def batches(extents: Iterable[Extent], batch_bytes: int) -> Iterator[tuple[Extent, ...]]:
    """Neighbours in the order of the disk put together, as many as have at most batch_bytes; a longer one is alone."""
    batch: list[Extent] = []
    room = batch_bytes
    for extent in extents:
        if batch and extent.length > room:
            yield tuple(batch)
            batch, room = [], batch_bytes
        batch.append(extent)
        room -= extent.length
    if batch:
        yield tuple(batch)


def total(extents: Iterable[Extent]) -> int:
    """Bytes covered, for disjoint extents."""
    return sum(e.length for e in extents)
