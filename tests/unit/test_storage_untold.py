"""A restore point that is committed while the catalog is closed: nothing may differ for whoever opens it later."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from storage import catalog, untold
from storage.errors import NoSpace, StorageError, StoreFailed
from storage.rebuild import rebuild
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.verify import verify
from tests.storage_kit import PASSPHRASE, FaultyBlobs, back_up, changed, files, image, later, make, opened, read_back


def notes(location: Path) -> list[str]:
    return [path.name for path in files(location, "untold")]


def test_a_closed_catalog_finds_a_note_and_takes_it_in(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    with opened(location) as repo:
        point = back_up(repo, image(1, 40))
        assert not (location / "catalog.duckdb").exists()
        assert notes(location) == [point.id]
        assert repo.points() == [point]
        assert notes(location) == []
        after = back_up(repo, image(2, 40), at=later(hours=1))
        assert notes(location) == [], "an open catalog is told"
        assert repo.points() == [point, after]
        assert not repo.catalog.rebuilds.total(), "that it was never made is no damage"
        rows = repo.catalog.rows()
    rebuild(location, now=later(), passphrase=lambda: PASSPHRASE)
    with opened(location) as repo:
        assert repo.opened_catalog().rows() == rows


def test_a_backup_by_command_loads_no_duckdb(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), tmp_path / "disk.img"
    disk.write_bytes(image(3, 60))
    arguments = ["disk", "backup", str(disk), "--repo", str(location), "--name", "web"]
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*[name for name in sys.modules if 'duckdb' in name], file=sys.stderr))\n"
        "from engine.__main__ import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
    assert "duckdb" not in done.stderr
    with opened(location) as repo:
        (point,) = repo.points()
        assert read_back(repo, point.id, "disk") == disk.read_bytes()


def test_a_manifest_that_vanishes_before_the_catalog_heard_of_it_is_a_loss(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        kept = back_up(repo, image(4, 20))
    with opened(location) as repo:
        gone = back_up(repo, image(5, 20), vm="vm-2", name="db", at=later(hours=1))
    (location / "manifests" / gone.id).unlink()
    (location / "catalog.duckdb").unlink(missing_ok=True)
    for _ in range(2):
        with opened(location) as repo:
            lost = {point.id: point for point in repo.points()}[gone.id]
            assert (lost.damaged, lost.vm_name, lost.taken_at) == (True, "db", gone.taken_at)
            assert [damage.points for damage in verify(repo, points=[gone.id], now=later(hours=2)).damaged] == [
                (gone.id,)
            ]
            assert not repo.detail(kept.id).damaged


def test_a_manifest_that_is_damaged_before_the_catalog_heard_of_it_still_has_its_vm(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(6, 20))
    path = location / "manifests" / point.id
    path.write_bytes(path.read_bytes()[:-40])
    with opened(location) as repo:
        assert [(one.id, one.vm_name) for one in repo.points()] == [(point.id, "web")]
        (damage,) = verify(repo, now=later(hours=1)).damaged
        assert damage.vms == ("web",)


def test_what_expired_before_the_catalog_heard_of_it_is_no_loss(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        first = back_up(repo, image(7, 20))
        second = back_up(repo, image(8, 20), at=later(hours=1))
    with opened(location) as repo:
        repo.expire(first.id, "old", later(hours=2))
        assert notes(location) == []
        assert repo.points() == [second]
        assert repo.lost_points() == []
    with opened(location) as repo:
        assert repo.lost_points() == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", range(1, 12))
def test_an_expiry_that_fails_half_way_leaves_no_loss_and_no_note(tmp_path: Path, step: int, late: bool) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        old = back_up(repo, image(9, 20))
    probe = FaultyBlobs(location, -1, late=late)
    with opened(location, blobs=probe):
        before = probe.operations
    blobs = FaultyBlobs(location, before + step, late=late, once=True)
    with suppress(StorageError), opened(location, blobs=blobs) as repo:
        repo.expire(old.id, "old", later(hours=1))
    assert blobs.fired
    for _ in range(2):
        with opened(location) as repo:
            assert repo.points() in ([], [old])
            assert repo.lost_points() == []
            assert notes(location) == []


def test_a_note_that_cannot_be_written_costs_no_restore_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location, disk = make(tmp_path / "r"), image(10, 20)
    with opened(location) as repo, monkeypatch.context() as full:
        put = repo.private.put

        def refusing(key: str, data: bytes) -> None:
            if key.startswith(untold.PREFIX):
                raise NoSpace("the disk is full", where=key)
            put(key, data)

        full.setattr(repo.private, "put", refusing)
        point = back_up(repo, disk)
    assert "catalog behind" in caplog.text
    with opened(location) as repo:
        assert repo.points() == [point]
        assert read_back(repo, point.id) == disk


def test_a_note_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        kept, gone = back_up(repo, image(11, 20)), back_up(repo, image(12, 20), at=later(hours=1))
    (location / "manifests" / gone.id).unlink()
    (location / "untold" / gone.id).write_bytes(b"BKST")
    with opened(location) as repo:
        assert repo.points() == [kept]
    assert "object left out of the catalog" in caplog.text


def test_a_commit_while_another_thread_opens_the_catalog_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = image(13, 20)
    with opened(make(tmp_path / "r")) as repo:
        first = back_up(repo, disk)
        compared, opening = threading.Event(), catalog.Catalog.open

        def slow(one: catalog.Catalog) -> None:
            opening(one)
            compared.set()
            committing.join(0.5)

        monkeypatch.setattr(catalog.Catalog, "open", slow)

        def commit() -> None:
            compared.wait()
            back_up(repo, changed(disk, 14, [3]), at=later(hours=1))

        committing = threading.Thread(target=commit)
        committing.start()
        assert first in repo.points()
        committing.join()
        assert len(repo.points()) == 2
        assert notes(repo.work) == []


def test_reclaim_reaches_what_the_catalog_was_not_told_of(tmp_path: Path) -> None:
    location, disk = make(tmp_path / "r"), image(15, 40)
    with opened(location) as repo:
        point = back_up(repo, disk)
    with opened(location) as repo:
        carry_out(repo, plan_reclaim(repo, later(days=99), SafetyAges(timedelta(0), timedelta(0))), later(days=99))
        assert read_back(repo, point.id) == disk


def test_a_tombstone_outlives_a_note_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        old = back_up(repo, image(16, 20))
    with opened(location) as repo, monkeypatch.context() as stuck:
        delete = repo.private.delete

        def refusing(key: str) -> None:
            if key.startswith(untold.PREFIX):
                raise StoreFailed("input/output error", where=key)
            delete(key)

        stuck.setattr(repo.private, "delete", refusing)
        repo.expire(old.id, "old", later(hours=1))
        assert notes(location) == [old.id]
    for _ in range(2):
        with opened(location) as repo:
            assert repo.points() == []
            assert repo.lost_points() == []
            assert notes(location) == []
            assert not files(location, "marks")
