"""Copying a disk that is read over a connection: lanes with one buffer each, so memory is `lanes * piece`.

While one lane waits for the network, others hash and compress in the copying threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from connectors.disks import AsyncReader, batches, pieces, total
from engine.copying import PIECE_BYTES, Advance, Copied, CopyPlan, Part, Shared, Sink, placed
from engine.threads import settled


async def stream_disk(
    reader: AsyncReader,
    sink: Sink,
    plan: CopyPlan,
    *,
    lanes: int,
    executor: Executor,
    piece_bytes: int = PIECE_BYTES,
    advance: Advance | None = None,
) -> Copied:
    """Copy the plan with `lanes` reads under way; the sink's work runs in the executor.

    Errors come as they are, not in a group. When this returns or raises, no thread touches the sink any more.
    """
    for hole in plan.zero:
        sink.zero(hole.offset, hole.length)
    work = Shared(batches(pieces(plan.read, piece_bytes), piece_bytes))

    async def lane() -> None:
        buffer = memoryview(bytearray(piece_bytes))
        while (batch := work.take()) is not None:
            parts = placed(batch, buffer)
            await _read(reader, parts)
            await settled(executor, sink.write_parts, parts)
            if advance is not None:
                advance(total(batch))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(lanes, plan.read_bytes // piece_bytes + 1))):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return Copied(plan.read_bytes, total(plan.zero))


async def _read(reader: AsyncReader, parts: Sequence[Part]) -> None:
    """All parts at once: a batch of small ones waits for the network no longer than one large part."""
    if len(parts) == 1:
        await reader.read_into(*parts[0])
        return
    async with asyncio.TaskGroup() as group:
        for offset, view in parts:
            group.create_task(reader.read_into(offset, view))


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that is not itself a group."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
