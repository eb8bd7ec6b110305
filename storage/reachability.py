"""Which chunks restore points reach, as sorted 64-bit prefixes: exact enough to keep, never to lose.

Two chunks with one prefix count as one: a dead chunk may be taken for a live one, never the other way round.
Nodes are told apart by their full ids, so that none is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from storage.blockmap import Root
from storage.bulkreads import (
    WORDS,
    Layout,
    Nodes,
    as_words,
    children_of,
    entries_of,
    heads_of,
    layout_of,
    read_nodes,
)
from storage.format import PIECES_LEVEL, parse_pieces
from storage.membership import Members
from storage.nodes import StoredNodes
from storage.pack import Footer
from storage.runs import lower_bounds

PENDING_PREFIXES = 48 << 20
"""Prefixes that are collected before they are sorted and told apart: 400 MB, and as much again while that is done."""

APART_ENTRIES = 1 << 16
"""Prefixes told apart at once: they fit a cache."""

PENDING_CHILDREN = 4 << 20
"""References from inner nodes that are collected before nodes are told apart: 128 MB."""

USAGE_ENTRIES = 1 << 20

RECENT_BITS = 21
"""Two million ids of nodes in a table: at most 64 MB, of which only what is used is touched."""


class Reached:
    """Collects what roots reach; shared nodes are visited once. Roots are followed when `sorted` is asked."""

    def __init__(self, nodes: StoredNodes, fan_out: int) -> None:
        self._store = nodes.store
        self._fan = fan_out
        self._prefixes = _Prefixes()
        self._roots: dict[int, set[bytes]] = {}
        self._visited: dict[int, _Visited] = {}
        self._chunks: list[bytes] = []

    def add_chunks(self, chunks: Iterable[bytes]) -> None:
        """Chunks that a manifest names itself."""
        self._chunks.extend(chunks)

    def add_root(self, root: Root) -> None:
        """Everything beneath a root."""
        if root.node:
            self._roots.setdefault(root.levels - 1, set()).add(root.node)

    def sorted(self) -> Any:
        """A sorted numpy array of every prefix that was reached. More may be added afterwards.

        Damaged if a node cannot be read: then nothing may be concluded.
        """
        roots, self._roots = self._roots, {}
        chunks, self._chunks = self._chunks, []
        if chunks:
            self._prefixes.add(heads_of(as_words(chunks)))
        below: Any = as_words([])
        for level in range(max(roots, default=-1), -1, -1):
            below = self._descend(_together([below, as_words(sorted(roots.get(level, ())))]), level)
        return self._prefixes.sorted()

    def _descend(self, ids: Any, level: int) -> Any:
        """Visit nodes of one level; returns the ids beneath them, each about once."""
        visited = self._visited.setdefault(level, _Visited())
        fresh = visited.fresh(ids)
        self._prefixes.add(heads_of(fresh))
        pending: list[Any] = []
        recent = _Recent() if level else None
        for nodes in read_nodes(self._store, fresh):
            layout = layout_of(nodes, level, self._fan)
            if recent is None:
                self._prefixes.add(_heads_beneath(nodes, layout))
                if layout.pieced is not None:
                    pieced = layout.pieced[layout.bits.astype(bool)].astype(bool)
                    self._pieced(children_of(nodes, layout)[pieced])
                continue
            pending.append(recent.unseen(children_of(nodes, layout)))
            if sum(map(len, pending)) > PENDING_CHILDREN:
                pending = [_distinct(_together(pending))]
        return _together(pending)

    def _pieced(self, lists: Any) -> None:
        """Visit piece lists: what they put together is reached, too."""
        visited = self._visited.setdefault(PIECES_LEVEL, _Visited())
        for nodes in read_nodes(self._store, visited.fresh(lists)):
            ends = (nodes.starts + nodes.lengths).tolist()
            chunks = [
                chunk
                for start, end in zip(nodes.starts.tolist(), ends, strict=True)
                for chunk in parse_pieces(bytes(nodes.data[start:end]), "piece list").chunks
            ]
            self._prefixes.add(heads_of(as_words(chunks)))


def _heads_beneath(nodes: Nodes, layout: Layout) -> Any:
    """The prefixes of all ids in these nodes, in any order: read where they stand, as they are a quarter of the ids."""
    import numpy as np

    heads = np.empty(int(layout.used.sum()), np.uint64)
    fan, done = layout.bits.shape[1], 0
    for odd in np.unique(layout.begins % 8).tolist():
        aligned = np.frombuffer(nodes.data, np.uint64, (len(nodes.data) - odd) // 8, odd)
        for full in (True, False):
            rows = (layout.begins % 8 == odd) & ((layout.used == fan) == full)
            used, begins = layout.used[rows], layout.begins[rows] // 8
            count = int(used.sum())
            if full and count:  # most are: a row for each place at which a node could begin, without a table of places
                shape = (len(aligned) - WORDS * (fan - 1), fan)
                windows = np.lib.stride_tricks.as_strided(aligned, shape, (8, 8 * WORDS), writeable=False)
                heads[done : done + count].reshape(-1, fan)[:] = windows[begins]
            elif count:
                within = np.arange(count) - np.repeat(np.cumsum(used) - used, used)
                heads[done : done + count] = aligned[np.repeat(begins, used) + WORDS * within]
            done += count
    return heads.byteswap(inplace=True)


class _Recent:
    """A table of ids that came by, one for each beginning; most references are to what neighbours refer to."""

    def __init__(self) -> None:
        import numpy as np

        self._ids: Any = np.zeros((1 << RECENT_BITS, WORDS), np.uint64)
        self._ids[0] = 1  # no id stands for an empty place: one of zeros would belong here

    def unseen(self, ids: Any) -> Any:
        """These without what the table has by its full id; some that came by before may stay."""
        import numpy as np

        places = (heads_of(ids) >> np.uint64(64 - RECENT_BITS)).astype(np.int64)
        fresh = np.flatnonzero((self._ids[places] != ids).any(axis=1))
        ids = ids[fresh]
        self._ids[places[fresh]] = ids
        return ids


class _Visited:
    """Nodes of one level that were visited, told apart by their full ids."""

    def __init__(self) -> None:
        self._ids: Any = as_words([])

    def fresh(self, ids: Any) -> Any:
        """Those of these that were not visited before, each once; they are visited now."""
        ids = _distinct(ids)
        if len(self._ids):
            ids = ids[~self._has(ids)]
        self._ids = _distinct(_together([self._ids, ids]))
        return ids

    def _has(self, ids: Any) -> Any:
        import numpy as np

        known, wanted = heads_of(self._ids), heads_of(ids)
        found = np.zeros(len(ids), bool)
        at, rows = lower_bounds(known, wanted), np.arange(len(ids))
        while len(rows):
            there = at < len(known)
            there[there] = known[at[there]] == wanted[rows[there]]
            rows, at = rows[there], at[there]
            found[rows] |= (self._ids[at] == ids[rows]).all(axis=1)
            at = at + 1
        return found


def _together(parts: list[Any]) -> Any:
    import numpy as np

    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, WORDS), np.uint64), *parts])


def _distinct(ids: Any) -> Any:
    """Sorted by prefix, without repetition; where different ids have one prefix, some may stay twice."""
    import numpy as np

    ids = ids[np.argsort(heads_of(ids))]
    return ids[np.append(True, (ids[1:] != ids[:-1]).any(axis=1))] if len(ids) else ids


class _Prefixes:
    """Prefixes, told apart now and then, so that memory follows the different ones.

    Collected in two buffers by turns, and sorted in place: fresh memory costs more than sorting what is in it.
    """

    def __init__(self) -> None:
        import numpy as np

        self._sorted: Any = np.empty(0, np.uint64)
        self._filling: Any = np.empty(PENDING_PREFIXES, np.uint64)  # of which only what is used is touched
        self._other: Any = None
        self._count = 0
        self._given = False
        self._coming: Future[None] | None = None

    def add(self, heads: Any) -> None:
        import numpy as np

        while len(heads):
            part = heads[: len(self._filling) - self._count]
            self._filling[self._count : self._count + len(part)] = part
            self._count += len(part)
            heads = heads[len(part) :]
            if self._count == len(self._filling):
                self._wait()
                full, self._filling = self._filling, self._other
                if self._filling is None:
                    self._filling = np.empty(len(full), np.uint64)
                self._other, self._count = full, 0
                thread = ThreadPoolExecutor(1, "sort")
                self._coming = thread.submit(self._take_in, full)  # while nodes are read and hashed
                thread.shutdown(wait=False)

    def sorted(self) -> Any:
        """All of them, sorted and different. More may be added afterwards; the array stays what it is."""
        self._wait()
        self._other = None
        self._take_in(self._filling[: self._count])
        self._count = 0
        self._given = True
        return self._sorted

    def _wait(self) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.result()

    def _take_in(self, heads: Any) -> None:
        """Take more in, in any order; they are sorted where they stand."""
        heads.sort()
        fresh, known = _told_apart(heads), len(self._sorted)
        if not fresh:
            return
        if self._given:
            self._sorted, self._given = self._sorted.copy(), False
        self._sorted.resize(known + fresh, refcheck=False)  # nobody else has it; its pages move, their content does not
        self._sorted[known:] = heads[:fresh]
        if known:
            self._sorted.sort()
            self._sorted.resize(_told_apart(self._sorted), refcheck=False)


def _told_apart(heads: Any) -> int:
    """How many different ones there are among sorted prefixes, which then stand first."""
    import numpy as np

    done, before = 0, None
    for start in range(0, len(heads), APART_ENTRIES):
        part = heads[start : start + APART_ENTRIES]
        fresh = np.append(part[0] != before, part[1:] != part[:-1])
        before = part[-1]
        kept = part[fresh]
        heads[done : done + len(kept)] = kept
        done += len(kept)
    return done


def live_slots(footer: Footer, reached: Any) -> Any:
    """A numpy array of booleans: which slots of a pack are reached."""
    return _among(heads_of(entries_of(footer)["id"]), reached)


def _among(heads: Any, reached: Any) -> Any:
    import numpy as np

    if not len(reached):
        return np.zeros(len(heads), bool)
    at = np.minimum(np.searchsorted(reached, heads), len(reached) - 1)
    return reached[at] == heads


def live_bytes(footer: Footer, reached: Any) -> tuple[int, int]:
    """The stored bytes of a pack's chunks that are reached, and of all."""
    import numpy as np

    stored = entries_of(footer)["stored"].astype(np.uint64)
    return int(stored[live_slots(footer, reached)].sum()), int(stored.sum())


def pack_usage(footers: Iterable[Footer], reached: Any) -> Iterator[tuple[Footer, int, int]]:
    """For many packs at once the same as `live_bytes`: (footer, live bytes, all bytes), in their order.

    Keeps a few hundred footers in memory.
    """
    members: Members | None = None
    batch: list[Footer] = []
    entries = 0
    for footer in footers:
        batch.append(footer)
        entries += len(footer)
        if entries >= USAGE_ENTRIES:
            members = members or Members(reached)  # its table pays for itself
            yield from _usage(batch, members.has)
            batch, entries = [], 0
    yield from _usage(batch, members.has if members else lambda heads: _among(heads, reached))


def _usage(footers: list[Footer], has: Callable[[Any], Any]) -> Iterator[tuple[Footer, int, int]]:
    import numpy as np

    if not footers:
        return
    heads = np.concatenate([heads_of(entries_of(footer)["id"]) for footer in footers])
    stored = np.concatenate([entries_of(footer)["stored"] for footer in footers]).astype(np.int64)
    live = np.where(has(heads), stored, 0)
    sums, lives = np.append(0, np.cumsum(stored)), np.append(0, np.cumsum(live))
    begin = 0
    for footer in footers:
        end = begin + len(footer)
        yield footer, int(lives[end] - lives[begin]), int(sums[end] - sums[begin])
        begin = end


def all_held(reached: Any, footers: Iterable[Footer]) -> bool:
    """Whether these packs hold a chunk for every prefix that is reached. Keeps no footer."""
    import numpy as np

    held = _Prefixes()
    for footer in footers:
        held.add(heads_of(entries_of(footer)["id"]))
    heads = held.sorted()
    at = np.minimum(lower_bounds(heads, reached), max(len(heads) - 1, 0))
    return bool((heads[at] == reached).all()) if len(heads) else not len(reached)
