"""The laws of retention, over random histories and policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from policies.decision import RetentionPlan
from policies.facts import CONSISTENCY_ORDER, Consistency, PointId, RestorePoint, VmId
from policies.policy import RULES, Policy, Retention, Timing
from policies.retention import kept_reasons, plan_retention
from tests.policies import naive_retention

VM = VmId("vm")
NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe")


@st.composite
def a_point(draw: st.DrawFn) -> RestorePoint:
    minutes = draw(st.integers(0, 80)) * draw(st.sampled_from((15, 5 * 60, 24 * 60, 11 * 24 * 60)))
    marked = draw(st.none() | st.integers(0, 20))
    return RestorePoint(
        id=PointId(f"{minutes:08}-{draw(st.integers(0, 1))}"),
        vm=VM,
        vm_name="vm",
        taken_at=NOW + timedelta(hours=12) - timedelta(minutes=minutes),
        complete=draw(st.integers(0, 9)) > 0,
        damaged=draw(st.integers(0, 9)) == 0,
        consistency=draw(st.sampled_from(CONSISTENCY_ORDER)),
        holds=("held",) if draw(st.integers(0, 19)) == 0 else (),
        locked_until=NOW + timedelta(days=draw(st.integers(-5, 5))) if draw(st.integers(0, 19)) == 0 else None,
        expiring_since=None if marked is None else NOW - timedelta(days=marked),
    )


def all_alike(points: list[RestorePoint], consistency: Consistency) -> list[RestorePoint]:
    """The same, all of one rank: what most VMs have."""
    return [replace(point, complete=True, damaged=False, consistency=consistency) for point in points]


points_ = st.lists(a_point(), max_size=40, unique_by=lambda point: point.id)
counts_ = st.dictionaries(st.sampled_from(RULES), st.integers(0, 6), max_size=4)


@st.composite
def a_policy(draw: st.DrawFn, name: str = "p", *, with_rules: bool = False) -> Policy:
    fallback = draw(st.sampled_from(CONSISTENCY_ORDER))
    stronger = CONSISTENCY_ORDER[CONSISTENCY_ORDER.index(fallback) :]
    within = draw(st.none() | st.integers(0, 400))
    counts = draw(counts_)
    if with_rules:
        counts = {**counts, "daily": draw(st.integers(1, 6))}
    return Policy(
        name=name,
        hash=name,
        timing=Timing(zone=ZoneInfo(draw(st.sampled_from(ZONES)))),
        want=draw(st.sampled_from(stronger)),
        fallback=fallback,
        retention=Retention(
            counts=tuple(counts.items()),
            keep_within=None if within is None else timedelta(days=within),
            min_good=draw(st.integers(1, 4)),
            grace=timedelta(days=draw(st.sampled_from((0, 0, 1, 7)))),
        ),
    )


policies_ = st.lists(a_policy(), max_size=3).map(
    lambda found: tuple(replace(policy, name=f"p{number}") for number, policy in enumerate(found))
)


def expired(plan: RetentionPlan) -> set[PointId]:
    return {one.point for one in plan.expire}


def going(points: Sequence[RestorePoint], policies: Sequence[Policy]) -> set[PointId]:
    """What no rule and no guard but the grace keeps."""
    return {point.id for point in points} - kept_reasons(points, policies, NOW).keys()


@given(points_, policies_)
def test_every_point_is_kept_or_expires_with_a_reason(points: list[RestorePoint], policies: tuple[Policy, ...]) -> None:
    plan = plan_retention(VM, points, policies, NOW)
    kept = [one.point for one in plan.keep]
    assert sorted([*kept, *expired(plan)]) == sorted(point.id for point in points)
    assert all(one.reasons and all(one.reasons) for one in plan.keep)
    assert all(one.reason for one in plan.expire)
    assert {one.point for one in plan.mark} <= set(kept)


@given(points_, a_policy(with_rules=True), st.sampled_from(RULES), st.integers(1, 9))
def test_another_rule_never_expires_more(points: list[RestorePoint], policy: Policy, rule: str, number: int) -> None:
    counts = dict(policy.retention.counts)
    counts[rule] = max(counts.get(rule, 0), number)
    more = replace(policy, retention=replace(policy.retention, counts=tuple(counts.items())))
    assert going(points, [more]) <= going(points, [policy])


@given(points_, a_policy(with_rules=True), st.integers(0, 500), st.integers(0, 500))
def test_a_longer_keep_within_never_expires_more(
    points: list[RestorePoint], policy: Policy, one: int, other: int
) -> None:
    shorter, longer = (
        replace(policy, retention=replace(policy.retention, keep_within=timedelta(days=days)))
        for days in sorted((one, other))
    )
    without = replace(policy, retention=replace(policy.retention, keep_within=None))
    assert going(points, [longer]) <= going(points, [shorter]) <= going(points, [without])


@given(points_, policies_, a_policy(name="extra"))
def test_another_policy_never_expires_more(
    points: list[RestorePoint], policies: tuple[Policy, ...], extra: Policy
) -> None:
    if policies:
        more = plan_retention(VM, points, (*policies, extra), NOW)
        assert expired(more) <= expired(plan_retention(VM, points, policies, NOW))


@given(points_, policies_)
def test_the_policies_are_a_union(points: list[RestorePoint], policies: tuple[Policy, ...]) -> None:
    if policies:
        alone = [going(points, [policy]) for policy in policies]
        assert going(points, policies) == set.intersection(*alone)


@given(points_, policies_)
def test_guards_beat_rules(points: list[RestorePoint], policies: tuple[Policy, ...]) -> None:
    gone = expired(plan_retention(VM, points, policies, NOW))
    for point in points:
        if point.holds or point.taken_at > NOW or (point.locked_until and point.locked_until > NOW):
            assert point.id not in gone


@given(points_, policies_, st.integers(-3, 3), st.none() | st.sampled_from(CONSISTENCY_ORDER))
def test_the_answer_is_that_of_the_definition(
    points: list[RestorePoint], policies: tuple[Policy, ...], hours: int, alike: Consistency | None
) -> None:
    """Point by point, sentence by sentence and in the same order."""
    if alike:
        points = all_alike(points, alike)
    now = NOW + timedelta(hours=4 * hours)
    assert kept_reasons(points, policies, now) == naive_retention.kept_reasons(points, policies, now)
    assert plan_retention(VM, points, policies, now) == naive_retention.plan_retention(VM, points, policies, now)


def good(points: Sequence[RestorePoint], policy: Policy) -> list[RestorePoint]:
    order = CONSISTENCY_ORDER.index
    found = [
        point
        for point in points
        if point.complete and not point.damaged and order(point.consistency) >= order(policy.weakest_good)
    ]
    return sorted(found, key=lambda point: (point.taken_at, point.id), reverse=True)


@given(points_, policies_)
def test_the_newest_good_points_stay(points: list[RestorePoint], policies: tuple[Policy, ...]) -> None:
    gone = expired(plan_retention(VM, points, policies, NOW))
    for policy in policies:
        assert not gone & {point.id for point in good(points, policy)[: policy.retention.min_good]}


@given(points_, policies_)
def test_something_to_restore_always_stays(points: list[RestorePoint], policies: tuple[Policy, ...]) -> None:
    gone = expired(plan_retention(VM, points, policies, NOW))
    usable = {point.id for point in points if point.complete and not point.damaged}
    complete = {point.id for point in points if point.complete}
    for kind in (usable, complete, {point.id for point in points}):
        assert not kind or kind - gone


@given(points_, a_policy())
def test_a_weaker_point_never_displaces_a_good_one(points: list[RestorePoint], policy: Policy) -> None:
    """Without the points that are not good, no good point would be kept that is not kept with them."""
    fine = good(points, policy)
    if fine:
        assert going(fine, [policy]) == going(points, [policy]) & {point.id for point in fine}


@given(points_, st.lists(a_policy(), max_size=2))
def test_without_rules_or_policies_everything_stays(points: list[RestorePoint], policies: list[Policy]) -> None:
    assert not plan_retention(VM, points, (), NOW).expire
    empty = Policy(name="empty", hash="empty")
    assert not plan_retention(VM, points, (*policies, empty), NOW).expire


@given(points_, policies_, st.randoms(use_true_random=False))
def test_the_order_of_points_and_policies_does_not_matter(
    points: list[RestorePoint], policies: tuple[Policy, ...], random: object
) -> None:
    shuffled, reordered = list(points), list(policies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    random.shuffle(reordered)  # type: ignore[attr-defined]
    one = plan_retention(VM, points, policies, NOW)
    other = plan_retention(VM, shuffled, reordered, NOW)
    assert expired(one) == expired(other)
    assert {mark.point for mark in one.mark} == {mark.point for mark in other.mark}
    assert one.unmark == other.unmark


@given(points_, policies_)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    points: list[RestorePoint], policies: tuple[Policy, ...]
) -> None:
    plan = plan_retention(VM, points, policies, NOW)
    marked = {one.point for one in plan.mark}
    left = [
        replace(point, expiring_since=NOW)
        if point.id in marked
        else replace(point, expiring_since=None)
        if point.id in plan.unmark
        else point
        for point in points
        if point.id not in expired(plan)
    ]
    again = plan_retention(VM, left, policies, NOW)
    assert (again.expire, again.mark, again.unmark) == ((), (), ())


@given(points_, policies_, st.integers(0, 4000))
def test_a_clock_that_jumps_forward_makes_no_rule_expire_more(
    points: list[RestorePoint], policies: tuple[Policy, ...], days: int
) -> None:
    """Locks end and points stop being of the future; the rules themselves know no now."""
    plain = [replace(point, locked_until=None) for point in points if point.taken_at <= NOW]
    later = kept_reasons(plain, policies, NOW + timedelta(days=days))
    assert later.keys() == kept_reasons(plain, policies, NOW).keys()


@given(points_, policies_)
def test_nothing_expires_before_its_grace_is_over(points: list[RestorePoint], policies: tuple[Policy, ...]) -> None:
    grace = max((policy.retention.grace for policy in policies), default=timedelta())
    since = {point.id: point.expiring_since for point in points}
    for one in plan_retention(VM, points, policies, NOW).expire:
        assert NOW - (since[one.point] or NOW) >= grace
