"""The tables of the engine's state, and how its DuckDB file is opened, refused, migrated or put aside.

Times are UTC without a zone. There are no keys or indexes: one thread writes, and looks before it inserts.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from storage.errors import Locked, NoSpace, StorageError, StoreFailed, Unsupported, no_permission
from storage.filecalls import translated

log = logging.getLogger("engine.state")

SCHEMA = 4
FILE_NAME = "state.duckdb"

TABLES = (
    "CREATE TABLE meta (name VARCHAR, value VARCHAR)",
    """CREATE TABLE events (key VARCHAR, type VARCHAR, happened_at TIMESTAMP, source VARCHAR, vm VARCHAR,
       vm_name VARCHAR, vcenter VARCHAR, moref VARCHAR, cause VARCHAR, from_host VARCHAR, to_host VARCHAR,
       user_name VARCHAR, detail VARCHAR, reconciled BOOLEAN, journaled_at TIMESTAMP)""",
    """CREATE TABLE decisions (event_key VARCHAR, kind VARCHAR, vm VARCHAR, policy VARCHAR, rule VARCHAR,
       reason VARCHAR, policy_hash VARCHAR, job VARCHAR, decided_at TIMESTAMP, policy_commit VARCHAR)""",
    """CREATE TABLE jobs (id VARCHAR, key VARCHAR, kind VARCHAR, vm VARCHAR, policy VARCHAR, rule VARCHAR,
       reason VARCHAR, created_at TIMESTAMP, not_before TIMESTAMP, deadline TIMESTAMP, priority INTEGER,
       consistency VARCHAR, fallback VARCHAR, transports VARCHAR, policy_hash VARCHAR, event_key VARCHAR,
       manual BOOLEAN, state VARCHAR, attempts INTEGER, last_error VARCHAR, run VARCHAR, point VARCHAR,
       settled_at TIMESTAMP, event_type VARCHAR, event_at TIMESTAMP, policy_commit VARCHAR)""",
    "CREATE TABLE fired (policy VARCHAR, rule VARCHAR, vm VARCHAR, fired_at TIMESTAMP)",
    """CREATE TABLE vms (id VARCHAR, name VARCHAR, vcenter VARCHAR, moref VARCHAR, instance_uuid VARCHAR,
       bios_uuid VARCHAR, disk_uuids VARCHAR, accounted VARCHAR, first_seen TIMESTAMP, left_at TIMESTAMP)""",
    """CREATE TABLE runs (vm VARCHAR, last_success TIMESTAMP, last_attempt TIMESTAMP, last_failure VARCHAR,
       consecutive_failures INTEGER)""",
    "CREATE TABLE distrust (vm VARCHAR, reason VARCHAR, event_key VARCHAR, since TIMESTAMP, reset BOOLEAN)",
    """CREATE TABLE intents (run VARCHAR, kind VARCHAR, vcenter VARCHAR, moref VARCHAR, vm VARCHAR, name VARCHAR,
       intended_at TIMESTAMP)""",
    "CREATE TABLE cursors (vcenter VARCHAR, reached_at TIMESTAMP, key BIGINT, seen BIGINT[])",
    "CREATE TABLE audit (done_at TIMESTAMP, who VARCHAR, action VARCHAR, subject VARCHAR, detail VARCHAR)",
    """CREATE TABLE rehearsals (vm VARCHAR, point VARCHAR, began_at TIMESTAMP, seconds DOUBLE, passed BOOLEAN,
       why VARCHAR, policy VARCHAR, counts BOOLEAN, compared_bytes BIGINT, heartbeat_seconds DOUBLE)""",
    "CREATE TABLE policy_files (name VARCHAR, text VARCHAR, accepted_at TIMESTAMP, who VARCHAR, policy_commit VARCHAR)",
)

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE decisions ADD COLUMN policy_commit VARCHAR DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN event_type VARCHAR DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN event_at TIMESTAMP",
        "ALTER TABLE jobs ADD COLUMN policy_commit VARCHAR DEFAULT ''",
        "ALTER TABLE policy_files ADD COLUMN policy_commit VARCHAR DEFAULT ''",
    ),
    2: (
        """CREATE TABLE rehearsals (vm VARCHAR, point VARCHAR, began_at TIMESTAMP, seconds DOUBLE, passed BOOLEAN,
           why VARCHAR, policy VARCHAR, counts BOOLEAN, compared_bytes BIGINT, heartbeat_seconds DOUBLE)""",
    ),
    3: ("ALTER TABLE distrust ADD COLUMN reset BOOLEAN DEFAULT false",),
}
"""From a schema number, the statements that lead to the next one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open state. `fresh` when it starts empty, with the sentence that says why."""

    connection: duckdb.DuckDBPyConnection
    path: Path
    fresh: bool
    why_fresh: str = ""


def translate(error: duckdb.Error, path: Path) -> StorageError:
    """DuckDB's error as one of ours."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "No space left" in text or "disk full" in text.lower():
        return NoSpace(
            "the engine's state cannot be written: the disk is full", where=str(path), hint="free some space"
        )
    if "lock" in text.lower() and (holder := re.search(r"PID (\d+)", str(error))):
        return Locked(
            f"the engine's state is in use by process {holder[1]}",
            where=str(path),
            hint="one engine per state directory: stop the other or choose another state_dir",
        )
    if "Permission denied" in text:
        return no_permission(PermissionError(errno.EACCES, "Permission denied", str(path)), str(path))
    return StoreFailed(f"the engine's state does not answer: {text}", where=str(path))


def sync_directory(directory: Path) -> None:
    """Make names created in the directory durable, which DuckDB does not do."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_database(state_dir: Path, *, now: datetime) -> Opened:
    """Open or create the state.

    A newer schema raises Unsupported, a held file Locked. A file that cannot be read is put aside under a name that
    says when, and the state starts empty: the repository, not this file, is what must not be lost.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state_dir / FILE_NAME
    if not path.exists():
        _put_aside(path, now)  # a log without its file belongs to nothing
        return _create(path, "there was no state yet")
    connection = None
    try:
        connection = _connect(path)
        found = _schema_of(connection)
    except duckdb.Error as error:
        if connection is not None:
            connection.close()  # or DuckDB would go on with the file that is put aside
        problem = translate(error, path)
        if isinstance(problem, Locked | NoSpace):
            raise problem from error
        aside = _put_aside(path, now)
        log.error(
            "state unreadable, starting empty", extra={"path": str(path), "kept": str(aside), "why": str(problem)}
        )
        return _create(path, f"the old state could not be read and lies at {aside}")
    if found > SCHEMA:
        connection.close()
        raise Unsupported(
            f"the state has schema {found}, this engine knows {SCHEMA}",
            where=str(path),
            hint="run the newer engine that wrote it",
        )
    if found < SCHEMA:
        connection.close()
        connection = _migrate(path, found, now)
    return Opened(connection, path, fresh=False)


def open_read_only(path: Path) -> duckdb.DuckDBPyConnection:
    """The state that is there, for reading; Locked when an engine has it, Unsupported when it is of another schema."""
    try:
        connection = duckdb.connect(str(path), read_only=True)
        found = _schema_of(connection)
    except duckdb.Error as error:
        raise translate(error, path) from error
    if found != SCHEMA:
        connection.close()
        raise Unsupported(
            f"the state has schema {found}, this command knows {SCHEMA}",
            where=str(path),
            hint="start the engine once, or use the release that wrote it",
        )
    return connection


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(path), config={"threads": 1, "memory_limit": "256MB", "autoload_known_extensions": False})


def _create(path: Path, why: str) -> Opened:
    try:
        connection = _connect(path)
        connection.begin()
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('schema', ?)", [str(SCHEMA)])
        connection.commit()
    except duckdb.Error as error:
        raise translate(error, path) from error
    path.chmod(0o600)
    sync_directory(path.parent)
    return Opened(connection, path, fresh=True, why_fresh=why)


def _schema_of(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if row is None:
        raise duckdb.InvalidInputException("the state carries no schema number")
    return int(row[0])


def _put_aside(path: Path, now: datetime) -> Path:
    aside = path.with_name(f"{path.name}.unreadable-{now:%Y%m%dT%H%M%S}")
    for suffix in ("", ".wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    sync_directory(path.parent)
    return aside


def _migrate(path: Path, found: int, now: datetime) -> duckdb.DuckDBPyConnection:
    copy = path.with_name(f"{path.name}.schema-{found}-{now:%Y%m%dT%H%M%S}")
    with translated(str(path)):
        for suffix in ("", ".wal"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                shutil.copy2(part, copy.with_name(copy.name + suffix))
        sync_directory(path.parent)
    connection = _connect(path)
    try:
        connection.begin()
        for number in range(found, SCHEMA):
            for statement in MIGRATIONS[number]:
                connection.execute(statement)
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema'", [str(SCHEMA)])
        connection.commit()
    except duckdb.Error as error:
        raise translate(error, path) from error
    log.info("state migrated", extra={"path": str(path), "from": found, "to": SCHEMA, "copy": str(copy)})
    return connection
