"""The bound of a full backup: compressing its unique blocks, in memory, with zstd 1 on all cores.

python -m benchmarks.peers.bound IMAGE prints seconds and bytes as JSON. The blocks are in memory before the clock
starts, each thread reuses its own context, and nothing is kept of what comes out.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard
from blake3 import blake3

from benchmarks.images.comparing import mapped

BLOCK = 64 << 10
BATCH = 16


def unique_blocks(image: Path) -> list[bytes]:
    """The distinct 64 KiB blocks of an image that are not all zeros, in its order."""
    zeros, seen, found = bytes(BLOCK), set(), []
    with image.open("rb") as file:
        fd, size = file.fileno(), image.stat().st_size
        numbers = {at // BLOCK for start, end in mapped(fd, size) for at in range(start, end, 4096)}
        for number in sorted(numbers):
            block = os.pread(fd, BLOCK, number * BLOCK)
            if not block.startswith(zeros) and (digest := blake3(block).digest()) not in seen:
                seen.add(digest)
                found.append(block)
    return found


def compress_all(blocks: list[bytes], threads: int) -> tuple[float, int]:
    """(seconds, bytes that came out)."""
    batches: Iterator[int] = iter(range(0, len(blocks), BATCH))
    sizes = [0] * threads

    def work(number: int) -> None:
        compress = zstandard.ZstdCompressor(level=1).compress
        for first in batches:
            for block in blocks[first : first + BATCH]:
                sizes[number] += len(compress(block))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began, sum(sizes)


def main() -> None:
    """Print the JSON."""
    blocks = unique_blocks(Path(sys.argv[1]))
    seconds, out = compress_all(blocks, os.cpu_count() or 1)
    print(json.dumps({"seconds": seconds, "bytes": sum(map(len, blocks)), "compressed_bytes": out}))


if __name__ == "__main__":
    main()
