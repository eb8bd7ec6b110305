"""The extent algebra obeys the laws of sets of bytes."""

from __future__ import annotations

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from connectors.disks import Extent, align, batches, intersect, merge, pieces, subtract, total
from storage.chunking import batched

DISK = 300

any_extents = st.lists(st.builds(Extent, st.integers(0, DISK), st.integers(0, 40)), max_size=12)
"""Unsorted, overlapping, touching, empty: as they come from a server."""


def covered(extents: list[Extent]) -> set[int]:
    """The naive model: every byte by itself."""
    return {byte for extent in extents for byte in range(extent.offset, extent.end)}


def is_normal(extents: list[Extent]) -> bool:
    """Sorted, disjoint, not even touching, none empty."""
    return all(e.length > 0 for e in extents) and all(a.end < b.offset for a, b in itertools.pairwise(extents))


@given(any_extents)
def test_merge_covers_the_same_bytes_in_normal_form(extents: list[Extent]) -> None:
    merged = merge(extents)
    assert covered(merged) == covered(extents)
    assert is_normal(merged)
    assert merge(merged) == merged
    assert total(merged) == len(covered(extents))


@given(any_extents, st.integers(1, 64), st.integers(0, DISK + 40))
def test_align_covers_exactly_the_blocks_that_are_touched(extents: list[Extent], block: int, capacity: int) -> None:
    touched = {byte // block for byte in covered(extents) if byte < capacity}
    expected = {byte for b in touched for byte in range(b * block, min((b + 1) * block, capacity))}
    aligned = align(extents, block, capacity)
    assert covered(aligned) == expected
    assert is_normal(aligned)


@given(any_extents, any_extents)
def test_intersect_is_what_both_cover(left: list[Extent], right: list[Extent]) -> None:
    both = intersect(left, right)
    assert covered(both) == covered(left) & covered(right)
    assert is_normal(both)
    assert both == intersect(right, left)


@given(any_extents, any_extents)
def test_subtract_is_what_only_the_left_covers(left: list[Extent], right: list[Extent]) -> None:
    rest = subtract(left, right)
    assert covered(rest) == covered(left) - covered(right)
    assert is_normal(rest)


@given(any_extents, any_extents)
def test_intersection_and_difference_make_up_the_whole(left: list[Extent], right: list[Extent]) -> None:
    assert merge([*intersect(left, right), *subtract(left, right)]) == merge(left)


@given(any_extents, st.integers(1, 64))
def test_pieces_lie_in_one_cell_of_the_grid_each_and_cover_the_same_bytes(extents: list[Extent], piece: int) -> None:
    cut = list(pieces(merge(extents), piece))
    assert covered(cut) == covered(extents)
    assert all(e.length > 0 and e.offset // piece == (e.end - 1) // piece for e in cut)
    assert total(cut) == len(covered(extents))
    assert cut == sorted(cut)


@given(any_extents, st.integers(1, 64))
def test_batches_keep_every_extent_in_its_order_and_none_could_take_the_next(extents: list[Extent], room: int) -> None:
    found = list(batches(extents, room))
    assert list(itertools.chain(*found)) == extents
    assert all(total(batch) <= room or len(batch) == 1 for batch in found)
    assert all(total(batch) + following[0].length > room for batch, following in itertools.pairwise(found))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=12), st.integers(1, 32))
def test_what_is_batched_for_the_data_path_keeps_every_byte_in_its_place(
    parts: list[tuple[int, int]], room: int
) -> None:
    views = [(100 * offset, memoryview(bytes(range(length)))) for offset, length in parts]
    found = list(batched(views, room))
    assert all(0 < sum(len(view) for _, view in batch) <= room for batch in found)
    assert [(at + i, byte) for batch in found for at, view in batch for i, byte in enumerate(view)] == [
        (at + i, byte) for at, view in views for i, byte in enumerate(view)
    ]


def test_difference_of_many_extents_takes_linear_time() -> None:
    count = 100_000
    left = [Extent(10 * i, 8) for i in range(count)]
    right = [Extent(10 * i + 2, 2) for i in range(count)]
    began = time.process_time()
    rest = subtract(left, right)
    assert len(rest) == 2 * count
    assert time.process_time() - began < 10  # quadratic time would take many minutes
