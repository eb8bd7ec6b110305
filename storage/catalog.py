"""The catalog: restore points, disks, marks, packs and chunks in DuckDB. Fast, queryable, rebuildable; never the truth.

Every change is one transaction. At open the catalog is compared with what the repository lists; what it lacks is
added, what is gone is removed, and whatever it cannot explain leads to a new catalog.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from policies.facts import PointId, RestorePoint, VmId
from storage import marks
from storage.catalog_doubt import Doubtful, is_full, is_trouble
from storage.catalog_file import CatalogFile
from storage.catalog_loading import Changes, Loader, Source, intact, known
from storage.catalog_rows import (
    JOIN,
    TABLES,
    VIEWS,
    disk_rows,
    lost_point,
    mark_of,
    mark_row,
    point_row,
    restore_point,
)
from storage.errors import NoSpace, StorageError, StoreFailed, Unsupported
from storage.failpoints import failpoint
from storage.marks import Mark, MarkKind

log = logging.getLogger(__name__)

SCHEMA = 3

VIEW_BATCH_ROWS = 50_000
PACKS_AT_ONCE = 4096
"""Packs that one transaction takes in when a catalog catches up: more cost memory, fewer leave holes in the file."""


class Catalog(CatalogFile):
    """One DuckDB file, owned by this process. A cursor per thread; one writer at a time."""

    def __init__(self, path: Path, spool: Path, source: Source) -> None:
        super().__init__(path, spool)
        self._source = source
        self._writing = threading.Lock()
        self.rebuilds: Counter[str] = Counter()  # by kind: missing, damaged, behind, old_schema
        self.witness = True  # a restore point that it alone knows did not just expire
        self._behind = False

    def open(self) -> None:
        """Open, compare with the repository and catch up; rebuild when in doubt. Unsupported if it is newer."""
        from storage import duckdb_engine as duckdb

        with self._writing:
            missing = not self._path.exists()
            remade = missing and bool(self._source.manifest_ids() - self._source.untold())
            try:
                self._connect()
                self._check_schema()
                self._catch_up()
                self.rebuilds["missing"] += remade
                return
            except (duckdb.Error, Doubtful, OSError) as error:
                if is_trouble(error):
                    self._stay_behind(missing, error)
                    return
                log.warning("catalog set aside and rebuilt: %s", error, extra={"path": str(self._path)})
                kind = error.kind if isinstance(error, Doubtful) else "damaged"
            try:
                self._quarantine()
                self._rebuild()
                self.rebuilds[kind] += 1
            except (duckdb.Error, OSError) as error:
                raise self._give_up(error) from error

    def rebuild(self) -> None:
        """Make the catalog again from the repository."""
        from storage import duckdb_engine as duckdb

        with self._writing:
            self._disconnect()
            try:
                for path in (self._path, self._wal()):
                    path.unlink(missing_ok=True)
                failpoint("catalog.removed")
                self._rebuild()
            except (duckdb.Error, OSError) as error:
                raise self._give_up(error) from error

    def apply(self, changes: Changes) -> bool:
        """Carry a change of the repository over; False when it could not be written: the next open catches up."""
        from storage import duckdb_engine as duckdb

        if self._db is None:
            self.open()
        with self._writing:
            try:
                if self._behind:
                    self._catch_up()
                self._apply(changes)
                return True
            except (duckdb.Error, OSError, StorageError) as error:
                log.warning("catalog behind, caught up at next open", extra={"why": str(error)})
                self._disconnect()
                return False

    def catch_up(self) -> None:
        """Compare an open catalog with the repository again, where other processes write it, too."""
        self._behind = True
        self.apply(Changes())

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one of our own statements. Opens again when a write failed, an instant ago in another thread, too."""
        from storage import duckdb_engine as duckdb

        for again in (True, False):
            if self._db is None:
                self.open()
            asked = self._db
            try:
                rows: list[tuple[Any, ...]] = self._cursor().execute(sql, list(parameters)).fetchall()
                return rows
            except (duckdb.Error, StoreFailed) as error:
                if not again or (asked is not None and self._db is asked):
                    raise StoreFailed(f"the catalog did not answer: {error}", where=str(self._path)) from error
        raise AssertionError("unreachable")

    def points(self, vm: VmId | None = None) -> list[RestorePoint]:
        """Restore points in the order of time, lost ones included."""
        where, parameters = ("WHERE vm = ?", [vm]) if vm is not None else ("", [])
        rows = self.query(
            "SELECT id, vm, vm_name, taken_at, complete, consistency, attributes, read_bytes, stored_bytes, disk_bytes,"
            " locked_until"
            f" FROM points {where} ORDER BY taken_at, id",
            parameters,
        )
        by_point: dict[str, list[Mark]] = {}
        for mark in map(mark_of, self.query("SELECT * FROM marks")):
            by_point.setdefault(mark.point, []).append(mark)
        found = [restore_point(row, marks.fold(by_point.get(row[0], ()))) for row in rows]
        there = {point.id for point in found}
        lost = {
            one.point: lost_point(one, marks.fold(of).vm)
            for of in by_point.values()
            for one in of
            if one.kind is MarkKind.LOST
        }
        missing = [one for one in lost.values() if one.id not in there and vm in (None, one.vm)]
        return sorted(found + missing, key=lambda point: (point.taken_at, point.id)) if missing else found

    def point_ids(self) -> set[PointId]:
        """The restore points that it has rows for."""
        return {row[0] for row in self.query("SELECT id FROM points")}

    def export_views(self) -> dict[str, Any]:
        """Arrow tables of all VIEWS, for read-only SQL elsewhere."""
        return {name: self.export_view(name).read_all() for name in VIEWS}

    def export_view(self, name: str) -> Any:
        """One of VIEWS as a reader of Arrow batches, in memory of a batch. Blocking; read it in one thread."""
        if self._db is None:
            self.open()
        return self._cursor().cursor().sql(VIEWS[name]).to_arrow_reader(VIEW_BATCH_ROWS)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table, sorted: what a rebuilt catalog must equal."""
        return {name: self.query(f"SELECT * FROM {name} ORDER BY ALL") for name in TABLES}

    def checkpoint(self) -> None:
        """Fold the write-ahead log in. For maintenance: it can take half a second."""
        self.query("CHECKPOINT")

    def close(self) -> None:
        """Close without a checkpoint."""
        with self._writing:
            self._disconnect()

    # --- opening ---

    def _check_schema(self) -> None:
        from storage import duckdb_engine as duckdb

        cursor = self._cursor()
        ask = "SELECT key, value FROM meta"
        try:
            rows = cursor.execute(ask).fetchall()
        except duckdb.CatalogException:
            if cursor.execute("SELECT 1 FROM duckdb_tables()").fetchall():
                raise Doubtful("damaged", "it is not a catalog") from None
            self._create()
            rows = cursor.execute(ask).fetchall()
        found = dict(rows)
        schema = int(found.get("schema", "0"))
        if schema > SCHEMA:
            self._disconnect()
            raise Unsupported(
                f"the catalog has schema {schema}, this version knows {SCHEMA}",
                where=str(self._path),
                hint="use a newer Backstay, or make the catalog anew: backstay catalog rebuild",
            )
        if schema < SCHEMA:
            raise Doubtful("old_schema", f"it has the older schema {schema}")
        if found.get("repository") != self._source.repository():
            raise Doubtful("damaged", "it is of another repository")

    def _create(self) -> None:
        cursor = self._cursor()
        cursor.execute("BEGIN")
        cursor.execute("CREATE TABLE meta (key VARCHAR, value VARCHAR)")
        cursor.execute("INSERT INTO meta VALUES ('schema', ?)", [str(SCHEMA)])
        cursor.execute("INSERT INTO meta VALUES ('repository', ?)", [self._source.repository()])
        for table, columns in TABLES.items():
            cursor.execute(f"CREATE TABLE {table} ({', '.join(f'{c} {t}' for c, t in columns.items())})")
        cursor.execute("COMMIT")

    def _catch_up(self) -> None:
        source, cursor = self._source, self._cursor()
        known_packs = {(number, pack) for number, pack in cursor.execute("SELECT number, id FROM packs").fetchall()}
        counted = cursor.execute(
            "SELECT (SELECT count(*) FROM chunks), (SELECT coalesce(sum(chunks), 0) FROM packs)"
        ).fetchone()
        if counted is None or counted[0] != counted[1]:
            raise Doubtful("behind", f"its chunks and packs disagree: {counted}")
        known_points = {row[0] for row in cursor.execute("SELECT id FROM points").fetchall()}
        known_marks = {row[0] for row in cursor.execute("SELECT name FROM marks").fetchall()}
        there = {(name.number, name.id.hex()): name for name in source.packs().values()}
        manifests, mark_keys, untold = source.manifest_ids(), source.mark_keys(), source.untold()
        gone, expiry, tombstones = known_points - manifests, source.latest_expiry(), source.tombstones()
        lost = untold - manifests - known_points - tombstones.keys()
        (seen,) = cursor.execute("SELECT value FROM meta WHERE key = 'expiry'").fetchone() or ("",)
        self.witness = seen == expiry or seen in tombstones.values()
        if self.witness:
            gone &= tombstones.keys()  # the rest did not just expire: it is lost, which the repository looks into
        elif gone:
            log.warning("catalog is older than the repository; it forgets %s", ", ".join(sorted(gone)))
        self._apply(Changes(gone_packs=[number for number, pack in known_packs if (number, pack) not in there]))
        fresh = [name for key, name in sorted(there.items()) if key not in known_packs]
        for start in range(0, len(fresh), PACKS_AT_ONCE):
            self._apply(Changes(packs=fresh[start : start + PACKS_AT_ONCE]))
        self._apply(
            Changes(
                manifests=[
                    *intact(source.manifest, sorted(manifests - known_points), source.readers),
                    *intact(source.untold_manifest, sorted(lost)),
                ],
                marks=list(intact(source.mark, sorted(mark_keys - known_marks), source.readers)),
                gone_points=sorted(gone),
                gone_marks=[key for key in sorted(known_marks - mark_keys) if not marks.lasts(key, manifests)],
                expiry=None if self.witness else expiry,
            )
        )
        self._behind, self.witness = False, True
        if self._lasting:
            source.told(untold)

    def _stay_behind(self, missing: bool, error: Exception) -> None:
        """The store cannot be written: what the catalog knows is better than nothing, and it is no worse for it.

        On a read-only file system one that lacks restore points is made in memory, if that suffices.
        """
        from storage import duckdb_engine as duckdb

        self._disconnect()
        read_only = "Read-only file system" in str(error)
        if missing:
            if read_only and self._open_in_memory():
                return
            raise self._give_up(error) from error
        log.error("catalog behind: %s", error)
        try:
            self._connect(read_only=read_only)
            self._check_schema()
            if read_only and self._source.manifest_ids() - self.point_ids():
                if self._open_in_memory():
                    return
                self._connect(read_only=True)
        except duckdb.Error as again:
            self._disconnect()
            kind = NoSpace if is_full(again) else StoreFailed
            raise kind(f"the catalog cannot be opened: {again}", where=str(self._path)) from again
        self._behind = True

    def _open_in_memory(self) -> bool:
        """A catalog of what the repository has, until this process ends; False if its memory does not suffice."""
        from storage import duckdb_engine as duckdb

        self._disconnect()
        try:
            self._connect(lasting=False)
            self._create()
            self._catch_up()
        except duckdb.Error as error:
            log.warning("catalog not made in memory: %s", error)
            self._disconnect()
            return False
        return True

    def _give_up(self, error: Exception) -> StorageError:
        """Remove what was begun; the error to raise."""
        self._disconnect()
        self.witness = False
        with suppress(OSError):
            for path in (self._path, self._wal()):
                path.unlink(missing_ok=True)
        kind = NoSpace if is_full(error) else StoreFailed
        return kind(f"the catalog could not be made again: {error}", where=str(self._path))

    def _rebuild(self) -> None:
        self._connect()
        self._create()
        failpoint("catalog.created")
        self._cursor().execute("SET checkpoint_threshold = '1TB'")  # each one in between would leave holes
        self._catch_up()
        self._cursor().execute("RESET checkpoint_threshold")
        failpoint("catalog.caught_up")
        self._cursor().execute("CHECKPOINT")
        failpoint("catalog.checkpointed")

    # --- writing ---

    def _apply(self, changes: Changes) -> None:
        from storage import duckdb_engine as duckdb

        if changes.empty:
            return
        cursor = self._cursor()
        cursor.execute("BEGIN")
        try:
            for table, column, gone in (
                ("chunks", "pack", changes.gone_packs),
                ("packs", "number", changes.gone_packs),
                ("disks", "point", changes.gone_points),
                ("points", "id", changes.gone_points),
                ("marks", "name", changes.gone_marks),
            ):
                if gone:
                    cursor.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT unnest(?))", [list(gone)])
            # An opening catalog may have seen the very change that is now told: everything is added once.
            if self._packs is None:
                self._packs = {row[0] for row in cursor.execute("SELECT number FROM packs").fetchall()}
            packs = self._packs.difference(changes.gone_packs) if changes.gone_packs else self._packs
            fresh = [name for name in changes.packs if name.number not in packs]
            points = known(cursor, "points", "id", [manifest.id for manifest in changes.manifests])
            names = known(cursor, "marks", "name", [mark.key for mark in changes.marks])
            manifests = [manifest for manifest in changes.manifests if manifest.id not in points]
            load = Loader(cursor, self._spool if self._lasting else None)
            loaded = load.packs(intact(self._source.footer, fresh))
            load.rows("points", [point_row(manifest) for manifest in manifests])
            load.rows("disks", [row for manifest in manifests for row in disk_rows(manifest)])
            load.rows("marks", [mark_row(mark) for mark in changes.marks if mark.key not in names])
            if changes.manifests or any(mark.kind is MarkKind.JOINED for mark in changes.marks):
                cursor.execute(JOIN)
            if changes.expiry is not None:
                cursor.execute("DELETE FROM meta WHERE key = 'expiry'")
                cursor.execute("INSERT INTO meta VALUES ('expiry', ?)", [changes.expiry])
            failpoint("catalog.before_commit")
            cursor.execute("COMMIT")
            packs |= loaded
            self._packs = packs
            failpoint("catalog.committed")
        except BaseException:
            self._packs = None
            with suppress(duckdb.Error):  # a failed COMMIT has ended the transaction
                cursor.execute("ROLLBACK")
            raise
