"""The process that runs one checked SELECT: no environment, no files but its views, bounded memory, killed when late.

Started by `engine.sql` with a request on stdin; gives one JSON object on stdout. DuckDB's own memory limit does not
count long strings, so the process limits itself; that is why it is a process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pyarrow
from pyarrow import MonthDayNano

from engine.plain import show_time


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Columns, rows and whether there were more; or "refused" or "wrong" with a sentence."""
    connection = _sealed_database(request)
    alarm = threading.Timer(request["seconds"], connection.interrupt)
    alarm.daemon = True
    alarm.start()
    try:
        relation = connection.sql(request["query"])
        types = [str(kind) for kind in relation.types]
        reader = relation.to_arrow_reader(1024)
        rows = _first_rows(reader, request["rows"] + 1)
    except duckdb.InterruptException:
        return {"refused": f"the statement took longer than {request['seconds']:g} s"}
    except (duckdb.OutOfMemoryException, MemoryError, pyarrow.ArrowMemoryError):
        return {"refused": f"the statement needs more than {request['memory_bytes'] // 2**20} MiB of memory"}
    except duckdb.Error as error:
        return {"wrong": next(iter(str(error).splitlines()), type(error).__name__)}
    finally:
        alarm.cancel()
        alarm.join()
    kept = rows[: request["rows"]]
    columns = list(zip(reader.schema.names, types, strict=True))
    return {"columns": columns, "rows": kept, "truncated": len(rows) > len(kept)}


def _sealed_database(request: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(
        ":memory:",
        config={
            "allow_community_extensions": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": f"{request['memory_bytes']}B",
            "python_enable_replacements": False,
            "temp_directory": "",
            "threads": request["threads"],
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    for name, path in request["views"].items():
        connection.register(name, pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all())
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _first_rows(reader: pyarrow.RecordBatchReader, count: int) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for batch in reader:
        columns = [[_plain(value) for value in _values(column)] for column in batch.slice(0, count - len(rows)).columns]
        rows.extend(list(row) for row in zip(*columns, strict=True))
        if len(rows) >= count:
            break
    return rows


def _values(column: pyarrow.Array) -> list[Any]:
    # Python's datetime ends at microseconds.
    if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    return list(column.to_pylist())


def main() -> None:
    """Read the request, limit this process, answer."""
    request = json.load(sys.stdin)
    # The interpreter, DuckDB and Arrow themselves; measured at 90 MiB.
    own_bytes = 256 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (request["memory_bytes"] + own_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(answer(request), sys.stdout)
    sys.stdout.flush()
    # Nothing is left to tidy, and DuckDB's threads do not always survive the interpreter's own end.
    os._exit(0)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if value - value == 0 else str(value)
        case datetime():
            return show_time(value)
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case UUID():
            return str(value)
        case MonthDayNano():
            return f"{value.months} months {value.days} days {value.nanoseconds / 10**9:g} seconds"
        case list() | tuple():
            return [_plain(part) for part in value]
        case dict():
            return {str(_plain(key)): _plain(part) for key, part in value.items()}
        case _:
            return str(value)


if __name__ == "__main__":
    main()
