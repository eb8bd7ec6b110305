"""A manifest that vanishes is a loss, not an expiry: it is told, it is kept, and nothing is freed because of it."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import VmId
from storage.errors import Damaged, NoSuchPoint, Refused, StoreFailed
from storage.manifest import manifest_key
from storage.rebuild import rebuild
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.verify import verify
from tests.storage_kit import FaultyBlobs, back_up, files, image, later, make, opened, read_back

AGELESS = SafetyAges(timedelta(0), timedelta(days=36500))
MUCH_LATER = later(days=3650)


def test_a_vanished_manifest_leaves_a_lost_point_that_is_told_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        kept = back_up(repo, image(1, 20))
        gone = back_up(repo, image(2, 20), vm="vm-2", name="db", at=later(hours=1))
    (location / manifest_key(gone.id)).unlink()
    for _ in range(2):
        with opened(location) as repo:
            listed = {point.id: point for point in repo.points()}
            assert listed.keys() == {kept.id, gone.id}
            lost = listed[gone.id]
            assert (lost.damaged, lost.complete, lost.vm_name, lost.taken_at) == (True, False, "db", gone.taken_at)
            assert "lost" in lost.reason
            assert repo.points(VmId("vm-2")) == [lost]
            assert repo.find("db@latest") == repo.find(gone.id[:-1]) == gone.id
            assert repo.latest(VmId("vm-2")) is None
            with pytest.raises(Damaged, match="manifest is gone"):
                repo.detail(gone.id)
            for points in (None, [gone.id]):
                (damage,) = verify(repo, points=points, now=later(hours=2)).damaged
                assert damage.points == (gone.id,)
            assert not repo.detail(kept.id).damaged
    assert f"restore point {gone.id} of db is lost" in caplog.text


def test_nothing_is_reclaimed_while_a_point_is_lost_until_a_person_gives_it_up(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        gone = back_up(repo, image(3, 20))
        old = back_up(repo, image(4, 20), vm="old")
        repo.expire(old.id, "old", later())
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        (location / manifest_key(gone.id)).unlink()
        with pytest.raises(Refused, match=f"lost.*{gone.id} of web.*--lost"):
            carry_out(repo, plan, MUCH_LATER)
        with pytest.raises(Refused, match="lost"):
            plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert len(files(location, "packs")) == 4
        sound = back_up(repo, image(12, 4), vm="sound")
        with pytest.raises(Refused, match="not lost"):
            repo.expire(sound.id, "mistaken", later(), lost=True)
        repo.expire(sound.id, "old", later())
        repo.mark_hold(gone.id, "find the file", later())
        with pytest.raises(Refused, match="lost, not old"):
            repo.expire(gone.id, "retention", later())
        with pytest.raises(Refused, match="held"):
            repo.expire(gone.id, "given up", later(), lost=True)
        repo.release(gone.id, None, later())
        repo.expire(gone.id, "given up", later(), lost=True)
        assert repo.points() == []
        assert carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS), MUCH_LATER).freed == 6
    with opened(location) as repo:
        assert repo.points() == []
    assert not files(location, "marks")


def test_a_manifest_that_comes_back_is_a_restore_point_again(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    disk = image(5, 20)
    with opened(location) as repo:
        point = back_up(repo, disk)
        rows = repo.catalog.rows()
    (location / "manifests").rename(tmp_path / "away")
    (location / "manifests").mkdir()
    with opened(location) as repo:
        assert [p.damaged for p in repo.points()] == [True]
    (location / "manifests").rmdir()
    (tmp_path / "away").rename(location / "manifests")
    with opened(location) as repo:
        assert repo.points() == [point]
        assert repo.catalog.rows() == rows
        assert read_back(repo, point.id) == disk
        (location / manifest_key(point.id)).rename(tmp_path / "aside")
        with pytest.raises(Refused):
            plan_reclaim(repo, MUCH_LATER, AGELESS)
        (tmp_path / "aside").rename(location / manifest_key(point.id))
        assert not plan_reclaim(repo, MUCH_LATER, AGELESS).condemn
        assert repo.points() == [point]
        assert repo.catalog.rows() == rows


def test_a_rebuilt_catalog_still_knows_of_the_loss(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        back_up(repo, image(6, 20))
        gone = back_up(repo, image(7, 20), vm="vm-2", name="db")
    (location / manifest_key(gone.id)).unlink()
    rebuild(location, now=later())
    with opened(location) as repo:
        rows, points = repo.catalog.rows(), repo.points()
        assert [p.id for p in points if p.damaged] == [gone.id]
        repo.catalog.rebuild()
        assert (repo.catalog.rows(), repo.points()) == (rows, points)


def test_a_mark_of_a_loss_that_cannot_be_read_still_stops_reclaim(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        gone = back_up(repo, image(8, 20))
    (location / manifest_key(gone.id)).unlink()
    with opened(location) as repo:
        repo.points()
    (mark,) = files(location, "marks")
    mark.write_bytes(mark.read_bytes()[:-1])
    (location / "catalog.duckdb").unlink()
    (location / "catalog.duckdb.wal").unlink(missing_ok=True)
    with opened(location) as repo, pytest.raises(Refused, match="lost"):
        plan_reclaim(repo, MUCH_LATER, AGELESS)


def test_an_expiry_that_the_catalog_missed_is_no_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        points = [back_up(repo, image(n, 10), at=later(hours=n)) for n in range(3)]
        repo.opened_catalog()._cursor().execute("DROP TABLE disks")
        repo.expire(points[0].id, "old", later())
        assert files(location, "marks"), "the tombstone explains it to the catalog"
        assert repo.points() == points[1:]
    with opened(location) as repo:
        assert repo.points() == points[1:]
        repo.catalog.checkpoint()
        assert not files(location, "marks")
    shutil.copy(location / "catalog.duckdb", tmp_path / "old")
    with opened(location) as repo:
        repo.expire(points[1].id, "old", later())
    shutil.copy(tmp_path / "old", location / "catalog.duckdb")
    (location / "catalog.duckdb.wal").unlink(missing_ok=True)
    caplog.clear()
    with opened(location) as repo:
        assert repo.points() == points[2:]
        assert not repo.lost_points()
    assert "older than the repository" in caplog.text
    (location / manifest_key(points[2].id)).unlink()
    with opened(location) as repo:
        assert [point.id for point in repo.lost_points()] == [points[2].id], "it is a witness again"


def test_a_loss_that_cannot_be_recorded_still_stops_reclaim(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        gone = back_up(repo, image(9, 10))
    (location / manifest_key(gone.id)).unlink()
    with opened(location, blobs=FaultyBlobs(location, 1, error=StoreFailed)) as repo:
        with pytest.raises(Refused, match="lost"):
            plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert not files(location, "marks")


def test_a_point_that_is_not_there_gets_no_mark(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(10, 10))
        repo.expire(point.id, "old", later())
        with pytest.raises(NoSuchPoint):
            repo.mark_hold(point.id, "too late", later())
        with pytest.raises(NoSuchPoint):
            repo.mark_lock(point.id, later(days=1), "too late", later())
    assert not files(location, "marks")


def test_a_hold_and_an_expiry_at_once_never_both_succeed(tmp_path: Path) -> None:
    from tests.storage_kit import in_threads

    with opened(make(tmp_path / "r")) as repo:
        for number in range(20):
            point = back_up(repo, image(11, 4), at=later(hours=number))

            def act(which: int, point: object = point) -> None:
                if which:
                    repo.mark_hold(point.id, "court", later())  # type: ignore[attr-defined]
                else:
                    repo.expire(point.id, "old", later())  # type: ignore[attr-defined]

            assert len(in_threads(act, 2)) == 1
            assert bool(repo.points()) == bool(repo.mark_state(point.id).holds)
            if repo.points():
                repo.release(point.id, None, later())
                repo.expire(point.id, "old", later())
    assert not files(tmp_path / "r", "marks")


def test_a_hold_that_vanished_is_put_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        held = back_up(repo, image(13, 10))
        free = back_up(repo, image(14, 10), at=later(hours=1))
        repo.mark_hold(held.id, "court", later())
        repo.mark_lock(held.id, later(days=9), "guard", later())
        repo.mark_hold(free.id, "mistaken", later())
        repo.release(free.id, None, later())
        points, rows = repo.points(), repo.catalog.rows()
    for mark in files(location, "marks"):
        mark.unlink()
    with opened(location) as repo:
        assert repo.points() == points
        with pytest.raises(Refused, match="court"):
            repo.expire(held.id, "old", later())
    assert "put back: court" in caplog.text
    with opened(location) as repo:
        assert repo.mark_state(held.id).locked_until == later(days=9)
        assert not repo.mark_state(free.id).holds
        repo.catalog.rebuild()
        assert repo.catalog.rows() == rows
