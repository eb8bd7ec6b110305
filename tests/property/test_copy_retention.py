"""Laws of what second copies keep: a table for a copy is as good as a retention, and none expires by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.copied import covers, in_copy
from policies.facts import Consistency, Facts, RestorePoint
from policies.keeping import rows_of, unkept
from policies.planning import plan_reload
from policies.policyset import PolicySet
from tests.policies.building import NOW, a_point, a_vm, policies

WEB = a_vm("web-1")
RULES = st.fixed_dictionaries(
    {},
    optional={
        "keep_last": st.integers(0, 3),
        "keep_daily": st.integers(0, 4),
        "keep_weekly": st.integers(0, 3),
        "keep_within": st.sampled_from(['"1d"', '"5d"']),
        "min_good": st.integers(1, 3),
        "grace": st.sampled_from(['"0s"', '"2d"']),
    },
)
SELECTS = st.sampled_from(['["*"]', '["name:web-*"]', '["name:db-*"]'])
LEAVING = st.sampled_from(["hold", "expire", "keep_last_good"])
POLICY = st.tuples(SELECTS, RULES, st.none() | RULES, LEAVING)
SETS = st.dictionaries(st.sampled_from(["gold", "silver", "bronze"]), POLICY, max_size=3)
POINTS = st.lists(
    st.builds(
        lambda hours, level, good, policy, marked: a_point(
            WEB,
            NOW - timedelta(hours=hours),
            level,
            complete=good,
            policy=policy,
            expiring_since=NOW - timedelta(days=marked) if marked else None,
        ),
        st.integers(0, 500),
        st.sampled_from([*Consistency]),
        st.integers(0, 5).map(bool),
        st.sampled_from(["gold", "silver", ""]),
        st.integers(0, 3),
    ),
    max_size=12,
    unique_by=lambda point: point.id,
).map(tuple)


def table(rules: dict[str, object]) -> str:
    return "{ " + ", ".join(f"{name} = {value}" for name, value in rules.items()) + " }"


def made(found: dict[str, tuple[str, dict[str, object], dict[str, object] | None, str]], *, copy: bool) -> PolicySet:
    """With tables for the copy, or with what they say as the policies' own retention."""
    text = ""
    for name, (select, rules, own, leaving) in found.items():
        text += f'[policy.{name}]\nselect.all = {select}\nrpo = "1d"\non_unmatched = "{leaving}"\n'
        kept = rules if copy or own is None else own
        text += f"retention = {table(kept)}\n"
        text += f"copy.far.retention = {table(own)}\n" if copy and own is not None else ""
    return policies(text)


def going(found: PolicySet, points: tuple[RestorePoint, ...]) -> set[str]:
    rows = rows_of(points)
    return {rows[at].point.id for at in unkept(rows, found.retaining(WEB, points, copy="far"), NOW)}


@given(SETS, POINTS)
def test_a_table_for_a_copy_keeps_there_what_it_would_keep_as_the_policy_s_own(
    found: dict[str, tuple[str, dict[str, object], dict[str, object] | None, str]], points: tuple[RestorePoint, ...]
) -> None:
    rows = rows_of(points)
    plain = made(found, copy=False).retaining(WEB, points)
    assert going(made(found, copy=True), points) == {rows[at].point.id for at in unkept(rows, plain, NOW)}


@settings(deadline=None)
@given(SETS, SETS, POINTS, st.booleans())
def test_what_a_copy_kept_it_keeps_until_the_change_is_confirmed(
    before: dict[str, tuple[str, dict[str, object], dict[str, object] | None, str]],
    after: dict[str, tuple[str, dict[str, object], dict[str, object] | None, str]],
    points: tuple[RestorePoint, ...],
    known: bool,
) -> None:
    """Also where nobody knows which restore points it has."""
    old, new = made(before, copy=True), made(after, copy=True)
    facts = Facts(NOW, {WEB.id: WEB})
    facts = replace(facts, copies={"far": {WEB.id: points}}) if known else replace(facts, unseen_copies=("far",))
    plan = plan_reload(old, new, facts)
    if old.policies:
        newly = going(plan.effective, points) - going(old, points)
        assert not newly
    if known:
        assert {one.point for one in plan.expiring if one.copy} >= going(new, points) - going(old, points)


@given(POLICY, POLICY, POINTS)
def test_a_policy_that_covers_another_keeps_all_that_it_keeps(
    first: tuple[str, dict[str, object], dict[str, object] | None, str],
    second: tuple[str, dict[str, object], dict[str, object] | None, str],
    points: tuple[RestorePoint, ...],
) -> None:
    one, other = (in_copy(made({"gold": found}, copy=True).policies[0], "far") for found in (first, second))
    if covers(one, other):
        rows = rows_of(points)
        assert {*unkept(rows, (one,), NOW)} <= {*unkept(rows, (other,), NOW)}
