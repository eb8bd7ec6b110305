"""Blocks that share pages with stored chunks: found, put together, kept, checked and healed."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import PointId, RestorePoint, VmId
from storage.blockmap import walk
from storage.copies import copy_points, plan_copy
from storage.errors import Damaged
from storage.format import PackKind, Pieced, PieceList, pack_pieces, parse_pieces
from storage.mapcheck import reach, reach_few
from storage.nodes import StoredNodes
from storage.pagetable import KEY, PAGE_BYTES, PageTable, page_key
from storage.piecelists import read_blocks
from storage.reachability import Reached
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository
from storage.restore import restore_disk
from storage.verify import verify
from storage.wholemaps import read_map
from tests.storage_kit import DISK, NOW, back_up, files, later, make, opened, read_back, restored

BLOCK = 64 << 10
AGELESS = SafetyAges(min_age=timedelta(0), clock_ahead=timedelta(days=36500))
EAGER = Thresholds(dead_share=0.01)
MUCH_LATER = later(days=3650)


def _disk(seed: int, blocks: int) -> bytearray:
    """A disk full of what does not compress."""
    return bytearray(random.Random(seed).randbytes(blocks * BLOCK))


def _back_up(
    repo: Repository, disk: bytearray, vm: str = "vm-1", *, hours: float = 0, base: PointId | None = None
) -> RestorePoint:
    """The whole disk, given as large parts as an engine gives it."""
    with repo.new_point(PointHead(VmId(vm), vm, later(hours=hours))) as pending:
        ingest = pending.disk(DiskHead(DISK, len(disk)), base=(base, DISK) if base else None)
        ingest.write(0, memoryview(disk))
        ingest.finish()
        return pending.commit()


def _elsewhere(disk: bytearray, pages: int = 5) -> bytearray:
    """The same bytes, some pages further on."""
    return bytearray(random.Random(9).randbytes(pages * PAGE_BYTES)) + disk[: len(disk) - pages * PAGE_BYTES]


def _lists(repo: Repository, point: PointId) -> list[bytes]:
    return [
        id_
        for _, children in repo.read_disk(point, DISK).leaves()
        for id_ in children.values()
        if isinstance(id_, Pieced)
    ]


def _two(repo: Repository, blocks: int = 24) -> tuple[PointId, bytearray, PointId, bytearray]:
    """A restore point of one VM, and one of another that holds the same at other places."""
    first = _disk(1, blocks)
    second = _elsewhere(first)
    one = _back_up(repo, first)
    two = _back_up(repo, second, "vm-2", hours=1)
    return one.id, first, two.id, second


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_what_lies_elsewhere_within_its_blocks_is_not_stored_again(tmp_path: Path, encrypted: bool) -> None:
    with opened(make(tmp_path / "r", encrypted=encrypted, block_bytes=BLOCK)) as repo:
        one, first, two, second = _two(repo)
        point = repo.detail(two)
        assert point.disks[0].stored_bytes < len(second) / 10
        assert point.disks[0].new_bytes + point.disks[0].dedup_bytes == len(second)
        assert len(_lists(repo, two)) >= 23
        for id_, disk in ((one, first), (two, second)):
            assert read_back(repo, id_) == disk
            assert restored(repo, id_, tmp_path / "out") == disk
        assert verify(repo, now=NOW).sound
    with opened(tmp_path / "r") as again:
        assert read_back(again, two) == second


def test_a_block_of_which_one_page_changed_stores_little_more_than_the_page(tmp_path: Path) -> None:
    disk = _disk(2, 16)
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        base = back_up(repo, disk)
        for block in range(16):
            at = block * BLOCK + 3 * PAGE_BYTES
            disk[at : at + PAGE_BYTES] = random.Random(block).randbytes(PAGE_BYTES)
        new = back_up(repo, disk, base=base.id, blocks=range(16), at=later(hours=1))
        assert 16 * PAGE_BYTES < new.stored_bytes < 16 * PAGE_BYTES + 16 * 600
        assert read_back(repo, new.id) == disk


def test_a_disk_that_is_read_again_stores_nothing_when_it_did_not_change(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        _, _, two, second = _two(repo)
        again = _back_up(repo, second, "vm-2", hours=2, base=two)
        assert again.stored_bytes == 0
        assert repo.detail(again.id).disks[0].root == repo.detail(two).disks[0].root


def test_chunks_that_only_piece_lists_name_outlive_their_own_restore_point(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        one, _, two, second = _two(repo)
        repo.expire(one, "old", NOW)
        for _ in range(2):
            carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS, EAGER), MUCH_LATER)
        assert read_back(repo, two) == second
        assert verify(repo, now=NOW).sound
        repo.expire(two, "old", NOW)
        carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS, EAGER), MUCH_LATER)
        assert repo.sizes().packs == 0
    with opened(tmp_path / "r") as again:
        third = back_up(again, second, at=later(hours=3))
        assert read_back(again, third.id) == second, "what the table of pages still names is gone, and not relied upon"


def test_what_a_restore_point_reaches_has_its_lists_and_what_they_name(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        _, _, two, _ = _two(repo)
        reached = set(reach(repo, [repo.manifest(two)]).tolist())
        for id_ in _lists(repo, two):
            named = parse_pieces(repo.store.read_many([id_], node=True)[0], "").chunks  # type: ignore[arg-type]
            assert {int.from_bytes(chunk[:8], "big") for chunk in (id_, *named)} <= reached
        assert reach_few(repo, [repo.manifest(two)]) == reached
        bare = Reached(StoredNodes(repo.store), repo.config.fan_out)
        bare.add_root(repo.manifest(two).disks[0].root)
        assert set(bare.sorted().tolist()) == reached


def test_damage_of_a_chunk_that_a_list_names_is_told_of_every_restore_point_and_healed(tmp_path: Path) -> None:
    location = make(tmp_path / "r", block_bytes=BLOCK)
    with opened(location) as repo:
        one, first, two, second = _two(repo)
        _flip(next(path for path in files(location, "packs") if path.suffix == ".data"), 5 * BLOCK)
        report = verify(repo, now=later(hours=2))
        assert {point for damage in report.damaged for point in damage.points} == {one, two}
        assert report.vms == ("vm-1", "vm-2")
        with pytest.raises(Damaged):
            read_back(repo, two)
    with opened(location) as repo:
        back_up(repo, first, at=later(hours=3))
        assert verify(repo, now=later(hours=4)).sound or not any(point.damaged for point in repo.points())
        assert read_back(repo, one) == first
        assert read_back(repo, two) == second


def test_a_new_block_never_names_a_chunk_that_is_known_to_be_damaged(tmp_path: Path) -> None:
    location = make(tmp_path / "r", block_bytes=BLOCK)
    first = _disk(1, 24)
    with opened(location) as repo:
        back_up(repo, first)
        _flip(next(path for path in files(location, "packs") if path.suffix == ".data"), 5 * BLOCK)
        verify(repo, now=later(hours=2))
        second = _elsewhere(first)
        two = _back_up(repo, second, "vm-2", hours=3)
        assert read_back(repo, two.id) == second
        assert not repo.detail(two.id).damaged


@pytest.mark.parametrize("scope", ["full", "points"])
def test_a_damaged_piece_list_is_found(tmp_path: Path, scope: str) -> None:
    location = make(tmp_path / "r", block_bytes=BLOCK)
    with opened(location) as repo:
        one, first, two, second = _two(repo)
        pack = [path for path in files(location, "packs") if path.suffix == ".tree"][-1]
        data = pack.read_bytes()
        lists = _lists(repo, two)
        _flip(pack, data.index(repo.store.read_many(lists[3:4], node=True)[0]) + 50)
        if scope == "points":
            report = verify(repo, now=later(hours=2), points=[one, two])
        else:
            report = verify(repo, now=later(hours=2))
        assert {point for damage in report.damaged for point in damage.points} == {two}
        with pytest.raises(Damaged):
            read_back(repo, two)
        assert read_back(repo, one) == first
        new = _back_up(repo, second, "vm-2", hours=3)
        assert read_back(repo, new.id) == second


def test_a_whole_map_read_at_once_tells_which_slots_are_lists(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        _, _, two, _ = _two(repo)
        record = repo.manifest(two).disks[0]
        whole = read_map(repo.store, record.root, repo.config.fan_out)
        walked = {
            first + slot: id_
            for first, children in walk(StoredNodes(repo.store), record.root, repo.config.fan_out)
            for slot, id_ in children.items()
        }
        assert whole.blocks.tolist() == sorted(walked)
        assert [id_.tobytes() for id_ in whole.ids] == [walked[block] for block in sorted(walked)]
        assert whole.pieced.tolist() == [isinstance(walked[block], Pieced) for block in sorted(walked)]
        assert whole.pieced.any()


@pytest.mark.parametrize("harm", ["gone", "flipped", "of another repository"])
def test_without_its_table_of_pages_a_repository_only_stores_more(tmp_path: Path, harm: str) -> None:
    location = make(tmp_path / "r", block_bytes=BLOCK)
    first = _disk(1, 12)
    with opened(location) as repo:
        one = back_up(repo, first)
    table = location / KEY
    match harm:
        case "gone":
            table.unlink()
        case "flipped":
            _flip(table, 5000)
        case _:
            with opened(make(tmp_path / "other", block_bytes=BLOCK)) as other:
                back_up(other, _disk(5, 12))
            table.write_bytes((tmp_path / "other" / KEY).read_bytes())
    with opened(location) as repo:
        second = _elsewhere(first)
        two = _back_up(repo, second, "vm-2", hours=1)
        assert two.stored_bytes > len(second)
        assert read_back(repo, one.id) == first
        assert read_back(repo, two.id) == second
        three = _back_up(repo, _elsewhere(second), "vm-3", hours=2)
        assert three.stored_bytes < len(second) / 10, "it is filled again by what is stored"


def test_an_encrypted_repository_keeps_no_readable_table(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True, block_bytes=BLOCK)
    disk = _disk(1, 12)
    with opened(location) as repo:
        back_up(repo, disk)
    keys = [page_key(disk, page).to_bytes(4, "little") for page in range(len(disk) // PAGE_BYTES)]
    stored = (location / KEY).read_bytes()
    assert not any(key in stored for key in keys)


def test_disks_that_grow_and_shrink_within_a_pieced_block_read_as_they_were(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        _, _, two, second = _two(repo)
        shrunk = second[: 20 * BLOCK + 7000]
        three = back_up(repo, shrunk, vm="vm-2", name="db", base=two, blocks=[], at=later(hours=2))
        grown = shrunk + bytes(4 * BLOCK)
        four = back_up(repo, grown, vm="vm-2", name="db", base=three.id, blocks=[], at=later(hours=3))
        for point, disk in ((two, second), (three.id, shrunk), (four.id, grown)):
            assert read_back(repo, point) == disk


@pytest.mark.parametrize("to_block", [4096, BLOCK])
def test_a_second_copy_holds_the_same(tmp_path: Path, to_block: int) -> None:
    with (
        opened(make(tmp_path / "a", block_bytes=BLOCK)) as source,
        opened(make(tmp_path / "b", block_bytes=to_block)) as target,
    ):
        one, first, two, second = _two(source)
        copy_points(source, target, plan_copy(source, target), now=lambda: later(hours=5))
        assert read_back(target, one) == first
        assert read_back(target, two) == second
        assert verify(target, now=NOW).sound


def test_pieces_of_a_block_that_is_not_what_was_written_are_damage(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        _, _, two, _ = _two(repo)
        id_ = _lists(repo, two)[2]
        good = parse_pieces(bytes(repo.store.read_many([id_], node=True)[0]), "")
        forged = good._replace(content=bytes(32))
        short = good._replace(pieces=((0, BLOCK - 10, 100), *good.pieces[1:]))
        foreign = good._replace(chunks=(bytes(32), *good.chunks[1:]))
        for wrong in (forged, short, foreign):
            session = repo.store.session()
            data = pack_pieces(wrong)
            of_wrong = repo.store.sealing.node_id(data)
            repo.store.add(session, PackKind.TREE, [(of_wrong, data)])
            repo.store.end(session)
            with pytest.raises(Damaged):
                read_blocks(repo.store, [Pieced(of_wrong)])


def test_a_piece_list_comes_back_and_nothing_else_is_one() -> None:
    a, b = bytes(range(32)), bytes(range(32, 64))
    good = PieceList(bytes(32), (a, b), ((0, 4096, 8192), (1, 0, 4096), (0, 0, 4096)))
    data = pack_pieces(good)
    assert parse_pieces(data, "here") == good
    wrong = [
        b"",
        data[:-1],
        data + bytes(1),
        bytes([0]) + data[1:],
        data[:1] + bytes([1]) + data[2:],
        data[:6] + bytes([1]) + data[7:],
        pack_pieces(good._replace(pieces=((0, 0, 0), (1, 0, 4096)))),
        pack_pieces(good._replace(pieces=((0, 0, 4096), (0, 0, 4096)))),
        pack_pieces(good._replace(pieces=((0, 0, 4096), (2, 0, 4096)))),
        pack_pieces(good._replace(pieces=((0, 0, 16 << 20), (1, 0, 1)))),
        pack_pieces(PieceList(bytes(32), (), ())),
    ]
    for one in wrong:
        with pytest.raises(Damaged):
            parse_pieces(one, "here")


def test_a_table_that_is_full_forgets_and_finds_the_newest(tmp_path: Path) -> None:
    location = make(tmp_path / "r", block_bytes=BLOCK)
    chance = random.Random(3)
    with opened(location) as repo:
        table = PageTable(repo.private, repo.sealing)
        assert table.empty()
        last: tuple[bytes, bytes] = (b"", b"")
        for number in range(60):
            chunks = [chance.randbytes(32) for _ in range(100)]
            for chunk in chunks:
                last = (chunk, chance.randbytes(PAGE_BYTES))
                table.expect([last])
            table.learn(number, chunks)
        assert table.find(page_key(last[1], 0)) == 59 << 16 | 99
        assert table.find(page_key(bytes(PAGE_BYTES), 0)) is None
        table.save()
        again = PageTable(repo.private, repo.sealing)
        assert not again.empty()
        assert again.find(page_key(last[1], 0)) == 59 << 16 | 99


def test_a_restore_to_a_block_device_like_target_writes_pieced_blocks(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", block_bytes=BLOCK)) as repo:
        _, _, two, second = _two(repo)
        target = tmp_path / "target"
        target.write_bytes(b"x" * len(second))
        with target.open("r+b") as file:
            restore_disk(repo.read_disk(two, DISK), file.fileno(), threads=3)
        assert target.read_bytes() == second
        assert repo.latest(VmId("vm-2")) is not None
