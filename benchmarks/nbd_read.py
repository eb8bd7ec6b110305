"""Reads an image over NBD with our client and with nbdcopy, in turn, and prints the ratio: `nbd_read.py [MIB]`.

The image lies in memory (/dev/shm) and nbdkit's file plugin serves it on a Unix socket, so that the client is what is
measured. Only the ratio says something: the rest of the machine is in the numbers.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from connectors.nbd import open_nbd
from connectors.nbd_protocol import UnixAddress

MIB = 1 << 20
ROUNDS = 7


async def ours(socket: Path, request_bytes: int, depth: int) -> None:
    """Read the whole export with so many requests under way."""
    async with open_nbd(UnixAddress(str(socket))) as disk:
        offsets = iter(range(0, disk.capacity_bytes, request_bytes))

        async def lane() -> None:
            buffer = memoryview(bytearray(request_bytes))
            for offset in offsets:
                await disk.read_into(offset, buffer[: min(request_bytes, disk.capacity_bytes - offset)])

        async with asyncio.TaskGroup() as lanes:
            for _ in range(depth):
                lanes.create_task(lane())


def read(socket: Path, request_bytes: int, depth: int) -> None:
    """The same, from outside a loop."""
    asyncio.run(ours(socket, request_bytes, depth))


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(folder: Path, size: int) -> None:
    """Serve an image of random bytes and read it with both, round by round."""
    image, socket, pid = folder / "image", folder / "socket", folder / "pid"
    with image.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    command = ["nbdkit", "-f", "-r", "-U", str(socket), "-P", str(pid), "file", str(image)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            while not pid.exists():
                time.sleep(0.01)
            for request_bytes, depth in ((256 << 10, 8), (MIB, 4), (2 * MIB, 4)):
                copy = ["nbdcopy", "--no-extents", "--connections=1", f"--request-size={request_bytes}"]
                copy += [f"nbd+unix:///?socket={socket}", "null:"]
                mine, theirs = [], []
                for _ in range(ROUNDS):
                    mine.append(seconds(partial(read, socket, request_bytes, depth)))
                    theirs.append(seconds(partial(subprocess.run, copy, check=True)))
                a, b = statistics.median(mine), statistics.median(theirs)
                print(
                    f"{request_bytes >> 10:5d} KiB x {depth}: ours {size / MIB / a:6.0f} MiB/s, "
                    f"nbdcopy {size / MIB / b:6.0f} MiB/s, ratio {b / a:.2f}"
                )
        finally:
            server.terminate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nbd", dir="/dev/shm") as name:
        compare(Path(name), int(sys.argv[1] if len(sys.argv) > 1 else "1024") * MIB)
