"""Cutting a disk into the blocks of its fixed grid, and the test for zero."""

from __future__ import annotations

from collections.abc import Iterator

BATCH_BYTES = 1 << 20
"""How much one call of the data plane handles: large enough to pay for its locks, small enough for caches."""


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
