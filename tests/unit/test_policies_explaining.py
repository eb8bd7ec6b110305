"""Why a VM is protected or not, and what lint finds odd."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from policies.deciding import decided_by
from policies.explanation import explain
from policies.facts import VmHistory
from policies.linting import lint
from policies.loading import load, load_texts
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import combine
from policies.settings import settings_of
from tests.policies.building import NOW, a_point, a_vm, daily_points, facts, policies

WEB = a_vm("web-3", tags=frozenset({"env=prod"}), cluster="c1")
GOLD = """
[policy.gold]
priority = 5
rpo = "4h"
transports = ["nbd"]
window = ["18:00-06:00"]
select = { all = ["tag:env=prod"], none = ["cluster:c2"] }
trigger = [{ on = "vm.migrated", cooldown = "1h" }]
[policy.gold.retention]
keep_last = 2
grace = "0s"
"""
OTHER = '[policy.other]\nselect.all = ["*", "cluster:c9"]\nschedule = "0 22 * * *"\nretention.keep_within = "2d"'


def test_an_explanation_has_every_clause_the_winner_the_due_time_and_the_points() -> None:
    text = explain(policies(OTHER, GOLD), WEB, facts(WEB, points=daily_points(WEB, 3))).render()
    assert text.splitlines() == [
        "web-3: protected by gold, last good restore point 0 s ago; due at 18:00 UTC under gold",
        "  because: the RPO of 4 h is missed at 18:00 UTC, and a run starts when an eighth of it (30 m) is left; "
        "its windows let it start only then",
        "",
        "policy gold (priority 5, 1.toml:3) selects it: selected by tag:env=prod",
        "  ✓ all  tag:env=prod   (the VM has env=prod)",
        "  ✗ none cluster:c2   (the VM has c1)",
        "",
        "policy other (priority 0, 0.toml:2) does not select it: cluster:c9 does not match (the VM has c1)",
        "  ✓ all  *",
        "  ✗ all  cluster:c9   (the VM has c1)",
        "",
        "in effect:",
        "  policy       gold",
        "  rpo          4 h",
        "  window       18:00-06:00 UTC",
        "  triggers     gold: vm.migrated, cooldown 1 h",
        "  consistency  filesystem, at least crash",
        "  transports   nbd",
        "  retention    gold: keep_last 2, min_good 1, grace 0 s",
        "",
        "restore points:",
        "  20261122T140000-web-3 stays: policy gold: keep_last 1 of 2; guard: min_good 1 of 1 of policy gold",
        "  20261121T140000-web-3 stays: policy gold: keep_last 2 of 2",
        "  20261120T140000-web-3 expires: no rule of policy gold and no guard keeps the restore point of "
        "2026-11-20 14:00 UTC",
    ]


def test_a_policy_that_keeps_everything_says_so() -> None:
    assert explain(policies('[policy.p]\nselect.all = ["*"]'), WEB, facts(WEB)).settings["retention"] == "p: everything"
    within = explain(policies('[policy.p]\nselect.all = ["*"]\nretention.keep_within = "30d"'), WEB, facts(WEB))
    assert within.settings["retention"] == "p: keep_within 30 d, min_good 1, grace 1 d"


def test_an_explanation_is_json() -> None:
    found = json.loads(json.dumps(explain(policies(GOLD, OTHER), WEB, facts(WEB)).as_json()))
    assert found["winner"] == "gold"
    assert found["due"]["rule"] == "rpo"
    assert found["status"] == "protected by gold, never backed up; due at 18:00 UTC under gold"
    assert found["policies"][0]["clauses"][0] == {
        "list": "all",
        "term": "tag:env=prod",
        "matches": True,
        "found": ["env=prod"],
    }
    assert explain(PolicySet(), WEB, facts(WEB)).render() == "web-3: not protected, no policy selects it\n"
    nothing = explain(PolicySet(), WEB, facts(WEB)).as_json()
    assert (nothing["protected"], nothing["winner"], nothing["due"]) == (False, None, None)
    assert nothing["status"] == "not protected, no policy selects it"


def test_an_explanation_says_what_blocks() -> None:
    vm = a_vm("web-3", tags=frozenset({"env=prod"}), refusal="it is a template", connected=False)
    history = {vm.id: VmHistory(running=True, last_failure="no space", consecutive_failures=3)}
    fired = {("gold", "trigger[0]", vm.id): NOW - timedelta(minutes=5)}
    assert explain(policies(GOLD), vm, facts(vm, history=history, fired=fired)).blocked == (
        "it is a template",
        "its host is not connected",
        "a backup is running",
        "the last runs failed 3 times: no space",
        "trigger[0] of policy gold cools down until 14:55 UTC",
    )
    queued = {vm.id: VmHistory(pending=True, last_failure="x", consecutive_failures=1)}
    text = explain(policies(GOLD), vm, facts(vm, history=queued)).render()
    assert "  blocked: a backup is waiting in the queue\n" in text
    assert "  blocked: the last runs failed once: x\n" in text


def test_an_explanation_says_what_is_due_now_and_what_waits_for_triggers() -> None:
    free = GOLD.replace('window = ["18:00-06:00"]\n', "")
    assert explain(policies(free), WEB, facts(WEB)).status == (
        "protected by gold, never backed up; due now under gold: never backed up; RPO is 4 h"
    )
    only_triggers = free.replace('rpo = "4h"\n', "")
    assert explain(policies(only_triggers), WEB, facts(WEB)).status.endswith("it waits for its triggers")


def test_an_explanation_names_policies_that_only_a_pending_change_keeps() -> None:
    pending = plan_reload(policies(GOLD), policies(OTHER), facts(WEB)).effective
    found = explain(pending, WEB, facts(WEB))
    assert found.kept == ("gold",)
    assert "pending change: gold still applies until the change is confirmed" in found.render()


def test_an_explanation_says_which_policy_decides_which_setting() -> None:
    low = """
    [policy.low]
    select.all = ["*"]
    rpo = "1d"
    copies = ["offsite"]
    verify.every = "30d"
    notify = ["ops"]
    retention = { keep_daily = 14, lock = "2d" }
    """
    found = explain(policies(GOLD, low), WEB, facts(WEB))
    assert found.origins == {
        "policy": "gold, low: of all policies that select it",
        "rpo": "gold, the highest priority that says so (5)",
        "window": "gold, the highest priority that says so (5)",
        "triggers": "gold: of all policies that select it",
        "consistency": "no policy says so: the default",
        "transports": "gold, the highest priority that says so (5)",
        "copies": "low: of all policies that select it",
        "lock": "low, the longest of all",
        "notify": "low: of all policies that select it",
        "verify": "low, the shortest of all",
        "retention": "gold, low: of all policies that select it",
    }
    assert "  rpo          4 h   (from gold, the highest priority that says so (5))" in found.render()
    assert found.as_json()["origins"] == found.origins
    level = explain(policies(GOLD, low.replace("rpo", "priority = 5\nrpo")), WEB, facts(WEB))
    assert level.origins["rpo"] == "gold and low of one priority (5): the more protective value counts"


def test_every_setting_in_effect_has_an_origin() -> None:
    text = (VALID / "every_key.toml").read_text()
    every = load_texts({"every_key.toml": text.partition("[[test]]")[0]})
    for policy in every.policies:
        for others in ((), policies(GOLD).policies):
            found = combine((policy, *others))
            assert decided_by(found).keys() == settings_of(found).keys()


def due_because(text: str, *points: datetime, now: datetime = NOW) -> str:
    one = facts(WEB, points=[a_point(WEB, at) for at in points], now=now)
    return explain(policies(f'[policy.p]\nselect.all = ["*"]\n{text}'), WEB, one).because


def test_an_explanation_says_why_the_next_run_is_due_then() -> None:
    half = "the RPO of 8 h is missed at 21:00 UTC, and a run starts when an eighth of it (1 h) is left"
    hour_ago = NOW - timedelta(hours=1)
    assert due_because('rpo = "8h"', hour_ago) == half
    assert (
        due_because('rpo = "8h"\nwindow = ["20:30-22:00"]', hour_ago) == f"{half}; its windows let it start only then"
    )
    assert due_because('rpo = "8h"\nwindow = ["16:00-18:00"]', hour_ago) == (
        f"{half}; no window is open then, so it runs near the end of the last one before"
    )
    assert due_because('schedule = "0 22 * * *"', hour_ago) == "next scheduled time is 22:00 UTC"
    assert due_because('schedule = "0 22 * * *"\nwindow = ["23:00-24:00"]', hour_ago) == (
        "next scheduled time is 22:00 UTC and waits for its window"
    )
    assert due_because('rpo = "8h"', NOW - timedelta(hours=9)) == ""
    assert "never backed up" in due_because('rpo = "8h"\nwindow = ["16:00-18:00"]')


def test_an_explanation_tells_what_the_queue_says() -> None:
    waits = ["a backup is waiting in the queue, 3 of 17 in line: all 8 places are taken"]
    history = {WEB.id: VmHistory(pending=True)}
    assert explain(policies(GOLD), WEB, facts(WEB, history=history), waits).blocked == tuple(waits)


VALID = Path(__file__).parents[1] / "policies" / "valid"
EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"


def test_the_examples_load_together_and_lint_finds_nothing() -> None:
    found = load(EXAMPLES)
    assert len(found.policies) >= 8
    assert [str(one) for one in lint(found)] == []


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_each_example_is_explained_in_the_docs(file: Path) -> None:
    assert f"examples/policies/{file.name}" in (EXAMPLES.parents[1] / "docs" / "policies.md").read_text()


def test_of_many_policies_that_do_not_select_a_vm_each_is_one_line_at_the_end() -> None:
    many = [f'[policy.p{number}]\nselect.all = ["cluster:c{number}"]\nrpo = "4h"' for number in range(2, 20)]
    lines = explain(policies(GOLD, *many), WEB, facts(WEB)).render().splitlines()
    gold = lines.index("policy gold (priority 5, 0.toml:3) selects it: selected by tag:env=prod")
    assert lines[gold + 1] == "  ✓ all  tag:env=prod   (the VM has env=prod)"
    heading = lines.index("these policies do not select it (--json has their clauses):")
    assert gold < lines.index("in effect:") < heading and len(lines) == heading + 19
    assert "  p9 (priority 0, 8.toml:2): cluster:c9 does not match (the VM has c1)" in lines[heading:]
