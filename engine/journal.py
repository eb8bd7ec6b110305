"""Rows of the state and values of the engine, both ways: events, decisions and jobs, written in bulk.

Functions take the state's connection and run inside the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import duckdb

from engine.jobs import Job, JobId, JobKind, JobState, RunId
from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Requeue, Retire, Skip
from policies.facts import Consistency, Event, VmId

Connection = duckdb.DuckDBPyConnection

ROWS_AT_ONCE = 1000
"""Rows that one statement inserts: some milliseconds."""

MANY_ROWS = 50
"""From so many rows on the way through Arrow pays."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """A decision with the job that it led to or joined."""

    decision: Decision
    job: JobId | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """One event and everything it leads to. `reconciled` when only a comparison with the inventory found it."""

    event: Event
    rulings: tuple[Ruling, ...] = ()
    reconciled: bool = False


def stamp(at: datetime | None) -> datetime | None:
    """An aware time as the state keeps it: UTC without a zone."""
    return None if at is None else at.astimezone(UTC).replace(tzinfo=None)


def aware(at: datetime | None) -> datetime | None:
    """The other way."""
    return None if at is None else at.replace(tzinfo=UTC)


def insert(connection: Connection, table: str, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert many rows, a list per column. Long columns go through Arrow.

    While DuckDB turns Python's values into its own no other thread of Python runs, so that thousands of rows would
    stop the engine's event loop; from Arrow it takes a twentieth of the time.
    """
    left = iter(rows)
    while held := list(islice(left, ROWS_AT_ONCE)):
        columns = [list(column) for column in zip(*held, strict=True)]
        if len(held) >= MANY_ROWS:
            _insert_many(connection, table, types, columns)
        else:
            unnested = ", ".join(f"unnest(?::{kind}[])" for kind in types)
            connection.execute(f"INSERT INTO {table} SELECT {unnested}", columns)


def _insert_many(connection: Connection, table: str, types: Sequence[str], columns: Sequence[Sequence[Any]]) -> None:
    import pyarrow as pa  # loaded late: one of many rows is written by a running engine only

    kinds = {
        "VARCHAR": pa.string(),
        "TIMESTAMP": pa.timestamp("us"),
        "BOOLEAN": pa.bool_(),
        "INTEGER": pa.int32(),
    }
    made = [pa.array(column, kinds[kind]) for column, kind in zip(columns, types, strict=True)]
    connection.from_arrow(pa.table(made, names=[f"c{number}" for number in range(len(made))])).insert_into(table)


KEYS_KEPT = timedelta(days=400)
"""How long the idempotency key of a job is remembered: longer than any schedule's slot lasts."""

DONE_KEYS_KEPT = timedelta(days=7)
"""The same for a job that is done: its restore point begins a new slot, so that its key does not come again."""


def known_keys(connection: Connection, keys: Sequence[str]) -> frozenset[str]:
    """Those of the keys that the journal holds."""
    if not keys:
        return frozenset()
    rows = connection.execute(
        "SELECT key FROM events WHERE key IN (SELECT unnest(?::VARCHAR[]))", [list(keys)]
    ).fetchall()
    return frozenset(row[0] for row in rows)


_EVENT_TYPES = ("VARCHAR", "VARCHAR", "TIMESTAMP", *["VARCHAR"] * 10, "BOOLEAN", "TIMESTAMP")


def write_events(connection: Connection, effects: Sequence[Effect], now: datetime) -> None:
    """Append events to the journal; the caller has seen to it that their keys are new."""
    written = stamp(now)
    insert(
        connection,
        "events",
        _EVENT_TYPES,
        (
            (
                e.key, e.type.value, stamp(e.at), e.source, e.vm, e.vm_name,
                e.address.vcenter if e.address else None, e.address.moref if e.address else None,
                e.cause, e.from_host, e.to_host, e.user, json.dumps(dict(e.detail)), effect.reconciled, written,
            )
            for effect in effects
            for e in (effect.event,)
        ),
    )  # fmt: skip


def describe(decision: Decision) -> tuple[str, str | None, str, str, str, str]:
    """Kind, VM, policy, rule, reason and policy hash of any decision."""
    match decision:
        case BackUp():
            return "backup", decision.vm, decision.policy, decision.rule, decision.reason, decision.policy_hash
        case Skip():
            return "skip", decision.vm, decision.policy, decision.rule, decision.reason, ""
        case DistrustTracking():
            return "distrust", decision.vm, decision.policy, decision.rule, decision.reason, ""
        case Retire():
            return "retire", decision.vm, "", "", decision.reason, ""
        case HoldPoints():
            return "hold", decision.vm, decision.policy, decision.rule, decision.reason, ""
        case Requeue():
            return "requeue", decision.vm, decision.policy, decision.rule, decision.reason, ""


def commit_of(decision: Decision) -> str:
    """The commit of the policy that decided, where it is known."""
    return decision.policy_commit if isinstance(decision, BackUp) else ""


def write_decisions(connection: Connection, effects: Sequence[Effect], now: datetime) -> None:
    """Append what was decided."""
    written = stamp(now)
    insert(
        connection,
        "decisions",
        (*["VARCHAR"] * 8, "TIMESTAMP", "VARCHAR"),
        (
            (effect.event.key, *describe(ruling.decision), ruling.job, written, commit_of(ruling.decision))
            for effect in effects
            for ruling in effect.rulings
        ),
    )


JOB_COLUMNS = (
    "id, key, kind, vm, policy, rule, reason, created_at, not_before, deadline, priority, consistency, fallback, "
    "transports, policy_hash, event_key, manual, state, attempts, last_error, run, event_type, event_at, policy_commit"
)
_JOB_TYPES = (
    *["VARCHAR"] * 7, *["TIMESTAMP"] * 3, "INTEGER", *["VARCHAR"] * 5, "BOOLEAN", "VARCHAR", "INTEGER", "VARCHAR",
    "VARCHAR", "VARCHAR", "TIMESTAMP", "VARCHAR", "TIMESTAMP", "VARCHAR",
)  # fmt: skip


def _job_row(job: Job) -> tuple[Any, ...]:
    return (
        job.id, job.key, job.kind.value, job.vm, job.policy, job.rule, job.reason, stamp(job.created_at),
        stamp(job.not_before), stamp(job.deadline), job.priority, job.consistency.value, job.fallback.value,
        json.dumps(job.transports), job.policy_hash, job.event_key, job.manual, job.state.value, job.attempts,
        job.last_error, job.run, None, None, job.event_type, stamp(job.event_at), job.policy_commit,
    )  # fmt: skip


def _job(row: tuple[Any, ...]) -> Job:
    created, not_before = aware(row[7]), aware(row[8])
    assert created is not None and not_before is not None
    return Job(
        id=JobId(row[0]), key=row[1], kind=JobKind(row[2]), vm=VmId(row[3]), policy=row[4], rule=row[5], reason=row[6],
        created_at=created, not_before=not_before, deadline=aware(row[9]), priority=row[10],
        consistency=Consistency(row[11]), fallback=Consistency(row[12]), transports=tuple(json.loads(row[13])),
        policy_hash=row[14], event_key=row[15], manual=row[16], state=JobState(row[17]), attempts=row[18],
        last_error=row[19], run=RunId(row[20]) if row[20] else None, event_type=row[21] or "", event_at=aware(row[22]),
        policy_commit=row[23] or "",
    )  # fmt: skip


def write_jobs(connection: Connection, jobs: Sequence[Job]) -> None:
    """Insert jobs, replacing open ones of the same id."""
    if jobs:
        connection.execute("DELETE FROM jobs WHERE id IN (SELECT unnest(?::VARCHAR[]))", [[job.id for job in jobs]])
    insert(connection, "jobs", _JOB_TYPES, map(_job_row, jobs))


def jobs_in(connection: Connection, states: Iterable[JobState]) -> list[Job]:
    """Every job in one of these states, oldest first."""
    wanted = [state.value for state in states]
    rows = connection.execute(
        f"SELECT {JOB_COLUMNS} FROM jobs WHERE state IN (SELECT unnest(?::VARCHAR[])) ORDER BY created_at, id", [wanted]
    ).fetchall()
    return [_job(row) for row in rows]


def job_keys(connection: Connection, now: datetime) -> dict[str, JobId]:
    """Which job stands for which idempotency key, of the jobs that are recent and not given up."""
    rows = connection.execute(
        "SELECT key, max(id) FROM jobs WHERE created_at >= ? AND state <> 'abandoned' "
        "AND (state <> 'done' OR created_at >= ?) GROUP BY key",
        [stamp(now - KEYS_KEPT), stamp(now - DONE_KEYS_KEPT)],
    ).fetchall()
    return {key: JobId(found) for key, found in rows}


def forget_before(connection: duckdb.DuckDBPyConnection, before: datetime) -> None:
    """Drop events, decisions, settled jobs and cooldowns of the time before; open jobs stay."""
    connection.execute("DELETE FROM events WHERE journaled_at < ?", [stamp(before)])
    connection.execute("DELETE FROM decisions WHERE decided_at < ?", [stamp(before)])
    connection.execute(
        "DELETE FROM jobs WHERE state NOT IN ('pending', 'running') AND coalesce(settled_at, created_at) < ?",
        [stamp(before)],
    )
    connection.execute("DELETE FROM fired WHERE fired_at < ?", [stamp(before)])
