"""Which pack holds a chunk: sorted runs of 64-bit prefixes, memory-mapped and searched by interpolation.

The index is derived from the packs' footers and may be deleted at any time. A run names the packs that it covers; a
hit is only a candidate until the full id in the pack's footer agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage import randomness
from storage.failpoints import failpoint
from storage.filecalls import sync_folder, translated
from storage.format import PackName
from storage.runs import Columns, Located, Run, merged, write_run

UNMAP_AFTER = 2048
"""Lookups until touched pages leave our resident set again; they stay in the page cache."""

BULK_LOOKUPS = 64
"""So many lookups in bulk count as one: they touch neighbouring pages, and pages given up too soon cost faults."""

MAX_RUNS = 12
"""More runs than this are merged: each costs every miss about a microsecond."""


def prefix_of(chunk: bytes) -> int:
    """The first 64 bits of an id."""
    return int.from_bytes(chunk[:8], "big")


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
                _remove(path)  # derived: the packs that it covered are read again

    def packs(self) -> set[PackName]:
        """Every pack that some run covers."""
        return {name for run in self._runs for name in run.packs}

    @property
    def packs_covered(self) -> int:
        """How many packs the runs cover."""
        return sum(len(run.packs) for run in self._runs)

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

    def find_many(self, wanted: Any) -> tuple[Any, Any, Any]:
        """Candidates for many prefixes at once, as numpy arrays: (which of the wanted, pack number, slot)."""
        import numpy as np

        order = np.argsort(wanted)
        rising = wanted[order]
        runs = [run for run in self._runs if run.count]
        found = [run.find_many(rising) for run in runs]
        self._lookups += len(wanted) // BULK_LOOKUPS
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.uint16)
        rows, numbers, slots = (np.concatenate(column) for column in zip(*found, strict=True))
        return order[rows], numbers, slots

    def slices(self, entries: int) -> Iterator[Columns]:
        """All entries, sorted by prefix within each run, as numpy arrays of at most so many over the files."""
        for run in self._runs:
            for low in range(0, run.count, entries):
                yield run.columns(low, min(low + entries, run.count))
            run.unmap_pages()

    def add(self, packs: Sequence[PackName], entries: Iterable[Located]) -> None:
        """A further run, durable before it is used."""
        self._add(packs, Columns.of(entries))

    def add_packs(self, packs: Sequence[tuple[PackName, bytes]]) -> None:
        """A further run of these packs, from the entries of their footers."""
        self._add([name for name, _ in packs], Columns.of_packs(packs))

    def _add(self, packs: Sequence[PackName], columns: Columns) -> None:
        self._runs += (self._write(packs, len(columns.keys), [columns]),)

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
                if len(taken) >= 2 and run.count > total and len(self._runs) - len(taken) < MAX_RUNS:
                    break
                total += run.count
                taken.append(run)
            victims = taken
        packs = sorted({name for run in victims for name in run.packs if name.number in live})
        run = self._write(packs, *merged(victims, {name.number for name in packs}))
        self._runs = (*(other for other in self._runs if other not in victims), run)
        for run in victims:
            failpoint("index.merged")
            _remove(run.path)

    def drop_unsound(self) -> int:
        """Delete runs that are not what was written; returns how many. Their packs have to be read again."""
        bad = [run for run in self._runs if not run.sound()]
        self._runs = tuple(run for run in self._runs if run not in bad)
        for run in bad:
            _remove(run.path)
        return len(bad)

    def close(self) -> None:
        """Unmap everything."""
        for run in self._runs:
            run.close()
        self._runs = ()

    def _write(self, packs: Sequence[PackName], count: int, parts: Iterable[Columns]) -> Run:
        temporary = self._folder / f"{randomness.token_hex(8)}.part"
        target = temporary.with_suffix(".run")
        with translated(str(self._folder)):
            try:
                with temporary.open("wb+", buffering=0) as file:
                    write_run(file.fileno(), self._repository, packs, count, parts)
                failpoint("index.written")
                temporary.rename(target)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            failpoint("index.named")
            sync_folder(self._folder)
        return Run(target, self._repository)


def _remove(path: Path) -> None:
    """Remove a derived file; one that cannot go now is forgotten and goes another time."""
    with suppress(OSError):
        path.unlink()
