"""One SELECT over a copy of what the repository and the engine know, and nothing else.

A statement is refused by what it says before anything runs (`engine.statement`); it then runs in a process of its own
(`engine.sealed`) that holds only the views it names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow

from engine.commands import QueryAnswer, QueryLimits
from engine.failures import BadInput, Declined
from engine.statement import named_views

Sources = Mapping[str, Callable[[], Any]]
"""For each view the function that gives its rows, as an Arrow table or a reader of record batches.

A function is called only when a statement names its view.
"""

LONGEST_ANSWER = 64 * 2**20
"""Bytes of an answer as JSON: what the engine and a terminal can take."""

START_SECONDS = 15.0
"""How long the process may take to start, beyond the statement's own time: longer than an import on a busy machine."""


def select(query: str, sources: Sources, limits: QueryLimits | None = None) -> QueryAnswer:
    """Run one SELECT over the views that sources provide.

    BadInput for anything but one SELECT over them, Declined when it takes more time or memory than the limits allow.
    Blocking; safe in any thread.
    """
    named = named_views(query, sources)
    with tempfile.TemporaryDirectory(prefix="backstay-sql-") as folder:
        views = {name: str(_spill(Path(folder), number, sources[name]())) for number, name in enumerate(sorted(named))}
        return _ask(query, views, limits or QueryLimits())


def columns_of(sources: Sources) -> dict[str, list[str]]:
    """The columns of every view, in order."""
    return {name: list(rows().schema.names) for name, rows in sorted(sources.items())}


def _spill(folder: Path, number: int, rows: Any) -> Path:
    """Write rows where the process can map them into its memory."""
    path = folder / f"{number}.arrow"
    reader = rows if isinstance(rows, pyarrow.RecordBatchReader) else rows.to_reader()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    return path


def _ask(query: str, views: Mapping[str, str], limits: QueryLimits) -> QueryAnswer:
    request = {
        "query": query,
        "views": views,
        "rows": limits.rows,
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
        "threads": limits.threads,
    }
    too_large = Declined(f"the statement needs more than {limits.memory_bytes // 2**20} MiB of memory", where="sql")
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "engine.sealed"],
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parent.parent)},
            timeout=limits.seconds + START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Declined(f"the statement took longer than {limits.seconds:g} s", where="sql") from None
    if done.returncode != 0 or not done.stdout:
        raise too_large
    if len(done.stdout) > LONGEST_ANSWER:
        raise Declined(f"the answer is larger than {LONGEST_ANSWER // 2**20} MiB; ask for less", where="sql")
    said = json.loads(done.stdout)
    if "refused" in said:
        raise Declined(said["refused"], where="sql")
    if "wrong" in said:
        raise BadInput(said["wrong"], where="sql", hint="views and their columns: backstay sql --views")
    columns = tuple((name, kind) for name, kind in said["columns"])
    return QueryAnswer(columns, tuple(tuple(row) for row in said["rows"]), said["truncated"])
