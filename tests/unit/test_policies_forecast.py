"""What follows from a change in the days to come, in values, in words and in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from policies.errors import PolicyError
from policies.facts import Facts, VmHistory, instant_text
from policies.forecast import Bytes, ChangePlan, plan
from policies.planfile import differences, plan_file, planned
from policies.planwords import plan_words, taken_away
from policies.snapshotload import snapshot_load
from tests.policies.building import NOW, a_point, a_vm, daily_points, facts, policies

NIGHTLY = """
[policy.gold]
schedule = "0 22 * * *"
select.all = ["name:*"]
[policy.gold.retention]
keep_daily = 10
grace = "2d"
"""
WEB = a_vm("web", datastores=("fast",))
DB = a_vm("db", datastores=("fast", "slow"))
DONE = {vm.id: VmHistory(last_good=NOW - timedelta(hours=16), last_attempt=NOW) for vm in (WEB, DB)}
KNOWN = facts(WEB, DB, points=[*daily_points(WEB, 8), *daily_points(DB, 4)], history=DONE)


def change(new: str, known: Facts = KNOWN, old: str = NIGHTLY, days: int = 30) -> ChangePlan:
    return plan(policies(old), policies(new), known, timedelta(days=days))


def test_the_next_run_is_told_before_and_after() -> None:
    found = change(NIGHTLY.replace("0 22", "30 23"))
    run = found.runs[WEB.id]
    assert (run.before, run.after) == (
        datetime(2026, 11, 22, 22, 0, tzinfo=UTC),
        datetime(2026, 11, 22, 23, 30, tzinfo=UTC),
    )
    text = plan_words(found)
    assert "2 VMs (db, web): schedule 0 22 * * * UTC → 30 23 * * * UTC" in text
    assert "next run: 2026-11-22 22:00 UTC → 2026-11-22 23:30 UTC" in text
    assert text.rstrip().endswith(f"Plan {found.reload.id}: takes nothing away, so it takes effect at once.")


def test_a_vm_that_cannot_be_backed_up_has_no_next_run_and_opens_no_snapshot() -> None:
    template = a_vm("golden", refusal="it is a template")
    found = change(NIGHTLY.replace("0 22", "30 23"), facts(template))
    assert (found.runs[template.id].before, found.runs[template.id].after) == (None, None)
    assert found.load.datastores == ()


def test_points_expire_when_their_grace_is_over_and_are_told_up_to_the_horizon() -> None:
    tight = NIGHTLY.replace("keep_daily = 10", "keep_daily = 3")
    found = change(tight)
    assert {(one.name, one.expires_at) for one in found.expiring} == {
        (name, NOW + timedelta(days=2)) for name in ("web", "db")
    }
    text = plan_words(found, size=lambda size: f"{size} bytes")
    assert (
        "  6 restore points of 2 VMs (db, web), taken 2026-11-15 to 2026-11-19, on 2026-11-24 14:00 UTC; "
        "kept until now: policy gold: keep_daily\n"
    ) in text
    assert "at most: 0 bytes" in text
    assert "waits for `backstay policy apply`" in text
    later = change(tight, days=1)
    assert (later.expiring, later.later) == ((), 6)
    assert "After that: 6 restore points more would expire." in plan_words(later)


def test_snapshots_are_told_for_each_window_and_datastore() -> None:
    nights = NIGHTLY.replace("[policy.gold]", '[policy.gold]\nwindow = ["22:00-04:00"]\ntimezone = "Europe/Berlin"')
    found = change(nights.replace("0 22", "0 1,3"), old=nights)
    rows = {(one["window"], one["datastore"]): one for one in found.as_json()["snapshot_load"]["windows"]}
    name = "22:00-04:00 Europe/Berlin"
    assert [*rows] == [(name, ""), (name, "fast"), (name, "slow")]
    opens = "2026-11-22T21:00:00Z"
    assert rows[name, "fast"]["fullest_before"] == {"at": opens, "starts": 2}
    assert rows[name, "fast"]["fullest_after"] == {"at": opens, "starts": 4}
    assert rows[name, "slow"]["fullest_after"]["starts"] == 2
    assert (
        "Snapshots in the fullest opening of a window:\n"
        f"  {name}: all datastores 2 → 4, fast 2 → 4, in the one from 2026-11-22 21:00 UTC\n"
    ) in plan_words(found)
    assert "fullest opening" not in plan_words(change(nights, old=nights.replace("keep_daily = 10", "keep_daily = 9")))


def test_a_lock_puts_the_expiry_off_and_a_shorter_grace_brings_it_forward() -> None:
    tight = NIGHTLY.replace("keep_daily = 10", "keep_daily = 3")
    points = daily_points(WEB, 8)
    locked = replace(points[0], locked_until=NOW + timedelta(days=5))
    marked = replace(points[1], expiring_since=NOW - timedelta(hours=1))
    known = facts(WEB, points=[locked, marked, *points[2:]], history=DONE)
    by_point = {one.point: one for one in change(tight, known).expiring}
    assert by_point[locked.id].expires_at == NOW + timedelta(days=7)
    sooner = change(tight.replace('"2d"', '"0s"'), known, old=tight)
    by_point = {one.point: one for one in sooner.expiring}
    assert (by_point[marked.id].expires_at, by_point[marked.id].instead_of) == (NOW, NOW + timedelta(hours=47))
    assert "instead of 2026-11-24 13:00 UTC" in by_point[marked.id].sentence
    assert "sooner than before" in plan_words(sooner)


def test_what_is_freed_is_at_most_what_was_stored_unless_the_repository_was_asked() -> None:
    points = [replace(point, stored_bytes=100) for point in daily_points(WEB, 5)]
    found = change(NIGHTLY.replace("keep_daily = 10", "keep_daily = 3"), facts(WEB, points=points, history=DONE))
    assert found.bytes == Bytes(200, exact=False)
    asked = replace(found, bytes=Bytes(70, exact=True))
    assert "Bytes that reclaim frees then: 70\n" in plan_words(asked)
    assert asked.as_json()["bytes_freed"] == {"bytes": 70, "exact": True}


def test_the_load_counts_starts_by_datastore_and_hour() -> None:
    load = snapshot_load(policies(NIGHTLY), policies(NIGHTLY.replace("0 22", "0 3")), KNOWN)
    before, after = load.peaks("fast")
    assert (before.at, before.starts) == (datetime(2026, 11, 22, 22, tzinfo=UTC), 2)
    assert (after.at, after.starts) == (datetime(2026, 11, 23, 3, tzinfo=UTC), 2)
    assert (load.peaks("slow")[1].starts, load.peaks("nowhere")[1].starts) == (1, 0)
    assert sum(load.before["fast"]) == 14, "one a day for each of two VMs"
    assert sum(load.after[""]) == 14
    assert load.as_json()["datastores"][0]["peak_after"] == {"at": "2026-11-23T03:00:00Z", "starts": 2}


def test_a_goal_makes_a_run_follow_on_the_last() -> None:
    hourly = NIGHTLY.replace('schedule = "0 22 * * *"', 'rpo = "8h"')
    load = snapshot_load(policies(NIGHTLY), policies(hourly), facts(WEB, history=DONE))
    assert sum(load.after["fast"]) == 24, "every seven hours, the first one now"
    assert load.after["fast"][0] == 1


def test_runs_of_one_minute_are_followed_through() -> None:
    often = NIGHTLY.replace('schedule = "0 22 * * *"', 'rpo = "1m"')
    load = snapshot_load(policies(NIGHTLY), policies(often), facts(WEB, history=DONE))
    assert sum(load.after["fast"]) == 7 * 24 * 60


def test_a_load_that_changes_is_told_with_its_fullest_hour() -> None:
    spread = NIGHTLY + '[policy.web]\npriority = 1\nschedule = "0 1 * * *"\nselect.all = ["name:web"]\n'
    text = plan_words(change(spread))
    assert "all datastores: 2 → 1, in the hour from 2026-11-22 22:00 UTC" in text
    assert "fast: 2 → 1, in the hour from" in text
    assert "slow" not in text.split("Snapshots that they open")[1]
    assert "Scheduled runs in the next 7 days, if all succeed (an estimate): 14 → 14" in text


def test_more_runs_are_told_even_when_no_hour_is_fuller() -> None:
    text = plan_words(change(NIGHTLY.replace('"0 22 * * *"', '["0 22 * * *", "0 10 * * *"]')))
    assert "if all succeed (an estimate): 14 → 28" in text
    assert "Snapshots that they open" not in text


def test_many_ways_to_change_are_counted_not_listed() -> None:
    vms = [a_vm(f"vm-{number:02}", datastores=(f"store-{number:02}",)) for number in range(30)]
    each = [
        f'[policy.p{vm.name}]\nrpo = "4h"\nselect.all = ["name:{vm.name}"]\nretention.keep_last = 9\n' for vm in vms
    ]
    points = [point for vm in vms for point in daily_points(vm, 9)]
    old = "\n".join(each)
    found = plan(
        policies(old),
        policies(old.replace("4h", "400h").replace("keep_last = 9", "keep_last = 3")),
        facts(*vms, points=points),
    )
    text = plan_words(found)
    assert "pvm-00, pvm-01" in text
    assert " and 18 more\n" in text
    assert "other ways; --all lists each" in text
    assert "other rules; --all lists each" in text
    assert "more datastores; --json has the hours of each" in text
    assert len(plan_words(found, everything=True).splitlines()) > 180 > len(text.splitlines())
    assert len(taken_away(found.reload)) < 25


def test_everything_names_each_clause_and_each_point() -> None:
    text = plan_words(change(NIGHTLY.replace("name:*", "name:w*")), everything=True)
    assert "db loses protection: policy gold no longer selects it (name:w* does not match" in text
    assert "    ✗ gold: all name:w*   (the VM has db)\n" in text
    for point in daily_points(DB, 4):
        assert f"    restore point {point.id}\n" in text
    assert "takes effect only with `backstay policy apply` and --override-guard" in text


def test_nothing_is_said_in_two_words() -> None:
    assert plan_words(change(NIGHTLY)) == "Nothing changes.\n"


def test_a_plan_of_a_large_change_is_one_line_for_all_vms() -> None:
    vms = [a_vm(f"vm-{number:04}") for number in range(500)]
    found = plan(policies(NIGHTLY), policies(NIGHTLY.replace("0 22", "0 23")), facts(*vms))
    assert "500 VMs (vm-0000, vm-0001, vm-0002 and 497 more): schedule" in plan_words(found)
    assert "500 VMs (vm-0000, vm-0001, vm-0002 and 497 more) lose protection: policy gold is gone" in plan_words(
        plan(policies(NIGHTLY), policies(), facts(*vms))
    )


def test_a_plan_file_says_all_that_the_plan_says() -> None:
    found = change(NIGHTLY.replace("keep_daily = 10", "keep_daily = 3"))
    document = json.loads(json.dumps(plan_file(found)))
    assert document["plan"]["expiring_up_to_horizon"] == 6
    assert document["plan"]["made_at"] == instant_text(NOW)
    seen = planned(document, "plan.json")
    assert (seen.id, seen.old, seen.new) == (found.reload.id, found.reload.old.hash, found.reload.new.hash)
    assert set(seen.expiring.values()) == {"web", "db"}


def test_what_differs_by_now_is_told() -> None:
    tight = NIGHTLY.replace("keep_daily = 10", "keep_daily = 3")
    seen = planned(plan_file(change(tight)), "plan.json")
    more = replace(KNOWN, points={**KNOWN.points, WEB.id: daily_points(WEB, 9)})
    assert differences(seen, change(tight, more).reload) == ("1 restore point more would expire (web)",)
    less = replace(KNOWN, points={WEB.id: KNOWN.points[WEB.id]})
    assert differences(seen, change(tight, less).reload) == (
        "1 restore point of the plan would not expire any more (db)",
    )
    other = change(tight.replace("keep_daily = 3", "keep_daily = 4"), old=NIGHTLY.replace("0 22", "0 23")).reload
    assert differences(seen, other)[:2] == (
        "the policies in force are not those that the plan started from",
        "the policy files are not those of the plan",
    )
    assert differences(replace(seen, id="0" * 16), change(tight).reload) == (
        "the plan has another id than its content",
    )
    several = {f"p{number}": f"vm-{number}" for number in range(9)}
    [said] = differences(replace(seen, id="x", expiring={**seen.expiring, **several}), change(tight).reload)
    assert said == "9 restore points of the plan would not expire any more (vm-0, vm-1, vm-2 and 6 more)"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "is no plan"),
        ({"format": 1}, "is no plan"),
        ({"id": "x", "format": 2}, 'has the format "2"'),
        ({"id": "x", "format": 1, "old": "a", "new": "b", "losing": {}}, "is not a whole plan"),
        ({"id": "x", "format": 1, "old": "a", "new": "b", "losing": {}, "expiring": {"p": 1}}, "is not a whole plan"),
        ({"id": "x", "format": 1, "old": "a", "new": 7, "losing": {}, "expiring": {}}, "is not a whole plan"),
    ],
)
def test_what_is_no_plan_is_refused(document: object, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        planned(document, "plan.json")


def test_a_grace_that_ends_beyond_all_calendars_is_the_end_of_them() -> None:
    ages = NIGHTLY.replace('"2d"', '"36500d"').replace("keep_daily = 10", "keep_daily = 1")
    known = facts(WEB, now=datetime(9990, 1, 1, tzinfo=UTC), points=daily_points(WEB, 3))
    assert {one.expires_at.year for one in plan(policies(NIGHTLY), policies(ages), known).reload.expiring} == {9999}


def test_a_point_of_the_future_counts_from_its_time_on() -> None:
    ahead = a_point(WEB, NOW + timedelta(days=1))
    tight = NIGHTLY.replace("keep_daily = 10", "keep_daily = 1").replace('"2d"', '"0s"')
    [gone] = change(tight, facts(WEB, points=[*daily_points(WEB, 1), ahead])).expiring
    assert gone.expires_at == ahead.taken_at
