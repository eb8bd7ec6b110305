"""Simulations in two processes come to the same as in one, and to the same when the second is lost."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

import pytest

from engine import simulating
from engine.simulating import simulate
from policies.aging import Asked
from policies.assumptions import Assumptions
from policies.facts import EventType, Facts
from policies.fleet import daily_events, synthetic_fleet, synthetic_policies
from policies.loading import load_texts
from policies.recorded import Recorded
from tests.policies.building import NOW, a_vm, an_event

POLICIES = load_texts({"p.toml": synthetic_policies(30)})
UNTIL = NOW + timedelta(days=20, hours=3)
ASSUMED = Assumptions(tick=timedelta(minutes=10))
NEW = a_vm("billing-new-1", tags=frozenset({"backup=gold"}))


def simulated(processes: int, facts: Facts | None = None, **more: Any) -> dict[str, Any]:
    start = facts or synthetic_fleet(40, now=NOW, points_each=30)
    events = [Recorded(event.at, event) for event in daily_events(start, 20, 2)]
    vms = list(start.vms.values())
    for number, (kind, vm) in enumerate(
        ((EventType.REMOVED, vms[3]), (EventType.HOLD_REQUESTED, vms[4]), (EventType.CREATED, NEW))
    ):
        at = NOW + timedelta(days=2 + number, minutes=7)
        events.append(Recorded(at, an_event(kind, vm, key=f"x{number}", at=at)))
    events.sort(key=lambda one: one.at)
    asked = Asked(NOW + timedelta(days=11, hours=2), frozenset({vms[4].id, NEW.id}))
    return simulate(
        POLICIES, start, ASSUMED, UNTIL, events, arriving={NEW.id: NEW}, asked=asked, processes=processes, **more
    ).as_json()


def without_names(told: dict[str, Any]) -> dict[str, Any]:
    """A VM that was renamed after the instant that was asked about has its last name only in one process."""
    vms = sorted(({**one, "name": ""} for one in told["at"]["vms"]), key=lambda one: one["vm"])
    return {**told, "at": {**told["at"], "vms": vms}}


def test_two_processes_come_to_the_same_as_one() -> None:
    one, two = simulated(1), simulated(2)
    assert without_names(two) == without_names(one)
    assert one["storage"]["final_points"] > 1000
    assert sum(day["expired"] for day in one["storage"]["days"]) > 300
    assert any(vm.get("listed") for vm in one["at"]["vms"])


def test_days_are_told_in_two_processes() -> None:
    days: list[object] = []
    simulated(2, told=days.append)
    assert len(days) == 20


def test_a_second_process_that_is_killed_costs_nothing_but_time(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[simulating.Beside] = []
    original = simulating.Beside.__init__

    def remembered(self: simulating.Beside, *arguments: Any) -> None:
        original(self, *arguments)
        begun.append(self)

    monkeypatch.setattr(simulating.Beside, "__init__", remembered)

    def kill(at: object) -> None:
        process = begun[0]._process
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()

    assert without_names(simulated(2, told=kill)) == without_names(simulated(1))


def test_an_interruption_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[simulating.Beside] = []
    original = simulating.Beside.__init__

    def remembered(self: simulating.Beside, *arguments: Any) -> None:
        original(self, *arguments)
        begun.append(self)

    monkeypatch.setattr(simulating.Beside, "__init__", remembered)

    def interrupt(at: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulated(2, told=interrupt)
    assert not begun[0]._process.is_alive()
