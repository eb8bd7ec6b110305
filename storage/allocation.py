"""How this process's memory allocator treats the buffers of the data path."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 64 << 20
"""Freed memory that the process keeps at the top of a heap."""

OWN_MAPPING_BYTES = 8 << 20
"""Larger buffers get a mapping of their own, and give it back when they are freed."""


@cache
def keep_freed_memory() -> None:
    """Keep what one batch frees for the next one.

    By default glibc gives the top of a heap back as soon as 128 KiB of it are free. Each batch of chunks frees more,
    and then pays a page fault for every 4 KiB that it touches again: 50,000 faults for a backup of 1 GB, and 12,000
    with this. Other C libraries have no such switch and are left alone.
    """
    import ctypes  # a millisecond and a half, which only those pay who move chunks

    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
