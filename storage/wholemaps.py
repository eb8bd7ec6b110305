"""A disk's complete block map at once, as arrays: for what needs all of it, at a tenth of the cost of a walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.blockmap import Root
from storage.bulkreads import WORDS, as_words, children_of, counts_of, layout_of, read_nodes
from storage.chunkreads import ChunkReads
from storage.errors import Damaged
from storage.format import ID_BYTES


@dataclass(frozen=True, slots=True)
class WholeMap:
    """Numpy arrays: the mapped blocks, rising, and the id of the chunk of each as four 64-bit words.

    `pieced` is true for those blocks whose id is that of a piece list.
    """

    blocks: Any
    ids: Any
    pieced: Any


def read_map(store: ChunkReads, root: Root, fan_out: int) -> WholeMap:
    """The whole map beneath a root, every node verified; needs 40 bytes of memory for each mapped block. Damaged."""
    import numpy as np

    if not root.node:
        return WholeMap(np.empty(0, np.int64), np.empty((0, WORDS), np.uint64), np.empty(0, bool))
    index, ids, counts = np.zeros(1, np.int64), as_words([root.node]), np.array([root.mapped_blocks])
    for level in range(root.levels - 1, 0, -1):
        index, ids, counts = _below(store, index, ids, counts, level, fan_out)
    return _leaves(store, index, ids, counts, fan_out)


def _below(store: ChunkReads, index: Any, ids: Any, counts: Any, level: int, fan_out: int) -> tuple[Any, Any, Any]:
    """Places, ids and counts of all children of one level, in the order of the disk."""
    import numpy as np

    parts = []
    for nodes in read_nodes(store, ids):
        layout = layout_of(nodes, level, fan_out)
        row, slot = np.nonzero(layout.bits)
        beneath = counts_of(nodes, layout)
        if (np.bincount(row, beneath, len(nodes.rows)) != counts[nodes.rows]).any():
            raise Damaged("a node maps another number of blocks than its parent says", where="block map")
        parts.append((index[nodes.rows][row] * fan_out + slot, children_of(nodes, layout), beneath))
    below, children, beneath = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(below)
    return below[order], children[order], beneath[order]


def _leaves(store: ChunkReads, index: Any, ids: Any, counts: Any, fan_out: int) -> WholeMap:
    import numpy as np

    bits = np.empty((len(index), fan_out), np.uint8)
    pieced = np.zeros((len(index), fan_out), bool)
    begins = np.cumsum(counts) - counts
    found = np.empty((int(counts.sum()), WORDS), np.uint64)
    into = found.data.cast("B") if len(found) else memoryview(b"")
    for nodes in read_nodes(store, ids):
        layout = layout_of(nodes, 0, fan_out)
        if (layout.used != counts[nodes.rows]).any():
            raise Damaged("a leaf maps another number of blocks than its parent says", where="block map")
        bits[nodes.rows] = layout.bits
        if layout.pieced is not None:
            pieced[nodes.rows] = layout.pieced
        data, lengths = nodes.data, layout.used * ID_BYTES
        places = (layout.begins, begins[nodes.rows] * ID_BYTES, lengths)
        for at, to, length in zip(*(column.tolist() for column in places), strict=True):
            into[to : to + length] = data[at : at + length]
    used = np.flatnonzero(bits)
    row, slot = np.divmod(used, fan_out)
    return WholeMap(index[row] * fan_out + slot, found, pieced.ravel()[used])
