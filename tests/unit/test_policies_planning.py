"""A change of the policies is a plan: what it takes away waits, and is named VM by VM and point by point."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from policies.changes import ReloadPlan
from policies.decision import BackUp
from policies.evaluation import evaluate
from policies.facts import EventType, Facts
from policies.loading import load_texts
from policies.planning import plan_reload
from policies.planwords import reload_words
from policies.policyset import Guard, PolicySet
from policies.retention import plan_retention
from tests.policies.building import NOW, a_vm, an_event, daily_points, facts, policies

WEB1, WEB2, DEV = a_vm("web-1", cluster="c1"), a_vm("web-2", cluster="c2"), a_vm("dev", cluster="c3")
GOLD = """
[policy.gold]
rpo = "4h"
select.any = ["name:web-*"]
[policy.gold.retention]
keep_daily = 10
grace = "0s"
"""
NARROW = GOLD.replace('"name:web-*"', '"name:other-*"')
POINTS = (*daily_points(WEB1, 3), *daily_points(WEB2, 2))
KNOWN = facts(WEB1, WEB2, DEV, points=POINTS)


def plan(old: str | PolicySet, new: str, known: Facts = KNOWN) -> ReloadPlan:
    before = policies(old) if isinstance(old, str) else old
    return plan_reload(before, policies(new), known)


def expired(found: PolicySet, known: Facts) -> list[str]:
    return [
        one.point
        for vm, points in known.points.items()
        for one in plan_retention(vm, points, found.retaining(known.vms.get(vm)), known.now).expire
    ]


def test_nothing_changes_when_nothing_changed() -> None:
    found = plan(GOLD, GOLD.replace("[policy.gold]", '[policy.gold]\ndescription = "other words"', 1))
    assert found.empty
    assert not found.pending
    assert found.effective.hash == found.new.hash
    assert reload_words(found) == "Nothing changes.\n"


def test_more_protection_takes_effect_at_once() -> None:
    found = plan(GOLD, GOLD.replace('"name:web-*"', '"name:web-*", "name:dev"'))
    assert not found.pending
    assert [(change.name, change.kind, change.sentence) for change in found.vms] == [
        ("dev", "gains", "dev gains protection: policy gold selects it now (selected by name:dev)")
    ]
    assert found.effective.matching(DEV)
    assert found.effective == found.new


def test_vms_that_would_lose_protection_keep_it_and_are_named_with_their_points() -> None:
    found = plan(GOLD, NARROW)
    assert found.pending
    assert [(change.name, change.kind, len(change.points)) for change in found.vms] == [
        ("web-1", "loses", 3),
        ("web-2", "loses", 2),
    ]
    assert found.vms[0].sentence == (
        "web-1 loses protection: policy gold no longer selects it (none of the terms of any matches); "
        "its 3 restore points would stay"
    )
    assert found.refusals == ("2 VMs would lose protection, more than the 0 of guard.max_vms_losing_protection",)
    said = evaluate(found.effective, an_event(EventType.CLOCK), facts(WEB1, DEV))
    assert [isinstance(one, BackUp) for one in said] == [True, False]
    assert not found.new.matching(WEB1)
    rendered = reload_words(found, everything=True)
    for point in POINTS:
        assert point.id in rendered
    assert f"until plan {found.id} is confirmed with `backstay policy apply {found.id} --override-guard`" in rendered


def test_the_removal_of_a_file_expires_nothing_even_when_confirmed() -> None:
    found = plan(GOLD, "")
    assert found.removed == ("gold",)
    assert next(change.sentence for change in found.vms).startswith("web-1 loses protection: policy gold is gone")
    assert not found.expiring
    assert not expired(found.new, KNOWN)
    assert not expired(found.effective, KNOWN)


def test_points_that_would_newly_expire_are_named_and_kept() -> None:
    found = plan(GOLD, GOLD.replace("keep_daily = 10", "keep_daily = 1"))
    assert [(change.name, str(change.point)) for change in found.expiring] == [
        ("web-1", POINTS[0].id),
        ("web-1", POINTS[1].id),
        ("web-2", POINTS[3].id),
    ]
    assert found.expiring[0].sentence == (
        f"web-1: restore point {POINTS[0].id} of 2026-11-20 14:00 UTC would expire on 2026-11-22 14:00 UTC, "
        "kept until now (policy gold: keep_daily 3 of 10)"
    )
    assert len(expired(found.new, KNOWN)) == 3
    assert not expired(found.effective, KNOWN)
    assert "Would expire: 3 restore points" in reload_words(found)


def test_points_that_expire_anyway_are_not_blamed_on_the_change() -> None:
    tight = GOLD.replace("keep_daily = 10", "keep_daily = 1")
    found = plan(tight, tight.replace('rpo = "4h"', 'rpo = "2h"'))
    assert not found.expiring
    assert [change.sentence for change in found.vms] == ["web-1: rpo 4 h → 2 h", "web-2: rpo 4 h → 2 h"]


def test_a_grace_does_not_hide_what_would_expire() -> None:
    found = plan(GOLD, GOLD.replace("keep_daily = 10", "keep_daily = 1").replace('"0s"', '"30d"'))
    assert len(found.expiring) == 3


def test_points_held_because_nobody_selected_the_vm_stay_held_until_confirmed() -> None:
    known = facts(DEV, points=daily_points(DEV, 4))
    first = GOLD.replace("web-*", "dev").replace("keep_daily = 10", "keep_last = 1")
    found = plan(policies("[policy.other]"), first, known)
    assert [change.kind for change in found.vms] == ["gains"]
    assert len(found.expiring) == 3
    assert found.expiring[0].sentence.endswith("kept until now (no policy selects the VM: its restore points are held)")
    assert not expired(found.effective, known)
    assert found.effective.matching(DEV), "protection starts at once"


def test_a_second_reload_while_one_is_pending_keeps_what_is_kept() -> None:
    pending = plan(GOLD, NARROW)
    again = plan(pending.effective, NARROW + "\n[policy.more]\n")
    assert [change.name for change in again.losing] == ["web-1", "web-2"]
    assert again.effective.matching(WEB1)
    back = plan(again.effective, GOLD)
    assert not back.pending
    confirmed = plan(pending.new, NARROW)
    assert confirmed.empty


def test_losing_the_schedule_is_losing_protection() -> None:
    triggers = GOLD.replace('rpo = "4h"', 'trigger = [{ on = "vm.migrated" }]')
    found = plan(GOLD, triggers)
    assert [change.sentence for change in found.losing] == [
        "web-1 loses its schedule: policy gold no longer says when to back it up",
        "web-2 loses its schedule: policy gold no longer says when to back it up",
    ]
    assert isinstance(evaluate(found.effective, an_event(EventType.CLOCK), facts(WEB1))[0], BackUp)
    assert next(change.sentence for change in plan(triggers, GOLD).vms) == (
        "web-1 gains a schedule: policy gold says now when to back it up"
    )


def test_another_policy_that_takes_over_is_a_change_not_a_loss() -> None:
    silver = GOLD.replace("gold", "silver")
    found = plan(GOLD, silver)
    assert not found.losing
    assert found.added == ("silver",)
    assert "policy gold → silver" in found.vms[0].sentence
    assert found.as_json()["policies"] == {"added": ["silver"], "removed": ["gold"], "changed": []}


def test_a_priority_that_changes_nothing_in_effect_is_no_change_of_a_vm() -> None:
    found = plan(GOLD, GOLD.replace("[policy.gold]", "[policy.gold]\npriority = 3", 1))
    assert found.changed == ("gold",)
    assert not found.vms
    assert not found.empty


def test_with_an_unknown_inventory_the_old_policies_stay() -> None:
    found = plan(GOLD, NARROW, facts())
    assert found.effective == policies(GOLD)
    assert found.refusals == ("the inventory is not known yet, so nobody can tell which VMs would lose protection",)
    first = plan(PolicySet(), GOLD, facts())
    assert first.effective == first.new
    assert not first.pending


def test_a_change_cannot_loosen_the_guard_that_judges_it() -> None:
    loose = "\n[guard]\nmax_vms_losing_protection = 9\n"
    assert plan(GOLD, NARROW + loose).refusals
    assert not plan(GOLD + loose, NARROW + loose).refusals
    assert plan(GOLD + loose, NARROW + loose).pending, "it is pending without a refusal too"


def test_a_guard_that_becomes_looser_is_refused_by_the_one_in_force() -> None:
    strict = '\n[guard]\nmax_expire_share = "5%"\nmax_vms_losing_protection = 2\nadd_up_over = "60d"\n'
    found = plan(GOLD + strict, GOLD)
    assert found.refusals == (
        "guard.max_expire_share 5% → 50% would be loosened",
        "guard.add_up_over 60 d → 30 d would be loosened",
    )
    assert found.pending
    assert found.effective.guard == Guard(0, 0.05, timedelta(days=60)), "of both the stricter, until it is confirmed"
    assert reload_words(found) == (
        "Guard, looser: max_expire_share 5% → 50%\n"
        "Guard, looser: add_up_over 60 d → 30 d\n"
        "Guard, stricter: max_vms_losing_protection 2 → 0\n"
        "\nRefused by a guard:\n"
        "  guard.max_expire_share 5% → 50% would be loosened\n"
        "  guard.add_up_over 60 d → 30 d would be loosened\n"
        "\nWhat adds protection is in force. The rest is pending: the stricter guard counts until plan "
        f"{found.id} is confirmed with\n`backstay policy apply {found.id} --override-guard`.\n"
    )
    assert [one["looser"] for one in found.as_json()["guard"]] == [False, True, True]


def test_a_guard_that_becomes_stricter_is_in_force_at_once_and_one_that_is_the_first_too() -> None:
    found = plan(GOLD, GOLD + '\n[guard]\nmax_expire_share = "5%"\n')
    assert not found.pending
    assert not found.empty, "it changes what later changes may do"
    assert found.effective.guard.max_expire_share == 0.05
    first = plan(PolicySet(), GOLD + "\n[guard]\nmax_vms_losing_protection = 9\n")
    assert not first.pending


def test_a_mass_expiry_is_refused() -> None:
    known = facts(WEB1, points=daily_points(WEB1, 30))
    kept = GOLD.replace("keep_daily = 10", "keep_daily = 90")
    assert plan(kept, GOLD, known).refusals == (
        "20 of 30 restore points would expire, more than the 50% of guard.max_expire_share",
    )


def test_the_id_is_that_of_the_outcome() -> None:
    assert plan(GOLD, NARROW).id == plan(GOLD, NARROW).id
    later = replace(KNOWN, now=NOW + timedelta(hours=1))
    assert plan(GOLD, NARROW, later).id == plan(GOLD, NARROW).id
    assert plan(GOLD, NARROW, facts(WEB1)).id != plan(GOLD, NARROW).id
    assert plan(GOLD, "").id != plan(GOLD, NARROW).id


def test_the_plan_is_json() -> None:
    tightened = GOLD.replace("keep_daily = 10", "keep_daily = 1")
    found = json.loads(json.dumps(plan(GOLD, tightened).as_json()))
    assert found["pending"] is True
    assert len(found["expiring"]) == 3
    assert {vm["kind"] for vm in found["vms"]} == {"changes"}
    assert "Policies changed: gold" in reload_words(plan(GOLD, tightened))


def test_a_change_that_is_not_pending_is_rendered_without_a_call_to_confirm() -> None:
    text = reload_words(plan(GOLD, GOLD.replace('"name:web-*"', '"name:web-*", "name:dev"')))
    assert text == (
        "Policies changed: gold\n\nGain protection: 1 VM\n"
        "  dev gains protection: policy gold selects it now (selected by name:dev)\n"
    )


def test_the_set_can_be_made_again_from_its_texts() -> None:
    found = policies(GOLD)
    assert load_texts(found.texts).hash == found.hash


def test_a_vm_that_is_gone_keeps_its_points_under_any_policies() -> None:
    gone = facts(DEV, points=daily_points(WEB1, 5))
    found = plan(GOLD, GOLD.replace("keep_daily = 10", "keep_last = 1"), gone)
    assert not found.expiring
    assert not expired(found.new, gone)


def test_a_change_that_waits_does_not_loosen_the_guard_of_retention_meanwhile() -> None:
    old = '[guard]\nmax_expire_share = "20%"\nmax_vms_losing_protection = 5\n' + GOLD
    loose = old.replace("20%", "100%").replace("protection = 5", "protection = 2")
    found = plan(old, loose.replace("keep_daily = 10", "keep_daily = 1"))
    assert found.pending
    assert (found.effective.guard.max_expire_share, found.effective.guard.max_vms_losing_protection) == (0.2, 2)
    assert plan(loose, old).effective.guard.max_expire_share == 0.2


def test_a_setting_that_no_policy_says_any_more_is_told_as_what_it_means_then() -> None:
    gold = '[policy.gold]\nselect.all = ["*"]\nrpo = "4h"\n'
    vm = a_vm("web-1")
    found = plan_reload(policies(f'{gold}window = ["18:00-06:00"]\ntransports = ["nbd"]'), policies(gold), facts(vm))
    assert set(found.vms[0].parts) == {
        "window 18:00-06:00 UTC → any time",
        "transports nbd → those of the configuration",
    }
