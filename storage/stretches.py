"""Chunks in the order of a disk, read by one thread: what a backup wrote in a row lies in its pack in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from storage.chunkreads import READ_GAP_BYTES, READ_SPAN_BYTES, ChunkReads, open_entry
from storage.errors import Damaged
from storage.filecalls import Buffer
from storage.format import MAX_BLOCK_BYTES, Entry, PackKind
from storage.pack import Footer


@dataclass(slots=True)
class _Run:
    """Chunks that one read fetches: their entries, rising, and which of the ids each of them is."""

    footer: Footer
    entries: list[Entry]
    of: list[int]
    start: int
    end: int


@dataclass(slots=True)
class _Found:
    """What came of some ids; `left` are those that must be had in another way."""

    data: list[Buffer]
    left: list[int] = field(default_factory=list)


class StretchReads:
    """Reads stretch after stretch. A chunk is looked for behind the one before it, and only then in the index.

    Not thread-safe: one for each thread. `others` reads what cannot be had that way: not sealed yet, not a chunk,
    damaged, or in a pack that went away meanwhile; it raises Damaged when there is no other way.
    """

    def __init__(self, store: ChunkReads, others: Callable[[Sequence[bytes]], list[Buffer]]) -> None:
        self._store = store
        self._others = others
        self._hash_of = store.sealing.chunk_id
        self._footer: Footer | None = None
        self._slot = 0
        self._buffer = memoryview(bytearray(1 << 20))

    def read(self, ids: Sequence[bytes]) -> list[Buffer]:
        """The chunks or blocks, each verified; valid until the next call. Damaged, Missing."""
        found = _Found([b""] * len(ids))
        runs = _joined(self._runs(ids, found.left))
        room = sum(run.end - run.start for run in runs)
        if room > len(self._buffer):
            self._buffer = memoryview(bytearray(room))
        at = 0
        for run in runs:
            self._read_run(run, self._buffer[at : at + run.end - run.start], found)
            at += run.end - run.start
        if found.left:
            for one, data in zip(found.left, self._others([ids[one] for one in found.left]), strict=True):
                found.data[one] = data
        return found.data

    def _runs(self, ids: Sequence[bytes], left: list[int]) -> list[_Run]:
        """Ids that follow each other in a pack."""
        runs: list[_Run] = []
        run: _Run | None = None
        footer, slot = self._footer, self._slot
        if footer is not None and self._store.live.get(footer.name.number) != footer.name:
            footer = None  # reclaim removed it
        for one, chunk in enumerate(ids):
            if type(chunk) is not bytes:
                left.append(one)
                continue
            if footer is None or not footer.holds(slot, chunk):
                run = None
                footer, slot = self._place(chunk)
                if footer is None:
                    left.append(one)
                    continue
            entry = footer.entry(slot)
            slot += 1
            if run is None or entry.offset != run.end:
                run = _Run(footer, [], [], entry.offset, entry.offset)
                runs.append(run)
            run.entries.append(entry)
            run.of.append(one)
            run.end += entry.stored
        self._footer, self._slot = footer, slot
        return runs

    def _place(self, chunk: bytes) -> tuple[Footer | None, int]:
        place = self._store.locate(chunk)
        if place is not None and place[0].kind is PackKind.DATA:
            with suppress(Damaged):
                return self._store.footers.get(place[0]), place[1]
        return None, 0

    def _read_run(self, run: _Run, data: memoryview, found: _Found) -> None:
        try:
            self._store.blobs.read_into(run.footer.name.key, run.start, data)
        except Damaged:
            found.left += run.of
            return
        start = run.start
        for one, entry in zip(run.of, run.entries, strict=True):
            stored = data[entry.offset - start : entry.offset - start + entry.stored]
            try:
                if entry.raw > MAX_BLOCK_BYTES:
                    raise Damaged("a chunk claims to be too long", where=run.footer.name.key)
                found.data[one] = open_entry(run.footer, entry, stored, self._hash_of)
            except Damaged:
                found.left.append(one)


def _joined(runs: list[_Run]) -> list[_Run]:
    """Runs of a pack that lie near to each other become one."""
    if len(runs) < 2:
        return runs
    runs.sort(key=lambda run: (run.footer.name.number, run.start))
    joined = runs[:1]
    for run in runs[1:]:
        last = joined[-1]
        if (
            run.footer.name == last.footer.name
            and run.start - last.end <= READ_GAP_BYTES
            and run.end - last.start <= READ_SPAN_BYTES
        ):
            last.entries += run.entries
            last.of += run.of
            last.end = max(last.end, run.end)
        else:
            joined.append(run)
    return joined
