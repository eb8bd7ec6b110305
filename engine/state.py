"""What the engine remembers between two starts: `state_dir/state.duckdb`, one per engine, never in a repository.

Synchronous, and called from one thread alone. Each public method is one transaction. Losing the file costs extra
runs, full reads and history; restore points, holds and locks live in the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from connectors.hypervisor import Cursor
from engine import journal
from engine.jobs import OPEN_STATES, Job, JobId, JobState
from engine.journal import aware, insert, stamp
from engine.records import (
    Audited,
    Change,
    Distrust,
    Intent,
    Recalled,
    RunRow,
    VmRow,
    move_vm,
    vm_row,
    write_audit,
    write_cursor,
    write_fired,
    write_policies,
    write_run,
    write_vms,
)
from engine.replaying import recorded_page
from engine.state_schema import FILE_NAME, open_database, open_read_only, sync_directory, translate
from policies.facts import Address, PointId, VmId
from policies.recorded import Recorded
from policies.units import counted
from storage.failpoints import failpoint
from storage.filecalls import translated


class State:
    """The open state."""

    def __init__(self, state_dir: Path, *, now: datetime) -> None:
        """Open or create; errors as `state_schema.open_database`."""
        opened = open_database(state_dir, now=now)
        self._connection = opened.connection
        self.path = opened.path
        self.fresh = opened.fresh
        self.why_fresh = opened.why_fresh

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        self._connection.close()

    @classmethod
    @contextmanager
    def read_only(cls, state_dir: Path) -> Iterator[State | None]:
        """What an engine left that does not run now, to be read; None where none ever ran.

        Locked when one does run, Unsupported when a start would have to change the file first.
        """
        path = state_dir / FILE_NAME
        if not path.exists():
            yield None
            return
        state = cls.__new__(cls)
        state.path, state.fresh, state.why_fresh = path, False, ""
        state._connection = open_read_only(path)
        try:
            yield state
        finally:
            state.close()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            self._connection.begin()
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()
            with translated(str(self.path)):
                sync_directory(self.path.parent)  # the log may be a new file
        except duckdb.Error as error:
            raise translate(error, self.path) from error

    def write(self, work: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Do this work as one transaction."""
        with self._transaction() as connection:
            work(connection)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a fixed statement gives."""
        try:
            return self._connection.execute(statement, list(values)).fetchall()
        except duckdb.Error as error:
            raise translate(error, self.path) from error

    def table(self, statement: str) -> Any:
        """The rows of a fixed statement as an Arrow table."""
        try:
            return self._connection.sql(statement).to_arrow_table()
        except duckdb.Error as error:
            raise translate(error, self.path) from error

    # events, decisions, jobs

    def known_keys(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of the event keys whose effect has happened."""
        return journal.known_keys(self._connection, keys)

    def job_keys(self, now: datetime) -> dict[str, JobId]:
        """Which job stands for which idempotency key, as far as it may come again."""
        return journal.job_keys(self._connection, now)

    def apply(self, change: Change, *, now: datetime) -> frozenset[str]:
        """Journal events with all their effects and move the cursor: all of it or none.

        Returns the keys that were journaled before. The effect of such a key is not written again, so the caller
        must not have put a job of it into the change; it asks `known_keys` first.
        """
        with self._transaction() as connection:
            known = journal.known_keys(connection, [effect.event.key for effect in change.effects])
            fresh = list({e.event.key: e for e in change.effects if e.event.key not in known}.values())
            journal.write_events(connection, fresh, now)
            journal.write_decisions(connection, fresh, now)
            journal.write_jobs(connection, change.jobs)
            write_vms(connection, change.vms)
            if change.fired:
                write_fired(connection, change.fired)
            insert(
                connection,
                "distrust",
                ("VARCHAR", "VARCHAR", "VARCHAR", "TIMESTAMP", "BOOLEAN"),
                ((d.vm, d.reason, d.event_key, stamp(d.at), d.reset) for d in change.distrust),
            )
            write_audit(connection, change.audit)
            if change.cursor is not None:
                write_cursor(connection, change.cursor)
        return known

    def open_jobs(self) -> list[Job]:
        """Pending and running jobs, oldest first."""
        return journal.jobs_in(self._connection, OPEN_STATES)

    def save_job(self, job: Job, *, run: RunRow | None = None) -> None:
        """Write a job as it is now, with what it did to its VM's record."""
        with self._transaction() as connection:
            journal.write_jobs(connection, [job])
            if run is not None:
                write_run(connection, run)

    def settle(
        self,
        job: Job,
        *,
        now: datetime,
        run: RunRow,
        point: PointId | None = None,
        trusted: Iterable[Distrust] = (),
    ) -> None:
        """Close a job. A run that read in full clears the distrust that it knew of, and no other."""
        with self._transaction() as connection:
            journal.write_jobs(connection, [job])
            connection.execute("UPDATE jobs SET settled_at = ?, point = ? WHERE id = ?", [stamp(now), point, job.id])
            write_run(connection, run)
            over = list(trusted)
            connection.execute(
                "DELETE FROM distrust WHERE vm = ? AND (reason, event_key, since) IN "
                "(SELECT (unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), unnest(?::TIMESTAMP[])))",
                [job.vm, [d.reason for d in over], [d.event_key for d in over], [stamp(d.at) for d in over]],
            )

    def keep(self, name: str, value: str) -> None:
        """Keep a note under a name, in the place of the one before."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM meta WHERE name = ?", [f"note: {name}"])
            connection.execute("INSERT INTO meta VALUES (?, ?)", [f"note: {name}", value])

    def kept(self, name: str) -> str:
        """The note under a name; empty when there is none."""
        rows = self.rows("SELECT value FROM meta WHERE name = ?", [f"note: {name}"])
        return str(rows[0][0]) if rows else ""

    def events(self, limit: int = 100) -> list[tuple[Any, ...]]:
        """The newest events: key, type, time, VM, name, cause."""
        statement = (
            "SELECT key, type, happened_at, vm, vm_name, cause FROM events "
            "ORDER BY journaled_at DESC, happened_at DESC LIMIT ?"
        )
        return self.rows(statement, [limit])

    def decisions_of(self, vm: VmId, limit: int = 20) -> list[tuple[Any, ...]]:
        """The newest decisions about a VM, each with its event and with what came of its job.

        Time, kind, policy, rule, reason, event key, job and commit of the decision; type, time, cause and hosts of the
        event; state, attempts, last error, restore point and end of the job.
        """
        statement = (
            "SELECT d.decided_at, d.kind, d.policy, d.rule, d.reason, d.event_key, d.job, d.policy_commit, "
            "e.type, e.happened_at, e.cause, e.from_host, e.to_host, "
            "j.state, j.attempts, j.last_error, j.point, j.settled_at "
            "FROM (SELECT * FROM decisions WHERE vm = ? ORDER BY decided_at DESC LIMIT ?) d "
            "LEFT JOIN events e ON e.key = d.event_key LEFT JOIN jobs j ON j.id = d.job ORDER BY d.decided_at DESC"
        )
        return self.rows(statement, [vm, limit])

    def event_keys(self, source: str = "") -> list[str]:
        """The keys of the journal, in the order they came; of one source if it is named."""
        statement = "SELECT key FROM events WHERE ? IN ('', source) ORDER BY journaled_at, happened_at"
        return [row[0] for row in self.rows(statement, [source])]

    def recorded(self, since: datetime, beyond: int = -1) -> tuple[list[Recorded], int | None]:
        """A page of the events that were handled since then; see `replaying.recorded_page`."""
        try:
            return recorded_page(self._connection, since, beyond)
        except duckdb.Error as error:
            raise translate(error, self.path) from error

    def recall(self, now: datetime) -> Recalled:
        """Everything that the world in memory is made of."""
        return Recalled(self.vms(), self.runs(), self.fired(), self.open_jobs(), self.job_keys(now))

    # VMs

    def vms(self) -> list[VmRow]:
        """The identity table."""
        rows = self.rows(
            "SELECT id, name, vcenter, moref, instance_uuid, bios_uuid, disk_uuids, accounted, first_seen, left_at "
            "FROM vms"
        )
        return [vm_row(row) for row in rows]

    def runs(self) -> dict[VmId, RunRow]:
        """What each VM's runs came to."""
        rows = self.rows("SELECT vm, last_success, last_attempt, last_failure, consecutive_failures FROM runs")
        return {VmId(r[0]): RunRow(VmId(r[0]), aware(r[1]), aware(r[2]), r[3], r[4]) for r in rows}

    def set_aside(self) -> set[VmId]:
        """The VMs whose newest run ended with an error that trying again cannot mend."""
        statement = (
            "SELECT vm FROM jobs WHERE kind = 'backup' AND state IN ('done', 'failed', 'quarantined') "
            "QUALIFY row_number() OVER (PARTITION BY vm ORDER BY coalesce(settled_at, created_at) DESC) = 1 "
            "AND state = 'quarantined'"
        )
        return {VmId(row[0]) for row in self.rows(statement)}

    def fired(self) -> dict[tuple[str, str, VmId], datetime]:
        """When each trigger last led to a backup, per VM."""
        rows = self.rows("SELECT policy, rule, vm, fired_at FROM fired")
        return {(r[0], r[1], VmId(r[2])): at for r in rows if (at := aware(r[3])) is not None}

    def distrust_of(self, vm: VmId) -> list[Distrust]:
        """Why this VM's change tracking may lie; empty when nothing is known against it."""
        rows = self.rows("SELECT vm, reason, event_key, since, reset FROM distrust WHERE vm = ? ORDER BY since", [vm])
        return [Distrust(VmId(r[0]), r[1], r[2], at, bool(r[4])) for r in rows if (at := aware(r[3])) is not None]

    def distrust(self, vm: VmId, reason: str, event_key: str, now: datetime, *, reset: bool = False) -> None:
        """The next run of this VM reads in full; with `reset` it resets change tracking besides."""
        self.apply(Change(distrust=(Distrust(vm, reason, event_key, now, reset),)), now=now)

    def forget_vms(self, vms: Sequence[VmId]) -> None:
        """Drop what is remembered of VMs that left long ago."""
        with self._transaction() as connection:
            for table, column in (
                ("vms", "id"),
                ("runs", "vm"),
                ("distrust", "vm"),
                ("fired", "vm"),
                ("rehearsals", "vm"),
            ):
                connection.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT unnest(?::VARCHAR[]))", [list(vms)])

    def forget(self, before: datetime) -> None:
        """Drop what the journal and settled jobs say of the time before; open jobs and the audit stay."""
        with self._transaction() as connection:
            journal.forget_before(connection, before)

    # intents, cursors, audit, policies

    def intend(self, intent: Intent) -> None:
        """Write down what is about to be made. Durable on return."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO intents VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    intent.run,
                    intent.kind,
                    intent.address.vcenter,
                    intent.address.moref,
                    intent.vm,
                    intent.name,
                    stamp(intent.at),
                ],
            )

    def resolve_intent(self, run: str, kind: str, name: str) -> None:
        """This one thing is gone from vCenter."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM intents WHERE run = ? AND kind = ? AND name = ?", [run, kind, name])

    def resolve_intents(self, runs: Sequence[str]) -> None:
        """Nothing of these runs is left in vCenter."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM intents WHERE run IN (SELECT unnest(?::VARCHAR[]))", [list(runs)])

    def intents(self) -> list[Intent]:
        """What may still be there, oldest first."""
        rows = self.rows("SELECT run, kind, vcenter, moref, vm, name, intended_at FROM intents ORDER BY intended_at")
        return [
            Intent(r[0], r[1], Address(r[2], r[3]), VmId(r[4]), r[5], at)
            for r in rows
            if (at := aware(r[6])) is not None
        ]

    def cursor(self, vcenter: str) -> Cursor | None:
        """Up to where this vCenter's events were handled."""
        rows = self.rows("SELECT reached_at, key, seen FROM cursors WHERE vcenter = ?", [vcenter])
        if not rows:
            return None
        at = aware(rows[0][0])
        assert at is not None
        return Cursor(vcenter, at, rows[0][1], frozenset(rows[0][2]))

    def audit(self, *entries: Audited) -> None:
        """Write down who did what."""
        with self._transaction() as connection:
            write_audit(connection, entries)

    def audited(self, limit: int = 100) -> list[Audited]:
        """The newest entries of the audit."""
        rows = self.rows(
            "SELECT done_at, who, action, subject, detail FROM audit ORDER BY done_at DESC LIMIT ?", [limit]
        )
        return [Audited(at, r[1], r[2], r[3], r[4]) for r in rows if (at := aware(r[0])) is not None]

    def policy_files(self) -> dict[str, str]:
        """The accepted policy texts by file name; empty when none was accepted yet."""
        return dict(self.rows("SELECT name, text FROM policy_files ORDER BY name"))

    def policy_commit(self) -> str:
        """The commit that the accepted policy texts were at; empty when that was not known."""
        rows = self.rows("SELECT policy_commit FROM policy_files LIMIT 1")
        return (rows[0][0] or "") if rows else ""

    def accept_policies(
        self, files: Mapping[str, str], *, who: str, detail: str, now: datetime, commit: str = ""
    ) -> None:
        """Make these texts the ones in force."""
        with self._transaction() as connection:
            write_policies(connection, files, who, now, commit)
            write_audit(connection, (Audited(now, who, "apply policies", counted(len(files), "file"), detail),))
            failpoint("policies.written")
        failpoint("policies.accepted")

    def adopt(self, rows: Iterable[VmRow], distrust: Iterable[Distrust], *, now: datetime) -> None:
        """Take VM ids over that the repository's restore points remember."""
        self.apply(Change(vms=tuple(rows), distrust=tuple(distrust)), now=now)

    def join(
        self, new: VmId, row: VmRow, run: RunRow, fired: Mapping[tuple[str, str, VmId], datetime], audit: Audited
    ) -> None:
        """What was remembered of `new` belongs to the VM of the row from now on."""
        with self._transaction() as connection:
            move_vm(connection, new, row.id)
            write_vms(connection, [row])
            write_run(connection, run)
            if fired:
                write_fired(connection, fired)
            write_audit(connection, [audit])

    def requeue_running(self) -> list[Job]:
        """Jobs that a dead engine left running are pending again; returns them as they are now."""
        left = journal.jobs_in(self._connection, [JobState.RUNNING])
        again = [replace(job, state=JobState.PENDING) for job in left]
        with self._transaction() as connection:
            journal.write_jobs(connection, again)
        return again
