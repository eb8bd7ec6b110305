"""A disk's block map: a content-addressed tree whose unchanged nodes are shared between restore points.

Level 0 nodes map blocks to chunk ids, higher ones map to nodes; an absent slot reads as zeros. A builder holds only
the nodes that are still being filled, so that its memory does not grow with the disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage.filecalls import Buffer
from storage.format import pack_node, parse_node
from storage.nodemerge import changed_node, child_of, mapped_by

OPEN_SLOTS = 1 << 18
"""Changed slots that a builder keeps before it stores the oldest nodes: about 30 MB."""

NODE_SLOTS = 8
"""A node that is being filled weighs as much as so many slots of it."""

FULL_NODES = 64
"""Full nodes that wait for each other, as many are stored at a fraction of the cost of each by itself."""

STORE_NODES = 2048
"""Nodes that are read, changed and stored at once."""

INNER_BYTES = 16 << 20
"""Inner nodes of the base that a builder keeps, as each is asked for again when what is beneath it was stored."""

READ_NODES = 512
"""Nodes that a walk fetches at once."""


@dataclass(frozen=True, slots=True)
class Root:
    """The top of a block map: all that a manifest has to keep. `node` is empty when every block is zero."""

    node: bytes
    levels: int
    mapped_blocks: int


class NodeSource(Protocol):
    """Where nodes are read from."""

    def get_nodes(self, ids: Sequence[bytes]) -> list[Buffer]:
        """The nodes, verified; also those that are not sealed yet."""
        ...


class NodeStore(NodeSource, Protocol):
    """Where nodes are kept."""

    def put_nodes(self, nodes: Sequence[bytes]) -> list[bytes]:
        """Store nodes and return their ids."""
        ...


def levels_for(blocks: int, fan_out: int) -> int:
    """How many levels a tree needs for so many blocks; at least one."""
    levels, reach = 1, fan_out
    while reach < blocks:
        levels, reach = levels + 1, reach * fan_out
    return levels


@dataclass(slots=True)
class _Filling:
    """A node that is being filled: slots that no longer follow what was there before, None for those not used."""

    changes: dict[int, bytes | None] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)


_Place = tuple[int, int]
"""(level, index of the node within its level)"""


class MapBuilder:
    """Takes what changed since a base and gives the root of the new map. Thread-safe."""

    def __init__(self, store: NodeStore, fan_out: int, blocks: int, base: Root | None, base_blocks: int = 0) -> None:
        self._store = store
        self._fan = fan_out
        self._levels = levels_for(max(blocks, base_blocks), fan_out)
        self._blocks = blocks
        self._open: OrderedDict[_Place, _Filling] = OrderedDict()
        self._weight = 0
        self._full: set[_Place] = set()
        self._inner: dict[bytes, bytes] = {}
        self._inner_bytes = 0
        self._lock = threading.Lock()
        self._top = b"" if base is None else self._raise_to(base, self._levels)
        if base is not None and base_blocks > blocks:
            self.clear(blocks, base_blocks - blocks)

    def set(self, blocks: Sequence[tuple[int, bytes | None]]) -> None:
        """Map blocks to chunk ids, or to zeros."""
        with self._lock:
            fan, last, changes = self._fan, -1, dict[int, bytes | None]()
            for block, chunk in blocks:
                index, slot = divmod(block, fan)
                if index != last:
                    last, changes = index, self._node(0, index).changes
                self._weight += slot not in changes
                changes[slot] = chunk
                if len(changes) == fan and self._levels > 1:
                    self._full.add((0, index))
            if len(self._full) >= FULL_NODES:
                self._store_full()
            if self._weight > OPEN_SLOTS:
                oldest = list(self._open)[: len(self._open) // 2]
                for level in range(self._levels - 1):
                    self._store_nodes(sorted(place for place in oldest if place[0] == level))

    def clear(self, first: int, count: int) -> None:
        """Map a run of blocks to zeros; cheap for whole subtrees."""
        with self._lock:
            end = first + count
            while first < end:
                level, reach = 0, 1
                while level + 1 < self._levels and not first % (reach * self._fan) and first + reach * self._fan <= end:
                    level, reach = level + 1, reach * self._fan
                index = first // reach
                if level:
                    self._forget_below(level, index)
                self._touch(level, index // self._fan, index % self._fan, None, 0)
                first += reach
                self._store_full()

    def finish(self) -> Root:
        """Store what is still open, bottom up, and return the root."""
        with self._lock:
            for level in range(self._levels):
                self._store_nodes(sorted(place for place in self._open if place[0] == level))
            levels, top = self._levels, self._top
            while levels > levels_for(self._blocks, self._fan) and top:
                levels, top = levels - 1, child_of(self._load([top], levels - 1)[0], levels - 1, self._fan, 0)
            if not top:
                return Root(b"", levels_for(self._blocks, self._fan), 0)
            return Root(top, levels, mapped_by(self._load([top], levels - 1)[0], levels - 1, self._fan))

    def _raise_to(self, base: Root, levels: int) -> bytes:
        top, count = base.node, base.mapped_blocks
        for level in range(base.levels, levels if top else 0):
            top = self._store.put_nodes([pack_node(level, self._fan, {0: top}, {0: count})])[0]
        return top

    def _touch(self, level: int, index: int, slot: int, child: bytes | None, count: int) -> None:
        node = self._node(level, index)
        self._weight += slot not in node.changes
        node.changes[slot] = child
        if level:
            node.counts[slot] = count
        if len(node.changes) == self._fan and level + 1 < self._levels:
            self._full.add((level, index))

    def _node(self, level: int, index: int) -> _Filling:
        node = self._open.get((level, index))
        if node is None:
            node = self._open[level, index] = _Filling()
            self._weight += NODE_SLOTS
        return node

    def _taken(self, place: _Place) -> _Filling:
        node = self._open.pop(place)
        self._weight -= NODE_SLOTS + len(node.changes)
        return node

    def _store_full(self) -> None:
        """Store nodes that no longer need what was there before."""
        for level in range(self._levels - 1):
            if not self._full:
                return
            full = sorted(place for place in self._full if place[0] == level)
            self._full.difference_update(full)
            self._store_nodes([place for place in full if place in self._open])

    def _forget_below(self, level: int, index: int) -> None:
        for place in [p for p in self._open if p[0] < level and p[1] // self._fan ** (level - 1 - p[0]) == index]:
            self._taken(place)

    def _store_nodes(self, places: Sequence[_Place]) -> None:
        """Merge nodes of one level with what was there before, store them and tell their parents."""
        for start in range(0, len(places), STORE_NODES):
            self._store_some(places[start : start + STORE_NODES])

    def _store_some(self, places: Sequence[_Place]) -> None:
        level = places[0][0]
        nodes = [self._taken(place) for place in places]
        partial = [at for at, node in enumerate(nodes) if len(node.changes) < self._fan]
        before = self._current(level, [places[at][1] for at in partial])
        known = [at for at, child in enumerate(before) if child]
        old = [b""] * len(nodes)
        for at, data in zip(known, self._load([before[at] for at in known], level), strict=True):
            old[partial[at]] = data
        new = [
            changed_node(data, level, self._fan, node.changes, node.counts)
            for data, node in zip(old, nodes, strict=True)
        ]
        used = [data for data, _ in new if data]
        ids = iter(self._store.put_nodes(used) if used else ())
        for (_, index), (data, count) in zip(places, new, strict=True):
            child = next(ids) if data else b""
            if level + 1 < self._levels:
                self._touch(level + 1, index // self._fan, index % self._fan, child or None, count)
            else:
                self._top = child

    def _current(self, level: int, indices: Sequence[int]) -> list[bytes]:
        """The stored nodes that stand in these places now; empty where there is none."""
        if not indices:
            return []
        if level + 1 == self._levels:
            return [self._top] * len(indices)
        found = [b""] * len(indices)
        asked: dict[int, list[int]] = {}
        for at, index in enumerate(indices):
            parent = self._open.get((level + 1, index // self._fan))
            if parent is not None and index % self._fan in parent.changes:
                found[at] = parent.changes[index % self._fan] or b""
            else:
                asked.setdefault(index // self._fan, []).append(at)
        parents = [(p, node) for p, node in zip(asked, self._current(level + 1, list(asked)), strict=True) if node]
        for (parent_index, _), node in zip(
            parents, self._load([child for _, child in parents], level + 1), strict=True
        ):
            for at in asked[parent_index]:
                found[at] = child_of(node, level + 1, self._fan, indices[at] % self._fan)
        return found

    def _load(self, ids: Sequence[bytes], level: int) -> list[bytes]:
        if not level:
            return self._fetched(ids)
        have = {node: self._inner[node] for node in ids if node in self._inner}
        missing = [node for node in ids if node not in have]
        fresh = dict(zip(missing, self._fetched(missing), strict=True))
        for node, data in fresh.items():
            if self._inner_bytes > INNER_BYTES:
                self._inner.clear()
                self._inner_bytes = 0
            self._inner[node] = data
            self._inner_bytes += len(data)
        return [have.get(node) or fresh[node] for node in ids]

    def _fetched(self, ids: Sequence[bytes]) -> list[bytes]:
        return [bytes(data) for data in self._store.get_nodes(ids)] if ids else []


def walk(store: NodeSource, root: Root, fan_out: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """(first block, slot → chunk id) for every used leaf, in the disk's order."""
    if root.node:
        yield from _walk(store, [(0, root.node)], root.levels - 1, fan_out)


def _walk(
    store: NodeSource, places: Sequence[tuple[int, bytes]], level: int, fan_out: int
) -> Iterator[tuple[int, dict[int, bytes]]]:
    for start in range(0, len(places), READ_NODES):
        part = places[start : start + READ_NODES]
        below: list[tuple[int, bytes]] = []
        for (index, _), data in zip(part, store.get_nodes([node for _, node in part]), strict=True):
            node = parse_node(bytes(data), level, fan_out, "block map")
            if level == 0:
                yield index * fan_out, node.children
            else:
                below += [(index * fan_out + slot, child) for slot, child in node.children.items()]
                if len(below) >= READ_NODES:
                    yield from _walk(store, below, level - 1, fan_out)
                    below = []
        yield from _walk(store, below, level - 1, fan_out)


def lookup(store: NodeSource, root: Root, fan_out: int, blocks: Sequence[int]) -> list[bytes]:
    """The chunk id of each block; empty where it is zero."""
    found = [root.node] * len(blocks)
    reach = fan_out ** (root.levels - 1)
    for level in range(root.levels - 1, -1, -1):
        wanted = sorted({node for node in found if node})
        read = {node: bytes(data) for node, data in zip(wanted, store.get_nodes(wanted), strict=True)}
        found = [
            child_of(read[node], level, fan_out, block // reach % fan_out) if node else b""
            for node, block in zip(found, blocks, strict=True)
        ]
        reach //= fan_out
    return found
