from __future__ import annotations

from pathlib import Path

import pytest

from policies.facts import VmId
from storage.errors import Damaged
from storage.verify import verify
from tests.storage_kit import DISK, NOW, back_up, changed, files, image, later, make, opened, read_back, restored


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_chunk_names_every_point_that_needs_it_and_no_other(tmp_path: Path) -> None:
    disk = image(1, 60)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        two = back_up(repo, changed(disk, 2, [9]), base=one.id, blocks=[9])
        other = back_up(repo, image(3, 60), vm="vm-2", name="db")
        (first, *_) = files(tmp_path / "r", "packs")
        _flip(first, 1000)
        seen: list[int] = []
        report = verify(repo, now=later(hours=1), progress=seen.append)
        (damage,) = report.damaged
        assert damage.points == tuple(sorted([one.id, two.id]))
        assert damage.object == f"packs/01/{first.name}"
        assert not report.sound
        assert report.checked_points == 3
        assert seen[-1] == report.checked_bytes
        assert {point.id for point in repo.points() if point.damaged} == {one.id, two.id}
        assert repo.latest(VmId("vm-1")) is None
        assert repo.detail(other.id).verified_at == later(hours=1)
        with pytest.raises(Damaged):
            read_back(repo, one.id)
        with pytest.raises(Damaged):
            restored(repo, one.id, tmp_path / "out")
        _flip(first, 1000)
        assert verify(repo, now=later(hours=2)).sound
        assert not any(point.damaged for point in repo.points())
        assert len(files(tmp_path / "r", "marks")) == 3


def test_a_missing_pack_is_found_with_the_points_that_need_it(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, image(4, 20))
        for pack in files(tmp_path / "r", "packs"):
            data = pack.read_bytes()
            pack.unlink()
            report = verify(repo, now=NOW)
            assert {p for damage in report.damaged for p in damage.points} == {point.id}
            pack.write_bytes(data)
    files(tmp_path / "r", "packs")[0].unlink()
    with opened(tmp_path / "r") as repo:
        assert not verify(repo, now=NOW).sound


def test_only_the_points_asked_for_are_read(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, image(5, 30))
        two = back_up(repo, image(6, 30), vm="vm-2")
        _flip(files(tmp_path / "r", "packs")[0], 700)
        _flip(files(tmp_path / "r", "packs")[1], 150)
        assert verify(repo, points=[two.id], now=NOW).sound
        report = verify(repo, points=[one.id], now=NOW)
        assert [damage.points for damage in report.damaged] == [(one.id,)]
        assert repo.detail(one.id).damaged


def test_foreign_files_among_the_packs_are_told(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, image(7, 10))
        (tmp_path / "r" / "packs" / "01" / "notes.txt").write_text("x")
        (damage,) = verify(repo, now=NOW).damaged
        assert "not a pack" in damage.what


def test_a_hold_whose_bytes_changed_still_holds(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, image(8, 10))
        repo.mark_hold(point.id, "court", NOW)
    _flip(files(tmp_path / "r", "marks")[0], 100)
    with opened(tmp_path / "r") as repo:
        assert repo.mark_state(point.id).holds
        assert [damage.points for damage in verify(repo, now=NOW).damaged] == [(point.id,)]


def test_an_index_that_lies_costs_nothing_but_time(tmp_path: Path) -> None:
    disk = image(9, 60)
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, disk)
    (run,) = files(tmp_path / "r", "index")
    data = bytearray(run.read_bytes())
    data[-300:] = bytes(300)
    run.write_bytes(data)
    with opened(tmp_path / "r") as repo:
        assert read_back(repo, point.id) == disk
        assert repo.read_disk(point.id, DISK).extents()


def test_a_catalog_that_fails_to_be_read_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, image(10, 3000))
        repo.catalog.checkpoint()
        rows = repo.catalog.rows()
    catalog = tmp_path / "r" / "catalog.duckdb"
    data = bytearray(catalog.read_bytes())
    for place in range(8192, len(data), 4096):
        data[place] ^= 0xFF
    catalog.write_bytes(data)
    with opened(tmp_path / "r") as repo:
        verify(repo, now=NOW)
        assert {k: v for k, v in repo.catalog.rows().items() if k != "marks"} == {
            k: v for k, v in rows.items() if k != "marks"
        }
    assert "catalog" in caplog.text


def test_a_backup_after_the_damage_stores_the_lost_chunks_again_and_heals_older_points(tmp_path: Path) -> None:
    disk = image(11, 60)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        pack = next((tmp_path / "r" / "packs").rglob("*.data"))
        _flip(pack, 900)
        assert not verify(repo, now=NOW).sound
    with opened(tmp_path / "r") as repo:
        two = back_up(repo, disk, at=later(hours=1))
        assert repo.detail(two.id).disks[0].new_bytes == 4096
        assert read_back(repo, one.id) == read_back(repo, two.id) == disk
        assert all(not damage.points for damage in verify(repo, now=later(hours=2)).damaged)
        assert not any(point.damaged for point in repo.points())
        assert back_up(repo, disk, at=later(hours=3)).stored_bytes == 0


def test_chunks_of_a_pack_whose_footer_is_damaged_are_stored_again(tmp_path: Path) -> None:
    disk = image(12, 60)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        for pack in files(tmp_path / "r", "packs"):
            _flip(pack, -70)
        assert not verify(repo, now=NOW).sound
        two = back_up(repo, disk, at=later(hours=1))
        assert read_back(repo, one.id) == read_back(repo, two.id) == disk
