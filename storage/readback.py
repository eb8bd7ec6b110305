"""Reading packs back: every byte of a pack is compared with what its footer says, and its footer with its digest.

It trusts neither catalog nor lookup index.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from storage.blobs import Blobs
from storage.chunkreads import open_entry
from storage.errors import Damaged, StoreFailed
from storage.format import ENTRY, HEADER_BYTES, MAX_BLOCK_BYTES, TRAILER_BYTES, PackKind, PackName
from storage.pack import Footer, read_footer
from storage.parallel import for_each
from storage.readings import PackState, Readings
from storage.sealing import Sealing

SPAN_BYTES = 2 << 20
"""What one call reads: many chunks, few enough that their bytes stay in the processor's cache."""

KEPT_FOOTER_BYTES = 32 << 20
"""Footers that the check of the packs' shape keeps for the threads that read the packs."""

_WORDS = ENTRY.size // 8


class TimeIsUp(Exception):
    """The deadline passed between two reads."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A chunk in a pack that is not what was written."""

    chunk: bytes
    pack: PackName
    what: str


@dataclass(slots=True)
class Findings:
    """What reading came to. Guarded by `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    read: set[PackName] = field(default_factory=set)
    chunks: int = 0
    read_bytes: int = 0
    bad: list[Bad] = field(default_factory=list)
    broken: dict[PackName, str] = field(default_factory=dict)
    """Packs of which no footer tells what they hold, with why."""


class Scratch:
    """The buffer of one thread, used again and again, as fresh memory costs page faults."""

    def __init__(self) -> None:
        self._buffer = bytearray(SPAN_BYTES)

    def view(self, length: int) -> memoryview:
        """So many bytes, valid until the next call."""
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]


class Packs:
    """The packs of a repository as they are read from the store, for one verification. Thread-safe."""

    def __init__(self, blobs: Blobs, sealing: Sealing) -> None:
        self._blobs = blobs
        self._sealing = sealing
        self._lock = threading.Lock()
        self._footers: dict[PackName, Footer] = {}
        self._kept = 0

    def state(self, name: PackName) -> PackState:
        """Size and age as the store tells them now; Missing."""
        return PackState(self._blobs.size(name.key), int(self._blobs.age_stamp(name.key) * 1e6))

    def footer(self, name: PackName) -> Footer:
        """The footer, read from the store in this verification; Damaged unless it accounts for every byte."""
        with self._lock:
            footer = self._footers.get(name)
        if footer is None:
            footer = read_footer(self._blobs, self._sealing, name)
            check_tiling(footer)
            with self._lock:
                if self._kept < KEPT_FOOTER_BYTES and name not in self._footers:
                    self._footers[name] = footer
                    self._kept += len(footer.entries)
        return footer

    def done_with(self, name: PackName) -> None:
        """Let a footer go."""
        with self._lock:
            footer = self._footers.pop(name, None)
            self._kept -= len(footer.entries) if footer is not None else 0

    def read(self, name: PackName, scratch: Scratch, step: Callable[[int, int], None]) -> list[Bad]:
        """Read a pack, tell each step (chunks, bytes), and return what is not what was written; Damaged as `footer`.

        What `step` raises ends it.
        """
        footer = self.footer(name)
        hash_of = self._sealing.node_id if name.kind is PackKind.TREE else self._sealing.chunk_id
        bad: list[Bad] = []
        checked = 0
        for first, end, start, length in spans(footer):
            view = scratch.view(length)
            lost = self._read_span(name, start, view)
            for slot in range(first, end):
                entry = footer.entry(slot)
                try:
                    if lost is not None:
                        raise lost
                    open_entry(footer, entry, view[entry.offset - start : entry.offset - start + entry.stored], hash_of)
                except Damaged as error:
                    bad.append(Bad(entry.id, name, error.what))
                checked += 1
            step(end - first, length)
        if checked != len(footer):
            raise StoreFailed(f"{checked} chunks were checked where the pack lists {len(footer)}", where=name.key)
        return bad

    def _read_span(self, name: PackName, start: int, view: memoryview) -> Damaged | None:
        try:
            self._blobs.read_into(name.key, start, view)
        except Damaged as error:
            return error
        return None


def read_all(
    packs: Packs,
    names: Sequence[PackName],
    findings: Findings,
    readings: Readings,
    step: Callable[[int], None],
    *,
    now: datetime,
    threads: int,
) -> None:
    """Read packs back on some threads; `step` gets the bytes of each read and may raise TimeIsUp, which ends it all.

    A pack that was read to its end is in `findings`; one that is good is in `readings`, at once.
    """

    def worker() -> Callable[[PackName], None]:
        scratch = Scratch()

        def told(chunks: int, length: int) -> None:
            with findings.lock:
                findings.chunks += chunks
                findings.read_bytes += length
            step(length)

        def work(name: PackName) -> None:
            try:
                state = packs.state(name)
                bad = packs.read(name, scratch, told)
            except Damaged as error:
                with findings.lock:
                    findings.broken[name] = error.what
                    findings.read.add(name)
                readings.bad(name)
                return
            packs.done_with(name)
            with findings.lock:
                findings.bad += bad
                findings.read.add(name)
            if bad:
                readings.bad(name)
            else:
                readings.good(name, state, now)

        return work

    for_each(names, worker, threads)


def spans(footer: Footer) -> Iterator[tuple[int, int, int, int]]:
    """(first slot, slot after the last, offset, length) of what one call reads."""
    first, start, end = 0, HEADER_BYTES, HEADER_BYTES
    for slot, (_, offset, stored, _, _) in enumerate(ENTRY.iter_unpack(footer.entries)):
        if offset + stored - start > SPAN_BYTES and slot > first:
            yield first, slot, start, end - start
            first, start = slot, offset
        end = offset + stored
    if len(footer):
        yield first, len(footer), start, end - start


def heads(footer: Footer) -> array[int]:
    """The 64-bit prefixes of the ids that a pack lists."""
    words = array("Q")
    words.frombytes(footer.entries)
    found = words[::_WORDS]
    found.byteswap()
    return found


def check_tiling(footer: Footer) -> None:
    """Damaged unless the chunks fill the pack without gaps, so that no byte of it is unchecked."""
    at = HEADER_BYTES
    for _, offset, stored, packed, _ in ENTRY.iter_unpack(footer.entries):
        if offset != at or packed & 0xFFFFFF > MAX_BLOCK_BYTES:
            raise Damaged("the pack's chunks do not follow each other", where=footer.name.key)
        at += stored
    if at + len(footer.entries) + footer.seal.overhead + TRAILER_BYTES != footer.size:
        raise Damaged("the pack's chunks do not fill it", where=footer.name.key)
