"""Which blocks a sample of unchanged ones consists of."""

from __future__ import annotations

from collections import Counter

import pytest

from connectors.disks import Extent
from engine.sampling import draw, preferred, sample_size

BLOCK = 64 << 10


def test_a_sample_is_drawn_from_the_extents_alone_each_block_once_and_the_same_for_one_seed() -> None:
    extents = [Extent(2 * BLOCK, 3 * BLOCK), Extent(9 * BLOCK, BLOCK), Extent(20 * BLOCK, 5 * BLOCK + 7)]
    everything = [2, 3, 4, 9, 20, 21, 22, 23, 24, 25]
    assert draw("run-1:Hard disk 1", extents, BLOCK, 100) == everything
    some = draw("run-1:Hard disk 1", extents, BLOCK, 4)
    assert some == sorted(set(some))
    assert set(some) < set(everything)
    assert some == draw("run-1:Hard disk 1", extents, BLOCK, 4)
    assert len({tuple(draw(f"run-{n}", extents, BLOCK, 4)) for n in range(20)}) > 10
    assert draw("x", [], BLOCK, 4) == []


def test_every_block_has_its_turn() -> None:
    counted = Counter(block for n in range(400) for block in draw(f"run-{n}", [Extent(0, 20 * BLOCK)], BLOCK, 5))
    assert set(counted) == set(range(20))
    assert min(counted.values()) > 50


def test_most_of_a_sample_held_something_and_the_rest_did_not() -> None:
    contents = [b"id" if n < 30 else b"" for n in range(60)]
    chosen = preferred("run-1", range(60), contents, 16)
    assert Counter(bool(held) for held in chosen.values()) == {True: 12, False: 4}
    assert list(chosen) == sorted(chosen)
    assert Counter(bool(h) for h in preferred("r", range(60), [b""] * 60, 16).values()) == {False: 16}
    assert Counter(bool(h) for h in preferred("r", range(60), [b"x"] * 60, 16).values()) == {True: 16}


@pytest.mark.parametrize(
    ("wanted", "blocks", "size"),
    [(None, 64, 4), (None, 50_000, 50), (None, 16 << 20, 100), (0, 1 << 20, 0), (5000, 64, 5000)],
)
def test_without_a_wish_a_sample_costs_a_thousandth_of_a_disk(wanted: int | None, blocks: int, size: int) -> None:
    assert sample_size(wanted, blocks) == size
