"""Sorted runs of the lookup index: three columns in a memory-mapped file, searched by interpolation.

Prefixes of hashes are spread evenly, so a guess from the key alone misses by about the square root of the number of
entries; two corrections from what was found there bring it within a cache line or two, in one run of any size.
"""

from __future__ import annotations

import mmap
import os
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from storage.format import ENTRY, RUN_HEAD, RUN_MAGIC, RUN_PACK, VERSION, PackKind, PackName

ARRAYS_FROM = 50_000
"""From so many entries on, numpy's import time is paid back."""

MERGE_ENTRIES = 1 << 20
"""Entries that a merge holds in memory at once."""

HASH_ENTRIES_BYTES = 16 << 20
SEARCH_STEPS = 3
SEARCH_WINDOW = 64
SMALL_RUN = 1 << 16
"""A run that fits a cache is searched without guessing."""

Located = tuple[int, int, int]
"""(64-bit prefix, pack number, slot)"""


class Columns(NamedTuple):
    """Entries sorted by prefix: 64-bit prefixes, pack numbers, slots; arrays of Python or of numpy."""

    keys: Any
    numbers: Any
    slots: Any

    @classmethod
    def of(cls, entries: Iterable[Located]) -> Columns:
        """From entries in any order."""
        columns = cls(array("Q"), array("I"), array("H"))
        for key, number, slot in sorted(entries):
            columns.keys.append(key)
            columns.numbers.append(number)
            columns.slots.append(slot)
        return columns

    @classmethod
    def of_packs(cls, packs: Sequence[tuple[PackName, bytes]]) -> Columns:
        """From packs and the entries of their footers."""
        total = sum(len(entries) for _, entries in packs) // ENTRY.size
        if total < ARRAYS_FROM and "numpy" not in sys.modules:
            return cls._of_few(packs)
        import numpy as np

        lengths = [len(entries) // ENTRY.size for _, entries in packs]
        keys = np.empty(total, np.uint64)
        at = 0
        for (_, entries), length in zip(packs, lengths, strict=True):
            heads = np.frombuffer(entries, ">u8").reshape(-1, ENTRY.size // 8)[:, 0]
            keys[at : at + length] = heads
            at += length
        numbers = np.repeat(np.array([name.number for name, _ in packs], np.uint32), lengths)
        slots = np.concatenate([np.arange(length, dtype=np.uint16) for length in lengths])
        order = np.argsort(keys)
        return cls(keys[order], numbers[order], slots[order])

    @classmethod
    def _of_few(cls, packs: Sequence[tuple[PackName, bytes]]) -> Columns:
        """The same without numpy. Python sorts text of eight Latin letters faster than numbers of 64 bits."""
        heads: list[str] = []
        numbers, slots = array("I"), array("H")
        for name, entries in packs:
            text, count = entries.decode("latin-1"), len(entries) // ENTRY.size
            heads += [text[at : at + 8] for at in range(0, len(text), ENTRY.size)]
            numbers.extend(repeat(name.number, count))
            slots.extend(range(count))
        order = sorted(range(len(heads)), key=heads.__getitem__)
        keys = array("Q", "".join([heads[at] for at in order]).encode("latin-1"))
        if sys.byteorder == "little":
            keys.byteswap()
        return cls(keys, array("I", map(numbers.__getitem__, order)), array("H", map(slots.__getitem__, order)))


class Run:
    """One sorted run, read-only."""

    def __init__(self, path: Path, repository: bytes) -> None:
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < RUN_HEAD.size:
                raise ValueError("cut off")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, packs, owner, count, self._digest = RUN_HEAD.unpack_from(self._map)
        start = _columns_at(packs)
        if magic != RUN_MAGIC or version != VERSION or owner != repository or size != start + count * 14:
            self._map.close()
            raise ValueError("not a run of this repository")
        self.count = count
        self.packs = [
            PackName(number, pack, PackKind(kind))
            for number, pack, kind in RUN_PACK.iter_unpack(
                self._map[RUN_HEAD.size : RUN_HEAD.size + packs * RUN_PACK.size]
            )
        ]
        view = memoryview(self._map)
        self.keys = view[start : start + 8 * count].cast("Q")
        self.numbers = view[start + 8 * count : start + 12 * count].cast("I")
        self.slots = view[start + 12 * count :].cast("H")
        self._window = 3 * int(count**0.5) + 32

    def find(self, key: int) -> list[tuple[int, int]]:
        """(pack number, slot) of each chunk with this prefix."""
        keys, count = self.keys, self.count
        guess = key * count >> 64
        low, high = max(guess - self._window, 0), min(guess + self._window, count)
        at = bisect_left(keys, key, low, high)
        if (at == low and low and keys[low - 1] >= key) or (at == high and high < count and keys[high] < key):
            at = bisect_left(keys, key)
        found = []
        while at < count and keys[at] == key:
            found.append((self.numbers[at], self.slots[at]))
            at += 1
        return found

    def find_many(self, wanted: Any) -> tuple[Any, Any, Any]:
        """Numpy arrays (which of the wanted prefixes, pack number, slot), one element for each entry that fits."""
        import numpy as np

        keys = np.frombuffer(self.keys, np.uint64)
        at = lower_bounds(keys, wanted)
        rows = np.arange(len(wanted))
        found: list[tuple[Any, Any]] = []
        while len(rows):
            there = at < self.count
            rows, at = rows[there], at[there]
            same = keys[at] == wanted[rows]
            rows, at = rows[same], at[same]
            found.append((rows, at))
            at = at + 1
        rows = np.concatenate([part for part, _ in found]) if found else rows
        places = np.concatenate([part for _, part in found]) if found else at
        numbers = np.frombuffer(self.numbers, np.uint32)[places]
        return rows, numbers, np.frombuffer(self.slots, np.uint16)[places]

    def columns(self, low: int, high: int) -> Columns:
        """A part of the run as numpy arrays over the file."""
        import numpy as np

        return Columns(
            np.frombuffer(self.keys, np.uint64)[low:high],
            np.frombuffer(self.numbers, np.uint32)[low:high],
            np.frombuffer(self.slots, np.uint16)[low:high],
        )

    def sound(self) -> bool:
        """Whether the run still is what was written. Reads all of it."""
        return bool(_digest(self._map) == self._digest)

    def unmap_pages(self) -> None:
        """Let touched pages go."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap."""
        self.keys.release()
        self.numbers.release()
        self.slots.release()
        with suppress(BufferError):
            self._map.close()


def lower_bounds(keys: Any, wanted: Any) -> Any:
    """For each wanted key the place of the first of the sorted keys that is not below it; both are numpy uint64."""
    import numpy as np

    count = len(keys)
    if count < SMALL_RUN:
        return np.searchsorted(keys, wanted)
    share = count / 2**64
    at = np.minimum((wanted.astype(np.float64) * share).astype(np.int64), count - 1)
    for _ in range(SEARCH_STEPS):
        there = keys[at]
        above = wanted > there
        apart = np.where(above, wanted - there, there - wanted).astype(np.float64) * share
        step = apart.astype(np.int64)
        at = np.clip(np.where(above, at + step, at - step), 0, count - 1)
    low, high = np.maximum(at - SEARCH_WINDOW, 0), np.minimum(at + SEARCH_WINDOW, count)
    for _ in range((2 * SEARCH_WINDOW).bit_length()):
        middle = (low + high) >> 1
        below = keys[np.minimum(middle, count - 1)] < wanted
        below &= low < high
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    wrong = (low > 0) & (keys[np.maximum(low - 1, 0)] >= wanted)
    wrong |= (low < count) & (keys[np.minimum(low, count - 1)] < wanted)
    if wrong.any():
        low[wrong] = np.searchsorted(keys, wanted[wrong])
    return low


def merged(runs: Sequence[Run], live: set[int]) -> tuple[int, Iterator[Columns]]:
    """How many entries of live packs the runs have, and these entries, sorted, part by part."""
    if sum(run.count for run in runs) < ARRAYS_FROM and "numpy" not in sys.modules:
        columns = Columns.of(entry for run in runs for entry in _entries(run, live))
        return len(columns.keys), iter([columns])
    import numpy as np

    alive = np.fromiter(live, np.uint32, len(live))
    total = 0
    for run in runs:
        for low in range(0, run.count, MERGE_ENTRIES):
            total += int(np.isin(run.columns(low, min(low + MERGE_ENTRIES, run.count)).numbers, alive).sum())
    return total, _merged_parts(runs, alive)


def _merged_parts(runs: Sequence[Run], alive: Any) -> Iterator[Columns]:
    import numpy as np

    parts = sum(run.count for run in runs) // MERGE_ENTRIES + 1
    low = [0] * len(runs)
    for part in range(1, parts + 1):
        end = (part << 64) // parts
        high = [bisect_left(run.keys, end) if part < parts else run.count for run in runs]
        pieces = [run.columns(a, b) for run, a, b in zip(runs, low, high, strict=True)]
        low = high
        keys, numbers, slots = (np.concatenate(column) for column in zip(*pieces, strict=True))
        keep = np.isin(numbers, alive)
        keys, numbers, slots = keys[keep], numbers[keep], slots[keep]
        order = np.argsort(keys)
        yield Columns(keys[order], numbers[order], slots[order])
        for run in runs:
            run.unmap_pages()


def _entries(run: Run, live: set[int]) -> Iterator[Located]:
    for key, number, slot in zip(run.keys, run.numbers, run.slots, strict=True):
        if number in live:
            yield key, number, slot


def write_run(fd: int, repository: bytes, packs: Sequence[PackName], count: int, parts: Iterable[Columns]) -> None:
    """Write a run of `count` entries, given in sorted parts, to an empty file and sync it."""
    names = b"".join(RUN_PACK.pack(name.number, name.id, name.kind) for name in packs)
    start = _columns_at(len(packs))
    _write(fd, names, RUN_HEAD.size)
    os.ftruncate(fd, start + 14 * count)
    done = 0
    for keys, numbers, slots in parts:
        for column, at, width in ((keys, start, 8), (numbers, start + 8 * count, 4), (slots, start + 12 * count, 2)):
            _write(fd, column, at + width * done)
        done += len(keys)
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as written:
        digest = _digest(written)
    _write(fd, RUN_HEAD.pack(RUN_MAGIC, VERSION, len(packs), repository, count, digest), 0)
    os.fdatasync(fd)


def _write(fd: int, data: Any, at: int) -> None:
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while len(view):
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _columns_at(packs: int) -> int:
    start = RUN_HEAD.size + packs * RUN_PACK.size
    return start + -start % 8


def _digest(run: mmap.mmap) -> bytes:
    hasher = blake3()
    with memoryview(run) as view:
        for at in range(RUN_HEAD.size, len(view), HASH_ENTRIES_BYTES):
            hasher.update(view[at : at + HASH_ENTRIES_BYTES])
            run.madvise(mmap.MADV_DONTNEED)
    return hasher.digest()
