"""What admission promises of every set of pending backups, and the line in memory against its definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from policies.admission import OLDEST_EVERY, Admission, Turns, admit, pace_lets
from policies.decision import BackUp
from policies.facts import Vm, VmId
from policies.limits import Limits, places_of
from policies.line import Line
from policies.policy import PolicyLimits
from tests.policies.building import NOW, a_vm

POLICIES = ("gold", "silver", "bronze")
_COUNT = st.integers(1, 3)


@st.composite
def some_vm(draw: st.DrawFn, number: int) -> Vm:
    return a_vm(
        f"v{number}",
        host=draw(st.sampled_from(["", "h1", "h2"])),
        datastores=tuple(draw(st.lists(st.sampled_from(["d1", "d2", "d3"]), max_size=2))),
        tags=frozenset(draw(st.sampled_from([(), ("send=far",)]))),
    )


@st.composite
def some_limits(draw: st.DrawFn) -> Limits:
    own = st.builds(
        PolicyLimits,
        running=st.none() | _COUNT,
        per_host=st.none() | _COUNT,
        per_datastore=st.none() | _COUNT,
    )
    return Limits(
        running=draw(st.integers(1, 6)),
        per_host=draw(_COUNT),
        per_datastore=draw(_COUNT),
        per_vcenter=draw(st.none() | st.integers(2, 5)),
        per_repository=draw(st.none() | st.integers(2, 5)),
        starts_per_minute=draw(st.none() | st.sampled_from([1, 12, 60])),
        policies=draw(st.dictionaries(st.sampled_from(POLICIES), own, max_size=2)),
        destination_of=draw(st.sampled_from([None, _sent])),
        repositories=2,
    )


def _sent(vm: Vm) -> str:
    return "far" if vm.tags else ""


@st.composite
def a_backup(draw: st.DrawFn, number: int, vms: int) -> BackUp:
    deadline = draw(st.none() | st.integers(-90, 240))
    return BackUp(
        key=f"k{number}",
        vm=VmId(f"id-v{draw(st.integers(0, vms))}"),
        policy=draw(st.sampled_from(POLICIES)),
        rule="rpo",
        reason="due",
        not_before=NOW + timedelta(minutes=draw(st.integers(-30, 10))),
        deadline=None if deadline is None else NOW + timedelta(minutes=deadline),
        priority=draw(st.sampled_from([0, 10, 30])),
    )


@st.composite
def a_scene(draw: st.DrawFn) -> tuple[dict[VmId, Vm], list[BackUp], dict[VmId, str], Limits]:
    vms = {vm.id: vm for vm in (draw(some_vm(number)) for number in range(draw(st.integers(0, 8))))}
    pending = [draw(a_backup(number, len(vms))) for number in range(draw(st.integers(0, 20)))]
    running = draw(st.dictionaries(st.sampled_from([*vms, VmId("x")]), st.sampled_from(POLICIES), max_size=3))
    return vms, pending, running, draw(some_limits())


def asked(
    vms: Mapping[VmId, Vm], pending: list[BackUp], running: Mapping[VmId, str], limits: Limits, **more: object
) -> Admission:
    return admit(pending, running, vms, limits, NOW, **more)  # type: ignore[arg-type]


def taken(runs: Mapping[VmId, str], vms: Mapping[VmId, Vm], limits: Limits) -> Counter[object]:
    return Counter(place for vm, policy in runs.items() for place in places_of(vm, vms.get(vm), policy, limits))


@given(a_scene(), st.randoms(use_true_random=False), st.integers(0, 40))
def test_limits_hold_what_can_start_does_and_the_order_of_asking_does_not_matter(
    scene: tuple[dict[VmId, Vm], list[BackUp], dict[VmId, str], Limits], chance: object, starts: int
) -> None:
    vms, pending, running, limits = scene
    found = asked(vms, pending, running, limits, turns=Turns(starts))
    runs = {**running, **{one.vm: one.policy for one in found.start}}
    assert len(runs) == len(running) + len(found.start), "one VM is backed up once at a time"
    assert len(runs) <= max(limits.running, len(running))
    before, after = taken(running, vms, limits), taken(runs, vms, limits)
    for place, number in after.items():
        assert number <= max(limits.of(place) or 0, before[place])  # type: ignore[arg-type]
    assert {one.key for one in pending} == {one.key for one in found.start} | {
        one.decision.key for one in found.waiting
    }
    assert all(one.reason for one in found.waiting)
    if len(runs) < limits.running and pace_lets(found.turns.paced, NOW, limits) <= NOW:
        for one in found.waiting:
            wanted = places_of(one.decision.vm, vms.get(one.decision.vm), one.decision.policy, limits)
            free = all(after[place] < (limits.of(place) or 0) for place in wanted)
            assert one.decision.not_before > NOW or not free, "a place is free that this backup could take"
    other = pending[:]
    chance.shuffle(other)  # type: ignore[attr-defined]
    assert asked(vms, other, dict(reversed(running.items())), limits, turns=Turns(starts)) == found


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_a_policy_of_many_takes_turns_with_one_of_few(many: int, few: int, places: int) -> None:
    def due(policy: str, number: int) -> BackUp:
        vm = VmId(f"{policy}{number}")
        return BackUp(f"{vm}", vm, policy, "rpo", "due", NOW - timedelta(hours=1), NOW)

    line = Line(Limits(running=places), {})
    for one in [due("a", n) for n in range(many)] + [due("b", n) for n in range(few)]:
        line.add(one)
    order = ""
    while len(line):
        run = line.start(NOW)
        if run is None:
            line.finished(next(iter(line.running)))
        else:
            order += run.policy
    assert len(order) == many + few
    shared = order[: 2 * min(many, few)]
    # One start in sixteen is for what has been ready the longest, whose ever it is.
    assert abs(shared.count("a") - shared.count("b")) <= 2 + 2 * (len(shared) // OLDEST_EVERY)


@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 3))
def test_no_backup_waits_for_ever_behind_a_stream_of_more_urgent_ones(before: int, phase: int, places: int) -> None:
    def of(name: str, priority: int, ready: datetime) -> BackUp:
        return BackUp(name, VmId(name), "p", "rpo", "due", ready, ready, priority)

    line = Line(Limits(running=places), {}, turns=Turns(phase))
    for number in range(before):
        line.add(of(f"old{number}", 50, NOW - timedelta(minutes=10)))
    line.add(of("patient", 0, NOW - timedelta(minutes=5)))
    starts, now = 0, NOW
    while True:
        line.add(of(f"urgent{starts}", 99, now))
        line.add(of(f"more{starts}", 99, now))
        run = line.start(now)
        if run is None:
            line.finished(next(iter(line.running)))
            continue
        starts += 1
        now += timedelta(seconds=1)
        if run.key == "patient":
            break
    assert starts <= OLDEST_EVERY * (before + 1)


Step = tuple[str, int]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "add", "add", "start", "start", "finish", "remove", "move", "limits", "wait", "others"]
        ),
        st.integers(0, 50),
    ),
    max_size=60,
)


@given(a_scene(), _STEPS, st.data())
def test_the_line_gives_the_answers_of_admit(
    scene: tuple[dict[VmId, Vm], list[BackUp], dict[VmId, str], Limits], steps: list[Step], data: st.DataObject
) -> None:
    vms, todo, running, limits = scene
    typical, now, turns = timedelta(minutes=5), NOW, Turns(starts=data.draw(st.integers(0, 16)))
    others: dict[str, int] = {}
    line = Line(limits, vms, typical=typical, turns=turns)
    for vm, policy in running.items():
        line.began(vm, policy)
    running = dict(running)
    pending: dict[str, BackUp] = {}
    for kind, number in steps:
        match kind:
            case "add" if todo:
                one = todo.pop()
                pending[one.key] = one
                line.add(one)
            case "finish" if running:
                vm = sorted(running)[number % len(running)]
                del running[vm]
                line.finished(vm)
            case "remove" if pending:
                key = sorted(pending)[number % len(pending)]
                del pending[key]
                line.remove(key)
            case "move" if vms:
                vm = sorted(vms)[number % len(vms)]
                vms[vm] = data.draw(some_vm(int(vm.removeprefix("id-v"))))
                line.moved(vm)
            case "limits":
                limits = data.draw(some_limits())
                line.limits = limits
            case "wait":
                now += timedelta(seconds=number**2 - 20)
            case "others":
                name = ("", "far")[number // 3 % 2]
                others[name] = number % 3
                line.use_repository(others[name], name)
        expected = admit(pending.values(), running, vms, limits, now, turns, typical=typical, others=others)
        assert line.load(now) == expected.load
        if kind == "start" and expected.start:
            run = line.start(now)
            assert run == expected.start[0]
            turns = turns.after(run, now, limits)
            del pending[run.key]
            running[run.vm] = run.policy
        elif not expected.start:
            assert line.start(now) is None
            assert line.waiting(now) == expected.waiting
            assert line.ask_again(now) == expected.ask_again
        assert line.turns == turns
        assert line.running == running
        assert {one.key for one in line.pending} == pending.keys()
