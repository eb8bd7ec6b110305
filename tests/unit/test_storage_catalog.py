from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest

from policies.facts import VmId
from storage import catalog, catalog_loading, catalog_rows
from storage.errors import Unsupported
from storage.rebuild import rebuild
from storage.repository import PointHead
from tests.storage_kit import NOW, back_up, changed, image, later, make, opened, read_back

Rows = dict[str, list[tuple[Any, ...]]]


def _filled(location: Path, *, encrypted: bool = False) -> Rows:
    disk = image(1, 80)
    with opened(make(location, encrypted=encrypted)) as repo:
        one = back_up(repo, disk, name='quotes "and, commas\nand lines')
        two = back_up(repo, changed(disk, 2, [3]), base=one.id, blocks=[3], at=later(hours=1))
        gone = back_up(repo, image(3, 10), vm="vm-2")
        repo.mark_hold(two.id, "court, \\N and 'quotes'", NOW)
        repo.mark_lock(two.id, later(days=1), "lock", NOW)
        repo.expire(gone.id, "old", NOW)
        with repo.new_point(PointHead(VmId("vm-3"), "abandoned", NOW)) as pending:
            pending.configuration(b"never committed")
        return repo.catalog.rows()


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_rebuilt_catalog_equals_the_old_one_row_for_row(tmp_path: Path, encrypted: bool) -> None:
    rows = _filled(tmp_path / "r", encrypted=encrypted)
    assert all(rows.values())
    report = rebuild(tmp_path / "r", now=NOW, passphrase=lambda: "correct horse")
    assert (report.points, report.packs) == (2, len(rows["packs"]))
    with opened(tmp_path / "r") as repo:
        repo.opened_catalog()
        assert repo.catalog.rows() == rows


def test_many_rows_take_the_way_of_arrays_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _filled(tmp_path / "r")
    monkeypatch.setattr(catalog_loading, "ARRAYS_FROM", 1)
    rebuild(tmp_path / "r", now=NOW)
    with opened(tmp_path / "r") as repo:
        repo.opened_catalog()
        assert repo.catalog.rows() == rows


def test_a_deleted_catalog_comes_back_by_itself(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "r")
    for path in (tmp_path / "r").glob("catalog.duckdb*"):
        path.unlink()
    with opened(tmp_path / "r") as repo:
        repo.points()
        assert repo.catalog.rows() == rows


def test_a_write_ahead_log_cut_anywhere_is_caught_up(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "r")
    wal = (tmp_path / "r" / "catalog.duckdb.wal").read_bytes()
    assert wal
    chance = random.Random(4)
    for cut in [0, 1, len(wal) - 1, *(chance.randrange(len(wal)) for _ in range(8))]:
        trial = tmp_path / "trial"
        shutil.copytree(tmp_path / "r", trial)
        (trial / "catalog.duckdb.wal").write_bytes(wal[:cut])
        with opened(trial) as repo:
            repo.points()
            assert repo.catalog.rows() == rows, f"cut at {cut}"
        shutil.rmtree(trial)


def test_a_corrupt_catalog_is_set_aside_loudly_and_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = _filled(tmp_path / "r")
    for name in ("catalog.duckdb.wal", "catalog.duckdb"):
        trial = tmp_path / name
        shutil.copytree(tmp_path / "r", trial)
        data = bytearray((trial / name).read_bytes())
        for place in range(20, len(data), 50):
            data[place] ^= 0x55
        (trial / name).write_bytes(data)
        caplog.clear()
        with opened(trial) as repo:
            repo.points()
            assert repo.catalog.rows() == rows
        assert "catalog set aside and rebuilt" in caplog.text
        assert list(trial.glob("catalog.duckdb*.corrupt-*"))


def test_a_newer_schema_is_refused_and_an_older_one_rebuilt(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "r")
    for schema, refused in ((catalog.SCHEMA + 1, True), (catalog.SCHEMA - 1, False)):
        with duckdb.connect(str(tmp_path / "r" / "catalog.duckdb")) as db:
            db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", [str(schema)])
        with opened(tmp_path / "r") as repo:
            if refused:
                with pytest.raises(Unsupported, match="newer Backstay"):
                    repo.points()
            else:
                repo.points()
                assert repo.catalog.rows() == rows


def test_a_rebuild_makes_a_catalog_anew_whatever_schema_it_has(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "r")
    with duckdb.connect(str(tmp_path / "r" / "catalog.duckdb")) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", [str(catalog.SCHEMA + 1)])
        db.execute("ALTER TABLE points RENAME COLUMN vm TO machine")
    report = rebuild(tmp_path / "r", now=NOW)
    assert report.points == len(rows["points"])
    with opened(tmp_path / "r") as repo:
        repo.points()
        assert repo.catalog.rows() == rows


def test_a_catalog_that_lacks_many_packs_takes_them_in_by_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _filled(tmp_path / "r")
    monkeypatch.setattr("storage.catalog.PACKS_AT_ONCE", 1)
    rebuild(tmp_path / "r", now=NOW)
    with opened(tmp_path / "r") as repo:
        repo.points()
        assert repo.catalog.rows() == rows


def test_the_chunks_of_many_small_packs_are_added_by_one_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    class Cursor:
        def __init__(self, cursor: Any) -> None:
            self._cursor = cursor

        def execute(self, statement: str, *values: Any) -> Any:
            if statement == catalog_rows.LOAD_CHUNKS:
                texts.extend(values[0])
            return self._cursor.execute(statement, *values)

    loader = catalog_loading.Loader
    monkeypatch.setattr(catalog, "Loader", lambda cursor, spool: loader(Cursor(cursor), spool))
    with opened(make(tmp_path / "r")) as repo:
        for number in range(5):
            back_up(repo, image(number, 3), vm=f"vm-{number}", at=later(hours=number))
        rows = repo.catalog.rows()
    texts.clear()
    rebuild(tmp_path / "r", now=NOW)
    with opened(tmp_path / "r") as repo:
        assert repo.opened_catalog().rows() == rows
        footers = [repo.store.footer_of(number) for number in sorted(repo.store.live)]
    assert texts == ["\n".join(catalog_rows.hex_entries(footer) for footer in footers if footer)]
    assert texts[0].count("\n") >= 9


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE meta SET value = '0' WHERE key = 'schema'", "old_schema"),
        ("DELETE FROM chunks", "behind"),
        ("DROP TABLE points", "damaged"),
        ("", "missing"),
    ],
)
def test_a_catalog_that_is_made_again_counts_why(tmp_path: Path, statement: str, kind: str) -> None:
    _filled(tmp_path / "r")
    if statement:
        with duckdb.connect(str(tmp_path / "r" / "catalog.duckdb")) as db:
            db.execute(statement)
    else:
        for path in (tmp_path / "r").glob("catalog.duckdb*"):
            path.unlink()
    with opened(tmp_path / "r") as repo:
        repo.points()
        assert +repo.catalog.rebuilds == {kind: 1}
    with opened(tmp_path / "r") as repo:
        repo.points()
        assert not +repo.catalog.rebuilds


def test_an_older_catalog_put_back_is_caught_up(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    disk = image(5, 30)
    with opened(location) as repo:
        gone = back_up(repo, disk)
        repo.catalog.checkpoint()
    shutil.copy(location / "catalog.duckdb", tmp_path / "old")
    with opened(location) as repo:
        back_up(repo, changed(disk, 6, [1]), at=later(hours=1))
        repo.expire(gone.id, "old", NOW)
        rows = repo.catalog.rows()
    shutil.copy(tmp_path / "old", location / "catalog.duckdb")
    (location / "catalog.duckdb.wal").unlink(missing_ok=True)
    with opened(location) as repo:
        assert len(repo.points()) == 1
        assert repo.catalog.rows() == rows


def test_the_catalog_opens_with_the_older_duckdb_too(tmp_path: Path) -> None:
    _filled(tmp_path / "r")
    with duckdb.connect(str(tmp_path / "r" / "catalog.duckdb")) as db:
        (tags,) = db.execute("SELECT tags FROM duckdb_databases() WHERE database_name = 'catalog'").fetchone() or ("",)
        assert "v1.5" in str(tags)


def test_a_commit_outlives_a_catalog_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = image(7, 20)
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, disk)
        repo.opened_catalog()._cursor().execute("DROP TABLE disks")
        point = back_up(repo, changed(disk, 8, [2]), at=later(hours=1))
        assert "catalog behind" in caplog.text
        assert [p.id for p in repo.points()][-1] == point.id
        assert read_back(repo, point.id) == changed(disk, 8, [2])
        assert len(repo.catalog.rows()["disks"]) == 2


def test_a_catalog_that_another_thread_closes_after_a_failed_write_answers_and_stays_behind_at_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, image(7, 20))
        whole, opening = repo.catalog, type(repo.catalog).open
        closed: list[str] = []

        def closed_at_once() -> None:
            opening(whole)
            if not closed:
                closed.append("by another thread")
                whole.close()

        monkeypatch.setattr(whole, "open", closed_at_once)
        whole.close()
        assert [p.id for p in whole.points()] == [point.id]
        assert closed.pop()
        whole.close()
        assert whole.apply(catalog_loading.Changes(gone_points=[point.id])) is False
        assert closed
        assert [p.id for p in whole.points()] == [point.id]


def test_a_catalog_that_others_close_and_open_again_within_a_question_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, image(7, 20))
        whole, given = repo.opened_catalog(), type(repo.catalog)._cursor
        another: list[threading.Thread] = []

        def replaced() -> None:
            whole.close()
            whole.open()

        def closed_meanwhile(catalog: catalog.Catalog) -> Any:
            cursor = given(catalog)
            if not another:
                another.append(threading.Thread(target=replaced))
                another[0].start()
                another[0].join()
            return cursor

        monkeypatch.setattr(type(whole), "_cursor", closed_meanwhile)
        assert [p.id for p in whole.points()] == [point.id]
        assert another


def test_threads_ask_beside_each_other(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        expected = [back_up(repo, image(9, 5), at=later(hours=n)).id for n in range(5)]
        wrong: list[object] = []

        def ask() -> None:
            found = [[point.id for point in repo.points()] for _ in range(50)]
            wrong.extend(ids for ids in found if ids != expected)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_views_are_arrow_tables(tmp_path: Path) -> None:
    _filled(tmp_path / "r")
    with opened(tmp_path / "r") as repo:
        views = repo.opened_catalog().export_views()
        assert set(views) == {"restore_points", "vms", "disks", "packs", "chunks", "marks"}
        assert views["restore_points"].num_rows == 2
        assert views["vms"].column("restore_points").to_pylist() == [2]
        assert len(views["chunks"].column("id")[0].as_py()) == 64
