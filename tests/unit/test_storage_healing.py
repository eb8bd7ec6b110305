"""What verification does about damage: it names who is hit, distrusts, mends, and the next backup heals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.facts import VmId
from storage import mapcheck
from storage.condemned import CONDEMNED, Condemnation, write_note
from storage.errors import Damaged, Refused
from storage.format import PackKind
from storage.reclaim import plan_reclaim
from storage.verify import verify
from tests.storage_kit import NOW, back_up, changed, files, image, later, make, opened, read_back


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def _pack(location: Path, kind: str) -> Path:
    return next(path for path in files(location, "packs") if path.suffix == kind)


HURT: dict[str, Callable[[Path], None]] = {
    "a chunk": lambda at: _flip(_pack(at, ".data"), 1000),
    "a footer of chunks": lambda at: _flip(_pack(at, ".data"), -70),
    "a node": lambda at: _flip(_pack(at, ".tree"), 200),
    "a footer of nodes": lambda at: _flip(_pack(at, ".tree"), -70),
    "a pack of chunks that is gone": lambda at: _pack(at, ".data").unlink(),
    "a pack of nodes that is gone": lambda at: _pack(at, ".tree").unlink(),
}


@pytest.mark.parametrize("what", HURT)
@pytest.mark.parametrize("few", [0, mapcheck.FEW], ids=["as many", "as few"])
@pytest.mark.parametrize("reopen", [False, True], ids=["in one process", "opened again"])
def test_the_next_full_backup_heals_every_restore_point_that_was_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, reopen: bool, few: int
) -> None:
    monkeypatch.setattr(mapcheck, "FEW", few)
    location, disk = make(tmp_path / "r"), image(1, 60)
    with opened(location) as repo:
        one = back_up(repo, disk)
        two = back_up(repo, disk, at=later(hours=1), base=one.id, blocks=[])
        other = back_up(repo, image(2, 20), vm="vm-2", name="db")
        HURT[what](location)
        report = verify(repo, now=later(hours=2))
        assert report.vms == ("web",)
        assert {point for damage in report.damaged for point in damage.points} == {one.id, two.id}
        assert repo.latest(VmId("vm-1")) is None, "nothing is built upon what is damaged"
        assert not repo.detail(other.id).damaged
        if reopen:
            repo.close()
    with opened(location) as again:
        back_up(again, disk, at=later(hours=3))
        healed = verify(again, now=later(hours=4))
        assert all(not damage.points for damage in healed.damaged)
        assert not any(point.damaged for point in again.points())
        assert read_back(again, one.id) == read_back(again, two.id) == disk
        assert back_up(again, disk, at=later(hours=5)).stored_bytes == 0, "it is trusted again"


def test_an_increment_goes_on_from_the_newest_restore_point_that_is_whole(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), image(3, 60)
    with opened(location) as repo:
        one = back_up(repo, disk)
        new = changed(disk, 4, [5])
        back_up(repo, new, base=one.id, blocks=[5], at=later(hours=1))
        newest = [path for path in files(location, "packs") if path.suffix == ".data"][-1]
        _flip(newest, 300)
        verify(repo, now=later(hours=2))
        base = repo.latest(VmId("vm-1"))
        assert base is not None and base.id == one.id
        three = back_up(repo, new, base=one.id, blocks=[5], at=later(hours=3))
        assert read_back(repo, three.id) == new


def test_a_manifest_that_is_damaged_is_no_base_and_goes_by_expiry_alone(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), image(5, 60)
    with opened(location) as repo:
        one = back_up(repo, disk)
        two = back_up(repo, disk, at=later(hours=1))
        manifest = location / "manifests" / two.id
        _flip(manifest, 200)
        base = repo.latest(VmId("vm-1"))
        assert base is not None and base.id == one.id, "also before anybody has verified"
        before = manifest.read_bytes()
        report = verify(repo, now=later(hours=2))
        assert [(damage.object, damage.vms) for damage in report.damaged] == [(f"manifests/{two.id}", ("web",))]
        assert manifest.read_bytes() == before, "repair never edits"
        with pytest.raises(Damaged):
            read_back(repo, two.id)
        with pytest.raises(Refused, match="cannot be told"):
            plan_reclaim(repo, later(days=40))
        repo.expire(two.id, "damaged", later(hours=3))
        assert verify(repo, now=later(hours=4)).sound
        plan_reclaim(repo, later(days=40))


@pytest.mark.parametrize("forgotten", [False, True], ids=["the catalog remembers", "nobody remembers"])
def test_a_damaged_mark_is_written_anew_and_still_holds(tmp_path: Path, forgotten: bool) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(6, 10))
        repo.mark_hold(point.id, "court", NOW)
    (mark,) = files(location, "marks")
    _flip(mark, 100 if forgotten else 8)
    if forgotten:
        for path in location.glob("catalog.duckdb*"):
            path.unlink()
    with opened(location) as repo:
        assert repo.mark_state(point.id).holds
        (damage,) = verify(repo, now=later(hours=1)).damaged
        assert damage.mended
        assert not mark.exists()
        assert repo.mark_state(point.id).holds == (("hold with an unreadable reason",) if forgotten else ("court",))
        assert verify(repo, now=later(hours=2)).sound
    with opened(location) as repo:
        assert len(repo.mark_state(point.id).holds) == 1
        assert repo.points()[0].holds == repo.mark_state(point.id).holds
        with pytest.raises(Refused):
            repo.expire(point.id, "old", later(days=40))


def test_a_damaged_copy_of_the_config_is_written_again_from_the_other(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        back_up(repo, image(7, 10))
        for name in ("config", "config.copy"):
            sound = (location / name).read_bytes()
            _flip(location / name, 100)
            (damage,) = verify(repo, now=later(hours=1)).damaged
            assert damage.object == name
            assert damage.mended
            assert (location / name).read_bytes() == sound
            assert verify(repo, now=later(hours=2)).sound


def test_a_damaged_note_of_reclaim_is_told_and_harms_no_restore_point(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), image(9, 20)
    with opened(location) as repo:
        gone = back_up(repo, image(10, 20), vm="vm-2")
        name = next(name for name in repo.store.live.values() if name.kind is PackKind.DATA)
        write_note(repo.blobs, repo.sealing, CONDEMNED, Condemnation(name, "nothing reaches it", NOW, "me"))
        repo.expire(gone.id, "old", NOW)
        one = back_up(repo, disk)
        assert verify(repo, now=later(hours=1)).sound
    (note,) = files(location, "condemned")
    sound = note.read_bytes()
    for place in (0, 8, 10, 11, 12, 16, 70, len(sound) - 1):
        note.write_bytes(sound)
        _flip(note, place)
        with opened(location) as repo:
            assert [damage.points for damage in verify(repo, now=later(hours=2)).damaged] == [()]
            assert read_back(repo, one.id) == disk


def test_what_a_verification_of_one_restore_point_finds_is_stored_again_too(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), image(8, 60)
    with opened(location) as repo:
        one = back_up(repo, disk)
        _flip(_pack(location, ".data"), 1000)
        report = verify(repo, now=later(hours=1), points=[one.id])
        assert report.vms == ("web",)
        back_up(repo, disk, at=later(hours=2))
        assert verify(repo, now=later(hours=3), points=[one.id]).sound
        assert read_back(repo, one.id) == disk
