"""What becomes of the restore points of VMs that no policy selects any more, or that left the inventory."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from policies.aging import Asked, age
from policies.assumptions import Assumptions
from policies.decision import RetentionPlan
from policies.facts import Consistency, Facts, RestorePoint, VmId
from policies.fixtures import case_of
from policies.loading import load_texts
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import copies_of, protection
from policies.reading import read_tests
from policies.retention import mass_expiry, plan_retention
from policies.settings import settings_of
from policies.simulation import Simulation
from policies.verdicts import judge
from tests.policies.building import NOW, a_point, a_vm, daily_points, facts, policies

DB = a_vm("db", tags=frozenset({"backup=gold"}))
UNTAGGED = replace(DB, tags=frozenset())
RULES = 'retention = { keep_daily = 3, keep_monthly = 2, grace = "0s" }'


def gold(more: str = "", select: str = "tag:backup=gold", name: str = "gold") -> str:
    return f'[policy.{name}]\nselect.all = ["{select}"]\nrpo = "1d"\n{RULES}\n{more}'


def made_by(name: str, days: int = 40) -> tuple[RestorePoint, ...]:
    return tuple(replace(point, policy=name) for point in daily_points(DB, days))


def plan(found: PolicySet, known: Facts, vm: VmId = DB.id, *, marked: timedelta = timedelta(days=1)) -> RetentionPlan:
    """With everything marked so long ago: only what rules and guards keep stays."""
    points = tuple(replace(point, expiring_since=NOW - marked) for point in known.points[vm])
    return plan_retention(vm, points, found.retaining_of(vm, replace(known, points={vm: points})), known.now)


def days(found: RetentionPlan) -> list[str]:
    return sorted(f"{one.point[4:6]}-{one.point[6:8]}" for one in found.keep)


GFS = ["10-31", "11-20", "11-21", "11-22"]


@pytest.mark.parametrize(("more", "kept"), [("", 40), ('on_unmatched = "hold"', 40), ('on_removed = "expire"', 40)])
def test_a_vm_that_no_policy_selects_any_more_keeps_its_points(more: str, kept: int) -> None:
    assert len(plan(policies(gold(more)), facts(UNTAGGED, points=made_by("gold"))).keep) == kept


def test_expire_lets_the_retention_of_the_policy_go_on() -> None:
    found = policies(gold('on_unmatched = "expire"'))
    matched = plan(found, facts(DB, points=made_by("gold")))
    unmatched = plan(found, facts(UNTAGGED, points=made_by("gold")))
    assert days(matched) == days(unmatched) == GFS
    assert unmatched.expire[0].reason == (
        "no policy selects the VM, and policy gold, which made the restore point, says on_unmatched = expire; "
        "no rule of policy gold and no guard keeps the restore point of 2026-11-19 14:00 UTC"
    )


def test_keep_last_good_keeps_the_newest_good_one_after_its_grace() -> None:
    text = gold('on_unmatched = "keep_last_good"').replace('"0s"', '"7d"')
    weak = a_point(DB, NOW, Consistency.CRASH, policy="gold", complete=False)
    points = (*(replace(p, taken_at=p.taken_at - timedelta(hours=1)) for p in made_by("gold", 3)), weak)
    known = facts(UNTAGGED, points=points)
    first = plan_retention(DB.id, points, policies(text).retaining_of(DB.id, known), NOW)
    assert (len(first.keep), len(first.mark), len(first.expire), first.leaving) == (4, 3, 0, 3)
    assert len(plan(policies(text), known, marked=timedelta(days=6)).keep) == 4
    assert days(plan(policies(text), known, marked=timedelta(days=7))) == ["11-22"]


def test_there_is_a_day_of_grace_at_least() -> None:
    known = facts(UNTAGGED, points=made_by("gold"))
    found = policies(gold('on_unmatched = "expire"'))
    assert len(plan(found, known, marked=timedelta(hours=23)).keep) == 40
    assert days(plan(found, known)) == GFS


def test_vms_that_vanish_little_by_little_add_up_to_a_mass_expiry() -> None:
    found = policies(gold('on_removed = "keep_last_good"'))
    vms = [a_vm(f"db-{number}", tags=DB.tags) for number in range(10)]
    points = [replace(point, policy="gold") for vm in vms for point in daily_points(vm, 3)]
    gone = {vm.id: NOW for vm in vms}

    def looked(left: int, now: timedelta) -> str:
        """Retention when so many have left, of which two have not been marked yet."""
        known = replace(facts(*vms[left:], points=points), left={vm.id: gone[vm.id] for vm in vms[:left]})
        plans = []
        for number, vm in enumerate(vms):
            since = NOW if number < left - 2 else None
            listed = tuple(replace(p, expiring_since=since) for p in known.points[vm.id])
            plans.append(plan_retention(vm.id, listed, found.retaining_of(vm.id, known), NOW + now))
        return mass_expiry(plans, 0.5)

    assert [looked(left, timedelta(hours=left)) for left in (2, 4, 6)] == ["", "", ""]
    assert looked(8, timedelta(hours=8)) == (
        "16 of 30 restore points are of VMs that left or are not selected any more, "
        "more than the 50% of guard.max_expire_share"
    )


def test_what_expired_of_vms_that_left_in_the_last_weeks_adds_up_with_what_leaves_now() -> None:
    found = policies(gold('on_removed = "keep_last_good"'))
    points = [replace(point, policy="gold") for point in daily_points(DB, 11)]
    left = replace(facts(points=points), left={DB.id: NOW})
    others = facts(UNTAGGED, points=daily_points(UNTAGGED, 29))
    plans = [plan(found, left), plan_retention(UNTAGGED.id, others.points[UNTAGGED.id], (), NOW)]
    month = timedelta(days=30)
    assert mass_expiry(plans, 0.5, 20, month) == ""
    assert mass_expiry(plans, 0.5, 21, month) == (
        "31 of 61 restore points are of VMs that left or are not selected any more (21 of them expired in the last "
        "30 d), more than the 50% of guard.max_expire_share"
    )
    assert mass_expiry(plans[1:], 0.5, 90, month) == "", "nobody leaves now: the others' retention goes on"


def test_a_vm_that_left_is_treated_by_on_removed_and_one_that_is_unknown_is_held() -> None:
    found = policies(gold('on_removed = "keep_last_good"'))
    unknown = facts(points=made_by("gold"))
    gone = replace(unknown, left={DB.id: NOW - timedelta(hours=1)})
    assert len(plan(found, unknown).keep) == 40
    assert days(plan(found, gone)) == ["11-22"]
    assert len(plan(policies(gold('on_unmatched = "expire"')), gone).keep) == 40


def test_a_policy_that_is_gone_holds_what_it_made() -> None:
    others = policies(gold('on_unmatched = "expire"', name="silver"))
    points = (*made_by("gold", 3), replace(a_point(DB, NOW - timedelta(days=9)), policy=""))
    found = plan(others, facts(UNTAGGED, points=points))
    assert len(found.keep) == 4
    assert found.keep[0].reasons == ("no policy selects the VM: its restore points are held",)


def test_what_one_policy_holds_stays_beside_what_another_lets_expire() -> None:
    found = policies(gold('on_unmatched = "expire"'), gold(name="silver"))
    mixed = tuple(
        replace(p, policy="silver" if n < 5 else "lost" if n < 7 else "gold") for n, p in enumerate(made_by(""))
    )
    said = plan(found, facts(UNTAGGED, points=mixed))
    assert days(said) == sorted([*GFS, *(f"{p.taken_at:%m-%d}" for p in mixed[:7])])
    why = {one.point: one.reasons for one in said.keep}
    assert why[mixed[0].id] == (
        "held: no policy selects the VM, and policy silver, which made the restore point, says on_unmatched = hold",
    )
    assert why[mixed[6].id] == ("held: policy lost, which made the restore point, is gone",)


def test_each_policy_keeps_the_last_good_one_that_it_made() -> None:
    found = policies(gold('on_unmatched = "keep_last_good"'), gold('on_unmatched = "keep_last_good"', name="silver"))
    mixed = tuple(replace(p, policy="silver" if n < 5 else "gold") for n, p in enumerate(made_by("", 10)))
    assert days(plan(found, facts(UNTAGGED, points=mixed))) == ["11-17", "11-22"]


def test_without_rules_expire_keeps_everything() -> None:
    text = '[policy.gold]\nselect.all = ["tag:a=b"]\non_unmatched = "expire"'
    assert len(plan(policies(text), facts(UNTAGGED, points=made_by("gold"))).keep) == 40


def test_a_vm_that_matches_again_is_treated_as_ever() -> None:
    found = policies(gold('on_unmatched = "keep_last_good"'))
    assert days(plan(found, facts(DB, points=made_by("gold")))) == GFS


def test_holds_and_locks_outlive_the_leaving() -> None:
    found = policies(gold('on_removed = "keep_last_good"'))
    points = (replace(made_by("gold")[0], holds=("legal",)), *made_by("gold")[1:])
    known = replace(facts(points=points), left={DB.id: NOW})
    assert days(plan(found, known)) == ["10-14", "11-22"]


def test_a_change_of_the_files_that_lets_points_of_a_vm_that_left_expire_is_pending() -> None:
    old, new = policies(gold()), policies(gold('on_removed = "keep_last_good"'))
    known = replace(facts(a_vm("other"), points=made_by("gold")), left={DB.id: NOW})
    found = plan_reload(old, new, known)
    assert len(found.expiring) == 39
    assert len(plan(found.effective, known).keep) == 40
    assert len(plan(found.new, known).keep) == 1


def test_a_change_that_stops_selecting_a_vm_whose_policy_says_so_is_pending() -> None:
    old = policies(gold('on_unmatched = "keep_last_good"'))
    new = policies(gold('on_unmatched = "keep_last_good"', select="tag:backup=other"))
    known = facts(DB, points=made_by("gold"))
    found = plan_reload(old, new, known)
    assert len(found.expiring) == 3
    assert days(plan(found.effective, known)) == GFS


def test_an_unmatched_vm_loses_nothing_to_what_a_pending_change_keeps() -> None:
    """The policies that a pending change keeps are more than nothing, but nothing keeps everything."""
    found = replace(policies(gold()), kept_retention={DB.id: policies(gold()).policies})
    assert len(plan(found, facts(UNTAGGED, points=made_by("gold"))).keep) == 40


def test_second_copies_of_a_vm_that_no_policy_selects_go_on_by_its_own_policy() -> None:
    found = policies(gold('copies = ["offsite"]'))
    point = made_by("gold", 1)[0]
    for vm in (DB, UNTAGGED, None):
        assert copies_of(found, vm, point) == ("offsite",)
    assert copies_of(found, UNTAGGED, replace(point, policy="lost")) == ()


def test_the_settings_say_what_is_not_held_and_how_many_may_run() -> None:
    more = 'on_removed = "expire"\nlimits = { running = 2, per_datastore = 1 }'
    found = protection(policies(gold(more), gold('on_unmatched = "hold"', name="silver")), DB)
    settings = settings_of(found)
    assert (settings["on_removed"], settings["limits"]) == ("gold: expire", "gold: running 2, per_datastore 1")
    assert "on_unmatched" not in settings
    change = plan_reload(policies(gold()), policies(gold(more)), facts(DB)).vms[0]
    assert "limits none → gold: running 2, per_datastore 1" in str(change)


@pytest.mark.parametrize(
    ("state", "stay"),
    [
        (facts(UNTAGGED, points=made_by("gold")), GFS),
        (replace(facts(points=made_by("gold")), left={DB.id: NOW}), ["11-22"]),
        (facts(points=made_by("gold")), [f"{point.taken_at:%m-%d}" for point in made_by("gold")]),
    ],
    ids=["unselected", "left", "unknown"],
)
def test_a_simulation_does_the_same(state: Facts, stay: list[str]) -> None:
    found = policies(gold('on_unmatched = "expire"\non_removed = "keep_last_good"'))
    other = a_vm("other")
    known = replace(state, vms={**state.vms, other.id: other})
    trace = Simulation(found, known, Assumptions(), NOW + timedelta(days=3)).run()
    asked = Asked(NOW + timedelta(days=2), frozenset({DB.id}))
    [standing] = [one for one in age(trace, [DB.id], Assumptions(), asked).standing if one.vm == DB.id]
    assert sorted(f"{point.taken_at:%m-%d}" for point, _ in standing.points) == sorted(stay)


def test_a_test_beside_the_policies_can_let_a_vm_leave() -> None:
    texts = {
        "a.toml": "schema = 1\n"
        + gold('on_unmatched = "expire"\non_removed = "keep_last_good"')
        + """
        [[test]]
        name = "a removed VM keeps its last good restore point"
        vm = [{ name = "db", tags = ["backup=gold"] }]
        point = [{ vm = "db", id = "day", age = "12h", count = 40, policy = "gold" }]
        event = [{ type = "vm.removed", vm = "db" }]
        expect.db = { keeps = ["day-1"] }
        [[test]]
        name = "one that loses its tag keeps what its policy would"
        vm = [{ name = "db", tags = ["backup=silver"] }]
        point = [{ vm = "db", id = "day", age = "12h", count = 40, policy = "gold" }]
        expect.db = { keeps = 4 }
        """
    }
    found = load_texts(texts)
    verdicts = [judge(case_of(test, found, None), found) for test in read_tests(texts)]
    assert [str(one) for verdict in verdicts for one in verdict.differences] == []
