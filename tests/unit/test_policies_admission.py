"""Which backups start now, in which order; which events are one run; when a failed run is tried again."""

from __future__ import annotations

from datetime import datetime, timedelta

from policies.admission import FIRST_RETRY, JITTER_SHARE, LONGEST_RETRY, admit, coalesce, retry_at, urgency
from policies.decision import BackUp
from policies.facts import Consistency, Vm, VmId
from policies.limits import Limits
from tests.policies.building import NOW, a_vm


def run(name: str, *, deadline: int | None = None, starts: int = 0, **more: object) -> BackUp:
    """Minutes from now."""
    return BackUp(
        **{  # type: ignore[arg-type]
            "key": f"k-{name}",
            "vm": VmId(f"id-{name}"),
            "policy": "gold",
            "rule": "rpo",
            "reason": "due",
            "not_before": NOW + timedelta(minutes=starts),
            "deadline": None if deadline is None else NOW + timedelta(minutes=deadline),
            **more,
        }
    )


def vms(*found: Vm) -> dict[VmId, Vm]:
    return {vm.id: vm for vm in found}


def started(*pending: BackUp, running: tuple[str, ...] = (), known: dict[VmId, Vm] | None = None, **limits: int) -> str:
    found = admit(pending, {VmId(f"id-{name}"): "gold" for name in running}, known or {}, Limits(**limits), NOW)  # type: ignore[arg-type]
    return " ".join(one.vm.removeprefix("id-") for one in found.start)


def test_the_earliest_deadline_starts_first_then_priority_then_the_longest_ready() -> None:
    pending = (
        run("none"),
        run("late", deadline=90),
        run("soon", deadline=10),
        run("urgent", deadline=90, priority=5),
        run("older", deadline=90, starts=-5),
    )
    assert started(*pending) == "soon urgent older late none"
    assert started(*reversed(pending)) == "soon urgent older late none"
    assert min(pending, key=urgency).vm == "id-soon"


def test_the_number_of_running_backups_is_limited() -> None:
    found = admit([run("a"), run("b")], {VmId("id-x"): "gold"}, {}, Limits(running=2), NOW)
    assert [one.vm for one in found.start] == ["id-a"]
    assert [(one.decision.vm, one.reason) for one in found.waiting] == [("id-b", "all 2 places are taken")]


def test_a_vm_is_backed_up_once_at_a_time() -> None:
    twice = (run("a"), run("a", key="k2"))
    found = admit(twice, {}, {}, Limits(), NOW)
    assert len(found.start) == 1
    assert found.waiting[0].reason == "a backup of this VM is running"
    assert started(run("a"), running=("a",)) == ""


def test_hosts_and_datastores_are_not_overloaded() -> None:
    known = vms(
        a_vm("a", host="h1", datastores=("d1",)),
        a_vm("b", host="h1", datastores=("d2",)),
        a_vm("c", host="h2", datastores=("d3", "d1")),
        a_vm("d", host="", datastores=()),
    )
    pending = (run("b"), run("c"), run("d"))
    assert started(*pending, running=("a",), known=known, per_host=1, per_datastore=1) == "d"
    found = admit(pending, {VmId("id-a"): "gold"}, known, Limits(per_host=1, per_datastore=1), NOW)
    assert [one.reason for one in found.waiting] == ["1 backups run on host h1", "1 backups run on datastore d1"]
    assert started(*pending, running=("a",), known=known, per_host=2, per_datastore=2) == "b c d"


def test_what_is_not_ready_waits_and_says_when_to_ask_again() -> None:
    found = admit([run("a", starts=10), run("b", starts=5)], {}, {}, Limits(), NOW)
    assert not found.start
    assert {one.reason for one in found.waiting} == {"starts in 10 m", "starts in 5 m"}
    assert found.ask_again == NOW + timedelta(minutes=5)
    assert admit([], {}, {}, Limits(), NOW).ask_again is None


def test_events_of_one_vm_while_it_settles_are_one_run() -> None:
    first = run("a", starts=10, key="k1", deadline=60)
    second = run("a", starts=18, key="k2", priority=9, deadline=30, consistency=Consistency.APPLICATION)
    one = coalesce((), first)
    assert (one.pending, one.joined) == ((first,), None)
    both = coalesce(one.pending, second)
    assert both.joined == first
    assert both.pending == (both.stands_for,)
    assert both.stands_for.key == "k1"
    assert both.stands_for.not_before == first.not_before
    assert both.stands_for.deadline == NOW + timedelta(minutes=30)
    assert (both.stands_for.priority, both.stands_for.consistency) == (9, "application")


def test_an_urgent_request_brings_a_pending_run_forward() -> None:
    waiting = run("a", starts=600)
    found = coalesce((run("b"), waiting), run("a", key="request", deadline=0))
    assert found.stands_for.not_before == NOW
    assert [one.vm for one in found.pending] == ["id-b", "id-a"]


def test_the_same_decision_twice_is_one() -> None:
    found = coalesce((run("a"),), run("a"))
    assert found.pending == (run("a"),)
    assert found.joined == run("a")


def test_retries_back_off_with_a_jitter_that_the_seed_decides() -> None:
    waits = [retry_at(NOW, attempt, "k", "seed") - NOW for attempt in range(1, 12)]
    for attempt, wait in enumerate(waits):
        least = min(FIRST_RETRY * 2**attempt, LONGEST_RETRY)
        assert least <= wait <= least * (1 + JITTER_SHARE)
    assert retry_at(NOW, 3, "k", "seed") == retry_at(NOW, 3, "k", "seed")
    assert len({retry_at(NOW, 3, f"k{number}", "seed") for number in range(50)}) == 50
    assert isinstance(retry_at(NOW, 10**9, "k", "seed"), datetime)
    assert retry_at(NOW, 0, "k", "seed") >= NOW + FIRST_RETRY
