"""Which restore points stay: the rules' test vectors. The laws are in tests/property/test_retention_laws.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from policies.decision import Kept, RetentionPlan
from policies.facts import Consistency, RestorePoint, VmId
from policies.policy import Policy
from policies.retention import mass_expiry, plan_retention
from tests.policies.building import NOW, a_point, a_policy, a_vm, daily_points

VM = a_vm("db")


def at(text: str, consistency: Consistency = Consistency.APPLICATION, **more: object) -> RestorePoint:
    return a_point(VM, datetime.fromisoformat(text).astimezone(UTC), consistency, **more)


def retention(rules: str, more: str = "", name: str = "gold") -> Policy:
    return a_policy(f"{more}\nretention = {{ {rules} }}", name)


def plan(points: tuple[RestorePoint, ...], *policies: Policy, now: datetime = NOW) -> RetentionPlan:
    return plan_retention(VM.id, points, policies, now)


def days(found: RetentionPlan, points: tuple[RestorePoint, ...]) -> list[str]:
    """The kept points' times, oldest first; grace is off in these policies."""
    kept = {one.point for one in found.keep}
    return [f"{point.taken_at:%m-%dT%H}" for point in points if point.id in kept]


def reasons(found: RetentionPlan, point: RestorePoint) -> tuple[str, ...]:
    return next(one.reasons for one in found.keep if one.point == point.id)


def test_daily_weekly_monthly_and_yearly_are_a_union() -> None:
    points = daily_points(VM, 800)
    found = plan(points, retention('keep_daily = 3, keep_weekly = 2, keep_monthly = 2, keep_yearly = 2, grace = "0s"'))
    kept = {one.point for one in found.keep}
    assert [f"{point.taken_at:%Y-%m-%d}" for point in points if point.id in kept] == [
        "2025-12-31",
        "2026-10-31",
        "2026-11-15",
        "2026-11-20",
        "2026-11-21",
        "2026-11-22",
    ]
    assert reasons(found, points[-1]) == (
        "policy gold: keep_daily 1 of 3",
        "policy gold: keep_weekly 1 of 2",
        "policy gold: keep_monthly 1 of 2",
        "policy gold: keep_yearly 1 of 2",
        "guard: min_good 1 of 1 of policy gold",
    )
    assert len(found.expire) == 794
    assert found.expire[0].reason == (
        "no rule of policy gold and no guard keeps the restore point of 2026-11-19 14:00 UTC"
    )


def test_quarters_and_hours() -> None:
    points = daily_points(VM, 200)
    found = plan(points, retention('keep_quarterly = 3, grace = "0s"'))
    assert days(found, points) == ["06-30T14", "09-30T14", "11-22T14"]
    hourly = tuple(a_point(VM, NOW - timedelta(minutes=20 * n)) for n in range(9, -1, -1))
    assert days(plan(hourly, retention('keep_hourly = 3, grace = "0s"')), hourly) == [
        "11-22T12",
        "11-22T13",
        "11-22T14",
    ]


def test_a_repeated_hour_is_two_hours() -> None:
    points = (at("2026-10-25T02:10+02:00"), at("2026-10-25T02:10+01:00"), at("2026-10-25T02:40+01:00"))
    found = plan(points, retention('keep_hourly = 5, grace = "0s"', 'timezone = "Europe/Berlin"'))
    assert days(found, points) == ["10-25T00", "10-25T01"]


def test_periods_that_have_no_point_do_not_count() -> None:
    points = tuple(at(f"2026-{month:02}-03T12:00Z") for month in (1, 2, 5, 9, 11))
    found = plan(points, retention('keep_daily = 3, grace = "0s"'))
    assert days(found, points) == ["05-03T12", "09-03T12", "11-03T12"]


def test_weeks_are_those_of_iso() -> None:
    points = (at("2026-12-28T12:00Z"), at("2026-12-31T12:00Z"), at("2027-01-03T12:00Z"), at("2027-01-04T12:00Z"))
    found = plan(points, retention('keep_weekly = 9, grace = "0s"'), now=datetime(2027, 1, 5, tzinfo=UTC))
    assert days(found, points) == ["01-03T12", "01-04T12"]


def test_days_are_those_of_the_policys_time_zone() -> None:
    points = (at("2026-11-20T22:30Z"), at("2026-11-20T23:30Z"))
    assert days(plan(points, retention('keep_daily = 9, grace = "0s"')), points) == ["11-20T23"]
    berlin = retention('keep_daily = 9, grace = "0s"', 'timezone = "Europe/Berlin"')
    assert days(plan(points, berlin), points) == ["11-20T22", "11-20T23"]


def test_keep_within_counts_from_the_newest_good_point() -> None:
    points = daily_points(VM, 10)
    rule = retention('keep_within = "2d", grace = "0s"')
    for now in (NOW, NOW + timedelta(days=4000)):
        assert days(plan(points, rule, now=now), points) == ["11-20T14", "11-21T14", "11-22T14"]
    assert "policy gold: keep_within 2 d" in reasons(plan(points, rule), points[-2])


def test_without_a_rule_or_a_policy_everything_stays() -> None:
    points = daily_points(VM, 30)
    for policies in (
        (),
        (a_policy(""),),
        (retention("keep_daily = 0"),),
        (retention("keep_daily = 1"), a_policy("", "b")),
    ):
        found = plan(points, *policies)
        assert len(found.keep) == 30
        assert not found.expire
    assert reasons(plan(points), points[0]) == ("no policy selects the VM: its restore points are held",)
    assert reasons(plan(points, a_policy("")), points[0]) == ("policy gold has no retention rule: everything is kept",)


def test_the_retention_of_all_matching_policies_is_a_union() -> None:
    points = daily_points(VM, 30)
    found = plan(
        points, retention('keep_last = 2, grace = "0s"'), retention('keep_monthly = 2, grace = "0s"', name="b")
    )
    assert days(found, points) == ["10-31T14", "11-21T14", "11-22T14"]


def test_points_of_other_vms_are_not_looked_at() -> None:
    other = a_point(a_vm("other"), NOW)
    found = plan((other,), retention("keep_last = 1"))
    assert (found.vm, found.keep, found.expire) == (VM.id, (), ())


def test_holds_locks_and_points_from_the_future_outlive_every_rule() -> None:
    points = (
        at("2026-11-01T12:00Z", holds=("ransomware", "legal")),
        at("2026-11-02T12:00Z", locked_until=NOW + timedelta(days=1)),
        at("2026-11-03T12:00Z", locked_until=NOW - timedelta(days=1)),
        at("2026-11-04T12:00Z"),
        at("2027-11-04T12:00Z"),
    )
    found = plan(points, retention('keep_last = 1, grace = "0s"'))
    assert days(found, points) == ["11-01T12", "11-02T12", "11-04T12", "11-04T12"]
    assert reasons(found, points[0]) == ("hold: ransomware", "hold: legal")
    assert reasons(found, points[1]) == ("locked until 2026-11-23 14:00 UTC",)
    assert "guard: taken in the future, so a clock is wrong" in reasons(found, points[4])


def test_a_point_from_the_future_does_not_make_the_others_look_old() -> None:
    points = (*daily_points(VM, 3), at("2027-11-04T12:00Z"))
    rules = retention('keep_within = "9d", grace = "0s"')
    assert not plan(points, rules).expire
    assert len(plan(points, rules, now=datetime(2027, 12, 1, tzinfo=UTC)).expire) == 3


def test_min_good_keeps_more_than_the_rules() -> None:
    points = daily_points(VM, 5)
    assert len(plan(points, retention('keep_last = 1, min_good = 3, grace = "0s"')).keep) == 3


QUIESCED = 'consistency = { want = "application", fallback = "filesystem" }'


def test_a_crash_consistent_point_does_not_displace_a_good_one() -> None:
    points = (
        at("2026-11-20T10:00Z"),
        at("2026-11-20T20:00Z", Consistency.CRASH),
        at("2026-11-21T10:00Z"),
        at("2026-11-21T20:00Z", Consistency.CRASH),
        at("2026-11-22T10:00Z", Consistency.CRASH),
    )
    found = plan(points, retention('keep_daily = 2, grace = "0s"', QUIESCED))
    assert days(found, points) == ["11-20T10", "11-21T10", "11-21T20", "11-22T10"]
    assert reasons(found, points[4]) == ("guard: newer than the newest good restore point under policy gold",)
    assert days(plan(points, retention('keep_last = 2, grace = "0s"', QUIESCED)), points)[:2] == [
        "11-20T10",
        "11-21T10",
    ]


def test_weaker_points_fill_what_good_ones_leave_free_best_first() -> None:
    points = (
        at("2026-11-18T10:00Z", damaged=True),
        at("2026-11-19T10:00Z", Consistency.CRASH),
        at("2026-11-20T10:00Z", damaged=True),
        at("2026-11-20T11:00Z", complete=False),
        at("2026-11-21T10:00Z"),
    )
    assert days(plan(points, retention('keep_daily = 2, grace = "0s"', QUIESCED)), points) == ["11-19T10", "11-21T10"]
    assert days(plan(points, retention('keep_last = 3, grace = "0s"', QUIESCED)), points) == [
        "11-19T10",
        "11-20T10",
        "11-21T10",
    ]


def test_when_no_point_is_good_the_best_complete_ones_count() -> None:
    points = (
        at("2026-11-20T10:00Z", Consistency.CRASH),
        at("2026-11-21T10:00Z", Consistency.CRASH),
        at("2026-11-22T10:00Z", damaged=True),
    )
    found = plan(points, retention('keep_last = 1, grace = "0s"', QUIESCED))
    assert days(found, points) == ["11-21T10", "11-22T10"]
    only_damaged = (at("2026-11-21T10:00Z", damaged=True), at("2026-11-22T10:00Z", damaged=True))
    assert days(plan(only_damaged, retention('keep_last = 1, grace = "0s"')), only_damaged) == ["11-22T10"]


def test_incomplete_points_stay_only_while_there_is_nothing_better() -> None:
    torn = (at("2026-11-20T10:00Z", complete=False), at("2026-11-21T10:00Z", complete=False))
    found = plan(torn, retention('keep_last = 1, keep_within = "9d", grace = "0s"'))
    assert reasons(found, torn[0]) == ("guard: the VM has no complete restore point",)
    found = plan((*torn, at("2026-11-22T10:00Z")), retention('keep_within = "9d", grace = "0s"'))
    assert [one.reason[:10] for one in found.expire] == ["incomplete"] * 2
    found = plan(
        (at("2026-11-20T10:00Z", damaged=True), *daily_points(VM, 3)), retention('keep_last = 1, grace = "0s"')
    )
    assert found.expire[-1].reason.startswith("damaged, and no rule")


def test_within_a_period_the_better_point_stands_for_it_even_when_older() -> None:
    points = (
        at("2026-11-21T10:00Z"),
        at("2026-11-21T20:00Z", Consistency.CRASH),
        at("2026-11-22T10:00Z"),
    )
    found = plan(points, retention('keep_daily = 5, grace = "0s"', 'consistency = { want = "application" }'))
    assert days(found, points) == ["11-21T10", "11-22T10"]


def test_the_newest_point_of_the_best_consistency_outlives_many_weaker_ones() -> None:
    points = (at("2026-10-01T10:00Z"), *daily_points(VM, 5, consistency=Consistency.CRASH))
    found = plan(points, retention('keep_last = 2, grace = "0s"', 'consistency = { want = "application" }'))
    assert reasons(found, points[0]) == ("guard: the newest of the best consistency under policy gold",)
    unwanted = retention('keep_last = 2, grace = "0s"', 'consistency = { want = "crash" }')
    assert len(plan(points, unwanted).keep) == 2


def test_grace_marks_first_and_expires_later() -> None:
    points = daily_points(VM, 3)
    rule = retention('keep_last = 2, grace = "7d"')
    found = plan(points, rule)
    assert [one.point for one in found.mark] == [points[0].id]
    assert not found.expire
    assert reasons(found, points[0]) == (
        "no rule of policy gold and no guard keeps the restore point of 2026-11-20 14:00 UTC, "
        "but grace lasts until 2026-11-29 14:00 UTC",
    )
    marked = (a_point(VM, points[0].taken_at, expiring_since=NOW), *points[1:])
    assert not plan(marked, rule, now=NOW + timedelta(days=6)).expire
    assert not plan(marked, rule, now=NOW + timedelta(days=6)).mark
    assert [one.point for one in plan(marked, rule, now=NOW + timedelta(days=7)).expire] == [points[0].id]


def test_a_mark_from_the_future_waits() -> None:
    points = daily_points(VM, 2)
    marked = (a_point(VM, points[0].taken_at, expiring_since=NOW + timedelta(days=300)), points[1])
    assert not plan(marked, retention("keep_last = 1"), now=NOW).expire


def test_the_longest_grace_counts() -> None:
    points = daily_points(VM, 3)
    found = plan(points, retention('keep_last = 1, grace = "0s"'), retention('keep_last = 1, grace = "2d"', name="b"))
    assert not found.expire
    assert len(found.mark) == 2


def test_a_marked_point_that_is_kept_again_is_unmarked() -> None:
    points = tuple(a_point(VM, NOW - timedelta(days=n), expiring_since=NOW) for n in (1, 0))
    assert plan(points, retention("keep_last = 5")).unmark == (points[1].id, points[0].id)


def test_what_stays_is_a_sequence_whose_sentences_are_made_when_they_are_read() -> None:
    points = daily_points(VM, 3)
    found = plan(points, retention("keep_last = 2")).keep
    assert len(found) == 3
    assert found[0] == next(iter(found))
    assert [*found[:2]] == [*found][:2]
    assert repr(found) == repr(tuple(found))
    assert found == plan(points[::-1], retention("keep_last = 2")).keep
    assert found != ()


def test_a_mass_expiry_is_refused_and_a_small_one_is_not() -> None:
    points = daily_points(VM, 40)
    most = plan(points, retention("keep_last = 10"))
    assert mass_expiry([most], 0.5) == (
        "30 of 40 restore points would expire, more than the 50% of guard.max_expire_share"
    )
    assert mass_expiry([most], 0.75) == ""
    assert mass_expiry([plan(points[:11], retention("keep_last = 2"))], 0.0) == ""


def test_a_plan_is_a_value() -> None:
    assert plan((), retention("keep_last = 1")) == RetentionPlan(VmId("id-db"), (), ())
    assert plan(daily_points(VM, 1)).keep == (
        Kept(daily_points(VM, 1)[0].id, ("no policy selects the VM: its restore points are held",)),
    )


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_points_does_not_matter(order: int) -> None:
    points = daily_points(VM, 9)
    assert plan(points[::order], retention("keep_last = 3")) == plan(points, retention("keep_last = 3"))
