"""New blocks that share pages with chunks that are there already become piece lists instead of chunks.

A piece list names only chunks that are stored whole, so that none depends on another list, and everything that
follows a map (reclaim, verification, copies, locks) finds what a block needs.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from storage.chunkstore import Added, ChunkStore, Session
from storage.errors import UNREADABLE, Damaged
from storage.filecalls import Buffer
from storage.format import MAX_PIECES, PackKind, Pieced, PieceList, pack_pieces
from storage.pagetable import PAGE_BYTES, page_key
from storage.piecelists import read_lists

MIN_PAGES = 4
"""A block that shares fewer pages than this, or less than a quarter, is stored whole."""

MIN_PAGES_OF_CHUNK = 2
"""A chunk is kept for as long as a list names it, so that one page alone is not worth it."""

MAX_RUNS = 8
"""A block in more pieces than this would be slow to read; larger blocks may have as many per 64 KiB."""

KEPT_BYTES = 4 << 20
"""Of chunks that were compared lately and are kept in memory: neighbouring blocks share with the same."""

COMPARED_BYTES = 64 << 20
"""Of chunks that one call compares with, those that have the most pages: what one finds may be many large ones."""

_Shared = tuple[int, int]
"""(which chunk, page within it)"""


@dataclass(frozen=True, slots=True)
class _Known:
    """A stored chunk that new blocks are compared with; `keys` are those of its pages."""

    id: bytes
    data: bytes
    keys: tuple[int, ...]


@dataclass(slots=True)
class _Draft:
    """A block on its way to a piece list: for each run of pages the chunk, or None where they are new."""

    content: bytes
    runs: list[tuple[_Known | None, int, int]] = field(default_factory=list)
    """(chunk, or None for new pages; its first page; pages)"""


class Piecing:
    """Makes piece lists for one disk. Thread-safe."""

    def __init__(
        self, store: ChunkStore, session: Session, block_bytes: int, before: Callable[[Sequence[int]], list[bytes]]
    ) -> None:
        """`before` tells what the map of the restore point that this one builds on has for some blocks."""
        self._store = store
        self._session = session
        self._block_bytes = block_bytes
        self._pages = block_bytes // PAGE_BYTES
        self._before = before
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, _Known] = OrderedDict()

    @property
    def worth_trying(self) -> bool:
        """Whether blocks are large enough, and anything could be found."""
        return self._pages >= MIN_PAGES and not self._block_bytes % PAGE_BYTES and not self._store.pages.empty()

    def compose(self, blocks: Sequence[tuple[int, bytes, Buffer]], added: Added) -> dict[bytes, Pieced]:
        """Piece lists by chunk id for those of these new blocks (number, chunk id, bytes) that share enough.

        They and what they need are stored; `added` is told how much that was.
        """
        find = self._store.pages.find
        keys: dict[bytes, tuple[int, ...]] = {}
        places: Counter[int] = Counter()
        for _, chunk, data in blocks:
            if len(data) == self._block_bytes:
                keys[chunk] = of_block = tuple([page_key(data, page) for page in range(self._pages)])
                places.update(place for place in map(find, of_block) if place is not None)
        if not places:
            return {}
        asked = [(block, chunk, data) for block, chunk, data in blocks if chunk in keys]
        made = self._unchanged(asked)
        known = self._compared([place for place, _ in places.most_common(max(1, COMPARED_BYTES // self._block_bytes))])
        pages = {key: (at, page) for at, one in enumerate(known) for page, key in enumerate(one.keys)}
        drafts: dict[bytes, _Draft] = {}
        fresh: list[bytes] = []
        for _, chunk, data in asked:
            if chunk not in made and chunk not in drafts:
                draft = self._draft(chunk, bytes(data), keys[chunk], known, pages, fresh)
                if draft is not None:
                    drafts[chunk] = draft
        if drafts:
            made |= self._stored(list(drafts.values()), fresh, added)
        added.known_bytes += sum(chunk in made for _, chunk, _ in asked) * self._block_bytes
        return made

    def _unchanged(self, blocks: Sequence[tuple[int, bytes, Buffer]]) -> dict[bytes, Pieced]:
        """Blocks whose content is what the map that this one builds on has a sound piece list for."""
        try:
            ids = self._before([block for block, _, _ in blocks])
            lists = read_lists(self._store, ids)
        except UNREADABLE:
            return {}
        return {
            chunk: id_
            for (_, chunk, _), id_ in zip(blocks, ids, strict=True)
            if isinstance(id_, Pieced)
            and lists[id_].content == chunk
            and all(self._store.trusted(one) for one in lists[id_].chunks)
        }

    def _compared(self, places: Iterable[int]) -> list[_Known]:
        """The chunks that lie in these places, as far as new blocks may name them, read and verified."""
        ids = list(dict.fromkeys(chunk for chunk in map(self._store.chunk_at, sorted(places)) if chunk is not None))
        with self._lock:
            have = {chunk: self._kept[chunk] for chunk in ids if chunk in self._kept}
        missing = [chunk for chunk in ids if chunk not in have]
        for chunk, data in zip(missing, self._store.read_each(missing, strict=False), strict=True):
            if not isinstance(data, Damaged):
                keys = tuple([page_key(data, page) for page in range(len(data) // PAGE_BYTES)])
                have[chunk] = _Known(chunk, bytes(data), keys)
        with self._lock:
            self._kept.update(have)
            while len(self._kept) * self._block_bytes > KEPT_BYTES:
                self._kept.popitem(last=False)
        return [have[chunk] for chunk in ids if chunk in have]

    def _draft(
        self,
        content: bytes,
        data: bytes,
        keys: Sequence[int],
        known: Sequence[_Known],
        pages: dict[int, _Shared],
        fresh: list[bytes],
    ) -> _Draft | None:
        """How a block is made of known chunks and new pages, which go behind `fresh`; None if it is not worth it."""
        if pages.keys().isdisjoint(keys):
            return None
        shared: list[_Shared | None] = []
        last: _Shared | None = None
        for page, key in enumerate(keys):
            wanted = data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            guesses = (pages.get(key),) if last is None else ((last[0], last[1] + 1), pages.get(key))
            last = next((guess for guess in guesses if guess is not None and _has(known, guess, wanted)), None)
            shared.append(last)
        often = Counter(one[0] for one in shared if one is not None)
        shared = [one if one is not None and often[one[0]] >= MIN_PAGES_OF_CHUNK else None for one in shared]
        count = sum(one is not None for one in shared)
        if count < MIN_PAGES or 4 * count < len(keys):
            return None
        draft = _Draft(content)
        at_fresh = len(fresh)
        new: list[bytes] = []
        for page, one in enumerate(shared):
            chunk, at = (known[one[0]], one[1]) if one is not None else (None, at_fresh + len(new))
            if one is None:
                new.append(data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            _extend(draft.runs, chunk, at, self._pages)
        if len(draft.runs) > min(MAX_RUNS * max(1, self._pages // 16), MAX_PIECES):
            return None
        fresh += new
        return draft

    def _stored(self, drafts: Sequence[_Draft], fresh: Sequence[bytes], added: Added) -> dict[bytes, Pieced]:
        """Store the new pages and the lists, and make sure of the chunks that they name."""
        new = [b"".join(fresh[at : at + self._pages]) for at in range(0, len(fresh), self._pages)]
        new_ids = [self._store.sealing.chunk_id(data) for data in new]
        named = {known.id: known.data for draft in drafts for known, _, _ in draft.runs if known is not None}
        if new:
            of_new = self._store.add(self._session, PackKind.DATA, list(zip(new_ids, new, strict=True)))
            added.stored_bytes += of_new.stored_bytes
            added.new_bytes += of_new.new_bytes
            added.known_bytes -= of_new.new_bytes
        if named:
            added.stored_bytes += self._store.add(self._session, PackKind.DATA, list(named.items())).stored_bytes
        lists = [pack_pieces(_piece_list(draft, new_ids, self._pages)) for draft in drafts]
        ids = [self._store.sealing.node_id(data) for data in lists]
        items = list(zip(ids, lists, strict=True))
        added.stored_bytes += self._store.add(self._session, PackKind.TREE, items).stored_bytes
        return {draft.content: Pieced(id_) for draft, id_ in zip(drafts, ids, strict=True)}


def _has(known: Sequence[_Known], at: _Shared, page: bytes) -> bool:
    start = at[1] * PAGE_BYTES
    return known[at[0]].data[start : start + PAGE_BYTES] == page


def _extend(runs: list[tuple[_Known | None, int, int]], chunk: _Known | None, page: int, pages_of_new: int) -> None:
    """Add a page to the last run if it follows it in the same chunk."""
    if runs:
        last, first, count = runs[-1]
        follows = last is chunk and first + count == page
        if follows and (chunk is not None or page // pages_of_new == first // pages_of_new):
            runs[-1] = (chunk, first, count + 1)
            return
    runs.append((chunk, page, 1))


def _piece_list(draft: _Draft, new_ids: Sequence[bytes], pages_of_new: int) -> PieceList:
    places = [
        (known.id, page) if known is not None else (new_ids[page // pages_of_new], page % pages_of_new)
        for known, page, _ in draft.runs
    ]
    chunks = list(dict.fromkeys(chunk for chunk, _ in places))
    pieces = tuple(
        (chunks.index(chunk), page * PAGE_BYTES, count * PAGE_BYTES)
        for (chunk, page), (_, _, count) in zip(places, draft.runs, strict=True)
    )
    return PieceList(draft.content, tuple(chunks), pieces)
