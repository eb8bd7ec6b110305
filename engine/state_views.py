"""Events, decisions, jobs and audit of the state as tables for read-only SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from engine.state import State
from engine.state_schema import FILE_NAME, translate

VIEWS: Mapping[str, str] = {
    "events": """SELECT key, type, happened_at, source, vm AS vm_id, vm_name AS vm, cause, from_host, to_host,
        user_name, reconciled, journaled_at FROM events""",
    "decisions": """SELECT d.decided_at, d.kind, d.vm AS vm_id, v.name AS vm, d.policy, d.rule, d.reason, d.event_key,
        d.job, d.policy_commit FROM decisions d LEFT JOIN vms v ON v.id = d.vm""",
    "jobs": """SELECT j.id, j.kind, j.vm AS vm_id, v.name AS vm, j.policy, j.rule, j.reason, j.state, j.attempts,
        j.created_at, j.not_before, j.deadline, j.settled_at, j.point, j.last_error, j.event_key,
        j.event_type, j.event_at, j.policy_commit
        FROM jobs j LEFT JOIN vms v ON v.id = j.vm""",
    "rehearsals": """SELECT r.began_at, r.vm AS vm_id, v.name AS vm, r.point, r.seconds, r.passed, r.why, r.policy,
        r.compared_bytes, r.heartbeat_seconds FROM rehearsals r LEFT JOIN vms v ON v.id = r.vm""",
    "audit": "SELECT done_at, who, action, subject, detail FROM audit",
}
"""What a SELECT may name, and where its rows come from. Times are UTC."""


def export_views(state: State) -> Mapping[str, Callable[[], Any]]:
    """For each view the function that gives its rows as an Arrow table; call it in the state's thread."""
    return {name: partial(state.table, statement) for name, statement in VIEWS.items()}


def open_views(state_dir: Path) -> Mapping[str, Callable[[], Any]]:
    """The same of a state that no engine holds, read-only; nothing where there is no state."""
    path = state_dir / FILE_NAME
    if not path.exists():
        return {}

    def table(statement: str) -> Any:
        try:
            with duckdb.connect(str(path), read_only=True) as connection:
                return connection.sql(statement).to_arrow_table()
        except duckdb.Error as error:
            raise translate(error, path) from error

    return {name: partial(table, statement) for name, statement in VIEWS.items()}
