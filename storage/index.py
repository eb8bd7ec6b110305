"""Which pack holds a chunk: sorted runs of 64-bit prefixes, memory-mapped and searched by interpolation.

The index is derived from the packs' footers and may be deleted at any time. A run names the packs that it covers; a
hit is only a candidate until the full id in the pack's footer agrees.
"""

from __future__ import annotations

import mmap
import os
import secrets
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from storage.blobs import sync_folder, translated
from storage.failpoints import failpoint
from storage.format import RUN_HEAD, RUN_MAGIC, RUN_PACK, VERSION, PackKind, PackName

UNMAP_AFTER = 2048
"""Lookups until touched pages leave our resident set again; they stay in the page cache."""

MAX_RUNS = 12
"""More runs than this are merged: each costs every miss about a microsecond."""

Located = tuple[int, int, int]
"""(64-bit prefix, pack number, slot)"""


def prefix_of(chunk: bytes) -> int:
    """The first 64 bits of an id."""
    return int.from_bytes(chunk[:8], "big")


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
        start = RUN_HEAD.size + packs * RUN_PACK.size
        start += -start % 8
        if magic != RUN_MAGIC or version != VERSION or owner != repository or size != start + count * 14:
            self._map.close()
            raise ValueError("not a run of this repository")
        self.count = count
        self._start = start
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

    def sound(self) -> bool:
        """Whether the run still is what was written. Reads all of it."""
        return bool(blake3(memoryview(self._map)[RUN_HEAD.size :]).digest() == self._digest)

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


class Index:
    """All runs of a repository. Lookups from any thread; changes by one thread at a time."""

    def __init__(self, folder: Path, repository: bytes) -> None:
        self._folder = folder
        self._repository = repository
        self._runs: tuple[Run, ...] = ()
        self._lookups = 0
        with translated(str(folder)):
            folder.mkdir(exist_ok=True)
            paths = sorted(folder.iterdir())
        for path in paths:
            try:
                if path.suffix != ".run":
                    raise ValueError("left over")
                self._runs += (Run(path, repository),)
            except (ValueError, OSError):
                with suppress(OSError):
                    path.unlink()  # derived: the packs that it covered are read again

    def packs(self) -> set[PackName]:
        """Every pack that some run covers."""
        return {name for run in self._runs for name in run.packs}

    def find(self, chunk: bytes) -> list[tuple[int, int]]:
        """Candidates (pack number, slot), newest run last."""
        key = int.from_bytes(chunk[:8], "big")
        found: list[tuple[int, int]] = []
        for run in self._runs:
            if run.count:
                found += run.find(key)
        self._lookups += 1
        if self._lookups >= UNMAP_AFTER:
            self._lookups = 0
            for run in self._runs:
                run.unmap_pages()
        return found

    def add(self, packs: Sequence[PackName], entries: Iterable[Located]) -> None:
        """A further run, durable before it is used."""
        self._runs += (self._write(packs, _columns(entries)),)

    def compact(self, live: set[int], *, everything: bool = False) -> None:
        """Merge runs when there are many (or always), leaving out packs that are gone."""
        if len(self._runs) <= MAX_RUNS and not everything:
            return
        victims = sorted(self._runs, key=lambda run: run.count)
        if len(victims) < 2 and not any(name.number not in live for run in victims for name in run.packs):
            return
        if not everything:
            total = 0
            taken: list[Run] = []
            for run in victims:
                if len(taken) >= 2 and run.count > 2 * total and len(self._runs) - len(taken) < MAX_RUNS:
                    break
                total += run.count
                taken.append(run)
            victims = taken
        packs = sorted({name for run in victims for name in run.packs if name.number in live})
        merged = self._write(packs, _merge(victims, {name.number for name in packs}))
        self._runs = (*(run for run in self._runs if run not in victims), merged)
        for run in victims:
            failpoint("index.merged")
            run.path.unlink(missing_ok=True)

    def drop_unsound(self) -> int:
        """Delete runs that are not what was written; returns how many. Their packs have to be read again."""
        bad = [run for run in self._runs if not run.sound()]
        self._runs = tuple(run for run in self._runs if run not in bad)
        for run in bad:
            run.path.unlink(missing_ok=True)
        return len(bad)

    def close(self) -> None:
        """Unmap everything."""
        for run in self._runs:
            run.close()
        self._runs = ()

    def _write(self, packs: Sequence[PackName], columns: tuple[bytes, bytes, bytes]) -> Run:
        names = b"".join(RUN_PACK.pack(name.number, name.id, name.kind) for name in packs)
        names += bytes(-(RUN_HEAD.size + len(names)) % 8)
        hasher = blake3(names)
        for column in columns:
            hasher.update(column)
        head = RUN_HEAD.pack(RUN_MAGIC, VERSION, len(packs), self._repository, len(columns[0]) // 8, hasher.digest())
        temporary = self._folder / f"{secrets.token_hex(8)}.part"
        target = temporary.with_suffix(".run")
        with translated(str(self._folder)):
            try:
                with temporary.open("wb") as file:
                    for part in (head, names, *columns):
                        file.write(part)
                    file.flush()
                    os.fdatasync(file.fileno())
                failpoint("index.written")
                temporary.rename(target)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            failpoint("index.named")
            sync_folder(self._folder)
        return Run(target, self._repository)


def _columns(entries: Iterable[Located]) -> tuple[bytes, bytes, bytes]:
    keys, numbers, slots = array("Q"), array("I"), array("H")
    for key, number, slot in sorted(entries):
        keys.append(key)
        numbers.append(number)
        slots.append(slot)
    return keys.tobytes(), numbers.tobytes(), slots.tobytes()


def _merge(runs: Sequence[Run], live: set[int]) -> tuple[bytes, bytes, bytes]:
    if sum(run.count for run in runs) < 50_000 and "numpy" not in sys.modules:
        return _columns(_entries(runs, live))
    import numpy as np

    keys = np.concatenate([np.frombuffer(run.keys, np.uint64) for run in runs])
    numbers = np.concatenate([np.frombuffer(run.numbers, np.uint32) for run in runs])
    slots = np.concatenate([np.frombuffer(run.slots, np.uint16) for run in runs])
    keep = np.isin(numbers, np.fromiter(live, np.uint32, len(live)))
    keys, numbers, slots = keys[keep], numbers[keep], slots[keep]
    order = np.argsort(keys, kind="stable")
    return keys[order].tobytes(), numbers[order].tobytes(), slots[order].tobytes()


def _entries(runs: Sequence[Run], live: set[int]) -> Iterator[Located]:
    for run in runs:
        for key, number, slot in zip(run.keys, run.numbers, run.slots, strict=True):
            if number in live:
                yield key, number, slot
