"""Rows into the catalog's tables, each amount by the way that is fastest for it."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from policies.facts import PointId
from storage import randomness
from storage.catalog_rows import LOAD_CHUNKS, TABLES, Row, chunk_arrays, hex_entries, pack_row
from storage.errors import StorageError
from storage.format import PackName
from storage.manifest import Manifest
from storage.marks import Mark
from storage.pack import Footer

ARRAYS_FROM = 60_000
"""From so many rows on, numpy's import time is paid back."""

BATCH_CHUNKS = 400_000
FEW_ROWS = 30
TOLD_ONE_BY_ONE = 20

log = logging.getLogger(__name__)


class Source(Protocol):
    """The repository, as the catalog asks it."""

    readers: int
    """How many manifests or marks are asked for at once."""

    def packs(self) -> dict[int, PackName]: ...
    def footer(self, name: PackName) -> Footer: ...
    def manifest_ids(self) -> set[PointId]: ...
    def manifest(self, point: PointId) -> Manifest: ...
    def mark_keys(self) -> set[str]: ...
    def mark(self, key: str) -> Mark: ...
    def tombstones(self) -> dict[PointId, str]: ...
    def latest_expiry(self) -> str: ...
    def untold(self) -> set[PointId]: ...
    def untold_manifest(self, point: PointId) -> Manifest: ...
    def told(self, points: Collection[PointId]) -> None: ...
    def repository(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What one transaction adds and removes. `expiry` is the key of the latest expiry's tombstone."""

    packs: Sequence[PackName] = ()
    manifests: Sequence[Manifest] = ()
    marks: Sequence[Mark] = ()
    gone_packs: Sequence[int] = ()
    gone_points: Sequence[PointId] = ()
    gone_marks: Sequence[str] = ()
    expiry: str | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to carry over."""
        added, gone = (self.packs, self.manifests, self.marks), (self.gone_packs, self.gone_points, self.gone_marks)
        return self.expiry is None and not any((*added, *gone))


class Loader:
    """Adds rows within the transaction that a cursor has begun; larger amounts by way of a file in `spool`, if any."""

    def __init__(self, cursor: Any, spool: Path | None) -> None:
        self._cursor = cursor
        self._spool = spool

    def packs(self, footers: Iterable[Footer]) -> set[int]:
        """Packs and their chunks; returns the packs' numbers."""
        batch: list[Footer] = []
        total = 0
        loaded: set[int] = set()
        for footer in footers:
            loaded.add(footer.name.number)
            batch.append(footer)
            total += len(footer)
            if total >= BATCH_CHUNKS:
                self._packs(batch, total)
                batch, total = [], 0
        self._packs(batch, total)
        return loaded

    def rows(self, table: str, rows: Sequence[Row]) -> None:
        """Rows of any table."""
        if len(rows) > FEW_ROWS and self._spool is not None:
            with self._csv(self._spool, table) as write:
                for row in rows:
                    write(row)
        elif rows:
            marks = ", ".join("?" * len(TABLES[table]))
            for row in rows:
                self._cursor.execute(f"INSERT INTO {table} VALUES ({marks})", list(row))

    def _packs(self, footers: Sequence[Footer], total: int) -> None:
        if total >= ARRAYS_FROM or (total > 2000 and "numpy" in sys.modules):
            self._cursor.register("chunk_arrays", chunk_arrays(footers))
            self._cursor.execute("INSERT INTO chunks SELECT * FROM chunk_arrays")
            self._cursor.unregister("chunk_arrays")
        elif total:
            lines = [hex_entries(footer) for footer in footers if len(footer)]
            self._cursor.execute(LOAD_CHUNKS, ["\n".join(lines)])
        self.rows("packs", [pack_row(footer) for footer in footers])

    @contextmanager
    def _csv(self, spool: Path, table: str) -> Iterator[Callable[[Row], object]]:
        """Rows written here are loaded at the end: the fastest way in for a short process."""
        path = spool / f"{randomness.token_hex(8)}.csv"
        try:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
                yield lambda row: writer.writerow(["\\N" if value is None else value for value in row])
            columns = json.dumps(TABLES[table])
            self._cursor.execute(
                f"INSERT INTO {table} SELECT * FROM read_csv('{path.as_posix().replace(chr(39), chr(39) * 2)}',"
                f" columns = {columns}, header = false, auto_detect = false, delim = ',', quote = '\"',"
                " escape = '\"', nullstr = '\\N', parallel = false)"
            )
        finally:
            path.unlink(missing_ok=True)


def known(cursor: Any, table: str, column: str, keys: Sequence[str]) -> set[str]:
    """Those of these keys that a table has."""
    if not keys:
        return set()
    if len(keys) > FEW_ROWS:
        return {row[0] for row in cursor.execute(f"SELECT {column} FROM {table}").fetchall()}
    rows = cursor.execute(f"SELECT {column} FROM {table} WHERE {column} IN (SELECT unnest(?))", [list(keys)]).fetchall()
    return {row[0] for row in rows}


def intact(load: Callable[[Any], Any], keys: Iterable[Any], readers: int = 1) -> Iterator[Any]:
    """What can be read; what cannot is left to verify, and told. Several readers are for a store that is far away."""
    left_out = 0
    for key, found in _loaded(load, keys, readers):
        if not isinstance(found, StorageError):
            yield found
        else:
            error = found
            left_out += 1
            if left_out <= TOLD_ONE_BY_ONE:
                log.warning("object left out of the catalog", extra={"object": str(key), "why": str(error)})
    if left_out > TOLD_ONE_BY_ONE:
        log.warning("%d objects left out of the catalog", left_out)


def _loaded(load: Callable[[Any], Any], keys: Iterable[Any], readers: int) -> Iterator[tuple[Any, Any]]:
    """Each key with what it stands for, or with the error that kept it from being read, in order."""

    def tried(key: Any) -> Any:
        try:
            return load(key)
        except StorageError as error:
            return error

    if readers == 1:
        yield from ((key, tried(key)) for key in keys)
        return
    with ThreadPoolExecutor(readers, "catalog reader") as pool:
        waiting: deque[tuple[Any, Future[Any]]] = deque()
        for key in keys:
            waiting.append((key, pool.submit(tried, key)))
            if len(waiting) >= 4 * readers:
                first, found = waiting.popleft()
                yield first, found.result()
        while waiting:
            first, found = waiting.popleft()
            yield first, found.result()
