"""The benchmark of policies at a small size: its figures are there, and its plain evaluation agrees."""

from __future__ import annotations

import json

import pytest

from benchmarks import policies as benchmark
from benchmarks._naive_policies import naive_decisions
from policies.facts import EventType


def test_each_decision_is_that_of_the_plain_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "EVENTS", 2_000)
    monkeypatch.setattr(benchmark, "CHECKED", 2_000)
    monkeypatch.setattr(benchmark, "keep_out_of_search", lambda: None)
    figures = benchmark.PARTS["events"](300, 60)
    assert figures["checked"] == 2_000
    assert figures["decisions"] >= 2_000
    assert figures["events_per_second"] > 0
    assert figures["p50_ms"] <= figures["p99_ms"] <= figures["longest_ms"]


def test_a_different_decision_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "EVENTS", 50)
    monkeypatch.setattr(benchmark, "keep_out_of_search", lambda: None)
    monkeypatch.setattr(benchmark, "naive_decisions", lambda *given: [("BackUp", "", "", None)])
    with pytest.raises(SystemExit, match="plainly"):
        benchmark.PARTS["events"](50, 10)


def test_the_events_are_as_the_targets_say() -> None:
    facts, found = benchmark._world(1_000, 200)
    happened = benchmark._with_vms(facts, 4_000, seed=5)
    named = {kind for policy in found.policies for trigger in policy.triggers for kind in trigger.on}
    irrelevant = sum(event.type not in named for event, _ in happened) / len(happened)
    moved = sum(bool(event.detail) for event, _ in happened) / len(happened)
    assert 0.27 < irrelevant < 0.33
    assert 0.17 < moved < 0.23
    event, vm = next((event, vm) for event, vm in happened if event.type is EventType.RENAMED)
    assert vm.name == event.detail["new_name"]
    assert naive_decisions(found.policies, event, vm, {}, event.at)


def test_parts_run_in_processes_of_their_own_and_give_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        benchmark.main(["--only", "admission", "--only", "reevaluate", "--vms", "200", "--policies", "20", "--json"])
        == 0
    )
    figures = json.loads(capsys.readouterr().out)
    assert figures["reevaluate_s"] >= 0
    assert figures["admission: µs a start"] > 0
    assert {"events_per_second", "p99_ms", "reevaluate_s", "plan_s", "simulate_s"} <= benchmark.TARGETS.keys()
