"""Writing a disk of a restore point to a file or block device: parallel, every chunk checked, holes left sparse."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator

from storage.filecalls import Buffer, translated, write_all
from storage.parallel import for_each
from storage.reading import PointDisk
from storage.stretches import StretchReads
from storage.writeback import WriteBehind

STEP_BYTES = 1 << 20
ZEROS = bytes(STEP_BYTES)

_Piece = tuple[int, list[bytes]]
"""(first block, chunk ids of adjacent mapped blocks, empty ids between them for zeros)"""


def restore_disk(
    disk: PointDisk,
    target_fd: int,
    *,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Make the target equal to the disk; returns the mapped bytes written. Call fsync yourself.

    A file is truncated first and stays sparse; on anything else zeros are written. Damaged when a chunk is not
    intact: nothing wrong is written, but what was written before stays. `progress` gets the bytes done so far.
    """
    sparse = stat.S_ISREG(os.fstat(target_fd).st_mode)
    with translated("restore target"):
        if sparse:
            os.ftruncate(target_fd, 0)
            os.ftruncate(target_fd, disk.capacity_bytes)
    lock = threading.Lock()
    done_bytes = 0

    def worker() -> Callable[[_Piece], None]:
        reads = StretchReads(disk.store, disk.blocks)

        def restore(piece: _Piece) -> None:
            nonlocal done_bytes
            done = _restore_piece(disk, piece, reads, target_fd, sparse)
            behind.wrote(done)
            with lock:
                done_bytes += done
                total = done_bytes
            if progress is not None:
                progress(total)

        return restore

    with WriteBehind(target_fd) as behind:
        for_each(_pieces(disk, sparse), worker, threads)
    return done_bytes


def _pieces(disk: PointDisk, sparse: bool) -> Iterator[_Piece]:
    step = max(1, STEP_BYTES // disk.block_bytes)
    blocks = -(-disk.capacity_bytes // disk.block_bytes)
    at = 0
    for first, children in disk.leaves():
        if not sparse:
            yield from _zeros(at, first, step)
        for start in range(0, disk.fan_out, step):
            end = min(start + step, disk.fan_out, blocks - first)
            ids = [children.get(slot, b"") for slot in range(start, end)]
            if any(ids) or not sparse:
                yield first + start, ids
        at = first + disk.fan_out
    if not sparse:
        yield from _zeros(at, blocks, step)


def _zeros(first: int, end: int, step: int) -> Iterator[_Piece]:
    for start in range(first, end, step):
        yield start, [b""] * min(step, end - start)


def _restore_piece(disk: PointDisk, piece: _Piece, reads: StretchReads, target_fd: int, sparse: bool) -> int:
    first, ids = piece
    data = iter(reads.read([chunk for chunk in ids if chunk]))
    run: list[Buffer] = []
    run_at = first * disk.block_bytes
    done = 0
    for block, chunk in enumerate(ids, first):
        offset = block * disk.block_bytes
        length = min(disk.block_bytes, disk.capacity_bytes - offset)
        if chunk:
            if not run:
                run_at = offset
            stored = memoryview(next(data))[:length]
            run.append(stored)
            if len(stored) < length:  # the disk ended within this block once, and has grown since
                run.append(ZEROS[: length - len(stored)])
            done += length
        elif not sparse:
            if not run:
                run_at = offset
            run.append(bytes(length))
        elif run:
            _write(target_fd, run_at, run)
            run = []
    if run:
        _write(target_fd, run_at, run)
    return done


def _write(fd: int, offset: int, buffers: list[Buffer]) -> None:
    with translated("restore target"):
        write_all(fd, offset, buffers)
