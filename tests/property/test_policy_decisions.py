"""Evaluation over random policies and fleets; selection's index against its definition; clocks that change."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from policies.decision import BackUp, HoldPoints, Skip
from policies.evaluation import evaluate
from policies.facts import Event, EventType, Facts, PowerState, Vm, VmHistory
from policies.planning import plan_reload
from policies.policy import Timing
from policies.policyset import PolicySet
from policies.retention import kept_reasons
from policies.schedule import next_due
from policies.selection import match
from policies.times import slots_around
from policies.windows import open_at, parse_window
from tests.policies.building import NOW, a_vm, daily_points, facts, policies

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata", "America/St_Johns")
EDGES = [datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 4, 5, tzinfo=UTC),
         datetime(2026, 10, 4, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC),
         datetime(2026, 12, 31, tzinfo=UTC)]  # fmt: skip

_TERMS = st.sampled_from(
    [
        "*",
        "name:web-*",
        "name:a?",
        "folder:/Prod/**",
        "folder:/*",
        "tag:env=prod",
        "tag:*=web",
        "power:on",
        "host:h[12]",
        "datastore:*1",
        "attribute:o=*",
        "cluster:c1",
    ]
)
_LISTS = st.lists(_TERMS, max_size=3)
_EVENTS = st.sampled_from(["vm.migrated", "vm.created", "vm.renamed", "vm.retagged", "hold.requested"])
_CONDITIONS = st.sampled_from(
    [
        "'true'",
        "'false'",
        """'"env=prod" in vm.tags || failures > 1'""",
        """'last_good_age > duration("30h") && vm.name.startsWith("web")'""",
        """'vm.attributes[vm.host] == "me"'""",
        """'10 / vm.disks > size(vm.datastores)'""",
    ]
)


@st.composite
def a_policy_text(draw: st.DrawFn, name: str) -> str:
    def some(*lines: str) -> list[str]:
        return [line for line in lines if draw(st.booleans())]

    select = {key: draw(_LISTS) for key in ("all", "any", "none")}
    lines = [
        f"[policy.{name}]",
        f"priority = {draw(st.integers(0, 2))}",
        *some('rpo = "4h"', 'schedule = "0 2 * * *"', 'window = ["18:00-06:00"]', 'transports = ["nbd"]'),
        f'timezone = "{draw(st.sampled_from(ZONES))}"',
        *(f"select.{key} = {json.dumps(terms)}" for key, terms in select.items()),
        *some(
            'consistency.want = "application"', "retention.keep_daily = 2", 'retention.grace = "0s"', 'spread = "1h"'
        ),
    ]
    for event in draw(st.lists(_EVENTS, max_size=2)):
        lines += [f"[[policy.{name}.trigger]]", f'on = "{event}"', *some('cooldown = "1h"')]
        lines += [f"when = {condition}" for condition in draw(st.lists(_CONDITIONS, max_size=1))]
        action = draw(st.sampled_from(["backup", "backup", "hold", "distrust"]))
        own = some('settle = "5m"', 'spread = "30m"', "any_time = true") if action == "backup" else []
        lines += [f'action = "{action}"', *own]
    return "\n".join(lines)


@st.composite
def a_set(draw: st.DrawFn) -> PolicySet:
    return policies(*(draw(a_policy_text(f"p{number}")) for number in range(draw(st.integers(0, 4)))))


@st.composite
def some_vm(draw: st.DrawFn, number: int) -> Vm:
    return a_vm(
        f"{draw(st.sampled_from(['web-', 'a']))}{number}",
        folder=draw(st.sampled_from(["/", "/Prod", "/Prod/x/y", "/Dev"])),
        tags=draw(st.frozensets(st.sampled_from(["env=prod", "env=test", "tier=web"]))),
        host=draw(st.sampled_from(["h1", "h2", "h3"])),
        cluster=draw(st.sampled_from(["", "c1"])),
        datastores=tuple(draw(st.lists(st.sampled_from(["d1", "d2"]), max_size=2))),
        attributes=draw(st.dictionaries(st.sampled_from(["o", "x"]), st.just("me"))),
        power=draw(st.sampled_from(PowerState)),
        refusal=draw(st.sampled_from(["", "", "", "it is a template"])),
    )


@st.composite
def a_fleet(draw: st.DrawFn) -> Facts:
    vms = [draw(some_vm(number)) for number in range(draw(st.integers(0, 5)))]
    points = [point for vm in vms for point in daily_points(vm, draw(st.integers(0, 4)))]
    history = {vm.id: VmHistory(running=draw(st.booleans()), pending=draw(st.booleans())) for vm in vms}
    fired = {(f"p{number}", "trigger[0]", vm.id): NOW for number in range(3) for vm in vms if draw(st.booleans())}
    return facts(*vms, points=points, history=history, fired=fired)


@given(a_set(), a_fleet())
def test_the_index_says_what_the_definition_says(found: PolicySet, known: Facts) -> None:
    for vm in known.vms.values():
        selected = {policy.name for policy in found.policies if match(policy, vm).selected}
        assert {policy.name for policy in found.matching(vm)} == selected


@given(a_set(), a_fleet(), st.sampled_from(EventType), st.data())
def test_evaluation_is_total_deterministic_and_never_without_a_reason(
    found: PolicySet, known: Facts, kind: EventType, data: st.DataObject
) -> None:
    vm = data.draw(st.sampled_from([None, *known.vms]))
    event = Event("key", kind, NOW, "test", vm=vm)
    said = evaluate(found, event, known)
    assert said == evaluate(found, event, known)
    assert all(decision.reason for decision in said)
    runs = [decision for decision in said if isinstance(decision, BackUp)]
    assert len({run.vm for run in runs}) == len(runs) == len({run.key for run in runs})
    assert all(run.not_before >= NOW for run in runs)
    fired = [decision for decision in said if getattr(decision, "rule", "").startswith("trigger")]
    assert len({(decision.policy, decision.rule) for decision in fired}) == len(fired), "a trigger has one answer"  # type: ignore[union-attr]
    if kind is EventType.HOLD_REQUESTED and vm is not None:
        assert isinstance(said[0], HoldPoints), "whatever policies say"
    assert kind is not EventType.REMOVED or not runs
    if kind in (EventType.CLOCK, EventType.RECONCILED):
        assert [decision.vm for decision in said if isinstance(decision, BackUp | Skip)] == list(known.vms)
    else:
        assert said


@given(a_set(), a_fleet(), st.sampled_from(["vm.migrated", "vm.retagged"]))
def test_without_its_condition_a_trigger_says_no_less(found: PolicySet, known: Facts, kind: str) -> None:
    free = PolicySet(
        tuple(
            replace(policy, triggers=tuple(replace(trigger, when=None) for trigger in policy.triggers))
            for policy in found.policies
        )
    )
    for vm in known.vms:
        event = Event("key", EventType(kind), NOW, "test", vm=vm)
        asked, unasked = evaluate(found, event, known), evaluate(free, event, known)
        for wanted in (BackUp, HoldPoints):
            assert any(isinstance(one, wanted) for one in unasked) >= any(isinstance(one, wanted) for one in asked)


@given(
    st.sampled_from(range(len(ZONES))),
    st.sampled_from(EDGES),
    st.integers(-48 * 12, 48 * 12),
    st.sampled_from(["", "18:00-06:00", "sun 02:00-03:00", "01:30-02:30"]),
    st.sampled_from([10, 90, 26 * 60]),
    st.integers(0, 50),
)
def test_a_spread_start_lies_in_a_window_after_its_time_and_before_the_next(
    zone: int, edge: datetime, fives: int, window: str, minutes: int, vm: int
) -> None:
    now = edge + timedelta(minutes=5 * fives)
    windows = (parse_window(window),) if window else ()
    plain = Timing(None, ("30 2 * * *",), _zones()[zone], windows)
    spread = replace(plain, spread=timedelta(minutes=minutes))
    last = now - timedelta(days=2)
    found, before = next_due(spread, last, True, now, f"vm-{vm}"), next_due(plain, last, True, now)
    assert found is not None and before is not None
    assert (found.slot, found.deadline) == (before.slot, before.deadline)
    assert before.at <= found.at
    assert open_at(windows, spread.zone, found.at)
    assert found.at < max(found.deadline, before.at + timedelta(seconds=1))
    assert found == next_due(spread, last, True, now, f"vm-{vm}")
    if now < found.at < found.deadline:
        later = next_due(spread, last, True, found.at, f"vm-{vm}")
        assert later is not None and later.at == found.at, "its time comes"


@given(a_set(), a_set(), a_fleet())
def test_a_pending_reload_takes_nothing_away(old: PolicySet, new: PolicySet, known: Facts) -> None:
    plan = plan_reload(old, new, known)
    for vm in known.vms.values():
        if any(policy.timing.scheduled for policy in old.matching(vm)):
            assert any(policy.timing.scheduled for policy in plan.effective.matching(vm))
        if old.matching(vm) or new.matching(vm):
            assert {policy.name for policy in new.matching(vm)} <= {
                policy.name for policy in plan.effective.matching(vm)
            }
        points = known.points.get(vm.id, ())
        before = kept_reasons(points, old.retaining(vm), known.now).keys()
        assert before <= kept_reasons(points, plan.effective.retaining(vm), known.now).keys()
    if not plan.pending:
        assert plan.effective == plan.new
    assert plan_reload(plan.new, plan.new, known).empty


@lru_cache(maxsize=1)
def _zones() -> tuple[ZoneInfo, ...]:
    return tuple(ZoneInfo(name) for name in ZONES)


@given(
    st.sampled_from(range(len(ZONES))),
    st.sampled_from(EDGES),
    st.integers(-48 * 12, 48 * 12),
    st.integers(0, 23),
    st.sampled_from((0, 15, 30, 59)),
)
def test_a_daily_time_comes_once_a_local_day_at_both_changes_of_clocks(
    zone: int, edge: datetime, fives: int, hour: int, minute: int
) -> None:
    where = _zones()[zone]
    now = edge + timedelta(minutes=5 * fives)
    before, after = slots_around(f"{minute} {hour} * * *", where, now)
    assert before is not None and after is not None and before <= now < after
    assert slots_around(f"{minute} {hour} * * *", where, before) == (before, after)
    local, following = before.astimezone(where), after.astimezone(where)
    assert (following.date() - local.date()).days == 1 or local.date().year == 2011
    for one in (local, following):
        skipped = one.replace(hour=hour, minute=minute).astimezone(UTC).astimezone(where)
        assert (one.hour, one.minute) == (hour, minute) or (skipped.hour, skipped.minute) != (hour, minute)


@given(
    st.sampled_from(range(len(ZONES))),
    st.sampled_from(EDGES),
    st.integers(-48 * 12, 48 * 12),
    st.sampled_from(["18:00-06:00", "sun 02:00-03:00", "sat,sun 00:00-24:00", "01:30-02:30"]),
    st.sampled_from(("", "4h", "24h")),
    st.integers(0, 200),
)
def test_a_due_run_lies_in_a_window_and_not_in_the_past(
    zone: int, edge: datetime, fives: int, window: str, rpo: str, age: int
) -> None:
    now = edge + timedelta(minutes=5 * fives)
    hours = {"": None, "4h": timedelta(hours=4), "24h": timedelta(hours=24)}[rpo]
    timing = Timing(hours, () if hours else ("30 2 * * *",), _zones()[zone], (parse_window(window),))
    found = next_due(timing, now - timedelta(hours=age), True, now)
    assert found is not None
    assert found.at >= now
    assert open_at(timing.windows, timing.zone, found.at)


@given(
    st.sampled_from(range(len(ZONES))),
    st.sampled_from(EDGES),
    st.integers(0, 23),
    st.sampled_from((0, 30)),
    st.booleans(),
)
def test_a_day_of_ticks_never_runs_a_fixed_time_twice(
    zone: int, edge: datetime, hour: int, minute: int, with_goal: bool
) -> None:
    timing = Timing(timedelta(hours=30) if with_goal else None, (f"{minute} {hour} * * *",), _zones()[zone])
    last, runs = edge - timedelta(days=2), []
    now = edge - timedelta(hours=36)
    while now < edge + timedelta(hours=36):
        due = next_due(timing, last, True, now)
        assert due is not None
        if due.at <= now:
            runs.append((due.rule, due.slot))
            last = now
        now += timedelta(minutes=10)
    assert len(runs) == len(set(runs))
    assert 3 <= len(runs) <= 4
