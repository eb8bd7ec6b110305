"""What the state remembers besides events, decisions and jobs: VMs, runs, distrust, intents, audit, cursors.

The values, and how they become rows. Functions run inside the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import duckdb

from connectors.hypervisor import Cursor
from engine.identity import Traits
from engine.jobs import Job, JobId
from engine.journal import Effect, aware, insert, stamp
from policies.facts import Address, VmId


@dataclass(frozen=True, slots=True)
class VmRow:
    """One VM of the identity table. `accounted` is the part of its look that events have explained so far."""

    id: VmId
    traits: Traits
    accounted: Mapping[str, str]
    first_seen: datetime
    left_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunRow:
    """What a VM's runs came to."""

    vm: VmId
    last_success: datetime | None = None
    last_attempt: datetime | None = None
    last_failure: str = ""
    consecutive_failures: int = 0


FULL_READ_ASKED = "a full read was asked for"
"""The reason of a distrust that a person asks for."""


@dataclass(frozen=True, slots=True)
class Distrust:
    """Why the change tracking of a VM may lie since `at`; without an event the doubt is about what we remember.

    With `reset` one full read does not settle it: tracking is to be reset.
    """

    vm: VmId
    reason: str
    event_key: str
    at: datetime
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """Something about to be made in vCenter, written before it is made. Open until it is known to be gone."""

    run: str
    kind: str
    address: Address
    vm: VmId
    name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Audited:
    """Who did what to what, and when."""

    at: datetime
    who: str
    action: str
    subject: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What one batch of events does to the state, in one transaction."""

    effects: tuple[Effect, ...] = ()
    jobs: tuple[Job, ...] = ()
    vms: tuple[VmRow, ...] = ()
    fired: Mapping[tuple[str, str, VmId], datetime] = field(default_factory=dict)
    distrust: tuple[Distrust, ...] = ()
    audit: tuple[Audited, ...] = ()
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the state holds of VMs and open work, read at one instant."""

    rows: list[VmRow]
    runs: Mapping[VmId, RunRow]
    fired: Mapping[tuple[str, str, VmId], datetime]
    jobs: list[Job]
    job_keys: Mapping[str, JobId]


def write_vms(connection: duckdb.DuckDBPyConnection, rows: Sequence[VmRow]) -> None:
    """Insert or replace rows of the identity table."""
    if not rows:
        return
    latest = {row.id: row for row in rows}
    connection.execute("DELETE FROM vms WHERE id IN (SELECT unnest(?::VARCHAR[]))", [list(latest)])
    insert(
        connection,
        "vms",
        (*["VARCHAR"] * 8, "TIMESTAMP", "TIMESTAMP"),
        (
            (
                row.id, row.traits.name, row.traits.address.vcenter if row.traits.address else None,
                row.traits.address.moref if row.traits.address else None, row.traits.instance_uuid,
                row.traits.bios_uuid, json.dumps(sorted(row.traits.disk_uuids)), json.dumps(dict(row.accounted)),
                stamp(row.first_seen), stamp(row.left_at),
            )
            for row in latest.values()
        ),
    )  # fmt: skip


def vm_row(row: tuple[Any, ...]) -> VmRow:
    """The value of a row of the identity table."""
    address = Address(row[2], row[3]) if row[2] is not None else None
    first_seen = aware(row[8])
    assert first_seen is not None
    return VmRow(
        id=VmId(row[0]),
        traits=Traits(address, row[1], row[4], row[5], frozenset(json.loads(row[6]))),
        accounted=json.loads(row[7]),
        first_seen=first_seen,
        left_at=aware(row[9]),
    )


def write_fired(connection: duckdb.DuckDBPyConnection, fired: Mapping[tuple[str, str, VmId], datetime]) -> None:
    """Remember when triggers fired."""
    keys = ["\x1f".join(key) for key in fired]
    connection.execute(
        "DELETE FROM fired WHERE concat_ws(chr(31), policy, rule, vm) IN (SELECT unnest(?::VARCHAR[]))", [keys]
    )
    insert(
        connection,
        "fired",
        ("VARCHAR", "VARCHAR", "VARCHAR", "TIMESTAMP"),
        ((*key, stamp(at)) for key, at in fired.items()),
    )


def write_run(connection: duckdb.DuckDBPyConnection, run: RunRow) -> None:
    """Replace what a VM's runs came to."""
    connection.execute("DELETE FROM runs WHERE vm = ?", [run.vm])
    connection.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?)",
        [run.vm, stamp(run.last_success), stamp(run.last_attempt), run.last_failure, run.consecutive_failures],
    )


def move_vm(connection: duckdb.DuckDBPyConnection, new: VmId, old: VmId) -> None:
    """What is remembered of one VM id is remembered of another. Its row and its runs are dropped, not moved."""
    for table in ("vms", "runs"):
        column = "id" if table == "vms" else "vm"
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", [new])
    connection.execute("DELETE FROM fired WHERE vm IN (?, ?)", [new, old])
    for table in ("events", "decisions", "jobs", "distrust", "intents", "rehearsals"):
        connection.execute(f"UPDATE {table} SET vm = ? WHERE vm = ?", [old, new])


def write_cursor(connection: duckdb.DuckDBPyConnection, cursor: Cursor) -> None:
    """Move a vCenter's cursor."""
    connection.execute("DELETE FROM cursors WHERE vcenter = ?", [cursor.vcenter])
    connection.execute(
        "INSERT INTO cursors VALUES (?, ?, ?, ?)", [cursor.vcenter, stamp(cursor.at), cursor.key, sorted(cursor.seen)]
    )


def write_audit(connection: duckdb.DuckDBPyConnection, entries: Iterable[Audited]) -> None:
    """Append to the audit."""
    insert(
        connection,
        "audit",
        ("TIMESTAMP", *["VARCHAR"] * 4),
        ((stamp(e.at), e.who, e.action, e.subject, e.detail) for e in entries),
    )


def write_policies(
    connection: duckdb.DuckDBPyConnection, files: Mapping[str, str], who: str, now: datetime, commit: str
) -> None:
    """Make these texts, by file name, the ones in force."""
    connection.execute("DELETE FROM policy_files")
    insert(
        connection,
        "policy_files",
        ("VARCHAR", "VARCHAR", "TIMESTAMP", "VARCHAR", "VARCHAR"),
        ((name, text, stamp(now), who, commit) for name, text in files.items()),
    )
