"""Nodes of block maps taken apart one by one and many at once: both ways accept the same and find the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from storage.bulkreads import Nodes, children_of, layout_of
from storage.errors import Damaged
from storage.format import Pieced, pack_node, parse_node

TRIES = 1500


def _node(chance: random.Random, level: int, fan_out: int) -> bytes:
    """A node, often one that nobody would write: bits flipped, cut off, too long, another flag."""
    slots = chance.sample(range(fan_out), chance.randrange(min(fan_out, 12) + 1))
    kinds = [Pieced if not level and chance.random() < 0.4 else bytes for _ in slots]
    children = {slot: kind(chance.randbytes(32)) for slot, kind in zip(slots, kinds, strict=True)}
    data = bytearray(pack_node(level, fan_out, children, {slot: chance.randrange(1 << 32) for slot in slots}))
    match chance.randrange(8):
        case 0 | 1 | 2:
            data[chance.randrange(min(len(data), 9 + 2 * ((fan_out + 7) // 8)))] ^= 1 << chance.randrange(8)
        case 3:
            del data[chance.randrange(len(data)) :]
        case 4:
            data += chance.randbytes(chance.choice((1, 8, 32, 36)))
        case 5:
            data[1] = chance.choice((0, 1, 2, 3, 255))
    return bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_both_ways_to_take_a_node_apart_agree(seed: int) -> None:
    chance = random.Random(seed)
    sound = 0
    for _ in range(TRIES):
        fan_out, level = chance.choice((1, 3, 7, 8, 9, 16, 64, 64, 65, 100)), chance.choice((0, 0, 0, 1, 2))
        data, before = _node(chance, level, fan_out), chance.randbytes(chance.randrange(9))
        columns = (np.array([number], np.int64) for number in (len(before), len(data)))
        nodes = Nodes(np.array([0]), memoryview(before + data), *columns)
        try:
            children = parse_node(data, level, fan_out, "here").children
        except Damaged:
            with pytest.raises(Damaged):
                layout_of(nodes, level, fan_out)
            continue
        sound += 1
        layout = layout_of(nodes, level, fan_out)
        assert np.flatnonzero(layout.bits[0]).tolist() == sorted(children)
        assert [id_.tobytes() for id_ in children_of(nodes, layout)] == [bytes(children[s]) for s in sorted(children)]
        pieced = [] if layout.pieced is None else np.flatnonzero(layout.pieced[0]).tolist()
        assert pieced == [slot for slot in sorted(children) if isinstance(children[slot], Pieced)]
    assert TRIES // 5 < sound < TRIES * 4 // 5
