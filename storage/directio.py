"""Writing a large file around the page cache.

Whoever writes a backup does not read it soon, but the page cache keeps it and drops what others need. It is dear, too:
page cache for 1 GB takes 0.5 to 2 seconds of CPU in a virtual machine whose host has to provide the memory, a copy into
buffers that are used again and a direct write a fifth of that.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

SEGMENT_BYTES = 1 << 20
"""What one direct write takes; it begins and ends at a multiple of itself, so that any disk's blocks suit it."""

WAITING = 8
"""Full segments that may wait for the disk while work goes on."""

KEPT_BUFFERS = 16
_BLOCK = 4096

_free: list[memoryview] = []


def _buffer() -> memoryview:
    while True:
        try:
            kept = _free.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, SEGMENT_BYTES))
        if len(kept) == SEGMENT_BYTES:
            return kept


@dataclass(slots=True)
class _Segment:
    data: memoryview
    filled: int = 0


class DirectTail:
    """The part of a growing file that begins at a multiple of a segment; what lies before it is the caller's to write.

    OSError where the file system takes no direct writes. `write_at` and `read_at` from any thread.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}
        self._failure: OSError | None = None
        self._room = threading.Semaphore(WAITING)
        self._jobs: SimpleQueue[int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="direct writes", daemon=True)
        self._thread.start()

    def write_at(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Take bytes for this place of the file. Each place once. OSError when an earlier write has failed."""
        if self._failure is not None:
            raise self._failure
        size = SEGMENT_BYTES
        views = [memoryview(buffer) for buffer in buffers]
        end = offset + sum(map(len, views))
        if end == offset:
            return
        with self._lock:
            for index in range(offset // size, -(-end // size)):
                if index not in self._segments:
                    self._segments[index] = _Segment(_buffer())
        index, at = divmod(offset, size)
        segment, begin = self._segments[index], at
        for view in views:
            while len(view) > size - at:
                segment.data[at:] = view[: size - at]
                view = view[size - at :]
                self._took(index, segment, size - begin)
                index, at, begin = index + 1, 0, 0
                segment = self._segments[index]
            segment.data[at : at + len(view)] = view
            at += len(view)
        self._took(index, segment, at - begin)

    def read_at(self, offset: int, length: int, fd: int) -> bytes:
        """Bytes that were written here: from memory, or by way of this other descriptor. Fewer where the file ends."""
        parts: list[bytes] = []
        while length:
            index, at = divmod(offset, SEGMENT_BYTES)
            count = min(length, SEGMENT_BYTES - at)
            with self._lock:
                segment = self._segments.get(index)
                part = bytes(segment.data[at : at + count]) if segment is not None else None
            if part is None:
                part = os.pread(fd, count, offset)
                if not part:
                    break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def finish(self, fd: int) -> None:
        """Write everything, the last part by this other descriptor. Nothing is synced. OSError when a write failed."""
        self._stop()
        try:
            if self._failure is not None:
                raise self._failure
            for index, segment in sorted(self._segments.items()):
                done = 0
                while done < segment.filled:
                    done += os.pwritev(fd, [segment.data[done : segment.filled]], index * SEGMENT_BYTES + done)
        finally:
            self._forget()

    def abandon(self) -> None:
        """Write nothing more. Idempotent."""
        self._failure = self._failure or OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self._stop()
        self._forget()

    def _took(self, index: int, segment: _Segment, count: int) -> None:
        with self._lock:
            segment.filled += count
            full = segment.filled == SEGMENT_BYTES
        if full:
            self._room.acquire()
            self._jobs.put(index)

    def _run(self) -> None:
        while (index := self._jobs.get()) is not None:
            segment = self._segments[index]
            try:
                if self._failure is None:
                    self._write(segment.data, index * SEGMENT_BYTES)
                    with self._lock:
                        self._release(self._segments.pop(index))
            except OSError as error:
                self._failure = error
            finally:
                self._room.release()

    def _write(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                count = os.pwritev(self._fd, [data[done:]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._give_up_direct():
                    raise
                continue
            whole = count - count % _BLOCK  # a direct write goes on at a block
            if not whole:
                self._give_up_direct()
            done += whole or count

    def _give_up_direct(self) -> bool:
        """Write through the page cache, where a file system takes the flag but not the writes; False if so already."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _forget(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
        with self._lock:
            for segment in self._segments.values():
                self._release(segment)
            self._segments.clear()

    @staticmethod
    def _release(segment: _Segment) -> None:
        if len(_free) < KEPT_BUFFERS:
            _free.append(segment.data)
