"""What is decided about an event, and the sentence that says why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Retire, Skip
from policies.evaluation import evaluate, unsafe
from policies.facts import (
    VM_EVENT_TYPES,
    Consistency,
    Event,
    EventType,
    Facts,
    ForeignSnapshot,
    PowerState,
    VmHistory,
    VmId,
)
from policies.policyset import PolicySet
from policies.protection import copies_of, protection
from policies.settings import settings_of
from tests.policies.building import NOW, a_point, a_vm, an_event, facts, policies

WEB = a_vm("web-3", tags=frozenset({"env=prod"}))
GOLD = """
[policy.gold]
rpo = "4h"
timezone = "Europe/Berlin"
priority = 50
transports = ["hotadd", "nbd"]
consistency = { want = "application", fallback = "filesystem" }
select.all = ["tag:env=prod"]
[[policy.gold.trigger]]
on = "vm.migrated"
settle = "10m"
cooldown = "6h"
"""
MOVED = an_event(EventType.MIGRATED, WEB, cause="drs", from_host="esx1", to_host="esx2")


def only(found: tuple[Decision, ...]) -> Decision:
    assert len(found) == 1
    return found[0]


def back_up(found: tuple[Decision, ...]) -> BackUp:
    runs = [decision for decision in found if isinstance(decision, BackUp)]
    assert len(runs) == 1
    return runs[0]


def skips(found: tuple[Decision, ...]) -> list[str]:
    return [decision.reason for decision in found if isinstance(decision, Skip)]


def clock(now: datetime = NOW) -> Event:
    return an_event(EventType.CLOCK, at=now, key="tick")


def test_a_move_by_drs_leads_to_a_backup_after_settling() -> None:
    found = policies(GOLD)
    assert only(evaluate(found, MOVED, facts(WEB))) == BackUp(
        key="gold:trigger[0]:id-web-3:k1",
        vm=WEB.id,
        policy="gold",
        rule="trigger[0]",
        reason="web-3 was moved by DRS from esx1 to esx2; policy gold backs up after vm.migrated, "
        "at 15:10 CET after settling 10 m",
        not_before=NOW + timedelta(minutes=10),
        deadline=NOW + timedelta(minutes=10),
        priority=50,
        consistency=Consistency.APPLICATION,
        fallback=Consistency.FILESYSTEM,
        transports=("hotadd", "nbd"),
        policy_hash=found.policies[0].hash,
        event_key="k1",
        event_type="vm.migrated",
        event_at=NOW,
    )


def test_a_late_event_does_not_settle_again() -> None:
    late = an_event(EventType.MIGRATED, WEB, at=NOW - timedelta(hours=1))
    run = back_up(evaluate(policies(GOLD), late, facts(WEB)))
    assert run.not_before == NOW
    assert run.reason == "web-3 was moved; policy gold backs up after vm.migrated, now after settling 10 m"


def test_the_deadline_of_a_triggered_run_is_that_of_the_goal() -> None:
    point = a_point(WEB, NOW - timedelta(hours=1))
    run = back_up(evaluate(policies(GOLD), MOVED, facts(WEB, points=[point])))
    assert run.deadline == NOW + timedelta(hours=3)
    without = GOLD.replace('rpo = "4h"\n', "")
    assert back_up(evaluate(policies(without), MOVED, facts(WEB))).deadline is None


def test_a_trigger_that_fired_lately_cools_down() -> None:
    fired = {("gold", "trigger[0]", WEB.id): NOW - timedelta(hours=1)}
    assert skips(evaluate(policies(GOLD), MOVED, facts(WEB, fired=fired))) == [
        "web-3 was moved by DRS from esx1 to esx2; policy gold backed it up after such an event at 14:00 CET "
        "and cools down until 20:00 CET"
    ]
    fired = {("gold", "trigger[0]", WEB.id): NOW - timedelta(hours=6)}
    assert back_up(evaluate(policies(GOLD), MOVED, facts(WEB, fired=fired)))


def test_a_cooldown_from_the_future_is_a_wrong_clock_and_does_not_count() -> None:
    fired = {("gold", "trigger[0]", WEB.id): NOW + timedelta(days=365)}
    assert back_up(evaluate(policies(GOLD), MOVED, facts(WEB, fired=fired)))


@pytest.mark.parametrize(
    ("written", "fires"),
    [
        ('cause = "drs"', True),
        ('cause = "manual"', False),
        ('from_host = "esx[12]"', True),
        ('from_host = "esx2"', False),
        ('to_host = "ESX2"', True),
        ('to_host = "esx1"', False),
    ],
)
def test_a_trigger_fires_only_for_its_cause_and_hosts(written: str, fires: bool) -> None:
    found = evaluate(policies(GOLD + written), MOVED, facts(WEB))
    assert isinstance(found[0], BackUp) is fires
    if not fires:
        assert skips(found) == [
            "web-3 was moved by DRS from esx1 to esx2; no trigger of policy gold asks for a backup then; "
            "change tracking stays trusted"
        ]


def test_a_trigger_waits_for_the_window_unless_it_runs_at_any_time() -> None:
    nightly = GOLD.replace("select.all", 'window = ["18:00-06:00"]\nselect.all')
    run = back_up(evaluate(policies(nightly), MOVED, facts(WEB)))
    assert run.not_before == datetime(2026, 11, 22, 17, tzinfo=UTC)
    assert run.reason.endswith("at 18:00 CET after settling 10 m and when its window opens")
    soon = back_up(evaluate(policies(nightly + "any_time = true"), MOVED, facts(WEB)))
    assert soon.not_before == NOW + timedelta(minutes=10)


def test_one_event_leads_to_one_run_by_the_highest_priority() -> None:
    low = """
    [policy.follow]
    select.all = ["*"]
    [[policy.follow.trigger]]
    on = "vm.migrated"
    """
    found = evaluate(policies(low, GOLD), MOVED, facts(WEB))
    assert back_up(found).policy == "gold"
    assert skips(found) == [
        "web-3 was moved by DRS from esx1 to esx2; the run of policy gold, trigger[0], covers this trigger"
    ]
    fired = {("gold", "trigger[0]", WEB.id): NOW}
    other = back_up(evaluate(policies(low, GOLD), MOVED, facts(WEB, fired=fired)))
    assert (other.policy, other.priority) == ("follow", 50), "the settings stay those of the winner"


def test_an_event_of_a_vm_that_nobody_selects_is_skipped() -> None:
    dev = a_vm("dev-1")
    event = an_event(EventType.POWERED_OFF, dev)
    assert skips(evaluate(policies(GOLD), event, facts(dev))) == ["dev-1 was powered off; no policy selects it"]


def test_an_event_without_a_known_vm_is_skipped() -> None:
    assert skips(evaluate(policies(GOLD), an_event(EventType.RENAMED, vm_name="x"), facts())) == [
        "no VM is known as x: nothing to do"
    ]
    assert skips(evaluate(policies(GOLD), MOVED, facts())) == [
        "id-web-3 is not in the inventory any more: nothing to do"
    ]


@pytest.mark.parametrize("kind", [EventType.CREATED, EventType.CLONED, EventType.REGISTERED])
def test_a_new_vm_is_protected_at_once_when_its_policy_has_a_goal(kind: EventType) -> None:
    run = back_up(evaluate(policies(GOLD), an_event(kind, WEB), facts(WEB)))
    assert (run.rule, run.not_before) == ("rpo", NOW)
    assert "never backed up; RPO is 4 h; policy gold backs it up" in run.reason
    assert run.key == back_up(evaluate(policies(GOLD), clock(), facts(WEB))).key, "the clock means the same run"


def test_a_new_vm_whose_policy_triggers_on_it_runs_once() -> None:
    both = GOLD + '[[policy.gold.trigger]]\non = "vm.created"\nsettle = "5m"'
    found = evaluate(policies(both), an_event(EventType.CREATED, WEB), facts(WEB))
    assert back_up(found).rule == "trigger[1]"


def test_a_registered_vm_with_a_good_point_waits_for_its_schedule() -> None:
    point = a_point(WEB, NOW - timedelta(hours=1))
    found = evaluate(policies(GOLD), an_event(EventType.REGISTERED, WEB), facts(WEB, points=[point]))
    assert isinstance(found[0], DistrustTracking)
    assert skips(found) == ["web-3 was registered; it has a good restore point and is due by its schedule"]


def test_initial_protection_waits_where_there_is_no_goal() -> None:
    created = an_event(EventType.CREATED, WEB)
    fixed = '[policy.p]\nschedule = "0 22 * * *"\nselect.all = ["*"]'
    assert skips(evaluate(policies(fixed), created, facts(WEB))) == [
        "web-3 was created; policy p backs it up at 22:00 UTC"
    ]
    triggers = '[policy.p]\nselect.all = ["*"]\ntrigger = [{ on = "vm.powered_off" }]'
    assert skips(evaluate(policies(triggers), created, facts(WEB))) == [
        "web-3 was created; policy p has no rpo and no schedule: it waits for its triggers"
    ]


def test_initial_protection_is_asked_for_once() -> None:
    created = an_event(EventType.CREATED, WEB)
    assert skips(evaluate(policies(GOLD), created, facts(WEB, history={WEB.id: VmHistory(pending=True)}))) == [
        "web-3 was created; a backup is waiting in the queue"
    ]


def test_initial_protection_waits_for_the_window() -> None:
    nightly = policies('[policy.p]\nrpo = "24h"\nwindow = ["18:00-06:00"]\nselect.all = ["*"]')
    run = back_up(evaluate(nightly, an_event(EventType.CREATED, WEB), facts(WEB)))
    assert run.not_before == datetime(2026, 11, 22, 18, tzinfo=UTC)
    assert run.reason.endswith("policy p backs it up, at 18:00 UTC when its window opens")


@pytest.mark.parametrize(
    ("event", "distrusted"),
    [
        (an_event(EventType.RELOCATED, WEB), True),
        (an_event(EventType.REGISTERED, WEB), True),
        (an_event(EventType.RECONFIGURED, WEB, detail={"disks": "Hard disk 2 was added"}), True),
        (an_event(EventType.RECONFIGURED, WEB), False),
        (an_event(EventType.RECONFIGURED, WEB, detail={"tracking": "off"}), True),
        (an_event(EventType.RECONFIGURED, WEB, detail={"tracking": "on"}), False),
        (an_event(EventType.POWERED_OFF, WEB, cause="manual"), True),
        (an_event(EventType.POWERED_OFF, WEB, cause="ha"), True),
        (an_event(EventType.POWERED_OFF, WEB, cause="guest"), False),
        (an_event(EventType.POWERED_OFF, WEB, detail={"found_by": "reconcile"}), True),
        (an_event(EventType.POWERED_ON, WEB, cause="ha"), True),
        (an_event(EventType.POWERED_ON, WEB, cause="manual"), False),
        (MOVED, False),
        (an_event(EventType.RENAMED, WEB), False),
    ],
)
def test_change_tracking_is_distrusted_when_disks_changed_and_not_when_hosts_did(
    event: Event, distrusted: bool
) -> None:
    found = evaluate(PolicySet(), event, facts(WEB))
    assert any(isinstance(decision, DistrustTracking) for decision in found) is distrusted
    assert skips(found), "what no policy selects is said too"


def test_tracking_that_is_switched_on_under_a_snapshot_is_distrusted() -> None:
    event = an_event(EventType.RECONFIGURED, WEB, detail={"tracking": "on"})
    under = replace(WEB, snapshots=(ForeignSnapshot("by hand", NOW),))
    found = evaluate(PolicySet(), event, facts(under))
    assert found[0] == DistrustTracking(
        WEB.id,
        "change tracking of web-3 was switched on while the VM has a snapshot of somebody else (by hand); its disks "
        "are read in full until change tracking was reset with no snapshot there",
        "k1",
        reset=True,
    )
    since = replace(WEB, snapshots=(ForeignSnapshot("another product", NOW + timedelta(seconds=1)),))
    assert not unsafe(since, event), "as a backup product does for itself"


def test_a_power_off_that_was_not_an_orderly_one_is_distrusted_whoever_it_is_said_to_be() -> None:
    event = an_event(EventType.POWERED_OFF, WEB, cause="guest")
    off = replace(WEB, power=PowerState.OFF, clean_power_off=True)
    assert not unsafe(off, event)
    assert unsafe(replace(off, clean_power_off=False), event)


def test_the_disks_are_named_in_the_sentence() -> None:
    event = an_event(EventType.RECONFIGURED, WEB, detail={"disks": "added"})
    assert evaluate(PolicySet(), event, facts(WEB))[0] == DistrustTracking(
        WEB.id, "the disks of web-3 were changed (added); the next backup reads its disks in full", "k1"
    )


def test_a_removed_vm_is_retired_and_keeps_its_points() -> None:
    for known in (facts(WEB), facts()):
        event = an_event(EventType.REMOVED, WEB, vm_name="web-3")
        assert only(evaluate(policies(GOLD), event, known)) == Retire(
            WEB.id, "web-3 was removed from the inventory; its jobs stop and its restore points stay", "k1"
        )


def test_a_request_backs_up_whatever_the_policies_say() -> None:
    request = an_event(EventType.BACKUP_REQUESTED, WEB, user="alice", detail={"reason": "before the upgrade"})
    run = back_up(evaluate(policies(GOLD), request, facts(WEB)))
    assert (run.rule, run.policy, run.not_before, run.deadline) == ("request", "gold", NOW, NOW)
    assert run.reason == "alice asked (before the upgrade) to back web-3 up now"
    dev = a_vm("dev")
    run = back_up(evaluate(policies(GOLD), an_event(EventType.BACKUP_REQUESTED, dev), facts(dev)))
    assert (run.policy, run.policy_hash, run.consistency) == ("", "", "filesystem")
    assert run.reason == "vcenter asked to back dev up now"


def test_a_hold_is_for_vms_that_are_gone_too() -> None:
    event = an_event(EventType.HOLD_REQUESTED, WEB, user="siem", detail={"reason": "ransomware"})
    assert only(evaluate(PolicySet(), event, facts())) == HoldPoints(
        WEB.id, "siem asked (ransomware) to hold the restore points of id-web-3", "k1"
    )


def test_a_vm_that_refuses_snapshots_is_skipped_with_its_reason() -> None:
    vm = a_vm("ft", tags=frozenset({"env=prod"}), refusal="fault tolerance is on")
    found = policies(GOLD)
    assert skips(evaluate(found, clock(), facts(vm))) == ["ft cannot be backed up: fault tolerance is on"]
    assert skips(evaluate(found, an_event(EventType.MIGRATED, vm), facts(vm))) == [
        "ft was moved, but fault tolerance is on"
    ]
    assert skips(evaluate(found, an_event(EventType.BACKUP_REQUESTED, vm), facts(vm))) == [
        "vcenter asked, but fault tolerance is on"
    ]
    nobody = a_vm("alone", refusal="no")
    assert skips(evaluate(found, an_event(EventType.BACKUP_REQUESTED, nobody), facts(nobody)))


def test_the_clock_asks_for_every_vm() -> None:
    dev, idle, busy, queued = a_vm("dev"), a_vm("idle", folder="/T"), a_vm("busy"), a_vm("queued")
    found = policies(
        GOLD.replace('"tag:env=prod"', '"name:[wbq]*"'),
        '[policy.triggers]\nselect.all = ["folder:/T"]\ntrigger = [{ on = "vm.created" }]',
    )
    history = {busy.id: VmHistory(running=True), queued.id: VmHistory(pending=True)}
    said = evaluate(found, clock(), facts(WEB, dev, idle, busy, queued, history=history))
    assert [decision.reason for decision in said] == [
        "web-3: never backed up; RPO is 4 h; policy gold backs it up",
        "no policy selects dev: it is not protected",
        "policy triggers has no rpo and no schedule: idle waits for its triggers",
        "busy: a backup is running",
        "queued: a backup is waiting in the queue",
    ]


def test_a_vm_that_is_not_due_says_when_it_is() -> None:
    known = facts(WEB, points=[a_point(WEB, NOW - timedelta(hours=1))])
    for kind in (EventType.CLOCK, EventType.RECONCILED):
        assert skips(evaluate(policies(GOLD), an_event(kind), known)) == [
            "web-3 is due at 17:30 CET: last good restore point is 1 h old; RPO is 4 h"
        ]


@pytest.mark.parametrize(
    "bad",
    [
        {"complete": False},
        {"damaged": True},
        {"consistency": Consistency.CRASH},
        {"taken_at": NOW + timedelta(days=400)},
    ],
)
def test_a_point_that_is_not_good_does_not_meet_the_goal(bad: dict[str, object]) -> None:
    point = a_point(WEB, **{"taken_at": NOW - timedelta(hours=1), **bad})  # type: ignore[arg-type]
    assert back_up(evaluate(policies(GOLD), clock(), facts(WEB, points=[point])))


def test_what_the_engine_remembers_counts_as_well_as_the_points() -> None:
    history = {WEB.id: VmHistory(last_good=NOW - timedelta(hours=1))}
    assert skips(evaluate(policies(GOLD), clock(), facts(WEB, history=history)))
    from_the_future = {WEB.id: VmHistory(last_good=NOW + timedelta(days=400))}
    assert back_up(evaluate(policies(GOLD), clock(), facts(WEB, history=from_the_future)))


def settings(*texts: str) -> tuple[tuple[str, ...], str, str, tuple[str, ...]]:
    found = protection(policies(*texts), WEB)
    return tuple(policy.name for policy in found.scheduling), found.want, found.fallback, found.transports


def p(name: str, body: str) -> str:
    return f'[policy.{name}]\nselect.all = ["*"]\n{body}\n'


def test_priority_chooses_schedule_consistency_and_transports_one_by_one() -> None:
    high = p("high", 'priority = 9\nrpo = "1h"')
    low = p("low", 'rpo = "4h"\ntransports = ["nbd"]\nconsistency = { want = "application", fallback = "application" }')
    assert settings(high, low) == (("high",), "application", "application", ("nbd",))


def test_among_equals_the_most_protective_value_counts() -> None:
    one = p("a", 'rpo = "4h"\ntransports = ["nbd"]\nconsistency = { want = "application" }')
    two = p("b", 'rpo = "1h"\ntransports = ["hotadd", "nbd"]\nconsistency = { fallback = "filesystem" }')
    assert settings(one, two) == (("a", "b"), "application", "filesystem", ("nbd", "hotadd"))
    known = facts(WEB, points=[a_point(WEB, NOW - timedelta(minutes=58))])
    assert back_up(evaluate(policies(one, two), clock(), known)).policy == "b"


def test_without_policies_there_are_defaults() -> None:
    found = protection(PolicySet(), WEB)
    assert (found.winner, found.priority, found.want, found.fallback) == (None, 0, "filesystem", "crash")


@pytest.mark.parametrize("kind", list(EventType))
def test_every_event_is_answered_with_a_sentence(kind: EventType) -> None:
    for found in (PolicySet(), policies(GOLD)):
        for vm in (WEB, None):
            for known in (facts(WEB), facts()):
                said = evaluate(found, an_event(kind, vm), known)
                assert all(decision.reason for decision in said)
                assert said or (kind not in VM_EVENT_TYPES and not known.vms)


def test_the_same_arguments_give_the_same_decisions() -> None:
    known: Facts = facts(WEB)
    assert evaluate(policies(GOLD), MOVED, known) == evaluate(policies(GOLD), MOVED, known)


def test_other_movers_are_named_as_they_are() -> None:
    event = an_event(EventType.MIGRATED, WEB, cause="evacuation", to_host="esx9")
    run = back_up(evaluate(policies(GOLD), event, facts(WEB)))
    assert run.reason.startswith("web-3 was moved (evacuation) to esx9; ")


def test_an_id_is_the_last_resort_for_a_name() -> None:
    event = Event("k", EventType.RENAMED, NOW, "vcenter", vm=VmId("id-7"))
    assert skips(evaluate(PolicySet(), event, facts())) == ["id-7 is not in the inventory any more: nothing to do"]


def test_a_restore_point_that_is_lost_is_made_again_and_not_only_when_the_next_goal_is_missed() -> None:
    taken = NOW - timedelta(hours=1)
    first = back_up(evaluate(policies(GOLD), clock(), facts(WEB)))
    history = {WEB.id: VmHistory(last_success=taken)}
    again = back_up(evaluate(policies(GOLD), clock(), facts(WEB, history=history)))
    assert again.key != first.key
    assert back_up(evaluate(policies(GOLD), clock(), facts(WEB, history=history))).key == again.key, (
        "once for each loss"
    )
    later = {WEB.id: VmHistory(last_success=NOW)}
    assert back_up(evaluate(policies(GOLD), clock(), facts(WEB, history=later))).key != again.key


def test_a_damaged_restore_point_is_replaced_when_the_one_before_is_too_old() -> None:
    old = a_point(WEB, NOW - timedelta(hours=4))
    planned = back_up(evaluate(policies(GOLD), clock(), facts(WEB, points=[old])))
    damaged = a_point(WEB, NOW - timedelta(minutes=20), damaged=True)
    history = {WEB.id: VmHistory(last_success=damaged.taken_at)}
    run = back_up(evaluate(policies(GOLD), clock(), facts(WEB, points=[old, damaged], history=history)))
    assert run.key != planned.key


def test_second_copies_are_those_of_all_policies_and_the_longest_lock_counts() -> None:
    found = policies(
        """
        [policy.low]
        priority = 1
        select.all = ["*"]
        copies = ["far", "near"]
        retention.lock = "3d"
        [policy.high]
        priority = 2
        select.all = ["*"]
        copies = ["near", "vault"]
        retention.lock = "1d"
        """
    )
    vm = a_vm()
    effective = protection(found, vm)
    assert (effective.copies, effective.lock) == (("near", "vault", "far"), timedelta(days=3))
    assert settings_of(effective)["lock"] == "3 d"
    gone = a_point(vm, NOW, policy="low")
    assert copies_of(found, None, gone) == ("far", "near")
    assert copies_of(found, None, replace(gone, policy="renamed")) == ()
