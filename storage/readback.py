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
from storage.codec import decode
from storage.errors import UNREADABLE, Damaged, StoreFailed
from storage.format import ENTRY, HEADER_BYTES, MAX_BLOCK_BYTES, TRAILER_BYTES, Entry, PackKind, PackName
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


Span = tuple[int, int, int, int]
"""(first slot, slot after the last, offset, length)"""


@dataclass(slots=True)
class Job:
    """A pack that threads read back together, span by span; `left` spans are not done. Guarded by `Findings.lock`."""

    name: PackName
    footer: Footer
    state: PackState
    left: int
    checked: int = 0
    bad: list[Bad] = field(default_factory=list)


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

    def check(self, job: Job, span: Span, scratch: Scratch) -> list[Bad]:
        """Read a span of a pack and return what in it is not what was written."""
        footer, (first, end, start, length) = job.footer, span
        seal, where = footer.seal, job.name.key
        hash_of = self._sealing.node_id if job.name.kind is PackKind.TREE else self._sealing.chunk_id
        view = scratch.view(length)
        lost = self._read_span(where, start, view)
        bad: list[Bad] = []
        rows = ENTRY.iter_unpack(memoryview(footer.entries)[first * ENTRY.size : end * ENTRY.size])
        for chunk, offset, stored, packed, check in rows:
            entry = Entry(chunk, offset, stored, packed & 0xFFFFFF, packed >> 24, check)
            try:
                if lost is not None:
                    raise lost
                at = offset - start
                plain = decode(entry.codec, seal.open_chunk(entry, view[at : at + stored], where), entry.raw, where)
                if hash_of(plain) != chunk:
                    raise Damaged("this chunk is not what was written", where=where)
            except UNREADABLE as error:
                bad.append(Bad(chunk, job.name, error.what))
        return bad

    def _read_span(self, key: str, start: int, view: memoryview) -> Damaged | None:
        try:
            self._blobs.read_into(key, start, view)
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

    def jobs() -> Iterator[tuple[Job, Span]]:
        for name in names:
            try:
                state, footer = packs.state(name), packs.footer(name)
            except UNREADABLE as error:
                with findings.lock:
                    findings.broken[name] = error.what
                    findings.read.add(name)
                readings.bad(name)
                continue
            parts = list(spans(footer))
            job = Job(name, footer, state, len(parts))
            if not parts:
                finish(job)
            for span in parts:
                yield job, span

    def finish(job: Job) -> None:
        if job.checked != len(job.footer):
            raise StoreFailed(
                f"{job.checked} chunks were checked where the pack lists {len(job.footer)}", where=job.name.key
            )
        packs.done_with(job.name)
        with findings.lock:
            findings.bad += job.bad
            findings.read.add(job.name)
        if job.bad:
            readings.bad(job.name)
        else:
            readings.good(job.name, job.state, now)

    def worker() -> Callable[[tuple[Job, Span]], None]:
        scratch = Scratch()

        def work(item: tuple[Job, Span]) -> None:
            job, span = item
            bad = packs.check(job, span, scratch)
            with findings.lock:
                findings.chunks += span[1] - span[0]
                findings.read_bytes += span[3]
                job.checked += span[1] - span[0]
                job.bad += bad
                job.left -= 1
                last = not job.left
            if last:
                finish(job)
            step(span[3])

        return work

    for_each(jobs(), worker, threads)


def spans(footer: Footer) -> Iterator[Span]:
    """What one call reads, in the order of the pack."""
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
