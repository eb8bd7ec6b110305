"""What triggers with conditions, actions and a spread make of events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Skip
from policies.evaluation import evaluate
from policies.facts import Event, EventType, Facts, PowerState, Vm, VmHistory
from policies.protection import due_of, protection
from policies.spreading import delay
from policies.units import clock
from tests.policies.building import NOW, a_point, a_vm, an_event, facts, policies

WEB = a_vm("web-3", tags=frozenset({"env=prod"}), power=PowerState.OFF)
OFF = an_event(EventType.POWERED_OFF, WEB)
HELD = an_event(EventType.HOLD_REQUESTED, WEB, user="siem", detail={"reason": "ransomware"})


def decided(event: Event, *triggers: str, known: Facts | None = None, more: str = "") -> tuple[Decision, ...]:
    """What a policy of every VM says with these triggers, each the keys of one table."""
    tables = "".join(f"\n[[policy.p.trigger]]\n{keys}" for keys in triggers)
    return evaluate(policies(f'[policy.p]\nselect.all = ["*"]\n{more}{tables}'), event, known or facts(WEB))


def test_a_condition_that_holds_lets_the_trigger_fire_and_says_nothing() -> None:
    (run,) = decided(OFF, "on = 'vm.powered_off'\nwhen = '\"env=prod\" in vm.tags && vm.power == \"off\"'")
    assert isinstance(run, BackUp)
    assert run.reason == "web-3 was powered off; policy p backs up after vm.powered_off, now"


def test_a_condition_that_does_not_hold_is_said() -> None:
    (skip,) = decided(OFF, "on = 'vm.powered_off'\nwhen = 'failures > 2'")
    assert skip == Skip(
        WEB.id, "p", "trigger[0]", "web-3 was powered off; the condition of policy p, trigger[0], does not hold", "k1"
    )


def test_a_condition_that_nobody_can_work_out_counts_as_true_and_is_said() -> None:
    (run,) = decided(OFF, "on = 'vm.powered_off'\nwhen = 'vm.attributes[vm.name] == \"x\"'")
    assert isinstance(run, BackUp)
    assert run.reason == (
        "web-3 was powered off; policy p backs up after vm.powered_off, now; nobody can tell whether its condition "
        'holds, so it counts as true: there is no key "web-3"'
    )


@pytest.mark.parametrize(("age", "fires"), [(None, True), (timedelta(minutes=59), False), (timedelta(hours=2), True)])
def test_the_age_of_the_last_good_point_is_asked_of_the_points(age: timedelta | None, fires: bool) -> None:
    points = [] if age is None else [a_point(WEB, NOW - age)]
    trigger = "on = 'vm.powered_off'\nwhen = 'last_good_age > duration(\"1h\")'"
    (said,) = decided(OFF, trigger, known=facts(WEB, points=points))
    assert isinstance(said, BackUp) is fires


def test_attempts_and_failures_are_asked_of_the_history() -> None:
    history = {WEB.id: VmHistory(last_attempt=NOW - timedelta(minutes=5), consecutive_failures=3)}
    trigger = "on = 'vm.powered_off'\nwhen = 'failures == 3 && last_attempt_age < duration(\"10m\")'"
    assert isinstance(decided(OFF, trigger, known=facts(WEB, history=history))[0], BackUp)


def test_the_first_trigger_whose_condition_holds_runs() -> None:
    one, two = "on = 'vm.powered_off'\nwhen = 'failures > 0'", "on = 'vm.powered_off'"
    assert [type(said) for said in decided(OFF, one, two)] == [Skip, BackUp]


def test_a_trigger_may_distrust_and_hold_besides_backing_up() -> None:
    reverted = an_event(EventType.RECONFIGURED, WEB)
    said = decided(
        reverted,
        "on = 'vm.reconfigured'\naction = 'distrust'",
        "on = 'vm.reconfigured'",
        "on = 'vm.reconfigured'\naction = 'hold'",
    )
    assert said[0] == DistrustTracking(
        WEB.id,
        "web-3 was reconfigured; policy p does not trust its change tracking: the next backup reads in full",
        "k1",
        "p",
        "trigger[0]",
    )
    assert isinstance(said[1], BackUp)
    assert said[2] == HoldPoints(
        WEB.id, "web-3 was reconfigured; policy p holds its restore points", "k1", "p", "trigger[2]"
    )


def test_what_distrusts_and_holds_does_so_for_a_vm_that_cannot_be_backed_up() -> None:
    vm = replace(WEB, refusal="fault tolerance is on")
    said = decided(OFF, "on = 'vm.powered_off'", "on = 'vm.powered_off'\naction = 'hold'", known=facts(vm))
    assert [type(one) for one in said] == [Skip, HoldPoints]


@pytest.mark.parametrize(
    ("action", "did"), [("hold", "held its restore points"), ("distrust", "distrusted its change tracking")]
)
def test_every_action_cools_down(action: str, did: str) -> None:
    fired = {("p", "trigger[0]", WEB.id): NOW - timedelta(hours=1)}
    trigger = f"on = 'vm.powered_off'\naction = '{action}'\ncooldown = '6h'"
    (skip,) = decided(OFF, trigger, known=facts(WEB, fired=fired))
    assert isinstance(skip, Skip)
    assert f"policy p {did} after such an event at 13:00 UTC and cools down until 19:00 UTC" in skip.reason


def test_a_hold_by_message_may_lead_to_one_more_restore_point() -> None:
    said = decided(HELD, "on = 'hold.requested'\nany_time = true")
    assert said[0] == HoldPoints(WEB.id, "siem asked (ransomware) to hold the restore points of web-3", "k1")
    assert isinstance(said[1], BackUp)
    assert said[1].reason.startswith("siem asked (ransomware) to hold the restore points of web-3; policy p backs up")
    assert len(decided(HELD, "on = 'vm.powered_off'")) == 1, "a hold that no trigger names is a hold"
    picky = "on = 'hold.requested'\nwhen = 'event.detail.reason.contains(\"ransom\")'"
    assert isinstance(decided(HELD, picky)[1], BackUp)


def test_a_hold_of_a_vm_that_is_not_there_says_why_nothing_else_happens() -> None:
    said = decided(HELD, "on = 'hold.requested'", known=facts())
    assert isinstance(said[0], HoldPoints)
    assert isinstance(said[1], Skip)
    assert said[1].reason.endswith("it is not in the inventory, so no trigger can back it up")


def test_other_tags_are_an_event() -> None:
    tagged = an_event(EventType.RETAGGED, WEB, detail={"tags": "added lifecycle=decommission"})
    (run,) = decided(tagged, "on = 'vm.retagged'\nwhen = 'event.detail.tags.contains(\"decommission\")'")
    assert isinstance(run, BackUp)
    assert run.reason.startswith("web-3 got other tags (added lifecycle=decommission); policy p backs up")


def test_a_run_knows_the_event_and_the_commit_that_led_to_it() -> None:
    found = policies('[policy.p]\nselect.all = ["*"]\nrpo = "4h"\ntrigger = [{ on = "vm.powered_off" }]')
    for event in (OFF, an_event(EventType.CLOCK, at=NOW)):
        (run,) = evaluate(found.at_commit("c0ffee"), event, facts(WEB))
        assert isinstance(run, BackUp)
        assert (run.event_key, run.event_type, run.event_at) == ("k1", event.type, NOW)
        assert (run.policy_commit, run.policy_hash) == ("c0ffee", found.policies[0].hash)
    assert found.at_commit("c0ffee").commit == "c0ffee"
    assert found.at_commit("c0ffee").hash == found.hash


# many VMs at once

FLEET = tuple(a_vm(f"vm-{number}") for number in range(500))
MINUTES = timedelta(minutes=30)


def starts(text: str, event: EventType, now: datetime = NOW) -> list[datetime]:
    found, known = policies(text), facts(*FLEET, now=now)
    said = [evaluate(found, an_event(event, vm, key=f"k-{vm.name}", at=now), known) for vm in FLEET]
    return [run.not_before for decisions in said for run in decisions if isinstance(run, BackUp)]


def test_a_host_that_empties_starts_its_500_vms_over_the_spread() -> None:
    found = starts(
        '[policy.p]\nselect.all = ["*"]\ntrigger = [{ on = "vm.migrated", spread = "30m" }]', EventType.MIGRATED
    )
    assert len(found) == 500
    assert all(NOW <= at < NOW + MINUTES for at in found)
    by_minute = Counter((at - NOW) // timedelta(minutes=1) for at in found)
    assert len(by_minute) == 30 and max(by_minute.values()) < 40


def test_the_spread_of_a_trigger_ends_with_its_window_and_with_the_goal() -> None:
    window = '[policy.p]\nselect.all = ["*"]\nwindow = ["14:00-14:10"]\n'
    trigger = "\n[[policy.p.trigger]]\non = 'vm.migrated'\nspread = '30m'"
    assert all(at < NOW + timedelta(minutes=10) for at in starts(window + trigger, EventType.MIGRATED))
    anytime = starts(window + trigger + "\nany_time = true", EventType.MIGRATED)
    assert max(anytime) > NOW + timedelta(minutes=25)
    found = policies('[policy.p]\nselect.all = ["*"]\nrpo = "4h"' + trigger)
    known = facts(WEB, points=[a_point(WEB, NOW - timedelta(hours=3, minutes=55))])
    (run,) = evaluate(found, an_event(EventType.MIGRATED, WEB), known)
    assert isinstance(run, BackUp) and run.deadline == NOW + timedelta(minutes=5)
    assert NOW <= run.not_before <= run.deadline


def test_the_place_in_the_spread_is_the_same_for_each_event_of_a_burst() -> None:
    trigger = "on = 'vm.migrated'\nsettle = '5m'\nspread = '1h'"
    runs = [decided(an_event(EventType.MIGRATED, WEB, key=key), trigger)[0] for key in ("a", "b")]
    assert isinstance(runs[0], BackUp) and isinstance(runs[1], BackUp)
    assert runs[0].not_before == runs[1].not_before > NOW + timedelta(minutes=5)
    assert f"at {clock(runs[0].not_before, UTC, NOW)} after settling 5 m and " in runs[0].reason
    assert runs[0].reason.endswith(" for the spread")


NIGHTLY = '[policy.p]\nselect.all = ["*"]\nschedule = "0 22 * * *"\nspread = "2h"\n'
TEN = datetime(2026, 11, 22, 22, tzinfo=UTC)


def due(text: str, vm: Vm, now: datetime, last: datetime | None) -> datetime:
    points = [] if last is None else [a_point(vm, last)]
    found = due_of(protection(policies(text), vm), vm.id, facts(vm, now=now, points=points))
    assert found is not None
    return found[1].at


def test_a_fleet_with_one_time_starts_over_the_spread_and_once() -> None:
    before = {vm.id: due(NIGHTLY, vm, TEN - timedelta(hours=3), TEN - timedelta(days=1)) for vm in FLEET}
    assert all(TEN <= at < TEN + timedelta(hours=2) for at in before.values())
    assert len(set(before.values())) > 400
    for vm in FLEET[:50]:
        at, last = before[vm.id], TEN - timedelta(days=1)
        assert due(NIGHTLY, vm, TEN, last) == at, "the time itself changes nothing"
        assert due(NIGHTLY, vm, at, last) == at
        assert due(NIGHTLY, vm, at + timedelta(hours=5), last) == at + timedelta(hours=5), "late: at once"
        assert due(NIGHTLY, vm, at + timedelta(minutes=1), at) > at + timedelta(hours=20), "done: not again"


def test_a_vm_that_was_never_tried_has_its_first_run_at_its_place_in_a_long_spread() -> None:
    late = max(FLEET, key=lambda vm: due(NIGHTLY, vm, TEN, TEN - timedelta(days=1)))
    at = due(NIGHTLY, late, TEN, None)
    assert at > TEN + timedelta(minutes=100)
    assert due(NIGHTLY, late, at, None) == at


def test_the_spread_of_a_schedule_keeps_to_the_window_and_ends_before_the_next_time() -> None:
    windowed = NIGHTLY + 'window = ["23:00-23:20"]\n'
    for vm in FLEET[:100]:
        at = due(windowed, vm, TEN, TEN - timedelta(days=1))
        assert TEN + timedelta(hours=1) <= at < TEN + timedelta(minutes=80)
        assert TEN <= due(NIGHTLY.replace("0 22", "*/10 *"), vm, TEN, TEN - MINUTES) < TEN + timedelta(minutes=10)


def test_where_there_is_no_room_nothing_is_put_off() -> None:
    assert delay(timedelta(hours=1), NOW, NOW, "vm") == timedelta()
    assert delay(timedelta(hours=1), NOW, NOW - timedelta(hours=1), "vm") == timedelta()
    assert delay(timedelta(), NOW, NOW + MINUTES, "vm") == timedelta()
    assert delay(MINUTES, NOW, NOW + timedelta(days=1), "a", "b") != delay(MINUTES, NOW, NOW + timedelta(days=1), "ab")
