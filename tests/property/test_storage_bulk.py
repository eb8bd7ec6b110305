"""What is read and looked up in bulk equals what is read and looked up one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blockmap import MapBuilder, Root, walk
from storage.bulkreads import as_words, locate_many
from storage.errors import Damaged
from storage.format import PackKind, PackName
from storage.index import Index, prefix_of
from storage.membership import Members
from storage.nodes import StoredNodes
from storage.reachability import Reached, all_held, live_bytes, live_slots, pack_usage
from storage.repository import Repository
from storage.runs import lower_bounds
from storage.wholemaps import read_map
from tests.storage_kit import make, opened

NODES = st.integers(0, 2**64 - 1)


def _chunk(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def _maps(repo: Repository, seed: int, points: int, blocks: int, fan_out: int) -> list[Root]:
    """Maps that follow each other, each in packs of its own but for the last."""
    chance = random.Random(seed)
    roots: list[Root] = []
    session = repo.store.session()
    base: Root | None = None
    for point in range(points):
        builder = MapBuilder(StoredNodes(repo.store, session), fan_out, blocks, base, blocks)
        changed = sorted(chance.sample(range(blocks), chance.randrange(1, blocks)))
        builder.set([(block, _chunk(chance.randrange(5000)) if chance.random() < 0.8 else None) for block in changed])
        if chance.random() < 0.3:
            builder.clear(chance.randrange(blocks // 2), blocks // 3)
        base = builder.finish()
        roots.append(base)
        if point < points - 1:
            repo.store.flush(session)
    repo.store.end(session)
    return roots


def _walked(repo: Repository, root: Root, fan_out: int) -> dict[int, bytes]:
    leaves = walk(StoredNodes(repo.store), root, fan_out)
    return {first + slot: chunk for first, children in leaves for slot, chunk in children.items()}


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(("fan_out", "blocks"), [(8, 700), (64, 5000), (20, 401), (64, 3)])
def test_a_whole_map_equals_the_walk_of_it(tmp_path: Path, fan_out: int, blocks: int, encrypted: bool) -> None:
    with opened(make(tmp_path / "r", encrypted=encrypted)) as repo:
        roots = _maps(repo, fan_out + blocks, 5, blocks, fan_out)
        for root in [*roots, Root(b"", 2, 0)]:
            found = read_map(repo.store, root, fan_out)
            assert dict(zip(found.blocks.tolist(), map(bytes, found.ids), strict=True)) == _walked(repo, root, fan_out)
            assert (np.diff(found.blocks) > 0).all()


def _naively_reached(repo: Repository, roots: Sequence[Root], fan_out: int) -> set[int]:
    found: set[int] = set()
    for root in roots:
        level = {root.node} - {b""}
        for height in range(root.levels - 1, -1, -1):
            found |= {prefix_of(node) for node in level}
            data = [bytes(node) for node in StoredNodes(repo.store).get_nodes(sorted(level))]
            start = 8 + (fan_out + 7) // 8
            used = [int.from_bytes(node[8:start], "little").bit_count() for node in data]
            level = {
                node[at : at + 32]
                for node, n in zip(data, used, strict=True)
                for at in range(start, start + 32 * n, 32)
            }
            assert height or not level or root.mapped_blocks
        found |= {prefix_of(chunk) for chunk in level}
    return found


def test_what_roots_reach_in_bulk_is_what_they_reach_node_by_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.reachability.PENDING_PREFIXES", 1000)
    monkeypatch.setattr("storage.reachability.PENDING_CHILDREN", 100)
    with opened(make(tmp_path / "r")) as repo:
        roots = _maps(repo, 3, 6, 3000, 16)
        reached = Reached(StoredNodes(repo.store), 16)
        configuration = [_chunk(n) for n in range(100_000, 100_003)]
        reached.add_chunks(configuration)
        for root in roots[:3]:
            reached.add_root(root)
        alone = {prefix_of(chunk) for chunk in configuration}
        first = reached.sorted()
        assert set(first.tolist()) == _naively_reached(repo, roots[:3], 16) | alone
        for root in [*roots[1:], Root(b"", 2, 0)]:
            reached.add_root(root)
        both = reached.sorted()
        assert both.tolist() == sorted(_naively_reached(repo, roots, 16) | alone)
        assert set(first.tolist()) == _naively_reached(repo, roots[:3], 16) | alone
        repo.store.flush(repo.store.session())
        footers = [repo.store.footers.get(name) for name in repo.store.live.values()]
        for part in (first, both, first[:0]):
            assert [(live, total) for _, live, total in pack_usage(footers, part)] == [
                live_bytes(footer, part) for footer in footers
            ]
            heads = {prefix_of(chunk) for footer in footers for chunk in footer.ids()}
            assert all_held(part, footers) == (set(part.tolist()) <= heads)
        nodes = sum(int(live_slots(footer, both).sum()) for footer in footers)
        assert nodes == sum(len(footer) for footer in footers)


def test_a_damaged_node_is_damage_to_a_whole_map_and_to_what_is_reached(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        roots = _maps(repo, 5, 2, 3000, 16)
    (pack, *_) = sorted(location.glob("packs/*/*.tree"))
    data = bytearray(pack.read_bytes())
    data[5000] ^= 4
    pack.chmod(0o600)
    pack.write_bytes(data)
    with opened(location) as repo:
        reached = Reached(StoredNodes(repo.store), 16)
        reached.add_root(roots[0])
        with pytest.raises(Damaged):
            reached.sorted()
        with pytest.raises(Damaged):
            read_map(repo.store, roots[0], 16)


def test_many_chunks_are_located_as_each_one_is(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        session = repo.store.session()
        chunks = [_chunk(n) for n in range(300)]
        for start in range(0, 300, 100):
            repo.store.add(session, PackKind.DATA, [(chunk, chunk) for chunk in chunks[start : start + 100]])
            repo.store.flush(session)
        repo.store.end(session)
        repo.store.index_sealed()
        asked = [*chunks, *(_chunk(n) for n in range(1000, 1100)), chunks[7], chunks[0][:8] + bytes(24)]
        random.Random(1).shuffle(asked)
        places = locate_many(repo.store, as_words(asked))
        one_by_one = [repo.store.locate(chunk) for chunk in asked]
        assert [
            (repo.store.live[number], slot) if number >= 0 else None
            for number, slot in zip(places.pack.tolist(), places.slot.tolist(), strict=True)
        ] == one_by_one


@settings(max_examples=60)
@given(
    st.lists(st.one_of(NODES, st.integers(0, 50), st.just(2**64 - 1)), max_size=60),
    st.lists(st.one_of(NODES, st.integers(0, 60), st.just(2**64 - 1)), min_size=1, max_size=40),
)
def test_members_are_those_that_are_there(there: list[int], asked: list[int]) -> None:
    asked = asked + there[:10]
    members = Members(np.unique(np.array(there, np.uint64)))
    assert members.has(np.array(asked, np.uint64)).tolist() == [one in set(there) for one in asked]


@settings(max_examples=60)
@given(
    st.lists(st.one_of(NODES, st.integers(0, 50), st.just(2**64 - 1)), min_size=1, max_size=400),
    st.lists(st.one_of(NODES, st.integers(0, 60), st.just(2**64 - 1)), min_size=1, max_size=40),
)
def test_guessing_finds_the_place_that_a_search_finds(keys: list[int], asked: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.runs.SMALL_RUN", 0)
        patch.setattr("storage.runs.SEARCH_WINDOW", 4)
        there, wanted = np.sort(np.array(keys, np.uint64)), np.array(asked + keys[:20], np.uint64)
        assert lower_bounds(there, wanted).tolist() == np.searchsorted(there, wanted).tolist()


def test_an_index_finds_many_as_it_finds_one_before_and_after_a_merge_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.runs.MERGE_ENTRIES", 100)
    monkeypatch.setattr("storage.runs.SMALL_RUN", 0)
    chance = random.Random(9)
    index = Index(tmp_path / "index", b"r" * 16)
    chunks = [chance.randbytes(32) for _ in range(2000)]
    chunks += [chunks[5], chunks[6][:8] + chance.randbytes(24), bytes(32), b"\xff" * 32]
    names = [PackName(number, bytes([number]) * 16, PackKind.DATA) for number in range(7)]
    for name in names:
        mine = chunks[name.number :: 7]
        index.add_packs([(name, b"".join(chunk + bytes(16) for chunk in mine))])
    asked = [*chunks, *(chance.randbytes(32) for _ in range(100))]

    def many() -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = [[] for _ in asked]
        for row, number, slot in zip(*index.find_many(np.array(list(map(prefix_of, asked)), np.uint64)), strict=True):
            found[int(row)].append((int(number), int(slot)))
        return [sorted(one) for one in found]

    before = [sorted(index.find(chunk)) for chunk in asked]
    assert many() == before
    index.compact(set(range(7)), everything=True)
    assert len(list((tmp_path / "index").iterdir())) == 1
    assert many() == [sorted(index.find(chunk)) for chunk in asked] == before
    index.compact({0, 3}, everything=True)
    assert many() == [[place for place in one if place[0] in (0, 3)] for one in before]
    assert index.drop_unsound() == 0
