"""Which backups start now, in which order; which events are one run; when a failed run is tried again."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from policies.admission import (
    FIRST_RETRY,
    JITTER_SHARE,
    LONGEST_RETRY,
    OLDEST_EVERY,
    Turns,
    admit,
    coalesce,
    retry_at,
    urgency,
)
from policies.decision import BackUp
from policies.evaluation import evaluate
from policies.facts import Consistency, EventType, Vm, VmHistory, VmId
from policies.limits import Limits
from policies.line import Line
from policies.needed import held_until
from policies.overload import TYPICAL_RUN
from policies.policy import PolicyLimits
from tests.policies.building import NOW, a_vm, an_event, daily_points, facts, policies


def run(name: str, *, deadline: int | None = None, starts: int = 0, **more: object) -> BackUp:
    """Minutes from now."""
    return BackUp(
        **{  # type: ignore[arg-type]
            "key": f"k-{name}",
            "vm": VmId(f"id-{name}"),
            "policy": "gold",
            "rule": "rpo",
            "reason": "due",
            "not_before": NOW + timedelta(minutes=starts),
            "deadline": None if deadline is None else NOW + timedelta(minutes=deadline),
            **more,
        }
    )


def vms(*found: Vm) -> dict[VmId, Vm]:
    return {vm.id: vm for vm in found}


def started(*pending: BackUp, running: tuple[str, ...] = (), known: dict[VmId, Vm] | None = None, **limits: int) -> str:
    found = admit(pending, {VmId(f"id-{name}"): "gold" for name in running}, known or {}, Limits(**limits), NOW)  # type: ignore[arg-type]
    return " ".join(one.vm.removeprefix("id-") for one in found.start)


def test_the_earliest_deadline_starts_first_then_priority_then_the_longest_ready() -> None:
    pending = (
        run("none"),
        run("late", deadline=90),
        run("soon", deadline=10),
        run("urgent", deadline=90, priority=5),
        run("older", deadline=90, starts=-5),
    )
    assert started(*pending) == "soon urgent older late none"
    assert started(*reversed(pending)) == "soon urgent older late none"
    assert min(pending, key=urgency).vm == "id-soon"


def test_the_number_of_running_backups_is_limited() -> None:
    found = admit([run("a"), run("b")], {VmId("id-x"): "gold"}, {}, Limits(running=2), NOW)
    assert [one.vm for one in found.start] == ["id-a"]
    assert [(one.decision.vm, one.reason) for one in found.waiting] == [("id-b", "all 2 places are taken")]


def test_a_vm_is_backed_up_once_at_a_time() -> None:
    twice = (run("a"), run("a", key="k2"))
    found = admit(twice, {}, {}, Limits(), NOW)
    assert len(found.start) == 1
    assert found.waiting[0].reason == "a backup of this VM is running"
    assert started(run("a"), running=("a",)) == ""


def test_hosts_and_datastores_are_not_overloaded() -> None:
    known = vms(
        a_vm("a", host="h1", datastores=("d1",)),
        a_vm("b", host="h1", datastores=("d2",)),
        a_vm("c", host="h2", datastores=("d3", "d1")),
        a_vm("d", host="", datastores=()),
    )
    pending = (run("b"), run("c"), run("d"))
    assert started(*pending, running=("a",), known=known, per_host=1, per_datastore=1) == "d"
    found = admit(pending, {VmId("id-a"): "gold"}, known, Limits(per_host=1, per_datastore=1), NOW)
    assert [one.reason for one in found.waiting] == ["1 backup runs on host h1", "1 backup runs on datastore d1"]
    assert started(*pending, running=("a",), known=known, per_host=2, per_datastore=2) == "b c d"


def test_what_is_not_ready_waits_and_says_when_to_ask_again() -> None:
    found = admit([run("a", starts=10), run("b", starts=5)], {}, {}, Limits(), NOW)
    assert not found.start
    assert {one.reason for one in found.waiting} == {"starts in 10 m", "starts in 5 m"}
    assert found.ask_again == NOW + timedelta(minutes=5)
    assert admit([], {}, {}, Limits(), NOW).ask_again is None


def test_events_of_one_vm_while_it_settles_are_one_run() -> None:
    first = run("a", starts=10, key="k1", deadline=60)
    second = run("a", starts=18, key="k2", priority=9, deadline=30, consistency=Consistency.APPLICATION)
    one = coalesce((), first)
    assert (one.pending, one.joined) == ((first,), None)
    both = coalesce(one.pending, second)
    assert both.joined == first
    assert both.pending == (both.stands_for,)
    assert both.stands_for.key == "k1"
    assert both.stands_for.not_before == first.not_before
    assert both.stands_for.deadline == NOW + timedelta(minutes=30)
    assert (both.stands_for.priority, both.stands_for.consistency) == (9, "application")


def test_an_urgent_request_brings_a_pending_run_forward() -> None:
    waiting = run("a", starts=600)
    found = coalesce((run("b"), waiting), run("a", key="request", deadline=0))
    assert found.stands_for.not_before == NOW
    assert [one.vm for one in found.pending] == ["id-b", "id-a"]


def test_the_same_decision_twice_is_one() -> None:
    found = coalesce((run("a"),), run("a"))
    assert found.pending == (run("a"),)
    assert found.joined == run("a")


def test_retries_back_off_with_a_jitter_that_the_seed_decides() -> None:
    waits = [retry_at(NOW, attempt, "k", "seed") - NOW for attempt in range(1, 12)]
    for attempt, wait in enumerate(waits):
        least = min(FIRST_RETRY * 2**attempt, LONGEST_RETRY)
        assert least <= wait <= least * (1 + JITTER_SHARE)
    assert retry_at(NOW, 3, "k", "seed") == retry_at(NOW, 3, "k", "seed")
    assert len({retry_at(NOW, 3, f"k{number}", "seed") for number in range(50)}) == 50
    assert isinstance(retry_at(NOW, 10**9, "k", "seed"), datetime)
    assert retry_at(NOW, 0, "k", "seed") >= NOW + FIRST_RETRY


def reasons(found: tuple[object, ...]) -> dict[str, str]:
    return {one.decision.key.removeprefix("k-"): one.reason for one in found}  # type: ignore[attr-defined]


def test_within_one_step_of_five_minutes_the_highest_priority_starts_first() -> None:
    near, far = run("near", deadline=62, priority=1), run("far", deadline=71, priority=9)
    same = run("same", deadline=64, priority=5)
    assert started(near, far, same) == "same near far"


def test_what_is_late_is_equally_urgent_however_late() -> None:
    assert started(run("very", deadline=-600), run("little", deadline=-1, priority=1), run("soon", deadline=30)) == (
        "little very soon"
    )


def test_policies_take_turns_among_equals() -> None:
    many = [run(f"a{number}", deadline=60, policy="many") for number in range(5)]
    few = [run(f"b{number}", deadline=60, policy="few") for number in range(2)]
    assert started(*many, *few) == "b0 a0 b1 a1 a2 a3 a4"
    found = admit([*many, *few], {}, {}, Limits(running=1), NOW, Turns(starts=3, served={"few": 3, "many": 2}))
    assert found.start[0].policy == "many"
    assert found.turns == Turns(starts=4, served={"few": 3, "many": 4}, paced=NOW)


def test_in_an_overload_high_priorities_keep_their_goals_and_the_others_wait_and_say_so() -> None:
    """Two places and five minutes a run: 24 runs in an hour."""
    gold = [run(f"gold{number}", deadline=60, priority=30, policy="gold") for number in range(20)]
    bronze = [run(f"bronze{number}", deadline=10, priority=10, policy="bronze") for number in range(40)]
    found = admit([*gold, *bronze], {}, {}, Limits(running=2), NOW, typical=timedelta(minutes=5))
    assert {one.policy for one in found.start} == {"gold"}
    assert found.load.overloaded
    assert found.load.sentence == "overload: 60 backups are due, places for 2; what has a priority below 30 waits"
    told = reasons(found.waiting)
    assert told["bronze7"] == "overload: 58 backups are due, places for 2; priority 10 waits behind 30"
    assert told["gold9"] == "overload: 58 backups are due, places for 2; what has a priority below 30 waits"
    calm = admit([*gold, *bronze[:4]], {}, {}, Limits(running=2), NOW, typical=timedelta(minutes=5))
    assert not calm.load.overloaded
    assert {one.policy for one in calm.start} == {"bronze"}, "the earliest deadline, as all goals can be kept"


def test_when_not_even_the_highest_priority_keeps_its_goals_it_still_comes_first() -> None:
    gold = [run(f"gold{number}", deadline=30, priority=30) for number in range(9)]
    found = admit([run("low", deadline=6, priority=1), *gold], {}, {}, Limits(running=1), NOW)
    assert found.start[0].priority == 30
    assert found.load.sentence == (
        "overload: 10 backups are due, places for 1; not even priority 30 keeps all its goals"
    )
    assert reasons(found.waiting)["low"] == "overload: 9 backups are due, places for 1; priority 1 waits behind 30"


def test_late_backups_are_an_overload_from_an_hour_of_work_on() -> None:
    late = [run(f"v{number}", deadline=-5) for number in range(14)]
    assert timedelta(hours=1) == TYPICAL_RUN * 12
    assert not admit(late[:12], {}, {}, Limits(running=1), NOW).load.overloaded
    found = admit(late, {}, {}, Limits(running=1), NOW)
    assert found.load.sentence == "overload: 14 backups are due, places for 1, and 14 are late"
    assert reasons(found.waiting)["v9"] == "overload: 13 backups are due, places for 1, and 13 are late"


def test_each_sixteenth_start_goes_to_what_has_been_ready_the_longest() -> None:
    patient = run("patient", starts=-600)
    urgent = [run(f"u{number}", deadline=60, priority=9) for number in range(3)]
    order = admit([patient, *urgent], {}, {}, Limits(running=4), NOW, Turns(starts=OLDEST_EVERY - 2)).start
    assert [one.vm for one in order] == ["id-u0", "id-patient", "id-u1", "id-u2"]


def test_limits_of_the_policy_the_vcenter_and_the_repository_hold_beside_the_others() -> None:
    known = vms(*(a_vm(name, host="h1", datastores=("d1",)) for name in "abcd"))
    gold = Limits(policies={"gold": PolicyLimits(running=1)})
    pending = (run("b"), run("c", policy="silver"))
    found = admit(pending, {VmId("id-a"): "gold"}, known, gold, NOW)
    assert [one.vm for one in found.start] == ["id-c"]
    assert reasons(found.waiting) == {"b": "1 backup of policy gold runs"}
    one_host = Limits(policies={"gold": PolicyLimits(per_host=1)})
    found = admit([run("b")], {VmId("id-a"): "gold"}, known, one_host, NOW)
    assert reasons(found.waiting) == {"b": "1 backup of policy gold runs on host h1"}
    one_store = Limits(policies={"gold": PolicyLimits(per_datastore=1)})
    found = admit([run("b")], {VmId("id-a"): "gold"}, known, one_store, NOW)
    assert reasons(found.waiting) == {"b": "1 backup of policy gold runs on datastore d1"}
    found = admit([run("b")], {VmId("id-a"): "gold"}, known, Limits(per_vcenter=1), NOW)
    assert reasons(found.waiting) == {"b": "1 backup runs in vCenter vc"}


def test_each_repository_has_its_own_places() -> None:
    known = vms(*(a_vm(name) for name in "abc"))
    sent = Limits(
        per_host=9, per_repository=1, destination_of=lambda one: "far" if one.name == "b" else "", repositories=2
    )
    found = admit([run(name) for name in "abc"], {}, known, sent, NOW)
    assert [one.vm for one in found.start] == ["id-a", "id-b"]
    assert reasons(found.waiting) == {"c": "1 backup or task uses the repository"}
    found = admit([run("b")], {VmId("id-a"): "gold"}, known, sent, NOW, others={"far": 5})
    assert [one.vm for one in found.start] == ["id-b"], "other work leaves one place"
    assert sent.at_once == 2


def test_other_work_in_the_repository_counts_but_leaves_one_place() -> None:
    found = admit([run("a"), run("b")], {}, {}, Limits(per_repository=3), NOW, others={"": 2})
    assert [one.vm for one in found.start] == ["id-a"]
    assert reasons(found.waiting) == {"b": "3 backups and tasks use the repository"}
    assert len(admit([run("a"), run("b")], {}, {}, Limits(per_repository=1), NOW, others={"": 9}).start) == 1


def test_starts_are_paced_where_many_places_are_free() -> None:
    pending = [run(f"v{number:03}") for number in range(100)]
    limits = Limits(running=100, starts_per_minute=60)
    line = Line(limits, {})
    for one in pending:
        line.add(one)
    starts, now = [], NOW
    while len(line):
        while line.start(now):
            starts.append(now)
        again = line.ask_again(now)
        now = again or now
    assert sum(at == NOW for at in starts) == 10
    assert sum(at < NOW + timedelta(minutes=1) for at in starts) <= 70
    assert starts[-1] - NOW >= timedelta(seconds=85)
    found = admit(pending, {}, {}, limits, NOW)
    assert found.waiting[0].reason == "starts in 1 s: at most 60 start a minute"
    assert found.ask_again == NOW + timedelta(seconds=1)


def test_a_clock_that_was_set_back_does_not_hold_starts_up() -> None:
    turns = Turns(starts=1, paced=NOW + timedelta(hours=3))
    assert len(admit([run("a")], {}, {}, Limits(starts_per_minute=1), NOW, turns).start) == 1


def test_after_an_outage_of_a_day_each_vm_runs_once_the_most_urgent_first_and_not_all_at_once() -> None:
    """Forty VMs of two tiers were not backed up for a day; many places are free."""
    fleet = [a_vm(f"v{number:02}", tags=frozenset({f"tier={number % 2}"})) for number in range(40)]
    before = NOW - timedelta(days=1)
    known = facts(
        *fleet,
        points=[point for vm in fleet for point in daily_points(vm, 2, before)],
        history={vm.id: VmHistory(last_success=before, last_attempt=before) for vm in fleet},
    )
    found = policies(
        '[policy.gold]\npriority = 30\nrpo = "4h"\nselect.all = ["tag:tier=0"]',
        '[policy.silver]\npriority = 10\nschedule = "0 * * * *"\nselect.all = ["tag:tier=1"]',
    )
    line = Line(Limits(running=1000, starts_per_minute=12), known.vms)
    for minute in range(3):  # the clock asks again and again
        clock = an_event(EventType.CLOCK, key=f"c{minute}", at=NOW)
        for decision in evaluate(found, clock, known):
            assert isinstance(decision, BackUp)
            line.join(decision)
    assert len(line) == 40
    starts: list[tuple[datetime, str]] = []
    now = NOW
    while len(line):
        while (one := line.start(now)) is not None:
            starts.append((now, one.policy))
        now = line.ask_again(now) or now
    assert len(starts) == 40
    assert sum(at < NOW + timedelta(minutes=1) for at, _ in starts) <= 14
    early = [policy for _, policy in starts[:20]]
    assert early.count("gold") >= 18, "late by hours before what has its next time to come"


@pytest.mark.parametrize(("any_time", "held"), [("", True), ("any_time = true", False)])
def test_a_triggered_run_whose_turn_comes_after_its_window_waits_for_the_next(any_time: str, held: bool) -> None:
    vm = a_vm()
    found = policies(
        '[policy.moves]\nselect.all = ["*"]\nwindow = ["13:00-15:00"]\n'
        f'[[policy.moves.trigger]]\non = "vm.migrated"\n{any_time}'
    )
    [decision] = evaluate(found, an_event(EventType.MIGRATED, vm), facts(vm))
    assert isinstance(decision, BackUp)
    assert held_until(decision, vm, found, facts(vm), asked=False) is None
    late = facts(vm, now=NOW + timedelta(hours=3))
    tomorrow = NOW + timedelta(hours=23)
    assert held_until(decision, vm, found, late, asked=False) == (tomorrow if held else None)


def test_the_line_orders_hundreds_that_wait_for_one_datastore_as_admit_does() -> None:
    """More wait for a place than go back together, and each of them is on a host of few places, too."""
    known = vms(*(a_vm(f"v{n}", host=f"h{n % 3}", datastores=(f"d{n % 2}",)) for n in range(60)))
    pending = {
        f"k-v{n}": run(f"v{n}", deadline=n * 37 % 200 - 60, priority=n % 4, policy=f"p{n % 5}", starts=-n % 7)
        for n in range(60)
    }
    limits = Limits(running=6, per_host=2, per_datastore=2)
    line = Line(limits, known)
    for one in pending.values():
        line.add(one)
    running: dict[VmId, str] = {}
    turns, now = Turns(), NOW
    while pending:
        expected = admit(pending.values(), running, known, limits, now, turns)
        for one in expected.start:
            assert line.start(now) == one
            running[one.vm] = one.policy
            del pending[one.key]
        assert line.start(now) is None
        assert line.waiting(now) == expected.waiting
        turns = expected.turns
        ended = min(running, key=lambda vm: (len(vm), vm))
        del running[ended]
        line.finished(ended)
        now += timedelta(seconds=50)
    assert len(line) == 0


def test_decisions_join_in_the_line_as_they_coalesce() -> None:
    first, second = run("a", starts=10, key="k1", deadline=60), run("a", starts=4, key="k2", deadline=90, priority=7)
    line = Line(Limits(), {})
    assert line.join(first) == first
    stands = line.join(second)
    assert (stands,) == coalesce((first,), second).pending
    assert line.join(stands) == stands
    assert line.pending == [stands]
    assert line.of(first.vm) == stands
    line.remove("k1")
    line.remove("unknown")
    line.finished(first.vm)
    assert line.of(first.vm) is None


def test_how_long_runs_take_changes_what_can_be_kept() -> None:
    line = Line(Limits(running=1), {})
    for number in range(6):
        line.add(run(f"v{number}", deadline=30, priority=number % 2 * 10))
    assert not line.load(NOW).overloaded
    line.typical = timedelta(minutes=10)
    assert line.load(NOW).cut == 10
    started = line.start(NOW)
    assert started is not None
    assert started.priority == 10
    assert "priority 0 waits behind 10" in line.waiting(NOW)[-1].reason
