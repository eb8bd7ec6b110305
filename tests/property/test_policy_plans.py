"""What a plan says is what happens: who is protected then, and which restore points retention expires, and when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.expiry import dated, expiries
from policies.facts import CONSISTENCY_ORDER, Facts, PointId, RestorePoint, Vm, VmHistory, VmId
from policies.forecast import plan
from policies.planfile import differences, plan_file, planned
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import protection
from policies.retention import plan_retention
from policies.selection import match
from tests.policies.building import NOW, a_vm, policies

DAYS = 40
NAMES = ("web-1", "web-2", "db-1", "db-2")
LEAVING = ("hold", "expire", "keep_last_good")
POLICIES = ("gold", "silver", "dev", "")
SELECTIONS = ("*", "name:web-*", "name:db-*", "name:*-1", "tag:tier=gold")


@st.composite
def a_policy(draw: st.DrawFn, name: str) -> str:
    def some(*lines: str) -> list[str]:
        return [line for line in lines if draw(st.booleans())]

    rules = {rule: draw(st.integers(0, 4)) for rule in ("last", "daily", "weekly", "monthly") if draw(st.booleans())}
    lines = [
        f"[policy.{name}]",
        f"select.any = [{', '.join(f'{one!r}' for one in draw(st.lists(st.sampled_from(SELECTIONS), max_size=2)))}]",
        *some("select.none = ['name:web-2']", "rpo = '12h'", "schedule = '0 2 * * *'", "timezone = 'America/New_York'"),
        *some("consistency = { want = 'application', fallback = 'filesystem' }", "trigger = [{ on = 'vm.migrated' }]"),
        *(f"retention.keep_{rule} = {number}" for rule, number in rules.items()),
        *some("retention.keep_within = '9d'", "retention.min_good = 2"),
        f"on_unmatched = '{draw(st.sampled_from(LEAVING))}'\non_removed = '{draw(st.sampled_from(LEAVING))}'",
        f"retention.grace = '{draw(st.sampled_from(('0s', '1d', '9d')))}'",
    ]
    return "\n".join(lines)


@st.composite
def a_set(draw: st.DrawFn) -> PolicySet:
    names = draw(st.lists(st.sampled_from(POLICIES[:3]), unique=True, max_size=3))
    return policies(*(draw(a_policy(name)) for name in names))


@st.composite
def a_point(draw: st.DrawFn, vm: Vm, number: int) -> RestorePoint:
    hours = draw(st.integers(-30, 24 * 30))
    marked = draw(st.integers(-20, 12))
    lock = draw(st.integers(-60, 30))
    return RestorePoint(
        id=PointId(f"{vm.name}-{number}"),
        vm=vm.id,
        vm_name=vm.name,
        taken_at=NOW - timedelta(hours=hours if draw(st.integers(0, 9)) == 0 else abs(hours)),
        complete=draw(st.integers(0, 9)) > 0,
        damaged=draw(st.integers(0, 9)) == 0,
        consistency=draw(st.sampled_from(CONSISTENCY_ORDER)),
        holds=("case 7",) if draw(st.integers(0, 9)) == 0 else (),
        locked_until=NOW + timedelta(days=lock) if lock > -20 else None,
        expiring_since=NOW - timedelta(days=marked) if marked >= 0 else None,
        stored_bytes=number,
        policy=draw(st.sampled_from(POLICIES)),
    )


@st.composite
def a_world(draw: st.DrawFn) -> Facts:
    vms = [
        a_vm(name, tags=frozenset(draw(st.sets(st.sampled_from(("tier=gold", "os=linux"))))))
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    ]
    gone = draw(st.booleans())
    points = {vm.id: tuple(draw(a_point(vm, number)) for number in range(draw(st.integers(0, 8)))) for vm in vms}
    there = vms[1:] if gone and len(vms) > 1 else vms
    history = {vm.id: VmHistory(last_good=NOW - timedelta(hours=draw(st.integers(0, 40)))) for vm in there[:2]}
    kept = {vm: several for vm, several in points.items() if several}
    left = {vms[0].id: NOW - timedelta(days=3)} if len(there) < len(vms) and draw(st.booleans()) else {}
    return Facts(NOW, {vm.id: vm for vm in there}, history, kept, left=left)


def carried_out(vm: VmId, known: Facts, applying: PolicySet, instants: Iterable[datetime]) -> dict[PointId, datetime]:
    """When each point expires when retention is run at these instants, one after the other."""
    left = {point.id: point for point in known.points[vm]}
    gone = {}
    for now in sorted(set(instants)):
        retaining = applying.retaining_of(vm, replace(known, points={vm: tuple(left.values())}))
        done = plan_retention(vm, left.values(), retaining, now)
        for point in done.unmark:
            left[point] = replace(left[point], expiring_since=None)
        for one in done.mark:
            left[one.point] = replace(left[one.point], expiring_since=now)
        for one in done.expire:
            gone[one.point] = now
            del left[one.point]
    return gone


def instants_around(points: Sequence[RestorePoint], foreseen: Iterable[datetime]) -> set[datetime]:
    """All times at which something may change for these points, and others between them."""
    locks = {point.locked_until for point in points if point.locked_until is not None}
    edges = {*foreseen, *locks, *(point.taken_at for point in points)}
    between = {NOW + timedelta(hours=37 * number) for number in range(DAYS // 2)}
    near = {edge + timedelta(seconds=step) for edge in edges for step in (-1, 0, 1)}
    return {NOW} | {at for at in near | between if NOW <= at <= NOW + timedelta(days=DAYS)}


@given(a_world(), a_set())
def test_retention_expires_each_point_when_it_was_foreseen(known: Facts, applying: PolicySet) -> None:
    for vm, points in known.points.items():
        foreseen = expiries(dated(points, NOW), applying.retaining_of(vm, known))
        happened = carried_out(vm, known, applying, instants_around(points, foreseen.values()))
        end = NOW + timedelta(days=DAYS)
        assert happened == {point: at for point, at in foreseen.items() if at <= end}


@given(a_world(), a_set(), a_set())
def test_the_plan_names_the_points_that_expire_only_by_the_change(known: Facts, old: PolicySet, new: PolicySet) -> None:
    found = plan(old, new, known, timedelta(days=DAYS))
    expected: dict[PointId, tuple[datetime, datetime | None]] = {}
    for vm, points in known.points.items():
        foreseen = [expiries(dated(points, NOW), one.retaining_of(vm, known)).values() for one in (old, new)]
        instants = instants_around(points, [at for several in foreseen for at in several])
        before, after = (carried_out(vm, known, one, instants) for one in (old, new))
        for point, at in after.items():
            if point not in before or before[point] > at:
                expected[point] = (at, before.get(point))
    end = NOW + timedelta(days=DAYS)
    said = {
        one.point: (one.expires_at, one.instead_of if one.instead_of is None or one.instead_of <= end else None)
        for one in found.expiring
    }
    assert said == expected
    stored = {point.id: point.stored_bytes for several in known.points.values() for point in several}
    assert found.bytes.count == sum(stored[point] for point in expected)


@settings(max_examples=50)
@given(a_world(), a_set(), a_set())
def test_the_plan_names_the_vms_that_win_or_lose_protection(known: Facts, old: PolicySet, new: PolicySet) -> None:
    found = plan(old, new, known)

    def level(applying: PolicySet, vm: Vm) -> int:
        selecting = [one for one in applying.policies if match(one, vm).selected]
        return max((2 if one.timing.scheduled else 1 if one.triggers else 0 for one in selecting), default=0)

    kinds = {change.vm: change.kind for change in found.reload.vms}
    for vm in known.vms.values():
        before, after = level(old, vm), level(new, vm)
        assert (kinds.get(vm.id) == "loses") == (after < before)
        assert (kinds.get(vm.id) == "gains") == (after > before)
        if vm.id not in kinds:
            assert protection(old, vm).scheduling == () or found.reload.effective.matching(vm)
    assert all(change.what and change.sentence for change in found.reload.vms)


@settings(max_examples=50)
@given(a_world(), a_set(), a_set())
def test_while_it_is_pending_nothing_that_it_takes_away_is_gone(known: Facts, old: PolicySet, new: PolicySet) -> None:
    found = plan_reload(old, new, known)
    never = NOW + timedelta(days=99_999)
    for change in found.losing:
        assert found.effective.matching(known.vms[change.vm])
    for vm in {change.vm for change in found.expiring}:
        points = dated(known.points[vm], NOW)
        before, pending = (expiries(points, one.retaining_of(vm, known)) for one in (old, found.effective))
        assert all(pending.get(point, never) >= before.get(point, never) for point in (p.id for p in points.points))


@settings(max_examples=50)
@given(a_world(), a_set(), a_set(), st.integers(0, 9))
def test_a_plan_of_one_state_is_refused_for_another(known: Facts, old: PolicySet, new: PolicySet, pick: int) -> None:
    found = plan(old, new, known)
    seen = planned(json.loads(json.dumps(plan_file(found))), "plan.json")
    assert differences(seen, plan_reload(old, new, known)) == ()
    assert bool(differences(seen, plan_reload(new, new, known))) == (old.hash != new.hash)
    taken = [*(change.vm for change in found.reload.losing), *(change.vm for change in found.reload.expiring)]
    if taken:
        gone = VmId(taken[pick % len(taken)])
        less = replace(
            known,
            vms={vm: value for vm, value in known.vms.items() if vm != gone},
            points={vm: value for vm, value in known.points.items() if vm != gone},
        )
        assert differences(seen, plan_reload(old, new, less))
