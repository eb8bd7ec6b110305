"""The laws of retention for VMs that policies select, select no more, or that left: whatever comes, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from policies.decision import RetentionPlan
from policies.facts import Address, Consistency, PointId, RestorePoint, Vm
from policies.policy import Leaving, Policy, Selection
from policies.policyset import PolicySet
from policies.retention import plan_retention
from policies.terms import parse_term
from tests.property.test_retention_laws import NOW, VM, a_policy, expired, good, points_

MAKERS = ("p0", "p1", "p2", "lost", "")
HERE = Vm(id=VM, address=Address("vc", "vm-1"), name="vm")


@st.composite
def a_set(draw: st.DrawFn, *, selecting: bool | None = None) -> PolicySet:
    policies = []
    for number in range(draw(st.integers(0, 3))):
        selects = draw(st.integers(0, 3)) == 0 if selecting is None else selecting
        policies.append(
            replace(
                draw(a_policy(name=f"p{number}")),
                hash=f"h{number}",
                selection=Selection(all=(parse_term("*" if selects else "name:nobody"),)),
                on_unmatched=draw(st.sampled_from(Leaving)),
                on_removed=draw(st.sampled_from(Leaving)),
            )
        )
    return PolicySet(tuple(policies))


@st.composite
def made_points(draw: st.DrawFn) -> list[RestorePoint]:
    return [replace(point, policy=draw(st.sampled_from(MAKERS))) for point in draw(points_)]


states_ = st.sampled_from([(HERE, False), (None, True), (None, False)])
"""In the inventory, known to have left, and unknown."""

State = tuple[Vm | None, bool]


def plan(found: PolicySet, points: Iterable[RestorePoint], state: State, days: float = 0) -> RetentionPlan:
    vm, removed = state
    listed = list(points)
    return plan_retention(VM, listed, found.retaining(vm, listed, removed=removed), NOW + timedelta(days=days))


def carried_out(points: list[RestorePoint], done: RetentionPlan, days: float = 0) -> list[RestorePoint]:
    gone, marked = expired(done), {one.point for one in done.mark}
    kept = [point for point in points if point.id not in gone]
    kept = [replace(point, expiring_since=None) if point.id in done.unmark else point for point in kept]
    return [replace(p, expiring_since=NOW + timedelta(days=days)) if p.id in marked else p for p in kept]


@given(made_points(), a_set(), states_, st.lists(st.tuples(a_set(), states_, st.integers(-400, 4000)), max_size=4))
def test_something_to_restore_stays_whatever_happens(
    points: list[RestorePoint], first: PolicySet, state: State, later: list[tuple[PolicySet, State, int]]
) -> None:
    """Policies come and go, the VM leaves and comes back, the clock jumps: retention runs each time."""
    past = [point for point in points if point.taken_at <= NOW]
    left = points
    for found, where, days in [(first, state, 0), *later]:
        left = carried_out(left, plan(found, left, where, days), days)
    for need_sound, need_complete in ((True, True), (False, True), (False, False)):
        there = [
            [p for p in some if (p.complete or not need_complete) and not (p.damaged and need_sound)]
            for some in (past, left)
        ]
        assert not there[0] or there[1]


@given(made_points(), a_set(), states_)
def test_the_last_good_point_stays_for_every_policy_that_has_a_say(
    points: list[RestorePoint], found: PolicySet, state: State
) -> None:
    gone = expired(plan(found, points, state))
    vm, removed = state
    for policy in found.retaining(vm, points, removed=removed):
        newest = good(points, policy)[:1]
        assert not gone & {point.id for point in newest}
        own = good([point for point in points if point.policy == policy.name and point.taken_at <= NOW], policy)[:1]
        if policy.leaving is not None:
            assert not gone & {point.id for point in own}


@given(made_points(), a_set(selecting=False), states_)
def test_what_is_held_stays(points: list[RestorePoint], found: PolicySet, state: State) -> None:
    gone = expired(plan(found, points, state, days=900))
    vm, removed = state
    for point in points:
        maker = found.policy(point.policy)
        says = None if maker is None else maker.on_removed if vm is None else maker.on_unmatched
        if maker is None or says is Leaving.HOLD or (vm is None and not removed):
            assert point.id not in gone


@given(made_points(), a_set(), states_)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    points: list[RestorePoint], found: PolicySet, state: State
) -> None:
    left = carried_out(points, plan(found, points, state))
    again = plan(found, left, state)
    assert (again.expire, again.mark, again.unmark) == ((), (), ())


@given(made_points(), a_set(selecting=False), states_, a_policy(name="new"))
def test_a_policy_more_that_does_not_select_the_vm_changes_nothing(
    points: list[RestorePoint], found: PolicySet, state: State, more: Policy
) -> None:
    extended = replace(found, policies=(*found.policies, replace(more, on_unmatched=Leaving.EXPIRE)))
    assert plan(found, points, state) == plan(extended, points, state)


@given(made_points(), a_set(selecting=True), a_policy(name="new"))
def test_a_policy_more_that_selects_the_vm_never_expires_more(
    points: list[RestorePoint], found: PolicySet, more: Policy
) -> None:
    if found.policies:
        selecting = replace(more, selection=found.policies[0].selection)
        extended = replace(found, policies=(*found.policies, selecting))
        assert expired(plan(extended, points, (HERE, False))) <= expired(plan(found, points, (HERE, False)))


def newer_and(points: list[RestorePoint], **changes: object) -> list[RestorePoint]:
    """The points and two newer ones like the first, but so."""
    alike = [replace(point, holds=(), **changes) for point in points[:1] * 2]  # type: ignore[arg-type]
    newer = [
        replace(point, id=PointId(f"new-{number}"), taken_at=NOW - timedelta(minutes=number))
        for number, point in enumerate(alike)
    ]
    return [*points, *newer]


@given(made_points(), a_set(), states_, st.booleans())
def test_a_failed_or_damaged_point_never_displaces_a_sound_one(
    points: list[RestorePoint], found: PolicySet, state: State, complete: bool
) -> None:
    more = newer_and(points, complete=complete, damaged=True)
    sound = {point.id for point in points if point.complete and not point.damaged}
    assert expired(plan(found, more, state)) & sound <= expired(plan(found, points, state))


@given(made_points(), a_policy(), states_)
def test_a_crash_consistent_point_never_displaces_a_better_one_where_more_is_wanted(
    points: list[RestorePoint], policy: Policy, state: State
) -> None:
    strict = replace(policy, want=Consistency.APPLICATION, fallback=Consistency.FILESYSTEM)
    found = PolicySet((replace(strict, name="p0", on_unmatched=Leaving.EXPIRE, on_removed=Leaving.KEEP_LAST_GOOD),))
    mine = [replace(point, policy="p0") for point in points]
    more = newer_and(mine, complete=True, damaged=False, consistency=Consistency.CRASH)
    better = {point.id for point in good(mine, strict)}
    assert expired(plan(found, more, state)) & better <= expired(plan(found, mine, state))
