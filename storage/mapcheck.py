"""Which restore points lack something: every map is followed down to its chunks, which some pack must hold intact."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from storage.blockmap import READ_NODES
from storage.errors import UNREADABLE, Damaged
from storage.format import Node, Pieced, parse_node, parse_pieces
from storage.index import prefix_of
from storage.manifest import Manifest
from storage.nodes import StoredNodes
from storage.piecelists import read_lists
from storage.reachability import Reached
from storage.repository import Repository

Parsed = TypeVar("Parsed")

FEW = 50_000
"""With fewer chunks than this in all packs, sets are made: numpy takes longer to be imported."""


class Held:
    """What packs hold, by 64-bit prefixes, as often as they hold it: what is bad in one may be intact in another."""

    def __init__(self, heads: Iterable[array[int]], bad: Iterable[bytes] = (), *, few: bool) -> None:
        """`few` makes sets, for `reach_few`; else arrays, for `reach`."""
        parts = [part for part in heads if part]
        counts = Counter(map(prefix_of, bad))
        self._few: Counter[int] | None = None
        if few:
            self._few = Counter()
            for part in parts:
                self._few.update(part)
            self._gone = {head for head, n in counts.items() if self._few[head] <= n}
            return
        import numpy as np

        self._heads: Any = np.concatenate([np.empty(0, np.uint64), *(np.frombuffer(p, np.uint64) for p in parts)])
        self._heads.sort()
        prefixes = np.fromiter(counts, np.uint64, len(counts))
        often = np.searchsorted(self._heads, prefixes, "right") - np.searchsorted(self._heads, prefixes, "left")
        self._gone = {head for head, n in zip(counts, often.tolist(), strict=True) if n <= counts[head]}

    def lacks(self, chunks: Sequence[bytes]) -> set[bytes]:
        """Those of these chunks that no pack holds intact."""
        if self._few is not None:
            few, gone = self._few, self._gone
            return {c for c in chunks if (head := prefix_of(c)) not in few or head in gone}
        if not chunks:
            return set()
        import numpy as np

        there = self._there(np.array([prefix_of(chunk) for chunk in chunks], np.uint64)).tolist()
        return {c for c, found in zip(chunks, there, strict=True) if not found or prefix_of(c) in self._gone}

    def lacks_any(self, reached: Any) -> bool:
        """Whether one of these prefixes is held by no pack; `reached` is a set or a sorted numpy array."""
        if self._few is not None:
            return not reached <= self._few.keys() or not self._gone.isdisjoint(reached)
        import numpy as np

        gone = np.fromiter(self._gone, np.uint64, len(self._gone))
        return not self._there(reached).all() or bool(np.isin(gone, reached).any())

    def _there(self, wanted: Any) -> Any:
        import numpy as np

        if not len(self._heads):
            return np.zeros(len(wanted), bool)
        at = np.minimum(np.searchsorted(self._heads, wanted), len(self._heads) - 1)
        return self._heads[at] == wanted


def are_few(heads: Iterable[array[int]]) -> bool:
    """Whether sets do for what these packs hold: then `reach_few` tells what is needed, else `reach`."""
    return sum(map(len, heads)) < FEW


def reach_few(repo: Repository, manifests: Iterable[Manifest]) -> set[int] | None:
    """What `reach` tells, as a set."""
    nodes = StoredNodes(repo.store)
    reached: set[int] = set()
    visited: set[tuple[bytes, int]] = set()

    def visit(ids: Iterable[bytes], level: int, fan_out: int) -> None:
        fresh = [node for node in dict.fromkeys(ids) if (node, level) not in visited]
        visited.update((node, level) for node in fresh)
        reached.update(map(prefix_of, fresh))
        for start in range(0, len(fresh), READ_NODES):
            for data in nodes.get_nodes(fresh[start : start + READ_NODES]):
                children = parse_node(bytes(data), level, fan_out, "block map").children.values()
                if level:
                    visit(children, level - 1, fan_out)
                else:
                    reached.update(map(prefix_of, children))
                    for pieces in read_lists(repo.store, children).values():
                        reached.update(map(prefix_of, pieces.chunks))

    try:
        for manifest in manifests:
            reached.update(map(prefix_of, manifest.configuration))
            for disk in manifest.disks:
                if disk.root.node:
                    visit([disk.root.node], disk.root.levels - 1, manifest.fan_out)
    except UNREADABLE:
        return None
    return reached


def reach(repo: Repository, manifests: Iterable[Manifest]) -> Any:
    """A sorted numpy array of what these restore points need; None when a node of a map cannot be read."""
    reached: dict[int, Reached] = {}
    nodes = StoredNodes(repo.store)
    try:
        for manifest in manifests:
            of_fan = reached.setdefault(manifest.fan_out, Reached(nodes, manifest.fan_out))
            of_fan.add_chunks(manifest.configuration)
            for disk in manifest.disks:
                of_fan.add_root(disk.root)
        return _united([one.sorted() for one in reached.values()])
    except UNREADABLE:
        return None


def _united(parts: Sequence[Any]) -> Any:
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


class Walker:
    """Tells which chunks and nodes each restore point lacks. Visits a shared node once."""

    def __init__(self, repo: Repository, held: Held) -> None:
        self._store = repo.store
        self._held = held
        self._clean: set[tuple[bytes, int]] = set()
        self._dirty: dict[tuple[bytes, int], set[bytes]] = {}
        self.why: dict[bytes, str] = {}
        """Why a node could not be read."""

    def lacked_by(self, manifest: Manifest) -> set[bytes]:
        """The chunks and nodes of a restore point that no pack holds intact."""
        lacked = self._held.lacks(manifest.configuration)
        for disk in manifest.disks:
            if disk.root.node:
                lacked |= self._below([disk.root.node], disk.root.levels - 1, manifest.fan_out)
        return lacked

    def _below(self, nodes: Sequence[bytes], level: int, fan_out: int) -> set[bytes]:
        fresh = [node for node in dict.fromkeys(nodes) if not self._judged(node, level)]
        for node, parsed in self._parsed(fresh, level, fan_out).items():
            if parsed is None:
                lacked = {node}
            elif level == 0:
                lacked = self._chunks(list(parsed.children.values()))
            else:
                lacked = self._below(list(parsed.children.values()), level - 1, fan_out)
            if lacked:
                self._dirty[node, level] = lacked
            else:
                self._clean.add((node, level))
        return set().union(*(self._dirty.get((node, level), ()) for node in nodes))

    def _chunks(self, ids: Sequence[bytes]) -> set[bytes]:
        """What a leaf lacks: of its chunks, its piece lists, and the chunks that those put together."""
        lacked = self._held.lacks([chunk for chunk in ids if not isinstance(chunk, Pieced)])
        lists = [piece_list for piece_list in ids if isinstance(piece_list, Pieced)]
        for piece_list, parsed in self._read(lists, lambda data: parse_pieces(data, "piece list")):
            lacked |= self._held.lacks(parsed.chunks) if parsed is not None else {piece_list}
        return lacked

    def _judged(self, node: bytes, level: int) -> bool:
        return (node, level) in self._clean or (node, level) in self._dirty

    def _parsed(self, nodes: Sequence[bytes], level: int, fan_out: int) -> Mapping[bytes, Node | None]:
        return dict(self._read(nodes, lambda data: parse_node(data, level, fan_out, "block map")))

    def _read(self, ids: Sequence[bytes], parse: Callable[[bytes], Parsed]) -> Iterator[tuple[bytes, Parsed | None]]:
        """What lies in tree packs, parsed; None for what no pack has intact, `why` says why."""
        lacked = self._held.lacks(ids)  # a footer in memory may still tell of a pack that is broken by now
        for id_, data in zip(ids, self._store.read_each(ids, node=True, strict=False), strict=True):
            try:
                if isinstance(data, Damaged):
                    raise data
                if id_ in lacked:
                    raise Damaged("no pack holds it")
                yield id_, parse(bytes(data))
            except UNREADABLE as error:
                self.why[id_] = error.what
                yield id_, None
