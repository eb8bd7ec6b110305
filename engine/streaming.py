"""Copying a disk that is read over a connection: lanes with one buffer each, so memory is `lanes * piece`.

While one lane waits for the network, others hash and compress in the copying threads.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from connectors.disks import AsyncReader, pieces, total
from engine.copying import PIECE_BYTES, Advance, Copied, CopyPlan, Shared, Sink
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
    work = Shared(pieces(plan.read, piece_bytes))

    async def lane() -> None:
        buffer = memoryview(bytearray(piece_bytes))
        while (piece := work.take()) is not None:
            view = buffer[: piece.length]
            await reader.read_into(piece.offset, view)
            await settled(executor, sink.write, piece.offset, view)
            if advance is not None:
                advance(piece.length)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(lanes, plan.read_bytes // piece_bytes + 1))):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return Copied(plan.read_bytes, total(plan.zero))


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that is not itself a group."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
