"""Copying a disk into the repository with threads: no event loop, no queue, memory of `threads * piece`.

Each thread takes the next batch of pieces, reads it into its own buffer and hands it to the sink, which hashes,
compresses and packs it in the same thread. Imported by short commands, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from connectors.disks import (
    BlockingReader,
    Changes,
    Extent,
    Incremental,
    Whole,
    align,
    batches,
    intersect,
    pieces,
    subtract,
    total,
)

PIECE_BYTES = 1 << 20
"""What one thread or lane hands over at a time, in one piece or in several; its buffer has this size."""

Part = tuple[int, memoryview]
"""An offset and the bytes from there on."""


class Sink(Protocol):
    """Where a disk's bytes go. The offsets of `write_parts` are on the block grid; any thread may call."""

    def write_parts(self, parts: Sequence[Part]) -> None:
        """Take all of each part; their memory may be reused when the call returns."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Take note that these bytes are zero."""
        ...


Stats = TypeVar("Stats", covariant=True)


class Ingest(Sink, Protocol[Stats]):
    """A sink that closes the disk's record."""

    def finish(self) -> Stats:
        """After the last write."""
        ...


Advance = Callable[[int], None]
"""Told after each batch how many of `read_bytes` it was, holes not counted; called from any thread."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What is read and what is known to be zero; both sorted, disjoint, on the grid of the sink's blocks."""

    read: tuple[Extent, ...]
    zero: tuple[Extent, ...]

    @property
    def read_bytes(self) -> int:
        """Bytes to read."""
        return total(self.read)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did."""

    read_bytes: int
    zero_bytes: int


class CopyStopped(Exception):
    """The copy was told to stop before its end."""


def stop_if(stop: threading.Event) -> None:
    """Raise CopyStopped when stop is set: for progress callbacks of work that has no other way to end early."""
    if stop.is_set():
        raise CopyStopped("stopped before its end")


def plan_copy(changes: Changes, mapped: Iterable[Extent] | None, *, capacity_bytes: int, block_bytes: int) -> CopyPlan:
    """What a copy reads. `mapped` are the parts that may hold data, None where that was not asked.

    A hole inside a changed extent is planned as zero: a block that became zero differs from the base as any other.
    """
    match changes:
        case Incremental(extents):
            wanted = align(extents, block_bytes, capacity_bytes)
        case Whole():
            wanted = [Extent(0, capacity_bytes)] if capacity_bytes else []
    if mapped is None:
        return CopyPlan(tuple(wanted), ())
    read = intersect(wanted, align(mapped, block_bytes, capacity_bytes))
    return CopyPlan(tuple(read), tuple(subtract(wanted, read)))


def placed(batch: Sequence[Extent], buffer: memoryview) -> list[Part]:
    """A place in the buffer for each extent of a batch, one behind the other."""
    parts: list[Part] = []
    at = 0
    for extent in batch:
        parts.append((extent.offset, buffer[at : at + extent.length]))
        at += extent.length
    return parts


Item = TypeVar("Item")


class Shared(Generic[Item]):
    """An iterator that several threads or lanes take from."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items: Iterator[Item] = iter(items)
        self._lock = threading.Lock()

    def take(self) -> Item | None:
        """The next item, or None when there is none left."""
        with self._lock:
            return next(self._items, None)


def copy_disk(
    reader: BlockingReader,
    sink: Sink,
    plan: CopyPlan,
    *,
    threads: int = 0,
    piece_bytes: int = PIECE_BYTES,
    advance: Advance | None = None,
    stop: threading.Event | None = None,
) -> Copied:
    """Copy the plan with `threads` workers (0: one per core); the caller's thread is one of them.

    The first error of any worker stops the others and is raised. A set `stop` raises CopyStopped between batches.
    """
    for hole in plan.zero:
        sink.zero(hole.offset, hole.length)
    work = Shared(batches(pieces(plan.read, piece_bytes), piece_bytes))
    halt = stop or threading.Event()
    failures: list[BaseException] = []
    failed = threading.Event()

    def run() -> None:
        buffer = memoryview(bytearray(piece_bytes))
        try:
            while not (halt.is_set() or failed.is_set()):
                batch = work.take()
                if batch is None:
                    return
                parts = placed(batch, buffer)
                for offset, view in parts:
                    reader.read_into(offset, view)
                sink.write_parts(parts)
                if advance is not None:
                    advance(total(batch))
        except BaseException as error:  # handed to the caller's thread, which raises it
            failures.append(error)
            failed.set()

    count = max(1, min(threads or os.cpu_count() or 1, plan.read_bytes // piece_bytes + 1))
    others = [threading.Thread(target=run, name=f"copy-{n}", daemon=True) for n in range(1, count)]
    for thread in others:
        thread.start()
    try:
        run()
    finally:
        for thread in others:
            thread.join()
    if failures:
        raise failures[0]
    if halt.is_set():
        raise CopyStopped("the copy was stopped before its end")
    return Copied(plan.read_bytes, total(plan.zero))


def backup_disk(
    reader: BlockingReader,
    ingest: Ingest[Stats],
    changes: Changes,
    *,
    block_bytes: int,
    threads: int = 0,
    advance: Advance | None = None,
) -> tuple[Stats, Copied]:
    """Read a whole disk or its changed extents into the repository and close its record.

    Holes are skipped in full reads; in incremental ones every changed extent is read, so that what the source
    calls a hole but the base does not is never mistaken for unchanged.
    """
    mapped = reader.extents() if isinstance(changes, Whole) else None
    plan = plan_copy(changes, mapped, capacity_bytes=reader.capacity_bytes, block_bytes=block_bytes)
    copied = copy_disk(reader, ingest, plan, threads=threads, advance=advance)
    return ingest.finish(), copied
