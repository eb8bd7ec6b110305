"""What the journal has of events, read back page by page: for simulations of what happened, under other policies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import duckdb

from engine.journal import aware, stamp
from policies.facts import Address, Event, EventType, VmId
from policies.recorded import Recorded, recorded_as_json

PAGE = 5_000
"""Events of one page, some 5 MB: reading one holds the engine's state up for a few milliseconds."""

_COLUMNS = (
    "rowid, key, type, happened_at, source, vm, vm_name, vcenter, moref, cause, from_host, to_host, user_name, detail, "
    "journaled_at"
)


def recorded_page(
    connection: duckdb.DuckDBPyConnection, since: datetime, beyond: int
) -> tuple[list[Recorded], int | None]:
    """Events that were handled since then, in order, and what to go on with; None when these were the last.

    Begin with -1. What a newer engine calls an event and this one does not know is left out.
    """
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM events WHERE rowid > ? AND journaled_at >= ? ORDER BY rowid LIMIT ?",
        [beyond, stamp(since), PAGE],
    ).fetchall()
    found = [one for row in rows if (one := _recorded(row)) is not None]
    return found, rows[-1][0] if len(rows) == PAGE else None


_KNOWN = {kind.value: kind for kind in EventType}


def _recorded(row: tuple[Any, ...]) -> Recorded | None:
    kind, at, handled = _KNOWN.get(row[2]), aware(row[3]), aware(row[14])
    if kind is None or at is None or handled is None:
        return None
    event = Event(
        key=row[1],
        type=kind,
        at=at,
        source=row[4],
        vm=VmId(row[5]) if row[5] else None,
        vm_name=row[6] or "",
        address=Address(row[7], row[8]) if row[7] and row[8] else None,
        cause=row[9] or "",
        from_host=row[10] or "",
        to_host=row[11] or "",
        user=row[12] or "",
        detail=json.loads(row[13]) if row[13] else {},
    )
    return Recorded(handled, event)


def journal_lines(page: Iterable[Recorded]) -> bytes:
    """A line of JSON for each event, in UTF-8."""
    return b"".join(json.dumps(recorded_as_json(one), ensure_ascii=False).encode() + b"\n" for one in page)
