"""Which packs there are, which of them new chunks may refer to, and the upkeep of the index over them. Thread-safe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from storage.blobs import Blobs
from storage.bulkreads import as_words, heads_of
from storage.chunkreads import ChunkReads
from storage.commitment import Learnt, boot_seconds
from storage.condemned import CONDEMNED, FREEING, noted
from storage.distrust import Distrust
from storage.errors import Damaged, Missing, StorageError
from storage.format import PackKind, PackName, parse_pack_key
from storage.index import Index
from storage.numbering import PackNumbers
from storage.pack import Footer
from storage.pagetable import PageTable
from storage.sealing import Sealing

log = logging.getLogger(__name__)

DELTA_CHUNKS = 1 << 17
"""Chunks of sealed packs kept in a dict before they become a run of the index: about 25 MB."""

BULK_CHUNKS = 1024
"""So many are looked up by one call of numpy, which is loaded for it."""

MAX_RELEARNS = 100
"""How often one opening lists all packs again because something was not found."""


class KnownPacks(ChunkReads):
    """The packs of a repository as this process knows them."""

    def __init__(
        self, blobs: Blobs, sealing: Sealing, index: Index, private: Blobs | None, numbers: PackNumbers | None
    ) -> None:
        super().__init__(blobs, sealing, index, reattach=self.reattach, relearn=self.relearn)
        self.touched: set[int] = set()
        self.learnt = Learnt()
        self.distrusted = Distrust(private or blobs)
        self.pages = PageTable(private or blobs, sealing)
        self._hidden: set[int] = set()
        self._going: set[PackName] = set()
        self._numbers = numbers or PackNumbers()
        self.shared = numbers is not None
        self._relearns = 0
        self._doubted = self._mended = False
        self._unindexed: list[PackName] = []
        self._unindexed_chunks = 0
        self._indexing = threading.RLock()  # taken before the lock of the packs, never after it

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
            known = self._index.packs()  # these win where something foreign has taken the same number
            self.live = {n.number: n for n in sorted(listed | sealed_meanwhile, key=lambda n: (n in known, n))}
            self._hidden -= {name.number for name in self._going}
            self._hidden |= {name.number for name in going & listed}
            self._going = going & listed
            self.learnt = Learnt(began, frozenset(freeing - listed))
            self._numbers.stay_above(self.live)
        with self._lock:
            to_index = set(self._unindexed)
        covered = self._index.packs()
        damaged = []
        fresh: list[Footer] = []
        chunks = 0
        unread = sorted(listed - covered - to_index)
        self.footers.expect(unread)
        for name in unread:
            try:
                footer = self.footers.get(name)
            except Damaged as error:
                if self.live.get(name.number) == name:
                    del self.live[name.number]
                if isinstance(error, Missing):
                    continue  # freed since it was listed
                damaged.append(str(error))
                self.distrusted.packs.add(name)
                continue
            self.live[name.number] = name
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
            with self._indexing:
                self._index.add_packs([(footer.name, footer.entries) for footer in footers])
                self._index.compact(self._numbers_now())
        except StorageError as error:
            log.warning("index kept in memory: %s", error)
            with self._lock:
                for footer in footers:
                    base = footer.name.number << 16
                    self._delta.update((footer.entry(s).id, base | s) for s in range(len(footer)))

    def reattach(self) -> bool:
        """Throw unsound parts of the index away and read their packs again; False when there was nothing to do."""
        with self._indexing, self._lock:
            if not self._doubted:
                self._doubted = True  # once for each opening: it reads the whole index
                self._mended = self._index.drop_unsound() > 0
                if self._mended:
                    self.attach()
            return self._mended  # also to a thread that waited for another to mend it

    def relearn(self) -> bool:
        """List the packs again, as one that was known is gone or a chunk is in none; not for ever in vain."""
        if not self.shared or self._relearns >= MAX_RELEARNS:
            return False
        self._relearns += 1
        self.attach()
        return True

    def run_is_due(self) -> bool:
        """Whether so much was sealed since the last run of the index that it should become one."""
        return self._unindexed_chunks >= DELTA_CHUNKS

    def index_sealed(self) -> None:
        """Make a run of what was sealed since the last one; if that fails, this process goes on with its dict."""
        with self._indexing:
            with self._lock:
                names = list(self._unindexed)
            if not names:
                return
            footers = self._readable(names)
            try:
                self._index.add_packs([(footer.name, footer.entries) for footer in footers])
                with self._lock:
                    self._drop_indexed(footers)
                self._index.compact(self._numbers_now())
            except StorageError as error:
                log.warning("index behind: %s", error)
            finally:
                with self._lock:
                    self._unindexed = self._unindexed[len(names) :]
                    self._unindexed_chunks = self._unindexed_chunks - sum(map(len, footers)) if self._unindexed else 0
            self.pages.save()

    def _readable(self, names: Iterable[PackName]) -> list[Footer]:
        """Their footers; what was damaged since it was sealed is left to verification."""
        found = []
        for name in names:
            try:
                found.append(self.footers.get(name))
            except Damaged as error:
                log.warning("pack not indexed: %s", error)
        return found

    def _drop_indexed(self, footers: Sequence[Footer]) -> None:
        for footer in footers:
            first = footer.name.number << 16
            for place, chunk in enumerate(footer.ids(), first):
                if self._delta.get(chunk) == place:  # not one that was stored anew meanwhile
                    del self._delta[chunk]

    def _numbers_now(self) -> set[int]:
        with self._lock:
            return set(self.live)

    def distrust(self, chunks: Iterable[bytes], packs: Iterable[PackName]) -> None:
        """Store these chunks again when a disk has them, and let reclaim replace these packs: they are damaged."""
        with self._lock:
            self.distrusted.replace(chunks, packs)
            for name in self.distrusted.packs:
                self.footers.forget(name)

    def referable(self, chunk: bytes) -> tuple[PackName, int] | None:
        """A sealed place of a chunk in a pack that is not on its way out; None when there is no such place."""
        return next((place for place in self._places(chunk) if place[0].number not in self._hidden), None)

    def referable_many(self, chunks: Sequence[bytes]) -> list[tuple[PackName, int] | None]:
        """`referable` for each of these that is not in the delta, None for the others."""
        if not self._index.packs_covered:  # what is not in the delta has no place
            return [None] * len(chunks)
        if len(chunks) < BULK_CHUNKS:
            return [self.referable(chunk) if chunk not in self._delta else None for chunk in chunks]
        rows, _, _ = self.candidates(heads_of(as_words(chunks)))
        places: list[tuple[PackName, int] | None] = [None] * len(chunks)
        for row in set(rows.tolist()):
            if chunks[row] not in self._delta:
                places[row] = self.referable(chunks[row])
        return places

    def chunk_at(self, place: int) -> bytes | None:
        """The chunk in a place (pack number, slot in the lower 16 bits) of a data pack, if new blocks may name it."""
        name = self.live.get(place >> 16)
        if name is None or name.kind is not PackKind.DATA or name.number in self._hidden:
            return None
        footer = self.footer_of(name.number)
        if footer is None or place & 0xFFFF >= len(footer):
            return None
        chunk = footer.entry(place & 0xFFFF).id
        return chunk if self._usable(name, chunk) else None

    def trusted(self, chunk: bytes) -> bool:
        """Whether new blocks may name this chunk: a pack that stays has it, and it is not known to be damaged."""
        return chunk not in self.distrusted.chunks and self.referable(chunk) is not None

    def _usable(self, name: PackName, chunk: bytes) -> bool:
        return name.number in self.live and name.number not in self._hidden and chunk not in self.distrusted.chunks

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
            with self._indexing:
                self._index.compact(self._numbers_now(), everything=True)
        except StorageError as error:
            log.warning("index not merged: %s", error)
