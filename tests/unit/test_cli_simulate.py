"""policy simulate and policy journal as a user runs them."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine.journal import Effect
from engine.records import Change
from engine.state import State
from policies.facts import Disk, Event, EventType, Facts, VmId
from policies.factsfile import facts_as_json
from tests.console import BACKSTAY, backstay, environment, on_terminal
from tests.policies.building import a_vm, daily_points

START = datetime(2026, 11, 22, 14, tzinfo=UTC)
POLICY = """schema = 1
[policy.daily]
rpo = "24h"
select.all = ["*"]
retention = { keep_daily = 3, grace = "1d" }
[[policy.daily.trigger]]
on = "vm.migrated"
cooldown = "5h"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "daily.toml").write_text(POLICY)
    return tmp_path


def a_state(folder: Path) -> Path:
    vm = a_vm("web-3", host="esx-2", disks=(Disk(2000, "d", 10 << 30, "u", "ds", "f", "persistent"),))
    facts = Facts(START + timedelta(days=2), {vm.id: vm}, points={vm.id: daily_points(vm, 4, START)})
    (folder / "state.json").write_text(json.dumps(facts_as_json(facts)))
    return folder / "state.json"


def an_event(number: int, hours: float) -> Event:
    at = START + timedelta(hours=hours)
    return Event(f"e{number}", EventType.MIGRATED, at, "vc", VmId("id-web-3"), "web-3", None, "drs", "esx-1", "esx-2")


def test_a_made_up_fleet_is_simulated(folder: Path) -> None:
    arguments = ("policy", "simulate", "policies", "--fleet", "20", "--days", "10", "--from", "2026-11-22")
    ran = backstay(*arguments, "--at", "2026-11-30", home=folder)
    assert "20 VMs, 2026-11-22 00:00 to 2026-12-02 00:00 UTC, 200 events" in ran.out
    assert "On 2026-11-30 00:00 UTC there are" in ran.out
    assert ran.err.startswith("No configuration: at most 8 backups run at once.")
    told = backstay(*arguments, "--json", "--seed", "7", home=folder).data
    again = backstay(*arguments, "--json", "--seed", "7", home=folder).data
    assert told == again
    assert told["source"] == "a made-up fleet of 20 VMs, seed 7"
    assert told["runs"]["total"] > 200
    assert len(told["storage"]["days"]) == 10


def test_a_state_file_goes_on_from_its_time(folder: Path) -> None:
    state = a_state(folder)
    arguments = ("policy", "simulate", "policies", "--state", state, "--until", "2026-11-28")
    ran = backstay(
        *arguments, "--at", "2026-11-27", "--vm", "web-3", "--throughput", "1GiB", "--change", "5%", home=folder
    )
    assert "1 VM, 2026-11-24 14:00 to 2026-11-28 00:00 UTC, 0 events: 4 runs" in ran.out
    assert "policy daily: keep_daily 1 of 3" in ran.out
    assert backstay(*arguments, "--json", home=folder).data["assumed"]["bytes_per_second"] == 200 << 20


def test_recorded_events_are_replayed_under_other_policies(folder: Path) -> None:
    lines = [
        {"key": f"e{n}", "type": "vm.migrated", "at": f"2026-11-22T{15 + n}:00:00Z", "vm": "id-web-3"} for n in range(3)
    ]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("policy", "simulate", "policies", "--state", a_state(folder), "--events", "events.jsonl", "--json")
    told = backstay(*arguments, home=folder).data
    assert told["from"] == "2026-11-22T15:00:00Z"
    assert told["until"] == "2026-11-24T14:00:00Z"
    assert told["events"] == 3
    assert {"policy": "daily", "rule": "trigger[0]", "runs": 1} in told["runs"]["by_rule"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fleet", "0"], "no size of a fleet"),
        (["--fleet", "5", "--days", "0"], "no number of days"),
        (["--fleet", "5", "--days", "9999"], "no number of days"),
        (["--fleet", "5", "--days", "3", "--until", "2030-01-01"], "give one of them"),
        (["--fleet", "5", "--until", "2001-01-01"], "name a later day"),
        (["--fleet", "5", "--until", "soon"], "is not a date"),
        (["--fleet", "5", "--events", "x"], "give one of them"),
        (["--fleet", "5", "--at", "2001-01-01"], "is not in the simulation"),
        (["--fleet", "5", "--vm", "a"], "give --at DATE too"),
        (["--fleet", "5", "--from", "2026-01-01", "--at", "2026-01-02", "--vm", "a"], "no VM of the simulation"),
        (["--fleet", "5", "--events-per-vm-day", "1e9"], "is no rate"),
        (["--fleet", "5", "--throughput", "fast"], "not a size"),
        (["--fleet", "5", "--throughput", "0B"], "nothing would ever be read"),
        (["--fleet", "5", "--change", "much"], "is not a share"),
        (["--state", "none.json"], "none.json"),
        (["--state", "state.json", "--events", "none"], "none"),
        (["--state", "state.json", "--events", "empty"], "no event is recorded"),
        (["--state", "state.json", "--events", "broken"], "broken:1:1"),
        (["--state", "state.json", "--journal", "soon"], "not a duration"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_what_to_do(folder: Path, arguments: list[str], said: str) -> None:
    a_state(folder)
    (folder / "empty").write_text("\n")
    (folder / "broken").write_text("{\n")
    ran = backstay("policy", "simulate", "policies", *arguments, home=folder, expect=2)
    assert said in ran.err


def configured(folder: Path) -> Path:
    (folder / "secret").write_text("x")
    (folder / "backstay.toml").write_text(
        'schema = 1\nname = "e"\nstate_dir = "engine"\npolicies = "policies"\nrepository.path = "repo"\n'
        '[vcenter.lab]\nhost = "nowhere.invalid"\nuser = "u"\npassword = "file:secret"\n'
        '[timers]\nclock = "10m"\n[limits]\ntotal = 3\n'
    )
    return folder / "backstay.toml"


def test_the_journal_of_an_engine_that_does_not_run_is_written_and_replayed(folder: Path) -> None:
    config = configured(folder)
    now = datetime.now(UTC)
    events = [an_event(number, number) for number in range(3)]
    state = State(folder / "engine", now=now)
    state.apply(Change(effects=tuple(map(Effect, events))), now=now - timedelta(days=4))
    state.close()
    ran = backstay("policy", "journal", "--config", config, home=folder)
    assert [json.loads(line)["key"] for line in ran.out.splitlines()] == ["e0", "e1", "e2"]
    assert backstay("policy", "journal", "--since", "2d", "--config", config, home=folder).out == ""
    written = backstay("policy", "journal", "--out", "j.jsonl", "--config", config, home=folder)
    assert (folder / "j.jsonl").read_text() == ran.out
    assert written.err.startswith("j.jsonl: ")
    state_file = a_state(folder)
    told = backstay(
        "policy", "simulate", "--state", state_file, "--journal", "30d", "--days", "2", "--json", "--config", config,
        home=folder,
    ).data  # fmt: skip
    assert told["events"] == 3
    assert told["assumed"]["clock_seconds"] == 600
    assert told["assumed"]["limits"]["running"] == 3


def test_without_an_engine_ever_there_is_no_journal(folder: Path) -> None:
    ran = backstay("policy", "journal", "--config", configured(folder), home=folder, expect=2)
    assert "no engine ever ran here" in ran.err
    backstay("policy", "journal", "--repo", "nowhere", home=folder, expect=6)


def test_a_terminal_sees_the_days_go_by(folder: Path) -> None:
    arguments = ["policy", "simulate", "policies", "--fleet", "400", "--days", "20", "--from", "2026-11-22"]
    code, shown = on_terminal(folder, arguments, [])
    assert code == 0
    assert "Simulating 400 VMs" in shown
    assert "/20" in shown
    assert "days" in shown


def test_an_interruption_ends_with_130(folder: Path) -> None:
    with subprocess.Popen(
        [BACKSTAY, "policy", "simulate", "policies", "--fleet", "3000", "--days", "900"],
        cwd=folder, env=environment(folder), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("No configuration")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
