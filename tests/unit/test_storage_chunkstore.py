from __future__ import annotations

import random
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage import blockmap, chunkstore, knownpacks, pack
from storage.errors import NoSpace
from storage.repository import DiskHead, PointHead, Repository
from storage.verify import verify
from tests.storage_kit import (
    BLOCK,
    DISK,
    NOW,
    FaultyBlobs,
    back_up,
    changed,
    image,
    in_threads,
    make,
    opened,
    read_back,
    restored,
)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that a small disk meets all of them."""
    monkeypatch.setattr(chunkstore, "PACK_BYTES", 128 << 10)
    monkeypatch.setattr(knownpacks, "DELTA_CHUNKS", 100)
    monkeypatch.setattr(blockmap, "OPEN_SLOTS", 200)
    monkeypatch.setattr(blockmap, "READ_NODES", 3)
    monkeypatch.setattr(pack, "FOOTER_CACHE_BYTES", 4000)


def _write_blocks(repo: Repository, disk: bytearray, base: PointId | None, blocks: list[int], run: int) -> PointId:
    """A restore point whose blocks come from four threads in a random order, `run` blocks at a time."""
    random.Random(3).shuffle(blocks)
    with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
        ingest = pending.disk(DiskHead(DISK, len(disk)), base=(base, DISK) if base is not None else None)

        def write(number: int) -> None:
            for block in blocks[number::4]:
                ingest.write(block * BLOCK, memoryview(disk)[block * BLOCK : (block + run) * BLOCK])

        for error in in_threads(write):
            raise error
        ingest.finish()
        assert pending.sealed_packs > 3
        return pending.commit().id


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("encrypted", [False, True])
def test_many_packs_written_by_many_threads_in_any_order_hold_the_disk(tmp_path: Path, encrypted: bool) -> None:
    disk = image(1, 3000)
    second = changed(disk, 2, range(0, 3000, 7))
    with opened(make(tmp_path / "r", encrypted=encrypted)) as repo:
        one = _write_blocks(repo, disk, None, list(range(0, 3000, 8)), 8)
        two = _write_blocks(repo, second, one, list(range(0, 3000, 7)), 1)
        assert repo.sizes().packs > 30
        assert read_back(repo, one) == disk
        assert restored(repo, two, tmp_path / "out") == second
        rows = repo.catalog.rows()
        repo.catalog.rebuild()
        assert repo.catalog.rows() == rows
        assert verify(repo, now=NOW).sound
    with opened(tmp_path / "r", now=NOW) as repo:
        assert read_back(repo, two) == second
        assert back_up(repo, second, vm="clone").stored_bytes == 0


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("fail_at", [20, 45, 61])
def test_a_store_that_fills_up_in_the_middle_is_heard_by_every_thread(tmp_path: Path, fail_at: int) -> None:
    disk = image(4, 2000, used=1.0)
    location = make(tmp_path / "r")
    blobs = FaultyBlobs(location, fail_at, error=NoSpace, once=True)
    with opened(location, blobs=blobs) as repo:
        with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
            ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)

            def write(number: int) -> None:
                for block in range(number * 4, 2000, 16):
                    ingest.write(block * BLOCK, memoryview(disk)[block * BLOCK : (block + 4) * BLOCK])

            heard = in_threads(write)
            assert blobs.fired
            assert all(isinstance(error, NoSpace) for error in heard)
            with pytest.raises(NoSpace):
                ingest.finish()
            with pytest.raises(NoSpace):
                pending.commit()
        assert repo.points() == []
        assert verify(repo, now=NOW).sound
    with opened(location) as repo:
        sealed = repo.sizes().chunks
        point = back_up(repo, disk)
        assert repo.detail(point.id).disks[0].dedup_bytes >= sealed // 2 * BLOCK  # packs of the failed run are used
        assert read_back(repo, point.id) == disk


def test_memory_does_not_grow_with_the_disk(tmp_path: Path, small_limits: None) -> None:
    disk = image(5, 4000, used=1.0)
    with opened(make(tmp_path / "r")) as repo, repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
        ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
        most_chunks = most_nodes = 0
        for start in range(0, len(disk), 16 * BLOCK):
            ingest.write(start, memoryview(disk)[start : start + 16 * BLOCK])
            most_chunks = max(most_chunks, len(repo.store._delta))
            most_nodes = max(most_nodes, len(ingest._map._open))
        assert most_chunks < 1500
        assert most_nodes <= 8
        ingest.finish()
        pending.commit()
        assert not repo.store._delta


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("reopened", [True, False])
def test_many_chunks_are_looked_up_at_once_as_they_are_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reopened: bool
) -> None:
    disk = image(5, 600, used=1.0)
    make(tmp_path / "r")
    with opened(tmp_path / "r") as repo:
        back_up(repo, disk[: 300 * BLOCK])
    with opened(tmp_path / "r") as repo:
        if not reopened:
            monkeypatch.setattr(knownpacks, "DELTA_CHUNKS", 1 << 20)
            back_up(repo, disk)
        store = repo.store
        hidden = next(name for name in store.live.values() if store.hide(name)) if reopened else None
        ids = [store.sealing.chunk_id(disk[at * BLOCK : (at + 1) * BLOCK]) for at in range(600)]
        ids += [random.Random(at).randbytes(32) for at in range(100)]
        one_by_one = store.referable_many(ids)
        monkeypatch.setattr(knownpacks, "BULK_CHUNKS", 1)
        assert store.referable_many(ids) == one_by_one
        found = [place for place in one_by_one if place is not None]
        assert 0 < len(found) <= 600
        assert hidden not in {name for name, _ in found}
