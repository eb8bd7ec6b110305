"""Nodes of block maps changed in a few slots, without taking all of them apart."""

from __future__ import annotations

from collections.abc import Mapping
from struct import unpack_from

from storage.format import COUNT_BYTES, ID_BYTES, NODE_HEAD, Pieced, open_node, pack_node, parse_node

WHERE = "block map"


def child_of(node: bytes, level: int, fan_out: int, slot: int) -> bytes:
    """The id in one slot, Pieced where that is a piece list's; empty where the slot is not used. Damaged."""
    bitmap, pieced, start = open_node(node, level, fan_out, WHERE)
    if not bitmap >> slot & 1:
        return b""
    at = start + (bitmap & ((1 << slot) - 1)).bit_count() * ID_BYTES
    found = node[at : at + ID_BYTES]
    return Pieced(found) if pieced >> slot & 1 else found


def mapped_by(node: bytes, level: int, fan_out: int) -> int:
    """How many blocks a node maps. Damaged."""
    bitmap, _, start = open_node(node, level, fan_out, WHERE)
    used = bitmap.bit_count()
    return sum(unpack_from(f"<{used}I", node, start + used * ID_BYTES)) if level else used


def changed_node(
    old: bytes, level: int, fan_out: int, changes: Mapping[int, bytes | None], counts: Mapping[int, int]
) -> tuple[bytes, int]:
    """A node with these slots changed, None for those that are not used any more, and how many blocks it maps.

    The node is empty when no slot is left. `counts` has the blocks beneath each new child of an inner node. `old` is
    empty where there was no node. Damaged.
    """
    bitmap, pieced, start = open_node(old, level, fan_out, WHERE) if old else (0, 0, 0)
    if not bitmap or pieced or len(changes) == fan_out or any(type(child) is Pieced for child in changes.values()):
        return _packed(old, level, fan_out, changes, counts)
    end = start + bitmap.bit_count() * ID_BYTES
    ids, beneath = bytearray(old[start:end]), bytearray(old[end:])
    for slot, child in changes.items():
        used = bitmap >> slot & 1
        at = (bitmap & ((1 << slot) - 1)).bit_count()
        if child is not None:
            bitmap |= 1 << slot
            ids[at * ID_BYTES : (at + used) * ID_BYTES] = child
            if level:
                count = counts[slot].to_bytes(COUNT_BYTES, "little")
                beneath[at * COUNT_BYTES : (at + used) * COUNT_BYTES] = count
        elif used:
            bitmap ^= 1 << slot
            del ids[at * ID_BYTES : (at + 1) * ID_BYTES]
            del beneath[at * COUNT_BYTES : (at + 1) * COUNT_BYTES]
    if not bitmap:
        return b"", 0
    used = bitmap.bit_count()
    head = NODE_HEAD.pack(level, 0, fan_out) + bitmap.to_bytes(start - NODE_HEAD.size, "little")
    return b"".join([head, ids, beneath]), sum(unpack_from(f"<{used}I", beneath)) if level else used


def _packed(
    old: bytes, level: int, fan_out: int, changes: Mapping[int, bytes | None], counts: Mapping[int, int]
) -> tuple[bytes, int]:
    before = parse_node(old, level, fan_out, WHERE) if old and len(changes) < fan_out else None
    children = dict(before.children) if before else {}
    beneath = {**before.counts, **counts} if before else dict(counts)
    for slot, child in changes.items():
        if child is None:
            children.pop(slot, None)
        else:
            children[slot] = child
    if not children:
        return b"", 0
    mapped = sum([beneath[slot] for slot in children]) if level else len(children)
    return pack_node(level, fan_out, children, beneath), mapped
