"""What a copy reads, and that it reads all of it once, in bounded memory, and stops at the first error."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.disks import Extent, Incremental, Whole, total
from connectors.errors import ReadFailed
from engine.copying import CopyPlan, CopyStopped, Part, copy_disk, plan_copy
from engine.streaming import stream_disk

BLOCK = 64 << 10
MIB = 1 << 20


@dataclass
class Memory:
    """A disk in memory; reads past `broken_at` fail."""

    data: bytes
    broken_at: int = 1 << 62
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def capacity_bytes(self) -> int:
        return len(self.data)

    @capacity_bytes.setter
    def capacity_bytes(self, value: int) -> None:
        raise AttributeError

    def extents(self) -> list[Extent]:
        return [Extent(0, len(self.data))]

    def read_into(self, offset: int, view: memoryview) -> None:
        if offset >= self.broken_at:
            raise ReadFailed("no more", where=str(offset))
        self.reads.append((offset, len(view)))
        view[:] = self.data[offset : offset + len(view)]


class AwaitedMemory(Memory):
    async def read_into(self, offset: int, view: memoryview) -> None:  # type: ignore[override]
        Memory.read_into(self, offset, view)


class Store:
    """A sink that keeps everything, and knows how many writes were under way at once."""

    def __init__(self, capacity: int) -> None:
        self.data = bytearray(b"\xff" * capacity)
        self.under_way = self.most = 0
        self.calls: list[list[int]] = []
        self.lock = threading.Lock()

    def write_parts(self, parts: Sequence[Part]) -> None:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.calls.append([offset for offset, _ in parts])
        for offset, view in parts:
            self.data[offset : offset + len(view)] = view
        with self.lock:
            self.under_way -= 1

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)


extents = st.builds(Extent, st.integers(0, 40 * BLOCK), st.integers(0, 5 * BLOCK))
capacities = st.integers(1, 40 * BLOCK)


@given(st.lists(extents, max_size=8), st.none() | st.lists(extents, max_size=8), capacities)
def test_a_plan_covers_every_changed_byte_on_the_grid_and_nothing_twice(
    changed: list[Extent], mapped: list[Extent] | None, capacity: int
) -> None:
    plan = plan_copy(Incremental(tuple(changed)), mapped, capacity_bytes=capacity, block_bytes=BLOCK)
    covered = sorted((*plan.read, *plan.zero))
    for one in covered:
        assert one.offset % BLOCK == 0
        assert one.end % BLOCK == 0 or one.end == capacity
    for left, right in itertools.pairwise(covered):
        assert left.end <= right.offset
    inside = {
        block
        for one in changed
        if one.length
        for block in range(one.offset // BLOCK, -(-min(one.end, capacity) // BLOCK))
        if one.offset < capacity
    }
    assert {block for one in covered for block in range(one.offset // BLOCK, -(-one.end // BLOCK))} == inside


def test_a_full_read_skips_holes_and_tells_that_they_are_zero() -> None:
    plan = plan_copy(Whole("first"), [Extent(100, 10)], capacity_bytes=3 * BLOCK + 7, block_bytes=BLOCK)
    assert plan == CopyPlan((Extent(0, BLOCK),), (Extent(BLOCK, 2 * BLOCK + 7),))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_copy_every_byte_once(threads: int) -> None:
    source = Memory(bytes(range(256)) * (5 * MIB // 256) + b"tail")
    store = Store(len(source.data))
    seen: list[int] = []
    plan = plan_copy(Whole("first"), source.extents(), capacity_bytes=len(source.data), block_bytes=BLOCK)
    copied = copy_disk(source, store, plan, threads=threads, advance=seen.append)
    assert bytes(store.data) == source.data
    assert copied.read_bytes == sum(seen) == total([Extent(*read) for read in source.reads]) == len(source.data)
    assert store.most <= threads


@pytest.mark.parametrize("lanes", [False, True])
async def test_small_pieces_that_lie_apart_are_handed_over_together(lanes: bool) -> None:
    data = bytes(range(256)) * (8 * MIB // 256)
    scattered = [Extent(at * MIB // 4, BLOCK) for at in range(32)]
    plan = plan_copy(Incremental(tuple(scattered)), None, capacity_bytes=len(data), block_bytes=BLOCK)
    store, seen = Store(len(data)), list[int]()
    if lanes:
        with ThreadPoolExecutor(2) as pool:
            await stream_disk(AwaitedMemory(data), store, plan, lanes=2, executor=pool, advance=seen.append)  # type: ignore[arg-type]
    else:
        copy_disk(Memory(data), store, plan, threads=2, advance=seen.append)
    assert all(store.data[one.offset : one.end] == data[one.offset : one.end] for one in scattered)
    assert sorted(itertools.chain(*store.calls)) == [one.offset for one in scattered]
    assert len(store.calls) == len(seen) == 32 * BLOCK // MIB
    assert sum(seen) == 32 * BLOCK


async def test_an_error_in_one_piece_of_many_is_raised_as_it_is() -> None:
    source = AwaitedMemory(bytes(8 * MIB), broken_at=4 * MIB)
    plan = CopyPlan(tuple(Extent(at * MIB // 4, BLOCK) for at in range(32)), ())
    with ThreadPoolExecutor(2) as pool, pytest.raises(ReadFailed, match="no more"):
        await stream_disk(source, Store(8 * MIB), plan, lanes=2, executor=pool)  # type: ignore[arg-type]


def test_the_first_error_of_any_thread_is_raised_and_ends_the_others() -> None:
    source = Memory(bytes(16 * MIB), broken_at=4 * MIB)
    plan = plan_copy(Whole("first"), None, capacity_bytes=16 * MIB, block_bytes=BLOCK)
    with pytest.raises(ReadFailed, match="no more"):
        copy_disk(source, Store(16 * MIB), plan, threads=3)
    assert len(source.reads) <= 4 + 3


def test_a_stopped_copy_says_so() -> None:
    stop = threading.Event()
    plan = plan_copy(Whole("first"), None, capacity_bytes=8 * MIB, block_bytes=BLOCK)
    with pytest.raises(CopyStopped):
        copy_disk(Memory(bytes(8 * MIB)), Store(8 * MIB), plan, threads=1, advance=lambda _: stop.set(), stop=stop)


async def test_lanes_copy_every_byte_once() -> None:
    source = AwaitedMemory(bytes(range(256)) * (5 * MIB // 256) + b"tail")
    store = Store(len(source.data))
    plan = plan_copy(
        Incremental((Extent(0, len(source.data)),)), None, capacity_bytes=len(source.data), block_bytes=BLOCK
    )
    with ThreadPoolExecutor(2) as pool:
        await stream_disk(source, store, plan, lanes=4, executor=pool)  # type: ignore[arg-type]
    assert bytes(store.data) == source.data
    assert store.most <= 2


async def test_progress_counts_what_is_read_and_no_hole() -> None:
    source = AwaitedMemory(bytes(8 * MIB))
    plan = plan_copy(Whole("first"), [Extent(2 * MIB, 3 * MIB)], capacity_bytes=8 * MIB, block_bytes=BLOCK)
    by_threads: list[int] = []
    copy_disk(Memory(source.data), Store(8 * MIB), plan, threads=2, advance=by_threads.append)
    by_lanes: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        await stream_disk(source, Store(8 * MIB), plan, lanes=2, executor=pool, advance=by_lanes.append)  # type: ignore[arg-type]
    assert sum(by_threads) == sum(by_lanes) == plan.read_bytes == 3 * MIB


async def test_an_error_in_a_lane_comes_as_it_is_and_no_write_outlives_it() -> None:
    source = AwaitedMemory(bytes(16 * MIB), broken_at=5 * MIB)
    store = Store(16 * MIB)
    plan = plan_copy(Whole("first"), None, capacity_bytes=16 * MIB, block_bytes=BLOCK)
    with ThreadPoolExecutor(2) as pool, pytest.raises(ReadFailed):
        await stream_disk(source, store, plan, lanes=4, executor=pool)  # type: ignore[arg-type]
    assert store.under_way == 0
