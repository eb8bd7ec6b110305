"""Which chunks restore points reach, as sorted 64-bit prefixes: exact enough to keep, never to lose.

Two chunks with one prefix count as one: a dead chunk may be taken for a live one, never the other way round.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

from storage.blockmap import READ_NODES, Root
from storage.format import ID_BYTES, NODE_HEAD
from storage.index import prefix_of
from storage.nodes import StoredNodes
from storage.pack import Footer


class Reached:
    """Collects what roots reach; shared nodes are visited once."""

    def __init__(self, nodes: StoredNodes, fan_out: int) -> None:
        self._nodes = nodes
        self._start = NODE_HEAD.size + (fan_out + 7) // 8
        self._visited: set[bytes] = set()
        self._prefixes = array("Q")

    def add_chunks(self, chunks: Iterable[bytes]) -> None:
        """Chunks that a manifest names itself."""
        self._prefixes.extend(prefix_of(chunk) for chunk in chunks)

    def add_root(self, root: Root) -> None:
        """Everything beneath a root. Damaged if a node cannot be read: then nothing may be concluded."""
        if root.node and root.node not in self._visited:
            self._descend([root.node], root.levels - 1)

    def _descend(self, ids: list[bytes], level: int) -> None:
        self._visited.update(ids)
        self.add_chunks(ids)
        for start in range(0, len(ids), READ_NODES):
            for data in self._nodes.get_nodes(ids[start : start + READ_NODES]):
                bitmap = int.from_bytes(data[NODE_HEAD.size : self._start], "little")
                end = self._start + bitmap.bit_count() * ID_BYTES
                if level == 0:
                    self._add_leaf(data[self._start : end])
                    continue
                raw = bytes(data)
                below = [raw[at : at + ID_BYTES] for at in range(self._start, end, ID_BYTES)]
                fresh = [child for child in dict.fromkeys(below) if child not in self._visited]
                if fresh:
                    self._descend(fresh, level - 1)

    def _add_leaf(self, ids: bytes | bytearray | memoryview) -> None:
        words = array("Q")
        words.frombytes(ids)
        heads = words[:: ID_BYTES // 8]
        heads.byteswap()
        self._prefixes.extend(heads)

    def sorted(self) -> Any:
        """A sorted numpy array of every prefix that was reached."""
        import numpy as np

        return np.unique(np.frombuffer(self._prefixes, np.uint64)) if self._prefixes else np.empty(0, np.uint64)


_ENTRY = [("head", ">u8"), ("rest", "V24"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("check", "<u4")]


def live_slots(footer: Footer, reached: Any) -> Any:
    """A numpy array of booleans: which slots of a pack are reached."""
    import numpy as np

    heads = np.frombuffer(footer.entries, np.dtype(_ENTRY))["head"].astype(np.uint64)
    if not len(reached):
        return np.zeros(len(heads), bool)
    at = np.minimum(np.searchsorted(reached, heads), len(reached) - 1)
    return reached[at] == heads


def all_held(reached: Any, footers: Iterable[Footer]) -> bool:
    """Whether these packs hold a chunk for every prefix that is reached."""
    import numpy as np

    heads = [np.frombuffer(footer.entries, np.dtype(_ENTRY))["head"].astype(np.uint64) for footer in footers]
    return bool(np.isin(reached, np.concatenate(heads)).all()) if heads else not len(reached)


def live_bytes(footer: Footer, reached: Any) -> tuple[int, int]:
    """The stored bytes of a pack's chunks that are reached, and of all."""
    import numpy as np

    stored = np.frombuffer(footer.entries, np.dtype(_ENTRY))["stored"].astype(np.uint64)
    return int(stored[live_slots(footer, reached)].sum()), int(stored.sum())
