"""The catalog's connection to its DuckDB file, or to memory alone."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import StoreFailed
from storage.failpoints import failpoint

STORAGE_VERSION = "v1.5.0"
MEMORY_LIMIT = "160MB"


class CatalogFile:
    """One connection and a cursor of it for each thread."""

    def __init__(self, path: Path, spool: Path) -> None:
        self._path = path
        self._spool = spool
        self._local = threading.local()
        self._lasting = True  # not in memory alone
        self._packs: set[int] | None = None  # numbers of those it has; none when that has to be asked
        self._db: Any = None  # duckdb is imported late: a tenth of a second

    def _wal(self) -> Path:
        return self._path.with_name(self._path.name + ".wal")

    def _connect(self, *, read_only: bool = False, lasting: bool = True) -> None:
        from storage import duckdb_engine as duckdb

        self._lasting = lasting
        self._db = duckdb.connect(
            str(self._path) if lasting else ":memory:",
            read_only=read_only,
            config={
                "storage_compatibility_version": STORAGE_VERSION,
                "threads": 2,
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(self._spool),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._local = threading.local()
        self._db.execute("PRAGMA disable_checkpoint_on_shutdown")
        failpoint("catalog.connected")

    def _disconnect(self) -> None:
        if self._db is not None:
            from storage import duckdb_engine as duckdb

            with suppress(duckdb.Error):
                self._db.close()
            self._db = self._packs = None
            self._local = threading.local()

    def _cursor(self) -> Any:
        local = self._local  # of the connection that is open now: another thread may open the next one meanwhile
        cursor = getattr(local, "cursor", None)
        if cursor is None:
            db = self._db
            if db is None:  # a thread whose write failed has closed it
                raise StoreFailed("the catalog is closed", where=str(self._path))
            cursor = local.cursor = db.cursor()
        return cursor

    def _quarantine(self) -> None:
        self._disconnect()
        suffix = f".corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        for path in (self._path, self._wal()):
            if path.exists():
                path.rename(path.with_name(path.name + suffix))
                failpoint("catalog.set_aside")
