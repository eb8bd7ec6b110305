"""Having the kernel write a file to the disk while the file still grows, so that the fsync at its end finds little."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

STEP_BYTES = 32 << 20
"""So much is written to the page cache before the kernel is told to begin with it."""

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE alone: it waits for nothing, and leaves every write error to the fsync that follows."""


class WriteBehind:
    """A thread that has the kernel begin to write what is dirty, each time that STEP_BYTES more are told.

    It makes nothing durable and never fails: call fsync yourself. Where the system has no such call it does nothing.
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
        import ctypes

        begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
        if begin is None:
            return
        begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        while True:
            self._more.wait()
            self._more.clear()
            if self._over:
                return
            begin(self._fd, 0, 0, _WRITE)
