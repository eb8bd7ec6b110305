"""The metrics say what happened, never grow without bound, and 0 means never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from metrics import labels
from metrics.exposition import render
from metrics.labels import (
    CoverageState,
    Durability,
    RepositoryState,
    SnapshotState,
    VerifyState,
    VmCoverage,
)
from metrics.registry import PREFIX, Metrics
from policies.facts import Consistency, EventType

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
VM = {"vcenter": "vc", "vm_id": "v1", "vm": "web-1"}


def vm(
    id: str = "v1", *, name: str = "web-1", state: CoverageState = CoverageState.PROTECTED, **more: object
) -> VmCoverage:
    known = {"known_since": NOW - timedelta(days=1), "vcenter": "vc", **more}
    return VmCoverage(vm_id=id, vm=name, state=state, **known)  # type: ignore[arg-type]


def made(**more: object) -> Metrics:
    return Metrics(now=lambda: NOW, **more)  # type: ignore[arg-type]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(PREFIX + name, labels)


def series(metrics: Metrics) -> int:
    return sum(1 for line in render(metrics.registry).body.splitlines() if not line.startswith(b"#"))


def test_a_vm_that_never_succeeded_has_a_last_success_of_0() -> None:
    metrics = made()
    metrics.cover([vm()])
    assert value(metrics, "vm_last_success_timestamp_seconds", **VM) == 0.0
    assert value(metrics, "vm_protected", **VM) == 1.0


def test_the_rpo_slack_is_worked_out_at_the_scrape() -> None:
    now = [NOW]
    metrics = Metrics(now=lambda: now[0])
    metrics.cover([vm(last_success=NOW, rpo_seconds=3600.0)])
    assert value(metrics, "vm_rpo_slack_seconds", **VM) == 3600.0
    now[0] += timedelta(hours=2)
    assert value(metrics, "vm_rpo_slack_seconds", **VM) == -3600.0


def test_the_rpo_of_a_vm_without_a_restore_point_runs_from_its_first_sight() -> None:
    metrics = made()
    metrics.cover([vm(known_since=NOW - timedelta(hours=3), rpo_seconds=3600.0)])
    assert value(metrics, "vm_rpo_slack_seconds", **VM) == -7200.0


def test_a_vm_without_an_rpo_has_no_slack() -> None:
    metrics = made()
    metrics.cover([vm()])
    assert value(metrics, "vm_rpo_seconds", **VM) is None
    assert value(metrics, "vm_rpo_slack_seconds", **VM) is None


def test_an_excluded_vm_is_neither_protected_nor_unprotected() -> None:
    metrics = made()
    metrics.cover([vm(state=CoverageState.EXCLUDED), vm("v2", state=CoverageState.UNPROTECTED)])
    assert value(metrics, "vm_protected", **VM) is None
    assert value(metrics, "vms", vcenter="vc") == 2.0
    assert value(metrics, "vms_unprotected", vcenter="vc") == 1.0
    assert value(metrics, "vms_excluded", vcenter="vc") == 1.0


def test_a_vm_that_is_gone_has_no_series_and_its_vcenter_keeps_its_totals() -> None:
    metrics = made()
    metrics.cover([vm()])
    metrics.cover([])
    assert value(metrics, "vm_protected", **VM) is None
    assert value(metrics, "vms", vcenter="vc") == 0.0


def test_two_vms_of_one_name_are_two_series() -> None:
    metrics = made()
    metrics.cover([vm("v1"), vm("v2", state=CoverageState.UNPROTECTED)])
    assert value(metrics, "vm_protected", vcenter="vc", vm_id="v1", vm="web-1") == 1.0
    assert value(metrics, "vm_protected", vcenter="vc", vm_id="v2", vm="web-1") == 0.0


def test_over_the_limit_the_vms_in_trouble_keep_their_series() -> None:
    metrics = made(vm_series_limit=2)
    fine = [vm(f"f{number}", last_success=NOW) for number in range(5)]
    metrics.cover([*fine, vm("bare", state=CoverageState.UNPROTECTED), vm("sick", consecutive_failures=3)])
    shown = [family for family in metrics.registry.collect() if family.name == PREFIX + "vm_info"]
    assert {sample.labels["vm_id"] for sample in shown[0].samples} == {"bare", "sick"}
    assert value(metrics, "vm_series_dropped") == 5.0
    assert value(metrics, "vms", vcenter="vc") == 7.0


def test_a_finished_run_counts_under_its_policy() -> None:
    metrics = made()
    metrics.policies_loaded(["gold"])
    assert value(metrics, "runs_total", policy="gold", result="failed") == 0.0
    metrics.run_finished("gold", "done", 12.0, read=100, stored=10, deduplicated=60, zero=20)
    assert value(metrics, "runs_total", policy="gold", result="done") == 1.0
    assert value(metrics, "run_duration_seconds_count", policy="gold") == 1.0
    assert value(metrics, "bytes_read_total", policy="gold") == 100.0
    assert value(metrics, "bytes_deduplicated_total", policy="gold") == 60.0


def test_a_policy_that_is_not_in_force_counts_as_other() -> None:
    metrics = made()
    metrics.policies_loaded(["gold"])
    for number in range(50):
        metrics.run_finished(f"made-up-{number}", "done", 1.0)
    assert value(metrics, "runs_total", policy="other", result="done") == 50.0


def test_the_series_of_a_policy_end_with_it() -> None:
    metrics = made()
    metrics.policies_loaded(["gold", "silver"])
    metrics.policies_loaded(["silver"])
    assert value(metrics, "runs_total", policy="gold", result="done") is None
    assert value(metrics, "runs_total", policy="silver", result="done") == 0.0


def test_what_fixed_labels_take_is_what_the_rules_know() -> None:
    assert set(labels.EVENT_TYPES) == {type.value for type in EventType} | {"other"}
    assert set(labels.CONSISTENCIES) == {level.value for level in Consistency} | {"other"}


@given(st.lists(st.text(max_size=20), max_size=5))
def test_no_word_from_outside_makes_a_series(words: list[str]) -> None:
    metrics = made()
    everything(metrics, "other")
    before = series(metrics)
    for word in words:
        everything(metrics, word)
    assert series(metrics) == before


def everything(metrics: Metrics, word: str) -> None:
    metrics.event_seen(word, word, 1.0)
    metrics.event_source_alive(word)
    metrics.event_found_by_reconcile(word)
    metrics.event_gap(word)
    metrics.message_refused(word)
    metrics.run_finished(word, word, 1.0)
    metrics.stage(word, 1.0)
    metrics.disk_read(word, whole=word or "first")
    metrics.transport_failed(word)
    metrics.consistency_fell_back(word)
    metrics.tracking_distrusted(word)
    metrics.operation_finished(word, word)
    metrics.connection(word, up=True)
    metrics.reconnected(word)
    metrics.clock_skew(word, 1.0)
    metrics.repositories.catalog_rebuilt(word)


def test_one_of_the_states_is_1_and_the_others_are_0() -> None:
    metrics = made()
    metrics.nats_durability(Durability.NOT_DURABLE)
    assert [value(metrics, "nats_durability", state=state) for state in Durability] == [0.0, 1.0, 0.0]
    state = RepositoryState("main", 10, 100, 1000, 1, 2, 3, verify=VerifyState.DAMAGED, damaged_objects=2)
    metrics.repositories.seen(state)
    assert value(metrics, "verify_state", repository="main", state="damaged") == 1.0
    assert value(metrics, "verify_state", repository="main", state="never") == 0.0
    assert value(metrics, "verify_last_success_timestamp_seconds", repository="main") == 0.0


def test_no_snapshot_left_over_is_a_time_of_0() -> None:
    metrics = made()
    metrics.snapshots(SnapshotState("vc", orphans=1, oldest_orphan=NOW))
    assert value(metrics, "orphan_snapshot_oldest_timestamp_seconds", vcenter="vc") == NOW.timestamp()
    metrics.snapshots(SnapshotState("vc"))
    assert value(metrics, "orphan_snapshot_oldest_timestamp_seconds", vcenter="vc") == 0.0


def test_two_engines_in_one_process_share_nothing() -> None:
    first, second = made(), made()
    first.queue(waiting=3, running=1)
    assert (value(first, "queue_depth"), value(second, "queue_depth")) == (3.0, 0.0)


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0"])
def test_the_exposition_is_what_the_scraper_asked_for(accept: str) -> None:
    metrics = made(version="1.2")
    metrics.cover([vm(name='quote " and \\ and\nline')])
    answer = render(metrics.registry, accept)
    assert answer.content_type.startswith("application/openmetrics-text" if "openmetrics" in accept else "text/plain")
    assert answer.body.endswith(b"# EOF\n") == ("openmetrics" in accept)


def test_every_name_starts_with_the_prefix_and_is_in_the_reference() -> None:
    metrics = made()
    metrics.policies_loaded(["gold"])
    metrics.repositories.seen(RepositoryState("main", 1, 1, 1, 1, 1, 1))
    families = text_string_to_metric_families(render(metrics.registry).body.decode())
    names = {family.name for family in families if not family.name.startswith(PREFIX + "process_")}
    documented = {PREFIX + doc.name.removesuffix("_total") for doc in metrics.reference}
    assert {name.removesuffix("_total") for name in names} == documented


def test_every_counter_ends_in_total_and_nothing_else_does() -> None:
    for doc in made().reference:
        assert doc.name.endswith("_total") == (doc.kind == "counter"), doc.name
