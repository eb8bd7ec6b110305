"""A second copy keeps by rules of its own: what counts there, and what a change of it does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from policies.changes import ReloadPlan
from policies.copied import lock_in
from policies.explanation import explain
from policies.facts import Facts, RestorePoint
from policies.factsfile import facts_as_json, facts_from_json
from policies.forecast import plan as forecast
from policies.linting import lint
from policies.planfile import differences, planned_of
from policies.planning import plan_reload
from policies.planwords import plan_words, reload_words
from policies.policyset import PolicySet
from policies.protection import protection
from policies.retention import plan_retention
from policies.settings import settings_of
from policies.staying import explain_point, find_point
from tests.policies.building import NOW, a_vm, daily_points, facts, policies

DAY = timedelta(days=1)
WEB = a_vm("web-1")
GOLD = """
[policy.gold]
select.all = ["*"]
rpo = "24h"
retention = { keep_daily = 3, grace = "0s" }
copy.far.retention = { keep_daily = 6, grace = "0s", lock = "30d" }
"""
SHORTER = GOLD.replace("keep_daily = 6", "keep_daily = 2")
LATER = GOLD.replace("keep_daily = 6", "keep_daily = 9")
POINTS = daily_points(WEB, 3, policy="gold")
COPIED = daily_points(WEB, 6, policy="gold")


def known(copied: tuple[RestorePoint, ...] = COPIED) -> Facts:
    return replace(facts(WEB, points=POINTS), copies={"far": {WEB.id: copied}})


def stays(found: PolicySet, copy: str, points: tuple[RestorePoint, ...] = COPIED) -> int:
    return len(plan_retention(WEB.id, points, found.retaining(WEB, points, copy=copy), NOW).keep)


def plan(old: str, new: str, facts: Facts | None = None) -> ReloadPlan:
    return plan_reload(policies(old), policies(new), facts or known())


def test_a_copy_keeps_by_rules_of_its_own_and_the_first_repository_by_the_policy_s() -> None:
    found = policies(GOLD)
    assert (stays(found, ""), stays(found, "far"), stays(found, "near")) == (3, 6, 3)
    (policy,) = found.policies
    assert policy.copies == ("far",)
    assert (lock_in(found.policies, "far"), lock_in(found.policies, "near")) == (30 * DAY, timedelta())
    assert settings_of(protection(found, WEB))["copy_retention"] == (
        "gold in far: keep_daily 6, min_good 1, grace 0 s, lock 30 d"
    )


def test_policies_are_a_union_in_a_copy_each_by_what_it_says_there() -> None:
    more = '[policy.silver]\nselect.all = ["*"]\nretention = { keep_daily = 5, grace = "0s" }\n'
    found = policies(SHORTER + more)
    assert (stays(found, "far"), stays(found, "")) == (5, 5)
    assert stays(policies(SHORTER + more + 'copy.far.retention = { keep_daily = 1, grace = "0s" }'), "far") == 2


def test_a_copy_whose_table_has_no_rule_keeps_everything() -> None:
    assert stays(policies(GOLD.replace("keep_daily = 6, ", "")), "far") == 6


def test_a_template_brings_a_copy_and_the_policy_changes_it_key_by_key() -> None:
    found = policies(
        GOLD.replace("[policy.gold]", "[template.tier]").replace('select.all = ["*"]\n', "")
        + '[policy.gold]\ntemplate = "tier"\nselect.all = ["*"]\ncopy.far.retention.keep_daily = 4'
    )
    assert (stays(found, "far"), lock_in(found.policies, "far")) == (4, 30 * DAY)


def test_of_a_vm_that_left_the_copy_s_rules_go_on() -> None:
    found = policies(GOLD.replace("rpo", 'on_removed = "expire"\nrpo'))
    marked = tuple(replace(point, expiring_since=NOW - 2 * DAY) for point in COPIED)
    for copy, count in (("", 3), ("far", 6)):
        retaining = found.retaining(None, marked, removed=True, copy=copy)
        assert len(plan_retention(WEB.id, marked, retaining, NOW).keep) == count


def test_what_a_change_would_let_expire_in_a_copy_waits_and_is_told_with_its_name() -> None:
    found = plan(GOLD, SHORTER)
    assert found.pending
    assert [(one.copy, one.taken_at) for one in found.expiring] == [("far", p.taken_at) for p in COPIED[:4]]
    assert found.expiring[0].sentence == (
        f"web-1: restore point {COPIED[0].id} of 2026-11-17 14:00 UTC in the copy far would expire on "
        "2026-11-22 14:00 UTC, kept until now (policy gold: keep_daily 6 of 6)"
    )
    assert stays(found.effective, "far") == 6
    assert stays(found.effective, "") == 3
    assert stays(found.new, "far") == 2
    assert json.loads(json.dumps(found.as_json()))["expiring"][0]["copy"] == "far"
    assert "4 restore points in the copy far of 1 VM" in reload_words(found)
    assert "(second copies are not counted)" in plan_words(forecast(policies(GOLD), policies(SHORTER), known()))


def test_the_plan_tells_which_restore_points_wait_for_a_copy_that_lacks_them() -> None:
    old = GOLD.replace("keep_daily = 3", "keep_daily = 5")
    lacks = replace(facts(WEB, points=COPIED), copies={"far": {WEB.id: COPIED[-1:]}})
    found = forecast(policies(old), policies(GOLD), lacks)
    assert [one.copy for one in found.expiring] == ["", ""]
    assert found.waiting == {point.id: ("far",) for point in COPIED[1:3]}
    assert (
        "  2 of them wait for the copy far, which lacks them, until maintenance.copy_wait is over.\n"
    ) in plan_words(found)
    told = found.as_json()
    assert [one["waits_for"] for one in told["expiring"]] == [["far"], ["far"]]
    assert told["expiring_that_wait"] == 2
    has = replace(lacks, copies={"far": {WEB.id: COPIED}})
    assert not forecast(policies(old), policies(GOLD), has).waiting
    none = replace(lacks, copies={"far": {}})
    again = facts_from_json(json.loads(json.dumps(facts_as_json(none))), "state.json")
    assert again.copies == {"far": {}}
    assert len(forecast(policies(old), policies(GOLD), again).waiting) == 2, "a copy that is new lacks everything"


def test_a_copy_that_keeps_longer_takes_effect_at_once() -> None:
    assert not plan(GOLD, LATER).pending
    assert not plan(GOLD, LATER, replace(known(), unseen_copies=("far",))).pending


def test_taking_the_table_away_is_a_change_of_what_the_copy_keeps() -> None:
    plain = GOLD.replace('copy.far.retention = { keep_daily = 6, grace = "0s", lock = "30d" }', 'copies = ["far"]')
    found = plan(GOLD, plain)
    assert [one.copy for one in found.expiring] == ["far"] * 3
    (change,) = found.vms
    assert len(change.weaker) == 1, "the lock of new copies"
    assert not plan(plain, GOLD).pending


def test_a_change_of_the_first_repository_s_retention_alone_leaves_the_copy_as_it_is() -> None:
    found = plan(GOLD, GOLD.replace("keep_daily = 3", "keep_daily = 2"))
    assert [one.copy for one in found.expiring] == [""]
    assert stays(found.effective, "far") == 6


def test_the_guard_s_share_is_that_of_the_copy() -> None:
    many = daily_points(WEB, 40, policy="gold")
    keeps_many = GOLD.replace("keep_daily = 6", "keep_daily = 40")
    found = plan(keeps_many, SHORTER, known(many))
    assert found.refusals == (
        "38 of 40 restore points in the copy far would expire, more than the 50% of guard.max_expire_share",
    )


def test_while_nobody_knows_what_a_copy_holds_nothing_may_expire_there() -> None:
    unseen = replace(known(), copies={}, unseen_copies=("far",))
    found = plan(GOLD, SHORTER, unseen)
    assert found.refusals == (
        "the restore points of the copy far are not known, so nobody can tell which of them would expire",
    )
    assert stays(found.effective, "far") == 6
    moved = GOLD.replace('["*"]', '["name:web-*"]') + '[policy.rest]\nselect.all = ["*"]\nretention.keep_last = 1'
    assert not plan(GOLD, moved, unseen).pending, "a policy more lets nothing expire"
    other = GOLD.replace('["*"]', '["name:db-*"]') + '[policy.rest]\nselect.all = ["*"]\nrpo = "24h"\n'
    assert plan(GOLD, other + "retention.keep_last = 1", unseen).refusals
    assert not plan_reload(PolicySet(), policies(GOLD), unseen).pending, "nothing was ever kept by these policies"
    assert stays(plan_reload(policies(other), policies(GOLD), unseen).effective, "far") == 6


def test_a_plan_holds_as_long_as_the_copies_lose_the_same() -> None:
    seen = planned_of(plan(GOLD, SHORTER))
    assert differences(seen, plan(GOLD, SHORTER)) == ()
    (sentence,) = differences(seen, plan(GOLD, SHORTER, known(COPIED[1:])))
    assert sentence == "1 restore point of the plan would not expire any more (web-1)"
    assert {*seen.expiring} == {f"far/{point.id}" for point in COPIED[:4]}


def test_a_restore_point_is_explained_in_each_repository_that_has_it() -> None:
    both, alone = COPIED[-1], COPIED[0]
    said = explain_point(policies(GOLD), both, known())
    assert (said.copy, [one.copy for one in said.copies]) == ("", ["far"])
    assert "\nin the copy far: stays\n  policy gold: keep_daily 1 of 6\n" in said.render()
    assert said.as_json()["copies"][0]["reasons"][0] == "policy gold: keep_daily 1 of 6"
    assert find_point(known(), alone.id) == [(WEB.id, alone)]
    there = explain_point(policies(GOLD), alone, known())
    assert there.render().startswith(f"{alone.id} in the copy far: stays\n")
    assert there.reasons == ("policy gold: keep_daily 6 of 6",)
    assert find_point(known(), "web-1@latest") == [(WEB.id, both)]
    of_vm = explain(policies(GOLD), WEB, known())
    assert [len(of_vm.as_json()["copies"]["far"]), len(of_vm.as_json()["points"])] == [6, 3]
    assert "restore points in the copy far:\n" in of_vm.render()


@pytest.mark.parametrize(
    ("retention", "what"),
    [
        ('{ keep_within = "1h" }', "keeps restore points in the copy far for less than its rpo of 1 d"),
        ('{ keep_daily = 2, grace = "0s" }', "has no grace in the copy far"),
        ("{ min_good = 2 }", "has no retention rule in the copy far and keeps everything"),
    ],
)
def test_lint_looks_at_the_retention_of_a_copy_at_its_place(retention: str, what: str) -> None:
    text = '[policy.gold]\nselect.all = ["*"]\nrpo = "24h"\nretention.keep_daily = 7\n'
    found = lint(policies(f"{text}copy.far.retention = {retention}\n"), now=NOW)
    (warning,) = [one for one in found if what in one.what]
    assert warning.line == 6


def test_while_a_repository_is_away_nothing_may_expire_by_a_change() -> None:
    away = replace(known(), unseen_repositories=("archive",))
    shorter = GOLD.replace("keep_daily = 3", "keep_daily = 2")
    found = plan(GOLD, shorter, away)
    assert "repository archive is away, so nobody can tell which of its restore points would expire" in found.refusals
    assert stays(found.effective, "") == 3
    assert stays(found.new, "") == 2
    assert not plan(GOLD, GOLD.replace("keep_daily = 3", "keep_daily = 4"), away).pending
    assert not plan(GOLD, shorter.replace("keep_daily = 2,", "keep_daily = 3,"), away).pending
    assert stays(plan(shorter, GOLD, away).effective, "") == 3


def test_a_change_of_the_destination_is_told() -> None:
    found = plan(GOLD, GOLD.replace("rpo", 'destination = "archive"\nrpo'))
    assert [change.sentence for change in found.vms] == ["web-1: destination the first repository → archive"]
    assert not found.pending
    assert settings_of(protection(found.new, WEB))["destination"] == "archive"


def test_a_destination_that_does_not_count_is_told() -> None:
    high = 'priority = 9\nselect.all = ["*"]\ndestination = "vault"\nrpo = "8h"\nretention.keep_daily = 3\n'
    text = GOLD.replace("rpo", 'destination = "archive"\nrpo')
    found = policies(f"{text}[policy.high]\n{high}")
    said = [one.what for one in lint(found, now=NOW)]
    assert any("never decides where its restore points go" in what for what in said), said
    assert "destination archive of gold does not count: high (priority 9) decides where its restore points go" in (
        explain(found, WEB, known()).render()
    )
    (tie,) = [one.what for one in lint(policies(text + "[policy.high]\n" + high.replace("9", "0", 1)), now=NOW)
              if "priority" in one.what]  # fmt: skip
    assert tie.endswith('and of their destinations "archive", as "gold" comes first by name')
