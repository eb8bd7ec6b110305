"""Reading chunks in the order of a disk: whatever order and state they are in, their bytes come, or an error."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from storage.errors import Damaged
from storage.filecalls import Buffer
from storage.repository import Repository
from storage.stretches import StretchReads
from tests.storage_kit import BLOCK, DISK, back_up, changed, files, image, later, make, opened


def _blocks(repo: Repository, disk: bytearray) -> tuple[list[bytes], list[bytes]]:
    """The ids of a new restore point's chunks, and what they should be."""
    point = back_up(repo, disk)
    ids = repo.read_disk(point.id, DISK).chunks(0, len(disk) // BLOCK)
    there = [(chunk, bytes(disk[at * BLOCK : (at + 1) * BLOCK])) for at, chunk in enumerate(ids) if chunk]
    return [chunk for chunk, _ in there], [data for _, data in there]


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("order", ["as written", "backwards", "shuffled, some of them twice"])
def test_chunks_come_in_the_order_that_was_asked_for(tmp_path: Path, order: str, encrypted: bool) -> None:
    never: list[Sequence[bytes]] = []
    with opened(make(tmp_path / "r", encrypted=encrypted)) as repo:
        ids, blocks = _blocks(repo, image(1, 200))
        places = list(range(len(ids)))
        if order == "backwards":
            places.reverse()
        elif order != "as written":
            places = random.Random(1).choices(places, k=len(places))

        def others(asked: Sequence[bytes]) -> list[Buffer]:
            never.append(asked)
            return repo.store.read_many(asked)

        reads = StretchReads(repo.store, others)
        for start in range(0, len(places), 16):
            part = places[start : start + 16]
            assert [bytes(data) for data in reads.read([ids[at] for at in part])] == [blocks[at] for at in part]
    assert not never, "all of it was read in stretches"


def test_only_what_is_damaged_or_gone_is_read_in_another_way(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), image(2, 60, used=1.0)
    asked: list[bytes] = []
    with opened(location) as repo:
        ids, blocks = _blocks(repo, disk)

        def others(lacking: Sequence[bytes]) -> list[Buffer]:
            asked.extend(lacking)
            return [blocks[ids.index(chunk)] for chunk in lacking]

        reads = StretchReads(repo.store, others)
        reads.read(ids)
        [pack] = [path for path in files(location, "packs") if path.suffix == ".data"]
        data = bytearray(pack.read_bytes())
        footer = repo.store.footers.get(next(iter(repo.store.holders(ids[7]))))
        slot = footer.ids().index(ids[7])
        data[footer.entry(slot).offset + 5] ^= 1
        pack.write_bytes(data)
        assert [bytes(block) for block in reads.read(ids)] == blocks
        assert asked == [ids[7]]
        asked.clear()
        pack.write_bytes(data[: footer.entry(slot).offset])
        assert [bytes(block) for block in reads.read(ids)] == blocks
        assert set(asked) == set(ids)
        with pytest.raises(Damaged):
            StretchReads(repo.store, repo.store.read_many).read(ids)


def test_a_pack_that_reclaim_removed_is_not_read_from_memory_of_it(tmp_path: Path) -> None:
    disk = image(3, 40, used=1.0)
    with opened(make(tmp_path / "r")) as repo:
        ids, blocks = _blocks(repo, disk)
        reads = StretchReads(repo.store, repo.store.read_many)
        reads.read(ids[:20])
        for name in set(repo.store.holders(ids[0])):
            repo.store.forget(name)
        back_up(repo, changed(disk, 4, [0]), at=later(hours=1))
        assert [bytes(block) for block in reads.read(ids[20:])] == blocks[20:]
