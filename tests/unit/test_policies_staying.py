"""Why a restore point is kept, and until when."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from policies.facts import Facts, RestorePoint
from policies.policyset import PolicySet
from policies.staying import Stay, explain_point, find_point, provenance
from tests.policies.building import NOW, a_point, a_vm, daily_points, facts, policies

WEB = a_vm("web-3")
DAILY = """
[policy.gold]
select.all = ["*"]
rpo = "1d"
retention = { keep_daily = 3, keep_monthly = 2, grace = "7d" }
"""


def stay(point: RestorePoint, text: str = DAILY, *others: RestorePoint, known: Facts | None = None) -> Stay:
    return explain_point(policies(text) if text else PolicySet(), point, known or facts(WEB, points=[*others, point]))


def test_a_point_is_explained_by_its_rules_and_by_how_it_came_about() -> None:
    *older, newest = daily_points(WEB, 5, policy="gold", rule="rpo", reason="web-3: never backed up")
    said = stay(newest, DAILY, *older)
    assert said.render().splitlines() == [
        "20261122T140000-web-3: stays",
        "  of web-3, taken 2026-11-22 14:00 UTC, application consistent",
        "",
        "kept by:",
        "  policy gold: keep_daily 1 of 3",
        "  policy gold: keep_monthly 1 of 2",
        "  guard: min_good 1 of 1 of policy gold",
        "",
        "until: about 2026-12-02 14:00 UTC if a restore point comes every 1 d; for ever while none comes, as rules "
        "count restore points and not time",
        "",
        "under:",
        "  gold (priority 0, 0.toml:3): keep_daily 3, keep_monthly 2, min_good 1, grace 7 d",
        "",
        "it came about by:",
        "  policy       gold rpo",
        "  because      web-3: never backed up",
    ]
    found = json.loads(json.dumps(said.as_json()))
    assert (found["point"], found["status"], found["expires_without_new_points"]) == (newest.id, "stays", None)
    assert found["expires_with_backups_about"].startswith("2026-12-02T14:00")
    assert found["provenance"] == {"policy": "gold rpo", "because": "web-3: never backed up"}


def test_a_point_that_nothing_keeps_goes_when_its_grace_is_over() -> None:
    old, *others = daily_points(WEB, 5)
    said = stay(old, DAILY, *others)
    assert said.status == "marked, and stays while its grace lasts"
    assert said.expires == NOW + timedelta(days=7)
    assert said.until == "2026-11-29 14:00 UTC: no rule keeps it, and grace lasts 7 d"
    marked = replace(old, expiring_since=NOW - timedelta(days=2))
    assert stay(marked, DAILY, *others).expires == NOW + timedelta(days=5)
    over = stay(replace(old, expiring_since=NOW - timedelta(days=7)), DAILY, *others)
    assert over.status == "expires when retention is next carried out"
    assert over.until.startswith("now: no rule of policy gold and no guard keeps")
    assert "kept by nothing" in over.render()


def test_locks_and_holds_say_until_when() -> None:
    old, *others = daily_points(WEB, 5)
    locked = stay(replace(old, locked_until=NOW + timedelta(days=3)), DAILY, *others)
    assert locked.status == "stays while it is locked"
    assert locked.until == "2026-12-02 14:00 UTC: the lock ends at 2026-11-25 14:00 UTC, then grace lasts 7 d"
    held = stay(replace(old, holds=("audit",)), DAILY, *others)
    assert held.until == "its 1 hold is released, whatever the rules say"
    assert held.reasons == ("hold: audit",)


def test_what_is_kept_for_ever_says_why() -> None:
    point = a_point(WEB, NOW - timedelta(days=1))
    assert stay(point, "").until == "for ever: no policy selects its VM, so nothing expires"
    everything = '[policy.all]\nselect.all = ["*"]\nrpo = "1d"'
    assert stay(point, everything).until == "for ever: policy all keeps everything"
    events = '[policy.p]\nselect.all = ["*"]\ntrigger = [{ on = "vm.created" }]\nretention.keep_last = 1'
    assert stay(point, events).until.startswith("for ever while no newer restore point comes")
    gone = facts(points=[point])
    assert stay(point, DAILY, known=gone).until.startswith("for ever: no policy selects its VM")


def test_long_rules_are_looked_ahead_for_day_by_day() -> None:
    point = a_point(WEB, NOW - timedelta(hours=1))
    text = '[policy.p]\nselect.all = ["*"]\nrpo = "1h"\nretention = { keep_last = 2, keep_monthly = 12, grace = "0s" }'
    about = stay(point, text).about
    assert about is not None and about - NOW < timedelta(days=2)  # a newer one stands for its month
    last = stay(a_point(WEB, NOW), text.replace("1h", "2h").replace("keep_monthly = 12", "keep_daily = 300")).about
    assert last is not None and last - NOW < timedelta(days=1)
    weekly = '[policy.p]\nselect.all = ["*"]\nrpo = "1m"\nretention = { keep_within = "90d", grace = "0s" }'
    far = stay(a_point(WEB, NOW), weekly).about
    assert far is not None and timedelta(days=90) <= far - NOW < timedelta(days=92)
    never = '[policy.p]\nselect.all = ["*"]\nrpo = "1d"\nretention.keep_within = "36500d"'
    assert stay(a_point(WEB, NOW), never).about is None


def test_provenance_says_whether_the_policy_has_changed_since() -> None:
    recorded = {
        "policy": "gold", "rule": "trigger[0]", "reason": "it moved", "policy_hash": "0" * 32, "policy_commit": "abc",
        "event_key": "k1", "event_type": "vm.migrated", "event_at": "2026-11-22T13:00:00+00:00",
    }  # fmt: skip
    assert provenance(recorded, policies(DAILY)) == {
        "policy": "gold trigger[0] (it has changed since)",
        "because": "it moved",
        "event": "vm.migrated at 2026-11-22 13:00:00 UTC (k1)",
        "policy hash": "0" * 32,
        "git commit": "abc",
    }
    assert provenance(recorded, PolicySet())["policy"] == "gold trigger[0] (that policy is gone)"
    same = recorded | {"policy_hash": policies(DAILY).policies[0].hash}
    assert provenance(same, policies(DAILY))["policy"] == "gold trigger[0]"
    assert provenance({}, PolicySet()) == {}


def test_a_point_is_found_by_its_id_its_beginning_and_as_the_latest() -> None:
    known = facts(WEB, points=daily_points(WEB, 3))
    ids = [point.id for point in known.points[WEB.id]]
    assert [point.id for _, point in find_point(known, ids[0])] == ids[:1]
    assert [point.id for _, point in find_point(known, "2026")] == ids
    assert [point.id for _, point in find_point(known, "web-3@latest")] == ids[-1:]
    assert find_point(known, "nobody@latest") == find_point(known, "x") == find_point(known, "") == []
