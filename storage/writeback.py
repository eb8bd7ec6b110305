"""Writing a file to the disk while it still grows, so that the fsync at its end finds little and memory stays free."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

STEP_BYTES = 8 << 20
"""So much is written to the page cache before the kernel is told to go on with it."""


class WriteBehind:
    """A thread that has the kernel write what is dirty, and drop what is written, each time STEP_BYTES more are told.

    Dropped pages are used again at once: a restore keeps tens of megabytes of page cache, not the size of its disk.
    It makes nothing durable, and leaves every write error to fsync: call that yourself.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._told = 0
        self._over = False
        self._more = threading.Event()
        self._thread = threading.Thread(target=self._run, name="write behind", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self._more.set()
        self._thread.join()

    def wrote(self, count: int) -> None:
        """So many bytes more lie in the page cache. From any thread."""
        with self._lock:
            self._told += count
            if self._told < STEP_BYTES:
                return
            self._told = 0
        self._more.set()

    def _run(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            if self._over:
                return
            with suppress(OSError):  # advice: a target that takes none is written all the same
                # Begins to write what is dirty, waits for nothing, and drops what was written by now.
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
