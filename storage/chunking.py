"""Cutting a disk into the blocks of its fixed grid, and the test for zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

BATCH_BYTES = 1 << 20
"""How much one call of the data plane handles: large enough to pay for its locks, small enough for caches."""


def batched(parts: Iterable[tuple[int, memoryview]], batch_bytes: int) -> Iterator[list[tuple[int, memoryview]]]:
    """Parts (offset, bytes) cut and put together in their order, so that each batch has batch_bytes at most."""
    batch: list[tuple[int, memoryview]] = []
    room = batch_bytes
    for offset, view in parts:
        for start in range(0, len(view), batch_bytes):
            piece = view[start : start + batch_bytes]
            if len(piece) > room:
                yield batch
                batch, room = [], batch_bytes
            batch.append((offset + start, piece))
            room -= len(piece)
    if batch:
        yield batch


def split(offset: int, view: memoryview, block_bytes: int, zeros: bytes) -> Iterator[tuple[int, memoryview | None]]:
    """(block number, bytes) for each block of view; None for a block of zeros. `zeros` has a block's length."""
    first = offset // block_bytes
    startswith = zeros.startswith
    for index, start in enumerate(range(0, len(view), block_bytes), first):
        block = view[start : start + block_bytes]
        yield index, (None if startswith(block) else block)


def check_placement(offset: int, length: int, block_bytes: int, capacity_bytes: int) -> None:
    """ValueError unless the part is whole blocks, but for the disk's end."""
    end = offset + length
    if offset < 0 or offset % block_bytes or end > capacity_bytes or (end % block_bytes and end != capacity_bytes):
        raise ValueError(
            f"offset {offset}, length {length}: not whole blocks of {block_bytes} bytes on a disk of {capacity_bytes}"
        )
