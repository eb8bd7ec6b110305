from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.facts import PointId, VmId
from storage.blockmap import MapBuilder, Root, levels_for, lookup, walk
from storage.mapdiff import differences
from storage.repository import DiskHead, PointHead
from storage.verify import verify
from tests.storage_kit import BLOCK, DISK, NOW, make, opened, read_back


class NodesInMemory:
    """Nodes in a dict."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}

    def put_nodes(self, nodes: list[bytes]) -> list[bytes]:
        from blake3 import blake3

        ids = [blake3(node).digest() for node in nodes]
        self.nodes.update(zip(ids, nodes, strict=True))
        return ids

    def get_nodes(self, ids: list[bytes]) -> list[bytes]:
        return [self.nodes[node] for node in ids]


def _chunk(number: int) -> bytes:
    return number.to_bytes(32, "big")


_step = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 999), st.integers(1, 40)),
    st.tuples(st.just("unset"), st.integers(0, 999), st.integers(1, 40)),
    st.tuples(st.just("clear"), st.integers(0, 999), st.integers(1, 900)),
)
_generation = st.tuples(st.integers(1, 1000), st.lists(_step, max_size=12))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fan_out=st.sampled_from([2, 3, 4, 8, 64]), generations=st.lists(_generation, min_size=1, max_size=4))
def test_a_map_built_on_a_map_equals_a_dict(
    fan_out: int, generations: list[tuple[int, list[tuple[str, int, int]]]]
) -> None:
    store = NodesInMemory()
    model: dict[int, bytes] = {}
    root: Root | None = None
    blocks = 0
    number = 1
    for size, steps in generations:
        builder = MapBuilder(store, fan_out, size, root, blocks)  # type: ignore[arg-type]
        model = {block: chunk for block, chunk in model.items() if block < size}
        for what, first, count in steps:
            end = min(first + count, size)
            if first >= end:
                continue
            if what == "clear":
                builder.clear(first, end - first)
                model = {b: c for b, c in model.items() if not first <= b < end}
            else:
                chunks = [_chunk(number + i) if what == "set" else None for i in range(end - first)]
                number += end - first
                builder.set(list(zip(range(first, end), chunks, strict=True)))
                for block, chunk in zip(range(first, end), chunks, strict=True):
                    if chunk is None:
                        model.pop(block, None)
                    else:
                        model[block] = chunk
        root, blocks = builder.finish(), size
        found = {first + slot: c for first, part in walk(store, root, fan_out) for slot, c in part.items()}  # type: ignore[arg-type]
        assert found == model
        assert root.mapped_blocks == len(model)
        assert root.levels == levels_for(size, fan_out)
        asked = range(0, size, 7)
        assert lookup(store, root, fan_out, asked) == [model.get(block, b"") for block in asked]  # type: ignore[arg-type]


_map = st.tuples(st.integers(1, 700), st.dictionaries(st.integers(0, 699), st.integers(1, 5), max_size=60))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(fan_out=st.sampled_from([2, 3, 8, 64]), before=_map, after=_map)
def test_the_differences_of_two_maps_are_those_of_two_dicts(
    fan_out: int, before: tuple[int, dict[int, int]], after: tuple[int, dict[int, int]]
) -> None:
    store = NodesInMemory()
    roots: list[Root] = []
    models: list[dict[int, bytes]] = []
    for blocks, content in (before, after):
        model = {block: _chunk(number) for block, number in content.items() if block < blocks}
        builder = MapBuilder(store, fan_out, blocks, None)  # type: ignore[arg-type]
        builder.set(sorted(model.items()))
        roots.append(builder.finish())
        models.append(model)
    expected = [
        (block, models[1].get(block, b""))
        for block in sorted(models[0].keys() | models[1].keys())
        if models[0].get(block) != models[1].get(block)
    ]
    assert list(differences(store, roots[0], roots[1], fan_out)) == expected  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(fan_out=st.sampled_from([4, 64]), blocks=st.lists(st.integers(0, 999), min_size=1, max_size=50, unique=True))
def test_equal_maps_have_equal_roots_whatever_the_order_of_writes(fan_out: int, blocks: list[int]) -> None:
    store = NodesInMemory()
    roots = set()
    for order in (blocks, sorted(blocks), blocks[::-1]):
        builder = MapBuilder(store, fan_out, 1000, None)  # type: ignore[arg-type]
        for block in order:
            builder.set([(block, _chunk(block + 1))])
        roots.add(builder.finish())
    assert len(roots) == 1


_write = st.tuples(st.sampled_from(["write", "zero"]), st.integers(0, 90), st.integers(1, 30), st.integers(0, 3))
_backup = st.tuples(st.integers(1, 90 * BLOCK // 512), st.lists(_write, max_size=5), st.booleans())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(backups=st.lists(_backup, min_size=1, max_size=4))
def test_every_restore_point_equals_the_disk_of_its_time(
    backups: list[tuple[int, list[tuple[str, int, int, int]], bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(make(Path(folder) / "r")) as repo:
        taken = []
        disk = bytearray()
        base: PointId | None = None
        for sectors, writes, incremental in backups:
            size = sectors * 512
            disk = bytearray(disk[:size].ljust(size, b"\0")) if incremental and base else bytearray(size)
            with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
                on = (base, DISK) if incremental and base is not None else None
                ingest = pending.disk(DiskHead(DISK, size), base=on)
                for what, first, count, fill in writes:
                    start, end = first * BLOCK, min((first + count) * BLOCK, size)
                    if start >= end:
                        continue
                    data = bytes([fill]) * (end - start) if what == "write" else bytes(end - start)
                    disk[start:end] = data
                    if what == "write":
                        ingest.write(start, memoryview(data))
                    else:
                        ingest.zero(start, end - start)
                ingest.finish()
                base = pending.commit().id
            taken.append((base, bytes(disk)))
        for point, then in taken:
            assert read_back(repo, point) == then
        assert verify(repo, now=NOW).sound
