"""Pieced blocks at their limits: block sizes, long lists, tables that cannot be used, and what numbers add up to."""

from __future__ import annotations

import random
import tracemalloc
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage import piecelists, piecing
from storage.errors import Damaged
from storage.format import MAX_PIECES, ObjectKind, PackKind, Pieced, PieceList, pack_pieces, parse_node
from storage.locking import Locking
from storage.pagetable import KEY, PAGE_BYTES
from storage.piecelists import read_blocks
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository
from storage.verify import verify
from tests.storage_kit import DISK, NOW, back_up, files, later, make, opened, read_back

KIB_64 = 64 << 10


def _random(seed: int, length: int) -> bytearray:
    return bytearray(random.Random(seed).randbytes(length))


def _shifted(disk: bytearray, pages: int = 5) -> bytearray:
    return _random(9, pages * PAGE_BYTES) + disk[: len(disk) - pages * PAGE_BYTES]


def _head(hours: int) -> PointHead:
    return PointHead(VmId(f"vm-{hours}"), f"vm-{hours}", later(hours=hours))


def _lists(repo: Repository, point: PointId) -> list[bytes]:
    leaves = [children for _, children in repo.read_disk(point, DISK).leaves()]
    return [id_ for children in leaves for id_ in children.values() if isinstance(id_, Pieced)]


@pytest.mark.parametrize("block_bytes", [4096, 12288, 16384, 1 << 20, (1 << 20) + 4096, 12 << 20])
def test_any_block_size_reads_back_however_much_is_given_at_once(tmp_path: Path, block_bytes: int) -> None:
    disk = _random(1, max(block_bytes, 1 << 20) * 2 + 5000)
    with opened(make(tmp_path / "r", block_bytes=block_bytes)) as repo:
        for hours, content in enumerate((disk, _shifted(disk), _shifted(disk)[PAGE_BYTES:])):
            head = DiskHead(DISK, len(content))
            with repo.new_point(_head(hours)) as pending:
                ingest = pending.disk(head, base=None)
                ingest.write(0, memoryview(content))
                stats = ingest.finish()
                point = pending.commit().id
            assert read_back(repo, point) == content
            assert stats.new_bytes + stats.dedup_bytes == len(content)


def test_a_block_that_would_need_more_pieces_than_a_list_may_have_is_stored_whole(tmp_path: Path) -> None:
    block_bytes = 12 << 20
    first = _random(1, block_bytes)
    pairs = [first[at : at + 2 * PAGE_BYTES] for at in range(0, block_bytes, 2 * PAGE_BYTES)]
    second = bytearray(b"".join(pairs[1::2] + pairs[::2]))
    assert len(pairs) > MAX_PIECES
    with opened(make(tmp_path / "r", block_bytes=block_bytes)) as repo:
        back_up(repo, first)
        assert read_back(repo, back_up(repo, second, vm="vm-2", at=later(hours=1)).id) == second


def test_new_and_known_bytes_add_up_when_equal_blocks_are_pieced(tmp_path: Path) -> None:
    first = _random(1, 24 * KIB_64)
    with opened(make(tmp_path / "r", block_bytes=KIB_64)) as repo:
        back_up(repo, first)
        start = _shifted(first)[: 3 * KIB_64]
        twice = start[KIB_64 : 2 * KIB_64] * 2
        disk = start + twice + bytes(KIB_64) + twice
        for hours in (1, 2):
            head = DiskHead(DISK, len(disk))
            with repo.new_point(_head(hours)) as pending:
                ingest = pending.disk(head, base=None)
                ingest.write(0, memoryview(disk))
                stats = ingest.finish()
                point = pending.commit().id
            assert len(_lists(repo, point)) == 7
            assert stats.new_bytes + stats.dedup_bytes == len(disk) - KIB_64
            assert stats.new_bytes == (5 * PAGE_BYTES if hours == 1 else 0)
            assert read_back(repo, point) == disk


@pytest.mark.parametrize("harm", ["folder", "short", "long", "points nowhere"])
def test_a_table_of_pages_that_cannot_be_used_stops_no_backup(tmp_path: Path, harm: str) -> None:
    location = make(tmp_path / "r", block_bytes=KIB_64)
    table = location / KEY
    first = _random(1, 12 * KIB_64)
    with opened(location) as repo:
        back_up(repo, first)
        seal = repo.sealing
    payload = seal.open(ObjectKind.PAGES, KEY, table.read_bytes())
    columns = len(payload) - 8
    match harm:
        case "folder":
            table.unlink()
            table.mkdir()
        case "short":
            table.write_bytes(seal.close(ObjectKind.PAGES, KEY, b"abc"))
        case "long":
            with table.open("r+b") as file:
                file.truncate(1 << 40)
        case _:
            wrong = payload[:4] + b"\xff" * 4 + payload[8 : 8 + columns * 4 // 10] + bytes(columns * 6 // 10)
            table.write_bytes(seal.close(ObjectKind.PAGES, KEY, wrong))
    second = _shifted(first)
    with opened(location) as repo:
        for hours in (1, 2):
            point = back_up(repo, second, vm=f"vm-{hours}", at=later(hours=hours))
            assert read_back(repo, point.id) == second
        assert verify(repo, now=NOW).sound


def test_a_list_of_many_long_chunks_is_put_together_in_little_memory(tmp_path: Path) -> None:
    chunk_bytes, count = 4 << 20, 256
    with opened(make(tmp_path / "r")) as repo:
        session = repo.store.session()
        ids = []
        block = b""
        for number in range(count):
            data = number.to_bytes(4, "little") * (chunk_bytes // 4)
            ids.append(repo.sealing.chunk_id(data))
            block += data[:PAGE_BYTES]
            repo.store.add(session, PackKind.DATA, [(ids[-1], data)])
        content = repo.sealing.chunk_id(block)
        data = pack_pieces(PieceList(content, tuple(ids), tuple((at, 0, PAGE_BYTES) for at in range(count))))
        of_list = repo.sealing.node_id(data)
        repo.store.add(session, PackKind.TREE, [(of_list, data)])
        repo.store.flush(session)
        tracemalloc.start()
        try:
            assert read_blocks(repo.store, [Pieced(of_list), ids[0]])[0] == block
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        repo.store.end(session)
    assert peak < (piecelists.CHUNKS_AT_ONCE + 4) * chunk_bytes * 1.5


@pytest.mark.parametrize("wrong", ["content", "no list"])
def test_verification_of_a_restore_point_finds_lists_that_do_not_make_their_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def packed(one: PieceList) -> bytes:
        return pack_pieces(one._replace(content=bytes(32))) if wrong == "content" else pack_pieces(one) + b"?"

    first = _random(1, 4 * KIB_64)
    with opened(make(tmp_path / "r", block_bytes=KIB_64)) as repo:
        sound = back_up(repo, first).id
        monkeypatch.setattr(piecing, "pack_pieces", packed)
        broken = back_up(repo, _shifted(first), vm="vm-2", at=later(hours=1)).id
        with pytest.raises(Damaged):
            read_back(repo, broken)
        report = verify(repo, now=later(hours=2), points=[sound, broken])
        assert {point for damage in report.damaged for point in damage.points} == {broken}
        assert {bytes.fromhex(damage.chunk) for damage in report.damaged} == set(_lists(repo, broken))


class _NoLocks:
    """A store that locks nothing."""

    def until(self, key: str) -> datetime | None:
        return None

    def extend(self, key: str, until: datetime) -> None:
        return None


def test_packs_that_only_lists_name_are_locked(tmp_path: Path) -> None:
    first = _random(1, 24 * KIB_64)
    with opened(make(tmp_path / "r", block_bytes=KIB_64)) as repo:
        back_up(repo, first)
        two = back_up(repo, _shifted(first), vm="vm-2", at=later(hours=1)).id
        locking = Locking(_NoLocks(), repo.store, repo.private, repo.config.fan_out, str)
        locked = locking.spans([(repo.manifest(two), later(days=20))])
        assert {name.key for name in repo.store.live.values() if name.kind is PackKind.DATA} <= locked.keys()


def test_what_a_point_shares_with_one_whose_map_is_damaged_is_locked_all_the_same(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    disk = bytearray(4097 * 4096)
    disk[:4096], disk[-4096:] = _random(1, 4096), _random(2, 4096)
    with opened(location) as repo:
        one = back_up(repo, disk).id
        disk[-4096:] = _random(3, 4096)
        two = back_up(repo, disk, base=one, blocks=[4096], at=later(hours=1)).id
        root = repo.manifest(one).disks[0].root
        inner = parse_node(bytes(repo.store.read_many([root.node], node=True)[0]), 2, repo.config.fan_out, "").children[
            1
        ]
        data = repo.store.read_many([inner], node=True)[0]
        locking = Locking(_NoLocks(), repo.store, repo.private, repo.config.fan_out, str)
        points = [(repo.manifest(one), later(days=20)), (repo.manifest(two), later(days=10))]
        alone = locking.spans(points[1:]).keys()
    for pack in files(location, "packs"):
        stored = bytearray(pack.read_bytes())
        if (at := stored.find(data)) >= 0:
            stored[at + 40] ^= 1
            pack.write_bytes(stored)
    with opened(location) as repo:
        locking = Locking(_NoLocks(), repo.store, repo.private, repo.config.fan_out, str)
        assert alone <= locking.spans(points).keys()


@pytest.mark.parametrize("instant", ["find", "chunk_at", "read_each", "add", "referable", "flush"])
@pytest.mark.parametrize("based", [False, True], ids=["new", "on a base that expires"])
def test_a_reclaim_at_any_instant_of_a_backup_takes_nothing_that_its_lists_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str, based: bool
) -> None:
    now = later(days=3650)
    first = _random(1, 12 * KIB_64)
    second = _shifted(first)
    with opened(make(tmp_path / "r", block_bytes=KIB_64)) as repo:
        repo.expire(back_up(repo, first).id, "old", NOW)
        base = back_up(repo, second, vm="vm-2", at=later(hours=1)).id if based else None
        owner = repo.store.pages if instant == "find" else repo.store
        original = getattr(owner, instant)
        calls = 0

        def meddled(*args: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            result = original(*args, **named)
            if calls in (1, 20):
                if base is not None and base in repo.point_ids():
                    repo.expire(base, "old", NOW)
                for age in (timedelta(0), timedelta(days=1)):
                    ages = SafetyAges(min_age=age, clock_ahead=timedelta(days=36500))
                    carry_out(repo, plan_reclaim(repo, now, ages, Thresholds(dead_share=0.01)), now)
            return result

        with repo.new_point(_head(2)) as pending:
            ingest = pending.disk(DiskHead(DISK, len(second)), base=(base, DISK) if base else None)
            monkeypatch.setattr(owner, instant, meddled)
            ingest.write(0, memoryview(second))
            ingest.finish()
            point = pending.commit().id
        monkeypatch.undo()
        assert calls
        assert read_back(repo, point) == second
        ages = SafetyAges(min_age=timedelta(0), clock_ahead=timedelta(days=36500))
        for _ in range(2):
            carry_out(repo, plan_reclaim(repo, now, ages, Thresholds(dead_share=0.01)), now)
        assert read_back(repo, point) == second
        assert verify(repo, now=NOW).sound
