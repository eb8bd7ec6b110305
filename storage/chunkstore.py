"""Chunks in, chunks out: deduplication, packs under construction, and verified reads. Thread-safe.

A chunk belongs to the repository from the moment that its pack is sealed; before, it is known to this process only.
A failed write breaks every session that is open, as each may refer to a chunk of the lost pack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from queue import SimpleQueue

from storage.blobs import Blobs
from storage.chunkreads import PENDING
from storage.codec import encode
from storage.commitment import Learnt
from storage.errors import StorageError, StoreFailed
from storage.filecalls import Buffer
from storage.format import Codec, PackKind, PackName
from storage.index import Index
from storage.knownpacks import KnownPacks
from storage.numbering import PackNumbers
from storage.pack import OpenPack, Writer, new_pack_name
from storage.sealing import TAG_BYTES, Chunk, Sealing

PACK_BYTES = 64 << 20
RUN_CHUNKS = 4096
"""So many chunks are worth a run of the index while later packs are still being synced."""

MAX_SEALING = 3
"""Full packs that may wait for the disk while work goes on."""


@dataclass(slots=True)
class Added:
    """What one batch came to, in bytes of the disk and of packs."""

    new_bytes: int = 0
    known_bytes: int = 0
    stored_bytes: int = 0


class _Job(Enum):
    """What the side thread does beside sealing."""

    TELL = 1
    END = 2


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


class ChunkStore(KnownPacks):
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
        super().__init__(blobs, sealing, index, private, numbers)
        self._writer = writer
        self._now = now
        self._filling: dict[PackKind, OpenPack] = {}
        self._tickets: set[int] = set()
        self._next_ticket = 0
        self._sessions: set[Session] = set()
        self._jobs: SimpleQueue[OpenPack | _Job] = SimpleQueue()
        self._sealer: threading.Thread | None = None
        self._room = threading.Semaphore(MAX_SEALING)
        self.on_sealed: Callable[[Sequence[PackName]], None] | None = None
        """Told of sealed packs by the side thread when none waits for it; of those of a flush when that is over."""
        self._flushes = 0
        self._untold: list[PackName] = []

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
                self.pages.expect_nothing()

    def sessions(self) -> int:
        """How many restore points are being written."""
        with self._lock:
            return len(self._sessions)

    def add(
        self,
        session: Session,
        kind: PackKind,
        items: Sequence[tuple[bytes, Buffer]],
        *,
        instead: Callable[[Sequence[tuple[bytes, Buffer]]], Collection[bytes]] | None = None,
    ) -> Added:
        """Store the chunks that are not known yet. They are durable after `flush`.

        `instead` is shown what no pack has and returns the ids of what need not be stored.
        """
        session.check()
        added = Added()
        candidates = self.referable_many([chunk for chunk, _ in items])
        if instead is not None:
            lost = self.distrusted.chunks
            new = [
                item
                for item, place in zip(items, candidates, strict=True)
                if place is None and item[0] not in self._delta and item[0] not in lost
            ]
            left_out = instead(new) if new else ()
            if left_out:
                kept = [(i, p) for i, p in zip(items, candidates, strict=True) if i[0] not in left_out]
                items, candidates = [i for i, _ in kept], [p for _, p in kept]
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
        chunks: list[Chunk]
        if kind is PackKind.DATA:
            encoded = encode([data for _, data in fresh])
            self.pages.expect(fresh)
            chunks = [
                (chunk, len(data), codec, stored) for (chunk, data), (codec, stored) in zip(fresh, encoded, strict=True)
            ]
        else:
            chunks = [(chunk, len(data), Codec.RAW, data) for chunk, data in fresh]
        total = sum([len(stored) for _, _, _, stored in chunks])
        total += len(fresh) * (TAG_BYTES if self.sealing.encrypted else 0)
        pack, offset, first_slot, full = self._reserve(kind, total, len(fresh))
        try:
            pack.write(offset, first_slot, chunks)
        finally:
            if full is not None:  # only now: who waits for the sealer must not owe a pack a write
                self._seal_later(full)
        with self._lock:
            if pack.name.number not in self._open and pack.name.number not in self.live:
                raise StoreFailed("a failed write beside this one took its pack along", where=pack.name.key)
            first = pack.name.number << 16 | first_slot
            self._delta.update(zip([chunk for chunk, _ in fresh], range(first, first + len(fresh)), strict=True))
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

    def _touch(self, number: int, sessions: Iterable[Session]) -> None:
        self.touched.add(number)
        for session in sessions:
            session.touched.add(number)

    def _seal_later(self, pack: OpenPack) -> None:
        self._room.acquire()
        with self._lock:
            if self._sealer is None:
                self._sealer = threading.Thread(target=self._seal_packs, name="pack sealer", daemon=True)
                self._sealer.start()
        self._jobs.put(pack)

    def _seal_packs(self) -> None:
        while (job := self._jobs.get()) is not _Job.END:
            if isinstance(job, OpenPack):
                self._seal_guarded(job)
                self._room.release()
            if self._jobs.empty() and not self._flushes:
                self._tell_sealed()

    def _seal_guarded(self, pack: OpenPack) -> None:
        try:
            self._seal(pack)
        except BaseException as error:  # heard by every session at its next call
            self._fail(error, [])

    def _tell_sealed(self) -> None:
        with self._lock:
            names, self._untold = self._untold, []
        if self.on_sealed is not None and names:
            try:
                self.on_sealed(names)
            except BaseException as error:  # heard by every session at its next call
                self._fail(error, [])

    def _seal(self, pack: OpenPack) -> None:
        with self._lock:
            if pack.name.number not in self._open:
                return  # lost to a failure elsewhere, and abandoned there
        footer = pack.close()
        if footer.name.kind is PackKind.DATA:
            self.pages.learn(footer.name.number, footer.ids())
        with self._lock:
            self.footers.remember(footer)
            self._open.pop(pack.name.number, None)
            self.live[pack.name.number] = pack.name
            self._touch(pack.name.number, self._sessions)
            self._unindexed.append(pack.name)
            self._unindexed_chunks += len(footer)
            self._untold.append(pack.name)
            self._changed.notify_all()
        if self.run_is_due():
            self.index_sealed()

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
            self._flushes += 1
        try:
            for pack in full:
                if pack.name.kind is not PackKind.TREE:
                    self._seal_later(pack)
            for pack in full:  # beside the others: what takes its time is the disk's
                if pack.name.kind is PackKind.TREE:
                    self._seal_guarded(pack)
            if self._unindexed_chunks >= RUN_CHUNKS:
                self.index_sealed()  # while the last packs are synced
            with self._lock:
                self._changed.wait_for(lambda: session.failure is not None or not waiting & set(self._open))
                session.check()
        finally:
            with self._lock:
                self._flushes -= 1
        if self._sealer is not None:
            self._jobs.put(_Job.TELL)
        self.index_sealed()

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

    def close(self) -> None:
        """Stop the side thread and abandon what is not sealed."""
        if self._sealer is not None:
            self._jobs.put(_Job.END)
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
