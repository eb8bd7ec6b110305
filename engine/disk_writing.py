"""Filling a disk from a restore point: in strides that are durable before they count, every byte checked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import cast

from connectors.disks import AsyncWriter, BlockingWriter, DiskWriter, Extent, pieces
from connectors.errors import ConnectorError
from engine.copying import PIECE_BYTES, Advance, Shared
from engine.streaming import first_of
from engine.threads import hurried, settled
from storage.repository import PointDisk

STRIDE_BYTES = 256 << 20
"""After so many bytes the disk is flushed and the journal told: what a cut-off restore does again at most."""

GRAIN_BYTES = 64 << 10
"""Where the target is compared first, it is written in pieces of this size."""


@dataclass(frozen=True, slots=True)
class Filling:
    """How a disk is filled. With `compare` the target is read first and only what differs is written.

    `executor` reads the repository and does what blocks; `lanes` pieces are under way at a time. `writes` is called
    before each write.
    """

    executor: Executor
    lanes: int = 4
    compare: bool = False
    stride_bytes: int = STRIDE_BYTES
    advance: Advance | None = None
    writes: Callable[[], None] = lambda: None


async def fill(
    disk: PointDisk,
    writer: DiskWriter,
    extents: Sequence[Extent],
    how: Filling,
    reached: Callable[[int], Awaitable[None]],
) -> int:
    """Make these extents of the target as they are in the restore point; the bytes that were written.

    `reached` is told of each offset before which all of them are done and durable. Raises as the writer does, and
    Damaged when a byte of the restore point is not intact; never a group.
    """
    if writer.capacity_bytes < disk.capacity_bytes:
        raise ConnectorError(f"the disk holds {writer.capacity_bytes} bytes of {disk.capacity_bytes}")
    written = 0
    for stride in strides(extents, how.stride_bytes):
        written += await _stride(disk, writer, stride, how)
        await _flush(writer, how.executor)
        await reached(stride[-1].end)
    return written


async def pour(
    disk: PointDisk,
    writer: BlockingWriter,
    extents: Sequence[Extent],
    how: Filling,
    sending: Executor,
    cut: Callable[[], None] = lambda: None,
) -> int:
    """Write these extents in the order of the disk, as a stream needs them; the bytes that were written.

    Up to `lanes` pieces are read ahead of the one that is being written, in `sending`, which may wait for a network;
    a cancellation calls `cut`, which ends that wait. Raises as `fill` does.
    """
    if writer.capacity_bytes != disk.capacity_bytes:
        raise ConnectorError(f"the disk holds {writer.capacity_bytes} bytes, not {disk.capacity_bytes}")
    free = deque(memoryview(bytearray(PIECE_BYTES)) for _ in range(max(1, how.lanes)))
    ahead: deque[tuple[int, memoryview, asyncio.Task[None]]] = deque()
    written = 0

    async def write_first() -> None:
        nonlocal written
        offset, view, read = ahead.popleft()
        await read
        await hurried(sending, cut, partial(writer.write, offset, view))
        written += view.nbytes
        free.append(memoryview(view.obj))
        if how.advance is not None:
            how.advance(view.nbytes)

    try:
        async with asyncio.TaskGroup() as group:
            for piece in pieces(extents, PIECE_BYTES):
                if not free:
                    await write_first()
                view = free.popleft()[: piece.length]
                reading = settled(how.executor, disk.read_into, piece.offset, view)
                ahead.append((piece.offset, view, group.create_task(reading)))
            while ahead:
                await write_first()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return written


def strides(extents: Sequence[Extent], stride_bytes: int) -> Iterator[list[Extent]]:
    """The pieces of the extents in the order of the disk, in lists of at least stride_bytes but for the last."""
    stride: list[Extent] = []
    held = 0
    for piece in pieces(extents, PIECE_BYTES):
        stride.append(piece)
        held += piece.length
        if held >= stride_bytes:
            yield stride
            stride, held = [], 0
    if stride:
        yield stride


def differing(wanted: memoryview, there: memoryview, grain: int = GRAIN_BYTES) -> list[tuple[int, int]]:
    """The parts, on the grain, in which the two differ; neighbours as one."""
    if bytes(wanted) == bytes(there):
        return []
    found: list[tuple[int, int]] = []
    for start in range(0, len(wanted), grain):
        end = min(start + grain, len(wanted))
        if bytes(wanted[start:end]) == bytes(there[start:end]):
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


async def _stride(disk: PointDisk, writer: DiskWriter, stride: Sequence[Extent], how: Filling) -> int:
    work = Shared(stride)
    written = 0

    async def lane() -> None:
        nonlocal written
        wanted, there = memoryview(bytearray(PIECE_BYTES)), memoryview(bytearray(PIECE_BYTES if how.compare else 0))
        while (piece := work.take()) is not None:
            view = wanted[: piece.length]
            await settled(how.executor, disk.read_into, piece.offset, view)
            parts = [(0, piece.length)]
            if how.compare:
                now = there[: piece.length]
                await _read(writer, how.executor, piece.offset, now)
                parts = await settled(how.executor, differing, view, now)
            for start, end in parts:
                how.writes()
                await _write(writer, how.executor, piece.offset + start, view[start:end])
                written += end - start
            if how.advance is not None:
                how.advance(piece.length)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(how.lanes, len(stride)))):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return written


async def is_blank(writer: DiskWriter, executor: Executor) -> bool:
    """Whether every byte of the disk is zero. Raises as the writer does."""
    held = bytearray(PIECE_BYTES)
    zeros = bytes(PIECE_BYTES)
    for offset in range(0, writer.capacity_bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, writer.capacity_bytes - offset)
        with memoryview(held) as view:
            await _read(writer, executor, offset, view[:length])
        if not held.startswith(zeros[:length]):
            return False
    return True


async def _write(writer: DiskWriter, executor: Executor, offset: int, view: memoryview) -> None:
    if asyncio.iscoroutinefunction(writer.write):
        await cast(AsyncWriter, writer).write(offset, view)
    else:
        await settled(executor, cast(BlockingWriter, writer).write, offset, view)


async def _read(writer: DiskWriter, executor: Executor, offset: int, view: memoryview) -> None:
    if asyncio.iscoroutinefunction(writer.read_into):
        await cast(AsyncWriter, writer).read_into(offset, view)
    else:
        await settled(executor, cast(BlockingWriter, writer).read_into, offset, view)


async def _flush(writer: DiskWriter, executor: Executor) -> None:
    if asyncio.iscoroutinefunction(writer.flush):
        await cast(AsyncWriter, writer).flush()
    else:
        await settled(executor, cast(BlockingWriter, writer).flush)
