"""What differs between two block maps, found without reading what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from storage.blockmap import READ_NODES, NodeStore, Root
from storage.format import parse_node

_Pair = tuple[int, bytes, bytes]
"""(index of a node on its level, the node before, the node after); empty where there is none."""


def differences(store: NodeStore, before: Root, after: Root, fan_out: int) -> Iterator[tuple[int, bytes]]:
    """(block, chunk id) of each block whose chunk is another in `after`, in the disk's order; empty ids for zeros.

    Both maps lie in the same store and may have different heights. Only nodes that differ are read.
    """
    if before.node != after.node:
        yield from _below(store, [(0, before.node, after.node)], (before.levels, after.levels), fan_out)


def _below(
    store: NodeStore, pairs: Sequence[_Pair], heights: tuple[int, int], fan_out: int, level: int | None = None
) -> Iterator[tuple[int, bytes]]:
    level = max(heights) - 1 if level is None else level
    for start in range(0, len(pairs), READ_NODES):
        part = pairs[start : start + READ_NODES]
        old = _children(store, [pair[1] for pair in part], level, heights[0], fan_out)
        new = _children(store, [pair[2] for pair in part], level, heights[1], fan_out)
        changed = [
            (index * fan_out + slot, old_slots.get(slot, b""), new_slots.get(slot, b""))
            for (index, _, _), old_slots, new_slots in zip(part, old, new, strict=True)
            for slot in sorted(old_slots.keys() | new_slots.keys())
            if old_slots.get(slot) != new_slots.get(slot)
        ]
        if level:
            yield from _below(store, changed, heights, fan_out, level - 1)
        else:
            yield from ((block, chunk) for block, _, chunk in changed)


def _children(
    store: NodeStore, nodes: Sequence[bytes], level: int, height: int, fan_out: int
) -> list[dict[int, bytes]]:
    """The used slots of each node; a map that is lower than this level stands in slot 0."""
    if level >= height:
        return [{0: node} if node else {} for node in nodes]
    wanted = [node for node in dict.fromkeys(nodes) if node]
    parsed = {
        node: parse_node(bytes(data), level, fan_out, "block map").children
        for node, data in zip(wanted, store.get_nodes(wanted), strict=True)
    }
    return [parsed[node] if node else {} for node in nodes]
