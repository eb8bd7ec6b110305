"""What an image holds, and what two images of one disk differ in."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

FINEST = 4096
PIECE = 1 << 20
SIZES = (4096, 16384, 65536, 1 << 20)
"""The block sizes for which changed bytes are told."""


def mapped(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of what is no hole."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def blocks_in_use(image: Path) -> int:
    """Bytes in blocks of 4 KiB that hold anything but zeros."""
    zeros, used = bytes(FINEST), 0
    with image.open("rb") as file:
        fd = file.fileno()
        for start, end in mapped(fd, image.stat().st_size):
            for at in range(start, end, PIECE):
                piece = os.pread(fd, min(PIECE, end - at), at)
                used += sum(not piece.startswith(zeros, i) for i in range(0, len(piece), FINEST)) * FINEST
    return used


def differences(before: Path, after: Path) -> list[int]:
    """The numbers of the 4 KiB blocks in which two images of equal size differ, in order."""
    size = before.stat().st_size
    if size != after.stat().st_size:
        raise ValueError(f"{before} and {after} differ in size")
    found: list[int] = []
    with before.open("rb") as one, after.open("rb") as other:
        a, b = one.fileno(), other.fileno()
        pieces = {at // PIECE for fd in (a, b) for start, end in mapped(fd, size) for at in range(start, end, FINEST)}
        for number in sorted(pieces):
            old, new = os.pread(a, PIECE, number * PIECE), os.pread(b, PIECE, number * PIECE)
            if old != new:
                first = number * (PIECE // FINEST)
                found += [
                    first + i
                    for i in range(PIECE // FINEST)
                    if old[i * FINEST : (i + 1) * FINEST] != new[i * FINEST : (i + 1) * FINEST]
                ]
    return found


def changed_bytes(blocks: Sequence[int]) -> dict[int, int]:
    """How many bytes changed, by the size of the block in which one counts."""
    return {size: len({block * FINEST // size for block in blocks}) * size for size in SIZES}


def extents(blocks: Sequence[int], grain: int = 65536) -> list[tuple[int, int]]:
    """(offset, length) of what changed in units of grain, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for unit in sorted({block * FINEST // grain for block in blocks}):
        offset = unit * grain
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + grain)
        else:
            joined.append((offset, grain))
    return joined
