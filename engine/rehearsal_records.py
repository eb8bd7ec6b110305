"""What is remembered of rehearsals: rows of the engine's state, and how they stand in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import duckdb

from engine.journal import aware, stamp
from engine.state import State
from policies.facts import PointId, VmId
from policies.rehearsal import RehearsalStanding, Rehearsed

COLUMNS = "vm, point, began_at, seconds, passed, why, policy, counts, compared_bytes, heartbeat_seconds"

NEWEST = f"""SELECT {COLUMNS}, passed_at FROM (
    SELECT *, max(CASE WHEN passed THEN began_at END) OVER (PARTITION BY vm) AS passed_at,
        row_number() OVER (PARTITION BY vm ORDER BY began_at DESC) AS place FROM rehearsals WHERE counts)
    WHERE place = 1"""
"""The newest rehearsal of each VM that counts, and when one last passed."""


@dataclass(frozen=True, slots=True)
class RehearsalRow:
    """One rehearsal that ended. `counts` when it was of the VM's last good restore point, and not of an older one.

    `policy` is empty where a person asked. `heartbeat_seconds` is None where none was waited for, or none came.
    """

    vm: VmId
    point: PointId
    at: datetime
    seconds: float
    passed: bool
    why: str = ""
    policy: str = ""
    counts: bool = True
    compared_bytes: int = 0
    heartbeat_seconds: float | None = None


@dataclass(slots=True)
class Rehearsals:
    """How rehearsals stand. `busy` are VMs of which one goes on, with the restore point. Single event loop."""

    newest: dict[VmId, Rehearsed] = field(default_factory=dict)
    busy: dict[VmId, PointId] = field(default_factory=dict)
    standing: tuple[RehearsalStanding, ...] = ()
    paused: dict[VmId, datetime] = field(default_factory=dict)
    """VMs that could not be rehearsed, through no fault of their restore points, and until when others go first."""

    def ended(self, row: RehearsalRow) -> None:
        """Remember one that counts."""
        before = self.newest.get(row.vm)
        passed_at = row.at if row.passed else before.passed_at if before is not None else None
        if row.counts:
            self.newest[row.vm] = Rehearsed(row.vm, row.point, row.at, row.seconds, row.passed, row.why, passed_at)


def note_rehearsal(state: State, row: RehearsalRow) -> None:
    """Remember one that ended."""
    values = [row.vm, row.point, stamp(row.at), row.seconds, row.passed, row.why, row.policy, row.counts,
              row.compared_bytes, row.heartbeat_seconds]  # fmt: skip
    marks = ", ".join("?" * len(values))

    def insert(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"INSERT INTO rehearsals VALUES ({marks})", values)

    state.write(insert)


def rehearsed(state: State) -> dict[VmId, Rehearsed]:
    """The newest rehearsal of each VM that counts."""
    found = {}
    for vm, point, at, seconds, passed, why, *_, passed_at in state.rows(NEWEST):
        began = aware(at)
        assert began is not None
        found[VmId(vm)] = Rehearsed(VmId(vm), PointId(point), began, seconds, passed, why, aware(passed_at))
    return found


def rehearsals_of(state: State, point: PointId) -> list[RehearsalRow]:
    """Every rehearsal of a restore point, newest first."""
    rows = state.rows(f"SELECT {COLUMNS} FROM rehearsals WHERE point = ? ORDER BY began_at DESC", [point])
    return [_row(row) for row in rows]


def _row(row: tuple[Any, ...]) -> RehearsalRow:
    began = aware(row[2])
    assert began is not None
    return RehearsalRow(VmId(row[0]), PointId(row[1]), began, *row[3:10])
