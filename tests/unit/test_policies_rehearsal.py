"""Which VMs policies want rehearsed, from which restore point, and when."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from policies.errors import PolicyError
from policies.facts import Consistency, Facts, Vm, VmId
from policies.linting import lint
from policies.loading import load_texts
from policies.policyset import PolicySet
from policies.protection import protection
from policies.rehearsal import RehearsalStanding, Rehearsed, due_rehearsals, rehearsal_standing
from policies.settings import settings_of
from policies.weakening import weaker_settings
from tests.policies.building import NOW, a_point, a_vm, policies

DAY = timedelta(days=1)
DB, WEB = a_vm("db"), a_vm("web")


def asking(text: str, more: str = "") -> PolicySet:
    return policies(f'[policy.gold]\nselect.all = ["*"]\nrpo = "24h"\n[policy.gold.rehearse]\n{text}\n{more}')


MONTHLY = asking('every = "32d"')


def seen(*vms: Vm, age: timedelta = DAY, now: datetime = NOW) -> Facts:
    """Each VM has two restore points, the newer of this age."""
    return Facts(
        now,
        {vm.id: vm for vm in vms},
        points={vm.id: (a_point(vm, now - age - DAY), a_point(vm, now - age)) for vm in vms},
    )


def tried(vm: Vm, age: timedelta, *, passed: bool = True, passed_before: timedelta | None = None) -> Rehearsed:
    at = NOW - age
    good = at if passed else NOW - passed_before if passed_before is not None else None
    point = a_point(vm, at).id
    return Rehearsed(vm.id, point, at, 60.0, passed, "" if passed else "it is damaged", good)


def due(asked: PolicySet, facts: Facts, *records: Rehearsed, most: int = 9, busy: tuple[VmId, ...] = ()) -> list[str]:
    return [one.vm for one in due_rehearsals(asked, facts, {r.vm: r for r in records}, most=most, busy=busy)]


def test_what_was_never_rehearsed_is_due_at_once_from_its_last_good_restore_point() -> None:
    facts = seen(DB)
    (one,) = due_rehearsals(MONTHLY, facts, {})
    assert (one.point, one.policy) == (facts.points[DB.id][1].id, "gold")
    assert one.reason == "never rehearsed; policy gold wants it every 32 d"


def test_a_damaged_an_incomplete_and_a_too_weak_restore_point_are_not_rehearsed() -> None:
    older = a_point(DB, NOW - 4 * DAY)
    worse = (
        a_point(DB, NOW - 3 * DAY, damaged=True),
        a_point(DB, NOW - 2 * DAY, complete=False),
        a_point(DB, NOW - DAY, Consistency.CRASH),
    )
    strict = asking('every = "32d"', "[policy.gold.consistency]\nfallback = 'filesystem'\n")
    facts = Facts(NOW, {DB.id: DB}, points={DB.id: (older, *worse)})
    assert [one.point for one in due_rehearsals(strict, facts, {})] == [older.id]
    assert due(strict, Facts(NOW, {DB.id: DB}, points={DB.id: worse})) == []
    assert due(strict, Facts(NOW, {DB.id: DB})) == []


@pytest.mark.parametrize(("age", "expected"), [(27, False), (28, True), (40, True)])
def test_a_rehearsal_is_due_when_an_eighth_of_its_time_is_left(age: int, expected: bool) -> None:
    assert bool(due(MONTHLY, seen(DB), tried(DB, age * DAY))) is expected


def test_the_longest_overdue_comes_first_and_no_more_than_may_go_on_at_once() -> None:
    vms = [a_vm(f"vm-{number}") for number in range(4)]
    records = [tried(vm, timedelta(days=days)) for vm, days in zip(vms, (33, 60, 45, 50), strict=True)]
    order = [vms[1].id, vms[3].id, vms[2].id, vms[0].id]
    assert due(MONTHLY, seen(*vms), *records) == order
    assert due(MONTHLY, seen(*vms), *records, most=1) == order[:1]
    assert due(MONTHLY, seen(*vms), *records, most=2, busy=(order[0],)) == [order[1]]
    assert due(MONTHLY, seen(*vms), *records, most=1, busy=(order[0],)) == []
    found = due_rehearsals(MONTHLY, seen(*vms), {one.vm: one for one in records}, aside=order[:2])
    assert [one.vm for one in found] == [order[2]], "who cannot be rehearsed now keeps nobody"


def test_a_failed_rehearsal_is_tried_again_after_a_day_though_it_passed_lately() -> None:
    failed = tried(DB, timedelta(hours=23), passed=False, passed_before=3 * DAY)
    assert due(MONTHLY, seen(DB), failed) == []
    later = tried(DB, timedelta(hours=24), passed=False, passed_before=3 * DAY)
    (one,) = due_rehearsals(MONTHLY, seen(DB), {DB.id: later})
    assert one.reason.startswith("its rehearsal 1 d ago failed")


def test_a_rehearsal_starts_inside_its_window_alone_and_in_the_last_one_before_its_time_is_over() -> None:
    sundays = asking('every = "32d"\nwindow = ["sun 14:00-15:00"]')
    assert due(sundays, seen(DB)) == [DB.id]  # a Sunday, 14:00
    assert due(sundays, seen(DB, now=NOW - timedelta(minutes=1))) == []
    assert due(sundays, seen(DB, now=NOW + timedelta(hours=1))) == []
    # Its time is over on Saturday in six days: the next Sunday is too late, though more than an eighth is left.
    assert due(sundays, seen(DB), tried(DB, 26 * DAY)) == [DB.id]
    assert due(sundays, seen(DB), tried(DB, 24 * DAY)) == []


def test_where_a_policy_names_no_window_rehearsals_start_in_the_usual_ones() -> None:
    usual = policies('[policy.x]\nwindow = ["14:00-15:00"]').policies[0].timing
    later = NOW + timedelta(hours=1)
    windows = (usual.windows, usual.zone)
    assert [one.vm for one in due_rehearsals(MONTHLY, seen(DB), {}, usual=windows)] == [DB.id]
    assert due_rehearsals(MONTHLY, seen(DB, now=later), {}, usual=windows) == ()
    own = asking('every = "32d"\nwindow = ["15:00-16:00"]')
    assert len(due_rehearsals(own, seen(DB, now=later), {}, usual=windows)) == 1


def test_of_several_policies_the_one_that_asks_most_often_counts_with_all_its_keys() -> None:
    both = policies("""
[policy.gold]
priority = 9
select.all = ["*"]
rpo = "24h"
rehearse = { every = "60d", heartbeat = true }
[policy.wide]
select.all = ["*"]
rehearse = { every = "7d", datastore = "slow", pool = "test" }
[policy.weekly]
select.all = ["*"]
rehearse = { every = "7d", heartbeat = true }
""")
    effective = protection(both, DB)
    # Of equals the one of higher priority, then by name.
    assert settings_of(effective)["rehearse"] == "every 7 d, heartbeat within 10 m"
    assert [one.policy for one in due_rehearsals(both, seen(DB), {})] == ["weekly"]


def test_the_standing_counts_vms_overdue_and_failed_for_the_policy_that_counts() -> None:
    records = {r.vm: r for r in (tried(DB, DAY, passed=False), tried(WEB, 33 * DAY))}
    facts = seen(DB, WEB, a_vm("new"))
    assert rehearsal_standing(MONTHLY, facts, records) == (RehearsalStanding("gold", 32 * DAY, 3, 1, 1),)
    assert rehearsal_standing(policies('[policy.p]\nselect.all = ["*"]\n'), facts, records) == ()


@pytest.mark.parametrize(
    "change", ['every = "33d"\nheartbeat = true', 'every = "32d"', ""], ids=["rarer", "no heartbeat", "never"]
)
def test_rarer_rehearsals_or_none_with_a_heartbeat_make_a_vm_s_protection_weaker(change: str) -> None:
    before = asking('every = "32d"\nheartbeat = true')
    was, will = before.matching(DB), asking(change).matching(DB)
    assert "rehearse" in weaker_settings(was, will, DB)
    assert "rehearse" not in weaker_settings(will, was, DB)


def test_rehearsals_whose_window_is_closed_for_longer_than_their_time_are_told() -> None:
    told = [str(one) for one in lint(asking('every = "2d"\nwindow = ["sat 08:00-20:00"]'))]
    assert any("wants rehearsals every 2 d, but their window stays closed for up to 6 d 12 h" in one for one in told)
    assert not [one for one in lint(asking('every = "7d"\nwindow = ["sat 08:00-20:00"]')) if "rehears" in one.what]


@pytest.mark.parametrize("text", ['every = "12h"', 'every = "7d"\nheartbeat_within = "3h"', 'every = "7d"\nhost = "x"'])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        load_texts({"p.toml": f'schema = 1\n[policy.p]\nselect.all = ["*"]\n[policy.p.rehearse]\n{text}\n'})
