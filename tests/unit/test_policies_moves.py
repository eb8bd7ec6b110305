"""What a move of a VM means for the run that reads it: decided, tried in a test of policies, and simulated."""

from __future__ import annotations

from datetime import timedelta

import pytest

from policies.assumptions import Assumptions
from policies.decision import Decision, Requeue, Skip
from policies.errors import PolicyError
from policies.evaluation import CALLED_BACK_AT_MOST, GIVES_WAY, evaluate
from policies.facts import Event, EventType, VmHistory
from policies.fixtures import case_of
from policies.limits import Limits
from policies.protection import protection
from policies.reading import read_tests
from policies.recorded import Recorded
from policies.settings import settings_of
from policies.simulation import Simulation
from policies.trial import try_out
from tests.policies.building import NOW, a_disk, a_vm, an_event, facts, policies

DB = a_vm("db", host="esx-1", disks=(a_disk(2000, gib=1000),))
TEXT = '[policy.gold]\nselect.all = ["*"]\nrpo = "1d"\non_migrate = "requeue"\n'


def moved(to_host: str = "esx-2", key: str = "k1") -> Event:
    return an_event(EventType.MIGRATED, DB, key=key, cause="drs", from_host="esx-1", to_host=to_host)


def about(text: str, history: VmHistory, event: Event | None = None) -> list[Decision]:
    found = evaluate(policies(text), event or moved(), facts(DB, history={DB.id: history}))
    return [decision for decision in found if getattr(decision, "rule", "") == "on_migrate"]


READ = VmHistory(running=True, reading_on="esx-1")


def test_a_run_whose_vm_moves_while_it_is_read_gives_way() -> None:
    what = "db was moved by DRS from esx-1 to esx-2 while it was backed up"
    reason = f"{what}; policy gold has its run give way and wait again"
    assert about(TEXT, READ) == [Requeue(DB.id, "gold", "on_migrate", reason, "k1")]


def test_a_run_goes_on_where_no_policy_says_otherwise() -> None:
    assert about(TEXT.replace("requeue", "finish"), READ) == []
    assert about(TEXT.partition("on_migrate")[0], READ) == []


def test_a_move_before_the_run_began_or_when_all_is_read_or_of_storage_changes_nothing() -> None:
    assert about(TEXT, READ, moved("esx-1")) == []
    assert about(TEXT, VmHistory(running=True)) == []
    assert about(TEXT, READ, an_event(EventType.RELOCATED, DB)) == []


def test_a_run_that_gave_way_often_enough_goes_on_and_says_so() -> None:
    (said,) = about(TEXT, VmHistory(running=True, reading_on="esx-1", called_back=CALLED_BACK_AT_MOST))
    assert isinstance(said, Skip)
    assert said.reason.endswith("its run gave way 3 times in a row, so that this one goes on")


def test_on_a_tie_blocking_wins_before_finishing_and_settings_tell_it() -> None:
    other, third = (
        TEXT.replace("gold", name).replace("requeue", value) for name, value in (("base", "finish"), ("all", "block"))
    )
    assert protection(policies(TEXT + other + third), DB).on_migrate == "block"
    assert protection(policies(TEXT + other + third + "priority = -1\n"), DB).on_migrate == "finish"
    assert settings_of(protection(policies(third), DB))["on_migrate"] == "block"
    assert protection(policies(TEXT), DB).on_migrate == "requeue"
    assert protection(policies(TEXT + other), DB).on_migrate == "finish"
    assert protection(policies(TEXT + other + "priority = -1\n"), DB).on_migrate == "requeue"
    assert settings_of(protection(policies(TEXT), DB))["on_migrate"] == "requeue"
    assert "on_migrate" not in settings_of(protection(policies(TEXT.partition("on_migrate")[0]), DB))


def test_a_run_goes_on_where_moves_are_blocked_and_its_vm_moves_all_the_same() -> None:
    assert about(TEXT.replace("requeue", "block"), READ) == []


def test_what_a_move_shall_mean_is_one_of_three_words() -> None:
    with pytest.raises(PolicyError, match='"forbid" is not a value of on_migrate, write one of finish, requeue, block'):
        policies(TEXT.replace("requeue", "forbid"))


TESTED = """
[[test]]
name = "a move in the night"
now = 2026-01-07T12:00:00Z
for = "4h"
backup_takes = "1h"
[[test.vm]]
name = "db"
host = "esx-1"
[[test.event]]
at = "10m"
type = "vm.migrated"
vm = "db"
to_host = "esx-2"
[test.expect.db]
backups = 1
backup_after = "10m"
"""


def test_a_test_of_policies_sees_the_run_begin_again() -> None:
    found = policies(TEXT + TESTED)
    (written,) = read_tests({"0.toml": f"schema = 1\n{TEXT}{TESTED}"})
    trial = try_out(case_of(written, found), found)
    (backup,) = trial.backups
    assert backup.starts == timedelta(minutes=10) + GIVES_WAY
    assert any(isinstance(one.decision, Requeue) for one in trial.said)


def test_a_simulation_sees_runs_give_way_and_the_fourth_go_on() -> None:
    assumed = Assumptions(limits=Limits(running=1))
    moves = [Recorded(NOW + timedelta(minutes=5 * at), moved(f"esx-{at + 2}", f"m{at}")) for at in range(6)]
    simulation = Simulation(policies(TEXT), facts(DB), assumed, NOW + timedelta(hours=20))
    trace = simulation.run(moves)
    assert trace.decided["Requeue"] == CALLED_BACK_AT_MOST
    assert sum(trace.runs.values()) == 1
    peaks = [peak.running for peak in trace.peaks.values()]
    assert set(peaks) == {0}


TRIGGERED = f"""{TEXT}[[policy.gold.trigger]]
on = "vm.migrated"
settle = "30m"
"""


def test_a_run_that_gives_way_and_the_one_that_its_move_asks_for_become_one() -> None:
    text = TRIGGERED + TESTED.replace('for = "4h"', 'for = "12h"')
    found = policies(TRIGGERED)
    (written,) = read_tests({"0.toml": f"schema = 1\n{text}"})
    trial = try_out(case_of(written, found), found)
    (backup,) = trial.backups
    assert (backup.decision.rule, backup.starts) == ("rpo", timedelta(minutes=10) + GIVES_WAY)
    assumed = Assumptions(limits=Limits(running=1))
    moves = [Recorded(NOW + timedelta(minutes=5), moved())]
    trace = Simulation(found, facts(DB), assumed, NOW + timedelta(hours=20)).run(moves)
    assert (trace.decided["Requeue"], sum(trace.runs.values())) == (1, 1)
