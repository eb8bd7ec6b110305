"""A store that is full, or stands still in another way, can still be opened, read, and freed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from policies.facts import VmId
from storage import blobs
from storage.blobs import LocalBlobs
from storage.catalog_loading import Loader
from storage.errors import Damaged, NoSpace, StoreFailed
from storage.pack import Footer
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.verify import verify
from tests.storage_kit import back_up, files, image, later, make, opened, read_back

AGELESS = SafetyAges(timedelta(0), timedelta(days=36500))
FULL = "/dev/full"


class FullBlobs(LocalBlobs):
    """A disk on which only the room of the reserve is left."""

    def _put(self, key: str, data: bytes) -> None:
        if (self.root / blobs.RESERVE).exists():
            raise NoSpace("no space left", where=key)
        super()._put(key, data)


class NoRoom(LocalBlobs):
    """A disk on which nothing is left."""

    def _spooled(self, data: bytes) -> Path:
        raise NoSpace("no space left", where="spool")


def test_a_full_disk_is_opened_and_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    location = make(tmp_path / "r")
    disk = image(1, 20)
    with opened(location) as repo:
        point = back_up(repo, disk)
    for path in files(location, "index"):
        path.unlink()
    (location / "owner.part").symlink_to(FULL)
    with opened(location) as repo:
        assert read_back(repo, point.id) == disk
        assert '"owner": "test"' in (location / "owner.json").read_text()
    assert not (location / "owner.part").is_symlink()
    with opened(location):
        assert '"epoch": 3' in (location / "owner.json").read_text()
    (location / "owner.part").symlink_to(FULL)
    (location / "owner.json").unlink()
    with opened(location) as repo:
        assert read_back(repo, point.id) == disk
    assert "owner not recorded" in caplog.text


def test_an_index_that_cannot_be_written_costs_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location = make(tmp_path / "r")
    disk = image(2, 20)
    with opened(location) as repo:
        monkeypatch.setattr("storage.index.randomness", SimpleNamespace(token_hex=lambda _: "full"))
        (location / "index" / "full.part").symlink_to(FULL)
        point = back_up(repo, disk)
        assert read_back(repo, point.id) == disk
        assert not list((location / "index").iterdir())
        assert back_up(repo, disk, at=later(hours=1)).stored_bytes == 0
    assert "index behind: " in caplog.text
    monkeypatch.undo()
    with opened(location) as repo:
        assert files(location, "index")
        assert back_up(repo, disk, at=later(hours=2)).stored_bytes == 0


def test_without_room_for_the_index_the_repository_opens_with_it_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")
    disk = image(3, 20)
    with opened(location) as repo:
        point = back_up(repo, disk)
    for path in files(location, "index"):
        path.unlink()

    def full(*_: object) -> None:
        raise NoSpace("no space left", where="index")

    monkeypatch.setattr("storage.index.Index.add_packs", full)
    with opened(location) as repo:
        assert read_back(repo, point.id) == disk
        assert back_up(repo, disk, at=later(hours=1)).stored_bytes == 0


def test_a_catalog_that_cannot_grow_answers_from_what_it_has_and_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        old = back_up(repo, image(4, 100))
        repo.catalog.checkpoint()
    before = (location / "catalog.duckdb").read_bytes()
    with opened(location) as repo:
        new = back_up(repo, image(5, 100), at=later(hours=1))
        rows = repo.catalog.rows()
    (location / "catalog.duckdb").write_bytes(before)
    (location / "catalog.duckdb.wal").unlink(missing_ok=True)
    full, packs = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], Loader.packs

    def full_once(loader: Loader, footers: Iterable[Footer]) -> set[int]:
        if full:
            raise full.pop()
        return packs(loader, footers)

    monkeypatch.setattr(Loader, "packs", full_once)
    with opened(location) as repo:
        assert [point.id for point in repo.points()] == [old.id]
        assert "catalog behind: " in caplog.text
        assert not list(location.glob("*.corrupt-*"))
        repo.mark_hold(old.id, "court", later())
        assert repo.points()[0].id == old.id
        repo.release(old.id, None, later())
        assert [point.id for point in repo.points()] == [old.id, new.id], "it caught up as soon as there was room"
        assert {name: of for name, of in repo.catalog.rows().items() if name != "marks"} == {
            name: of for name, of in rows.items() if name != "marks"
        }


def test_on_a_full_disk_restore_points_expire_and_their_packs_are_freed(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        gone = back_up(repo, image(6, 20))
    with opened(location, blobs=FullBlobs(location)) as repo:
        with pytest.raises(NoSpace):
            back_up(repo, image(7, 20), vm="vm-2")
        assert (location / blobs.RESERVE).stat().st_size == blobs.RESERVE_BYTES
        repo.expire(gone.id, "no room", later())
        assert not (location / blobs.RESERVE).exists()
        assert carry_out(repo, plan_reclaim(repo, later(days=3650), AGELESS), later(days=3650)).freed >= 2
        assert back_up(repo, image(7, 20), vm="vm-2")
    with opened(location):
        assert (location / blobs.RESERVE).exists()


def test_a_verification_that_cannot_be_recorded_still_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(8, 20))
        pack = files(location, "packs")[0]
        pack.write_bytes(pack.read_bytes()[:500] + b"wrong" + pack.read_bytes()[505:])
    with opened(location, blobs=NoRoom(location)) as repo:
        (damage,) = verify(repo, now=later()).damaged
        assert damage.points == (point.id,)
    assert "not recorded" in caplog.text


def test_a_pack_with_a_damaged_footer_does_not_keep_the_catalog_from_being_made_again(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    disk = image(9, 20)
    with opened(location) as repo:
        back_up(repo, image(10, 20), vm="hurt")
        sound = back_up(repo, disk)
    pack = files(location, "packs")[0]
    data = bytearray(pack.read_bytes())
    data[-70] ^= 1
    pack.write_bytes(data)
    (location / "catalog.duckdb").unlink(missing_ok=True)
    (location / "catalog.duckdb.wal").unlink(missing_ok=True)
    with opened(location) as repo:
        assert len(repo.points()) == 2
        assert read_back(repo, sound.id) == disk
        new = back_up(repo, image(11, 20), at=later(hours=1))
        assert repo.latest(VmId("vm-1")) == repo.detail(new.id)
        assert not verify(repo, now=later()).sound


@pytest.mark.parametrize("name", ["packs", "manifests", "marks"])
def test_a_folder_that_is_gone_is_no_empty_repository(tmp_path: Path, name: str) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(12, 5))
        repo.mark_hold(point.id, "court", later())
    (location / name).rename(tmp_path / "away")
    with pytest.raises(Damaged, match=f"{name}: this folder is gone"):
        opened(location)
    (tmp_path / "away").rename(location / name)
    with opened(location) as repo:
        assert repo.points()[0].holds == ("court",)


def test_a_lock_that_cannot_be_taken_for_another_reason_names_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        with pytest.raises(StoreFailed, match="No locks available"):
            opened(location)
    with opened(location):
        pass


@pytest.mark.parametrize("left", ['{"epoch": "x"}', "[]", "", "{"])
def test_an_owner_of_which_nothing_can_be_read_keeps_nobody_out(tmp_path: Path, left: str) -> None:
    location = make(tmp_path / "r")
    (location / "owner.json").write_text(left)
    for _ in range(2):
        with opened(location):
            pass
    assert '"epoch": 2' in (location / "owner.json").read_text()


def _make_read_only(monkeypatch: pytest.MonkeyPatch, *, memory: bool = True) -> None:
    """As far as a test without a file system of its own can: nothing can be opened for writing."""
    open_file, connect = os.open, duckdb.connect

    def opening(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return open_file(path, flags, mode)

    def connecting(path: str, *, read_only: bool, **options: Any) -> Any:
        if path == ":memory:" and not memory:
            raise duckdb.OutOfMemoryException("could not allocate block of size 256.0 KiB")
        if not read_only and path != ":memory:":
            raise duckdb.IOException(f"Cannot open file {path}: Read-only file system")
        return connect(path, read_only=read_only, **options)

    monkeypatch.setattr("os.open", opening)
    monkeypatch.setattr("storage.duckdb_engine.connect", connecting)


def test_a_copy_on_a_read_only_file_system_is_listed_read_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")
    disk = image(13, 20)
    with opened(location) as repo:
        point = back_up(repo, disk)
    for again in (False, True):
        before = {path: path.read_bytes() for path in files(location, ".") if path.name != "owner.json"}
        with monkeypatch.context() as patched:
            _make_read_only(patched)
            with opened(location) as repo:
                assert repo.points() == [point]
                assert read_back(repo, point.id) == disk
                assert verify(repo, now=later()).sound
                with pytest.raises(StoreFailed, match="Read-only"):
                    repo.mark_hold(point.id, "court", later())
        assert {path: path.read_bytes() for path in files(location, ".") if path.name != "owner.json"} == before
        if not again:
            (location / "lock").unlink()


@pytest.mark.parametrize("memory", [True, False])
def test_a_read_only_copy_whose_catalog_lacks_restore_points_has_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    location = make(tmp_path / "r")
    disk = image(13, 20)
    with opened(location) as repo:
        points = [back_up(repo, disk)]
        assert repo.points() == points
    with opened(location) as repo:
        points += [back_up(repo, disk, at=later(hours=hours)) for hours in range(1, 40)]
    before = {path: path.read_bytes() for path in files(location, ".") if path.name != "owner.json"}
    with monkeypatch.context() as patched:
        _make_read_only(patched, memory=memory)
        with opened(location) as repo:
            known = points if memory else points[:1]
            assert repo.points() == known, "what it knew is better than nothing"
            assert read_back(repo, points[-1].id) == disk
    assert {path: path.read_bytes() for path in files(location, ".") if path.name != "owner.json"} == before
    with opened(location) as repo:
        assert repo.points() == points


def test_a_catalog_that_somebody_else_has_open_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(14, 20))

    def taken(*_: object, **__: object) -> None:
        raise duckdb.IOException("Could not set lock on file: Conflicting lock is held")

    with monkeypatch.context() as patched:
        patched.setattr("storage.duckdb_engine.connect", taken)
        with opened(location) as repo, pytest.raises(StoreFailed, match="Conflicting lock"):
            repo.points()
    assert not list(location.glob("*.corrupt-*"))
    with opened(location) as repo:
        assert repo.points() == [point]


def test_without_a_catalog_and_room_for_one_the_disk_can_still_be_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")
    disk = image(15, 20)
    with opened(location) as repo:
        gone, kept = back_up(repo, image(16, 20), vm="vm-2"), back_up(repo, disk)
    for path in location.glob("catalog.*"):
        path.unlink()

    def full(*_: object, **__: object) -> None:
        raise duckdb.IOException("Could not write file: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("storage.duckdb_engine.connect", full)
        with opened(location) as repo:
            with pytest.raises(NoSpace):
                repo.points()
            repo.expire(repo.find(gone.id), "no room", later())
            assert carry_out(repo, plan_reclaim(repo, later(days=3650), AGELESS), later(days=3650)).freed == 2
            assert read_back(repo, kept.id) == disk
    with opened(location) as repo:
        assert [point.id for point in repo.points()] == [kept.id]
        assert not repo.lost_points()
        assert verify(repo, now=later()).sound
