"""The state keeps each key's effect once, survives damage by starting empty, and refuses what it does not know."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from connectors.hypervisor import Cursor
from connectors.vsphere.transport_settings import AttachIntent
from engine import state_schema
from engine.identity import Traits
from engine.jobs import Job, JobId, JobKind, JobState
from engine.journal import Effect, Ruling
from engine.records import Audited, Change, Distrust, Intent, RunRow, VmRow
from engine.service import recorder
from engine.state import State
from engine.threads import Threads
from policies.decision import BackUp, Skip
from policies.facts import Address, Event, EventType, PointId, VmId
from storage.errors import Locked, StorageError, Unsupported

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
VM = VmId("vm-1")


def event(key: str, kind: EventType = EventType.POWERED_OFF) -> Event:
    return Event(key=key, type=kind, at=NOW, source="vc", vm=VM, vm_name="web", address=Address("vc", "vm-7"))


def job(number: int = 1, **more: object) -> Job:
    base: dict[str, object] = {
        "id": JobId(f"job-{number}"), "key": f"key-{number}", "kind": JobKind.BACKUP, "vm": VM, "policy": "p",
        "rule": "r", "reason": "because", "created_at": NOW, "not_before": NOW,
    }  # fmt: skip
    return Job(**(base | more))  # type: ignore[arg-type]


def effect(key: str, one: Job | None = None) -> Effect:
    rulings: tuple[Ruling, ...] = (Ruling(Skip(VM, "p", "r", "not due", key)),)
    if one is not None:
        rulings += (Ruling(BackUp(one.key, VM, "p", "r", "because", NOW), one.id),)
    return Effect(event(key), rulings)


def test_events_decisions_jobs_and_cursor_are_there_after_a_restart(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    cursor = Cursor("vc", NOW, 12, frozenset({10, 12}))
    state.apply(Change(effects=(effect("vc:1", job()),), jobs=(job(),), cursor=cursor), now=NOW)
    state.close()
    again = State(tmp_path, now=NOW)
    assert not again.fresh
    assert again.event_keys() == ["vc:1"]
    assert again.cursor("vc") == cursor
    assert again.open_jobs() == [job()]
    assert [row[1] for row in again.decisions_of(VM)] == ["skip", "backup"]
    again.close()


def test_the_effect_of_a_key_is_written_once(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    state.apply(Change(effects=(effect("vc:1"),)), now=NOW)
    known = state.apply(Change(effects=(effect("vc:1"), effect("vc:2"), effect("vc:2"))), now=NOW)
    assert known == {"vc:1"}
    assert sorted(state.event_keys()) == ["vc:1", "vc:2"]
    assert len(state.decisions_of(VM)) == 2
    state.close()


def test_a_change_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    broken = Change(effects=(effect("vc:1"),), cursor=Cursor("vc", NOW, 2**80))
    with pytest.raises(Exception, match="state"):
        state.apply(broken, now=NOW)
    assert state.event_keys() == []
    state.apply(Change(effects=(effect("vc:2"),)), now=NOW)
    assert state.event_keys() == ["vc:2"]
    state.close()


def test_five_thousand_events_are_journaled_in_one_fast_transaction(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    state.apply(Change(effects=tuple(effect(f"vc:{n}") for n in range(5000))), now=NOW)
    assert len(state.event_keys("vc")) == 5000
    assert len(state.known_keys([f"vc:{n}" for n in range(4000, 6000)])) == 1000
    state.close()


def test_a_success_clears_only_the_distrust_that_its_run_knew_of(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    state.apply(Change(distrust=(Distrust(VM, "relocated", "vc:1", NOW),), jobs=(job(),)), now=NOW)
    known = state.distrust_of(VM)
    # Handling this event began before the run and ended after it, so the run did not read for its sake.
    unknown = Distrust(VM, "reconfigured", "vc:2", NOW - timedelta(minutes=1))
    state.apply(Change(distrust=(unknown,)), now=NOW)
    done = RunRow(VM, last_success=NOW + timedelta(minutes=1))
    state.settle(job(state=JobState.DONE), now=NOW, run=done, point=PointId("p1"), trusted=known)
    assert state.distrust_of(VM) == [unknown]
    assert state.open_jobs() == []
    assert state.runs()[VM].last_success == NOW + timedelta(minutes=1)
    state.close()


def test_jobs_of_a_dead_engine_are_pending_again(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    state.save_job(job(state=JobState.RUNNING, attempts=1))
    state.close()
    again = State(tmp_path, now=NOW)
    assert [(one.state, one.attempts) for one in again.requeue_running()] == [(JobState.PENDING, 1)]
    again.close()


def test_vms_intents_audit_and_policies_are_remembered(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    row = VmRow(VM, Traits(Address("vc", "vm-7"), "web", "i", "b", frozenset({"d"})), {"power": "on"}, NOW)
    state.apply(Change(vms=(row,), fired={("p", "trigger[0]", VM): NOW}), now=NOW)
    state.apply(Change(vms=(row,), fired={("p", "trigger[0]", VM): NOW}), now=NOW)
    state.intend(Intent("run-1", "snapshot", Address("vc", "vm-7"), VM, "backstay-run-1", NOW))
    state.audit(Audited(NOW, "root", "hold", "point-1", "keep it"))
    assert state.policy_commit() == ""
    state.accept_policies({"a.toml": "schema = 1"}, who="root", detail="first", now=NOW, commit="c0ffee")
    assert state.policy_commit() == "c0ffee"
    assert state.vms() == [row]
    assert state.fired() == {("p", "trigger[0]", VM): NOW}
    assert [i.run for i in state.intents()] == ["run-1"]
    state.resolve_intents(["run-1"])
    assert state.intents() == []
    assert {entry.action for entry in state.audited()} == {"hold", "apply policies"}
    assert state.policy_files() == {"a.toml": "schema = 1"}
    state.close()


def test_a_disk_about_to_be_attached_is_written_down_until_it_is_known_to_be_gone(tmp_path: Path) -> None:
    state, threads = State(tmp_path, now=NOW), Threads()
    record = recorder(state, threads)
    attaching = AttachIntent("vc", "vm-9", "6000C29-1", "[ds] web/web.vmdk", "run-1")
    record(attaching)
    [written] = state.intents()
    assert (written.run, written.kind, written.address) == ("run-1", "attached disk", Address("vc", "vm-9"))
    assert "web.vmdk" in written.name
    record(replace(attaching, done=True))
    assert state.intents() == []
    state.close()
    with pytest.raises(StorageError):
        record(attaching)
    record(replace(attaching, done=True))
    threads.close()


def test_an_unreadable_state_is_put_aside_and_the_engine_starts_empty(tmp_path: Path) -> None:
    (tmp_path / "state.duckdb").write_bytes(b"this is no database" * 1000)
    state = State(tmp_path, now=NOW)
    assert state.fresh
    assert "could not be read" in state.why_fresh
    assert list(tmp_path.glob("state.duckdb.unreadable-*"))
    state.close()


def test_a_broken_log_is_put_aside_too(tmp_path: Path) -> None:
    script = (
        "import duckdb, os; c = duckdb.connect('state.duckdb');"
        "c.execute('CREATE TABLE meta (name VARCHAR, value VARCHAR)');"
        "c.execute(\"INSERT INTO meta VALUES ('schema', '1')\"); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    log = tmp_path / "state.duckdb.wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0xFF
    log.write_bytes(data)
    state = State(tmp_path, now=NOW)
    assert state.fresh
    assert list(tmp_path.glob("*.unreadable-*.wal"))
    state.close()


def test_a_newer_state_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    State(tmp_path, now=NOW).close()
    with duckdb.connect(str(tmp_path / "state.duckdb")) as raw:
        raw.execute("UPDATE meta SET value = '99'")
    with pytest.raises(Unsupported, match="schema 99"):
        State(tmp_path, now=NOW)
    with duckdb.connect(str(tmp_path / "state.duckdb")) as raw:
        assert raw.execute("SELECT value FROM meta").fetchall() == [("99",)]


def test_a_second_engine_is_told_who_holds_the_state(tmp_path: Path) -> None:
    State(tmp_path, now=NOW).close()
    script = "import duckdb, sys; c = duckdb.connect('state.duckdb'); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=str(holder.pid)):
            State(tmp_path, now=NOW)
        holder.kill()


def test_an_older_state_is_migrated_after_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = State(tmp_path, now=NOW)
    old.audit(Audited(NOW, "root", "hold", "point-1"))
    old.close()
    found = state_schema.SCHEMA
    monkeypatch.setattr(state_schema, "SCHEMA", found + 1)
    monkeypatch.setitem(state_schema.MIGRATIONS, found, ("ALTER TABLE audit ADD COLUMN place VARCHAR",))
    state = State(tmp_path, now=NOW)
    assert not state.fresh
    assert [entry.action for entry in state.audited()] == ["hold"]
    assert "place" in state.table("SELECT * FROM audit").schema.names
    state.close()
    [copy] = tmp_path.glob(f"state.duckdb.schema-{found}-*")
    with duckdb.connect(str(copy), read_only=True) as raw:
        assert raw.execute("SELECT value FROM meta").fetchall() == [(str(found),)]


FIRST_TABLES = {
    "decisions": "event_key VARCHAR, kind VARCHAR, vm VARCHAR, policy VARCHAR, rule VARCHAR, reason VARCHAR, "
    "policy_hash VARCHAR, job VARCHAR, decided_at TIMESTAMP",
    "jobs": "id VARCHAR, key VARCHAR, kind VARCHAR, vm VARCHAR, policy VARCHAR, rule VARCHAR, reason VARCHAR, "
    "created_at TIMESTAMP, not_before TIMESTAMP, deadline TIMESTAMP, priority INTEGER, consistency VARCHAR, "
    "fallback VARCHAR, transports VARCHAR, policy_hash VARCHAR, event_key VARCHAR, manual BOOLEAN, state VARCHAR, "
    "attempts INTEGER, last_error VARCHAR, run VARCHAR, point VARCHAR, settled_at TIMESTAMP",
    "policy_files": "name VARCHAR, text VARCHAR, accepted_at TIMESTAMP, who VARCHAR",
    "distrust": "vm VARCHAR, reason VARCHAR, event_key VARCHAR, since TIMESTAMP",
}
"""The tables of schema 1 that have more columns now."""


def test_a_state_of_the_first_schema_is_as_a_new_one_once_migrated(tmp_path: Path) -> None:
    State(tmp_path / "new", now=NOW).close()
    State(tmp_path / "old", now=NOW).close()
    with duckdb.connect(str(tmp_path / "old" / "state.duckdb")) as raw:
        for name, columns in FIRST_TABLES.items():
            raw.execute(f"DROP TABLE {name}")
            raw.execute(f"CREATE TABLE {name} ({columns})")
        raw.execute("DROP TABLE rehearsals")  # of schema 3
        raw.execute("INSERT INTO policy_files VALUES ('a.toml', 'schema = 1', NULL, 'root')")
        raw.execute(
            "INSERT INTO jobs VALUES ('j', 'k', 'backup', 'v', 'gold', 'rpo', 'it was time', ?, ?, NULL, 0, 'crash',"
            " 'crash', '[]', '', 'e', false, 'pending', 0, '', NULL, NULL, NULL)",
            [NOW.replace(tzinfo=None)] * 2,
        )
        raw.execute("UPDATE meta SET value = '1' WHERE name = 'schema'")
    state = State(tmp_path / "old", now=NOW)
    assert (state.policy_files(), state.policy_commit()) == ({"a.toml": "schema = 1"}, "")
    [old] = state.open_jobs()
    assert (old.event_type, old.event_at, old.policy_commit) == ("", None, "")
    state.close()
    shape = "SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY 1, ordinal_position"
    shapes = []
    for place in ("old", "new"):
        with duckdb.connect(str(tmp_path / place / "state.duckdb"), read_only=True) as raw:
            shapes.append(raw.execute(shape).fetchall())
    assert shapes[0] == shapes[1]


def test_what_led_to_a_job_is_remembered_with_it(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    made = job(1, event_type="vm.migrated", event_at=NOW, policy_commit="c0ffee")
    state.save_job(made)
    state.close()
    state = State(tmp_path, now=NOW)
    assert state.open_jobs() == [made]
    state.close()


def test_the_state_forgets_what_is_old_and_over_but_nothing_open(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    old = NOW - timedelta(days=500)
    jobs = tuple(job(n, created_at=old, state=kind) for n, kind in enumerate(JobState))
    state.apply(Change(effects=(effect("vc:1"),), jobs=jobs, fired={("p", "r", VM): old}), now=old)
    state.forget(NOW - timedelta(days=400))
    assert state.table("SELECT state FROM jobs").to_pydict() == {"state": ["pending", "running"]}
    assert state.event_keys() == []
    assert state.fired() == {}
    state.close()


def test_the_key_of_a_done_job_is_remembered_for_days_and_of_a_failed_one_for_as_long_as_its_slot_may_last(
    tmp_path: Path,
) -> None:
    state = State(tmp_path, now=NOW)
    early = NOW - timedelta(days=30)
    state.apply(
        Change(
            jobs=(
                job(1, created_at=early, state=JobState.DONE),
                job(2, created_at=early, state=JobState.FAILED),
                job(3, state=JobState.DONE),
                job(4, state=JobState.ABANDONED),
            )
        ),
        now=NOW,
    )
    assert set(state.job_keys(NOW)) == {"key-2", "key-3"}
    state.close()


def test_a_vm_that_is_forgotten_leaves_nothing_in_the_state(tmp_path: Path) -> None:
    state = State(tmp_path, now=NOW)
    other = VmId("vm-2")
    rows = tuple(VmRow(vm, Traits(None, "web"), {}, NOW) for vm in (VM, other))
    state.apply(Change(vms=rows, distrust=(Distrust(VM, "why", "", NOW),), fired={("p", "r", VM): NOW}), now=NOW)
    state.save_job(job(state=JobState.DONE), run=RunRow(VM, last_attempt=NOW))
    state.forget_vms([VM])
    assert [row.id for row in state.vms()] == [other]
    assert (state.runs(), state.distrust_of(VM), state.fired()) == ({}, [], {})
    state.close()


def test_a_state_whose_first_start_was_cut_off_is_put_aside_and_made_anew(tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / "state.duckdb")).close()  # DuckDB made its file; the tables never came
    state = State(tmp_path, now=NOW)
    assert state.fresh
    assert "could not be read" in state.why_fresh
    state.save_job(job())
    state.close()
    again = State(tmp_path, now=NOW)
    assert not again.fresh
    assert again.open_jobs() == [job()]
    again.close()


def test_an_older_state_that_cannot_be_copied_stays_as_it_is_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    State(tmp_path, now=NOW).close()
    found = state_schema.SCHEMA
    monkeypatch.setattr(state_schema, "SCHEMA", found + 1)
    monkeypatch.setitem(state_schema.MIGRATIONS, found, ("ALTER TABLE audit ADD COLUMN place VARCHAR",))
    (tmp_path / f"state.duckdb.schema-{found}-{NOW:%Y%m%dT%H%M%S}").mkdir()
    (tmp_path / f"state.duckdb.schema-{found}-{NOW:%Y%m%dT%H%M%S}" / "state.duckdb").mkdir()
    with pytest.raises(StorageError):
        State(tmp_path, now=NOW)
    monkeypatch.undo()
    State(tmp_path, now=NOW).close()
