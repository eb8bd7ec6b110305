"""Whether a run that waited still starts: for its own rule, and for what joined it."""

from __future__ import annotations

from datetime import timedelta

from policies.admission import merge
from policies.assumptions import Assumptions
from policies.decision import BackUp
from policies.evaluation import evaluate
from policies.facts import Event, EventType, Facts
from policies.limits import Limits
from policies.needed import dropped
from policies.recorded import Recorded
from policies.simulation import Simulation
from tests.policies.building import NOW, a_disk, a_point, a_vm, an_event, facts, policies

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
GIVEN = policies("""
[policy.first]
priority = 9
rpo = "30d"
select.all = ["name:a"]
[policy.goal]
rpo = "24h"
select.all = ["name:db"]
[policy.moves]
select.all = ["*"]
trigger = [{ on = "vm.migrated" }]
[policy.holds]
select.all = ["*"]
trigger = [{ on = "vm.renamed", action = "hold" }]
""")
VM = a_vm("db")
FIRED = {("moves", "trigger[0]", VM.id): NOW}


def decided(event: Event, known: Facts) -> BackUp:
    [found] = [one for one in evaluate(GIVEN, event, known) if isinstance(one, BackUp)]
    return found


def joined() -> BackUp:
    """The goal's run, which a move has joined."""
    by_goal = decided(an_event(EventType.CLOCK), facts(VM))
    assert by_goal.rule == "rpo"
    return merge(by_goal, decided(an_event(EventType.MIGRATED, VM, key="k2"), facts(VM)))


def test_a_run_that_a_trigger_joined_starts_though_its_goal_is_not_due_any_more() -> None:
    fresh = a_point(VM, NOW - MINUTE)
    known = facts(VM, now=NOW + HOUR, points=[fresh])
    assert "not due any more" in dropped(joined(), VM, GIVEN, known, asked=False)
    known = facts(VM, now=NOW + HOUR, points=[fresh], fired=FIRED)
    assert dropped(joined(), VM, GIVEN, known, asked=False) == ""


def test_a_restore_point_since_it_fired_settles_what_joined() -> None:
    known = facts(VM, now=NOW + HOUR, points=[a_point(VM, NOW + MINUTE)], fired=FIRED)
    assert "not due any more" in dropped(joined(), VM, GIVEN, known, asked=False)


def test_a_trigger_that_joined_another_policys_trigger_outlives_it() -> None:
    other = policies('[policy.moves]\nselect.all = ["*"]\ntrigger = [{ on = "vm.migrated" }]')
    run = decided(an_event(EventType.MIGRATED, VM), facts(VM))
    run = merge(BackUp("k0", VM.id, "gone", "trigger[0]", "it was renamed", NOW), run)
    assert "gone does not select" in dropped(run, VM, other, facts(VM), asked=False)
    assert dropped(run, VM, other, facts(VM, fired=FIRED), asked=False) == ""


def test_a_trigger_that_only_holds_points_wants_no_run() -> None:
    fired = {("holds", "trigger[0]", VM.id): NOW}
    known = facts(VM, now=NOW + HOUR, points=[a_point(VM, NOW - MINUTE)], fired=fired)
    assert "not due any more" in dropped(joined(), VM, GIVEN, known, asked=False)


def test_a_simulated_run_that_a_trigger_joined_starts_though_no_goal_selects_its_vm_any_more() -> None:
    big = a_vm("a", disks=(a_disk(2000, 100),))
    events = [
        Recorded(event.at, event)
        for event in (
            an_event(EventType.MIGRATED, VM, at=NOW + 10 * MINUTE),
            an_event(EventType.RENAMED, VM, key="k2", at=NOW + 20 * MINUTE, detail={"new_name": "web"}),
        )
    ]
    assumed = Assumptions(limits=Limits(running=1), bytes_per_second=10_000_000)
    start, until = facts(big, VM), NOW + 12 * HOUR
    trace = Simulation(GIVEN, start, assumed, until).run(events)
    assert trace.given_up == 0
    assert len(trace.made[VM.id]) == 1
