"""Chunks in, chunks out: deduplication, packs under construction, and verified reads. Thread-safe.

A chunk belongs to the repository from the moment that its pack is sealed; before, it is known to this process only.
A failed write breaks every session that is open, as each may refer to a chunk of the lost pack.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from queue import SimpleQueue

from storage.blobs import Blobs, Buffer
from storage.chunkreads import PENDING, ChunkReads
from storage.codec import encode
from storage.commitment import Learnt, boot_seconds
from storage.condemned import CONDEMNED, FREEING, noted
from storage.distrust import Distrust
from storage.errors import Damaged, Missing, StorageError, StoreFailed
from storage.format import Entry, PackKind, PackName, parse_pack_key
from storage.index import Index
from storage.numbering import PackNumbers
from storage.pack import Footer, OpenPack, Writer, new_pack_name
from storage.sealing import Sealing

log = logging.getLogger(__name__)

PACK_BYTES = 64 << 20
DELTA_CHUNKS = 1 << 17
"""Chunks of sealed packs kept in a dict before they become a run of the index: about 25 MB."""

MAX_RELEARNS = 100
"""How often one opening lists all packs again because something was not found."""

MAX_SEALING = 3
"""Full packs that may wait for the disk while work goes on."""


@dataclass(slots=True)
class Added:
    """What one batch came to, in bytes of the disk and of packs."""

    new_bytes: int = 0
    known_bytes: int = 0
    stored_bytes: int = 0


class Session:
    """The span in which chunks are added for one restore point; it hears of packs that were lost.

    `touched` are the packs that it refers to, `learnt` what was known of packs when it began.
    """

    def __init__(self, learnt: Learnt) -> None:
        self.failure: BaseException | None = None
        self.learnt = learnt
        self.touched: set[int] = set()

    def check(self) -> None:
        """Raise what broke a pack since the session began."""
        if self.failure is not None:
            raise self.failure


class ChunkStore(ChunkReads):
    """The packs of one repository and the index over them."""

    def __init__(
        self,
        blobs: Blobs,
        sealing: Sealing,
        index: Index,
        *,
        writer: Writer,
        now: Callable[[], datetime],
        private: Blobs | None = None,
        numbers: PackNumbers | None = None,
    ) -> None:
        super().__init__(blobs, sealing, index)
        self.touched: set[int] = set()
        self.learnt = Learnt()
        self._hidden: set[int] = set()
        self._going: set[PackName] = set()
        self._writer = writer
        self._now = now
        self._filling: dict[PackKind, OpenPack] = {}
        self._tickets: set[int] = set()
        self._next_ticket = 0
        self._unindexed: list[PackName] = []
        self._unindexed_chunks = 0
        self._sessions: set[Session] = set()
        self._jobs: SimpleQueue[OpenPack | None] = SimpleQueue()
        self._sealer: threading.Thread | None = None
        self._room = threading.Semaphore(MAX_SEALING)
        self._numbers = numbers or PackNumbers()
        self._shared = numbers is not None
        self._relearns = 0
        self._doubted = False
        self.distrusted = Distrust(private or blobs)

    def attach(self) -> list[str]:
        """Compare the index with the packs that are there and read the footers it lacks; returns what was damaged.

        May be done again at any time, where other processes write packs, too. Packs that are condemned or being freed
        are read from, but no new chunk refers to them.
        """
        began = boot_seconds()
        freeing = noted(self.blobs, FREEING)  # before the packs: one that is freed in between is known as such
        going = freeing | noted(self.blobs, CONDEMNED)
        with self._lock:
            before = set(self.live.values())
        listed = {name for name in map(parse_pack_key, self.blobs.list("packs/")) if name}
        with self._lock:
            sealed_meanwhile = set(self.live.values()) - before
            self.live = {name.number: name for name in sorted(listed | sealed_meanwhile)}
            self._hidden -= {name.number for name in self._going}
            self._hidden |= {name.number for name in going & listed}
            self._going = going & listed
            self.learnt = Learnt(began, frozenset(freeing - listed))
            self._numbers.stay_above(self.live)
        covered = self._index.packs()
        damaged = []
        fresh: list[Footer] = []
        chunks = 0
        for name in sorted(listed - covered - set(self._unindexed)):
            try:
                footer = self.footers.get(name)
            except Damaged as error:
                del self.live[name.number]
                if isinstance(error, Missing):
                    continue  # freed since it was listed
                damaged.append(str(error))
                self.distrusted.packs.add(name)
                continue
            fresh.append(footer)
            chunks += len(footer)
            if chunks > 8 * DELTA_CHUNKS:
                self._learn(fresh)
                fresh, chunks = [], 0
        if fresh:
            self._learn(fresh)
        if not covered:
            self.compact_index()  # made anew: every later lookup is faster in one run
        return damaged

    def _learn(self, footers: Sequence[Footer]) -> None:
        """Index packs; in memory only while the disk is full."""
        try:
            self._index.add_packs([(footer.name, footer.entries) for footer in footers])
            self._index.compact(set(self.live))
        except StorageError as error:
            log.warning("index kept in memory: %s", error)
            with self._lock:
                for footer in footers:
                    base = footer.name.number << 16
                    self._delta.update((footer.entry(s).id, base | s) for s in range(len(footer)))

    def reattach(self) -> None:
        """Throw unsound parts of the index away and read their packs again."""
        with self._lock:
            if not self._doubted and self._index.drop_unsound():
                self.attach()
            self._doubted = True  # once for each opening: it reads the whole index

    def relearn(self) -> bool:
        """List the packs again, as one that was known is gone or a chunk is in none; not for ever in vain."""
        if not self._shared or self._relearns >= MAX_RELEARNS:
            return False
        self._relearns += 1
        self.attach()
        return True

    # --- writing ---

    def session(self) -> Session:
        """Begin to add chunks for one restore point."""
        with self._lock:
            session = Session(self.learnt)
            self._sessions.add(session)
        return session

    def end(self, session: Session) -> None:
        """The restore point is committed or abandoned."""
        with self._lock:
            self._sessions.discard(session)
            if not self._sessions:
                self.touched.clear()

    def sessions(self) -> int:
        """How many restore points are being written."""
        with self._lock:
            return len(self._sessions)

    def add(self, session: Session, kind: PackKind, items: Sequence[tuple[bytes, Buffer]]) -> Added:
        """Store the chunks that are not known yet. They are durable after `flush`."""
        session.check()
        added = Added()
        candidates = [None if chunk in self._delta else self.locate(chunk) for chunk, _ in items]
        fresh: list[tuple[bytes, Buffer]] = []
        with self._lock:
            session.check()
            ticket = self._next_ticket = self._next_ticket + 1
            for (chunk, data), place in zip(items, candidates, strict=True):
                if place is not None and self._usable(place[0], chunk):
                    self._touch(place[0].number, [session])
                    added.known_bytes += len(data)
                elif (known := self._delta.get(chunk)) is not None and known >> 16 not in self._hidden:
                    if known != PENDING:
                        self._touch(known >> 16, [session])
                    added.known_bytes += len(data)
                else:
                    self._delta[chunk] = PENDING
                    self.distrusted.chunks.discard(chunk)
                    fresh.append((chunk, data))
                    added.new_bytes += len(data)
            if not fresh:
                return added
            self._tickets.add(ticket)
        try:
            added.stored_bytes = self._store(kind, fresh)
        except BaseException as error:
            self._fail(error, [chunk for chunk, _ in fresh])
            session.check()  # what failed first tells the story
            raise
        finally:
            with self._lock:
                self._tickets.discard(ticket)
                self._changed.notify_all()
        session.check()
        return added

    def _store(self, kind: PackKind, fresh: Sequence[tuple[bytes, Buffer]]) -> int:
        encoded = [encode(data) if kind is PackKind.DATA else (0, data) for _, data in fresh]
        overhead = len(fresh) * (16 if self.sealing.encrypted else 0)
        total = sum(len(stored) for _, stored in encoded) + overhead
        pack, offset, first_slot, full = self._reserve(kind, total, len(fresh))
        entries, payloads = [], []
        at = offset
        try:
            for (chunk, data), (codec, stored) in zip(fresh, encoded, strict=True):
                payload, check = pack.seal.close_chunk(chunk, at, stored)
                entries.append(Entry(chunk, at, len(payload), len(data), codec, check))
                payloads.append(payload)
                at += len(payload)
        finally:
            try:
                pack.write(offset, first_slot, entries, payloads)
            finally:
                if full is not None:  # only now: who waits for the sealer must not owe a pack a write
                    self._seal_later(full)
        with self._lock:
            if pack.name.number not in self._open and pack.name.number not in self.live:
                raise StoreFailed("a failed write beside this one took its pack along", where=pack.name.key)
            base = pack.name.number << 16 | first_slot
            for place, (chunk, _) in enumerate(fresh, base):
                self._delta[chunk] = place
        return total

    def _reserve(self, kind: PackKind, total: int, chunks: int) -> tuple[OpenPack, int, int, OpenPack | None]:
        full = None
        with self._lock:
            pack = self._filling.get(kind)
            if pack is not None and not pack.has_room(total, chunks, PACK_BYTES):
                full, pack = self._filling.pop(kind), None
            if pack is None:
                pack = self._open_pack(kind)
            offset, slot = pack.reserve(total, chunks)
        return pack, offset, slot, full

    def _open_pack(self, kind: PackKind) -> OpenPack:
        name = new_pack_name(self._numbers.take(), kind)
        pack = OpenPack(self.blobs, self.sealing, name, self._writer, self._now())
        self._filling[kind] = self._open[name.number] = pack
        return pack

    def _seal_later(self, pack: OpenPack) -> None:
        self._room.acquire()
        with self._lock:
            if self._sealer is None:
                self._sealer = threading.Thread(target=self._seal_packs, name="pack sealer", daemon=True)
                self._sealer.start()
        self._jobs.put(pack)

    def _seal_packs(self) -> None:
        while (pack := self._jobs.get()) is not None:
            try:
                self._seal(pack)
            finally:
                self._room.release()

    def _seal(self, pack: OpenPack) -> None:
        with self._lock:
            if pack.name.number not in self._open:
                return  # lost to a failure elsewhere, and abandoned there
        try:
            footer = pack.close()
        except BaseException as error:  # heard by every session at its next call
            self._fail(error, [])
            return
        with self._lock:
            self.footers.remember(footer)
            self._open.pop(pack.name.number, None)
            self.live[pack.name.number] = pack.name
            self._touch(pack.name.number, self._sessions)
            self._unindexed.append(pack.name)
            self._unindexed_chunks += len(footer)
            self._changed.notify_all()
        if self._unindexed_chunks >= DELTA_CHUNKS:
            try:
                self.index_sealed()
            except BaseException as error:  # heard by every session at its next call
                self._fail(error, [])

    def _fail(self, error: BaseException, lost: Iterable[bytes]) -> None:
        """Break every open session and forget the packs that are not sealed."""
        with self._lock:
            for session in self._sessions:
                session.failure = session.failure or error
            for chunk in lost:
                self._delta.pop(chunk, None)
            dead = list(self._open.values())
            self._open.clear()
            self._filling.clear()
            numbers = {pack.name.number for pack in dead}
            for chunk in [c for c, place in self._delta.items() if place >> 16 in numbers]:
                del self._delta[chunk]
            self._changed.notify_all()
        for pack in dead:
            pack.abandon()

    def flush(self, session: Session) -> None:
        """Return when every chunk added so far, by whomever, is in a sealed pack. Raises what broke the session."""
        with self._lock:
            before = set(self._tickets)
            self._changed.wait_for(lambda: session.failure is not None or not before & self._tickets)
            session.check()
            full = list(self._filling.values())
            self._filling.clear()
            waiting = set(self._open)
        for pack in full:
            self._seal_later(pack)
        with self._lock:
            self._changed.wait_for(lambda: session.failure is not None or not waiting & set(self._open))
            session.check()
        self.index_sealed()

    def index_sealed(self) -> None:
        """Make a run of what was sealed since the last one; if that fails, this process goes on with its dict."""
        with self._lock:
            names, self._unindexed = self._unindexed, []
            self._unindexed_chunks = 0
            if not names:
                return
            footers = [self.footers.get(name) for name in names]
            try:
                self._index.add_packs([(footer.name, footer.entries) for footer in footers])
                for footer in footers:
                    for chunk in footer.ids():
                        self._delta.pop(chunk, None)
                self._index.compact(set(self.live))
            except StorageError as error:
                log.warning("index behind: %s", error)

    def copy(self, session: Session, kind: PackKind, items: Sequence[tuple[bytes, Buffer]]) -> int:
        """Store chunks although they are known, for packs that are written again; returns the stored bytes."""
        session.check()
        with self._lock:
            ticket = self._next_ticket = self._next_ticket + 1
            self._tickets.add(ticket)
        try:
            return self._store(kind, items)
        except BaseException as error:
            self._fail(error, [chunk for chunk, _ in items])
            raise
        finally:
            with self._lock:
                self._tickets.discard(ticket)
                self._changed.notify_all()

    def distrust(self, chunks: Iterable[bytes], packs: Iterable[PackName]) -> None:
        """Store these chunks again when a disk has them, and let reclaim replace these packs: they are damaged."""
        with self._lock:
            self.distrusted.replace(chunks, packs)
            for name in self.distrusted.packs:
                self.footers.forget(name)

    def _usable(self, name: PackName, chunk: bytes) -> bool:
        return name.number in self.live and name.number not in self._hidden and chunk not in self.distrusted.chunks

    def _touch(self, number: int, sessions: Iterable[Session]) -> None:
        self.touched.add(number)
        for session in sessions:
            session.touched.add(number)

    def going(self) -> set[PackName]:
        """Packs that are condemned or being freed, as far as this process knows."""
        with self._lock:
            return set(self._going)

    def condemn(self, name: PackName) -> None:
        """A hidden pack is condemned: it stays hidden until `reprieve` or `forget`."""
        with self._lock:
            self._going.add(name)
            self._hidden.add(name.number)

    def reprieve(self, name: PackName) -> None:
        """A pack is not condemned any more."""
        with self._lock:
            self._going.discard(name)
            self._hidden.discard(name.number)

    def hide(self, name: PackName) -> bool:
        """Let no new chunk refer to this pack; False if a restore point under way does already. Reads go on."""
        with self._lock:
            there = self.live.get(name.number) == name or name in self.distrusted.packs
            if name.number in self.touched or not there:
                return False
            self._hidden.add(name.number)
            return True

    def show(self, names: Iterable[PackName]) -> None:
        """Undo `hide`; what is condemned stays hidden."""
        with self._lock:
            self._hidden.difference_update(name.number for name in names if name not in self._going)

    def forget(self, name: PackName) -> None:
        """A hidden pack is no more."""
        with self._lock:
            self.live.pop(name.number, None)
            self._hidden.discard(name.number)
            self._going.discard(name)
            self.distrusted.packs.discard(name)
        self.footers.forget(name)

    def compact_index(self) -> None:
        """Merge the runs of the index and leave out packs that are gone."""
        try:
            with self._lock:
                self._index.compact(set(self.live), everything=True)
        except StorageError as error:
            log.warning("index not merged: %s", error)

    def close(self) -> None:
        """Stop the side thread and abandon what is not sealed."""
        if self._sealer is not None:
            self._jobs.put(None)
            self._sealer.join()
            self._sealer = None
        with self._lock:
            dead = list(self._open.values())
            self._open.clear()
            self._filling.clear()
        for pack in dead:
            pack.abandon()
        with suppress(StorageError):
            self.index_sealed()
        self._index.close()
