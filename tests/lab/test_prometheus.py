"""A real Prometheus scrapes the registry; the dashboard shows data and the alerts say what they should."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn

from metrics.exposition import application
from metrics.grafana.build import FILE as DASHBOARD
from metrics.labels import CoverageState, Durability, RepositoryState, SnapshotState, VerifyState, VmCoverage
from metrics.registry import Metrics
from tests.lab.prometheus import Prometheus, dashboard_expressions, prometheus

ALERTS = DASHBOARD.parents[1] / "alerts"
RULES = ALERTS / "backstay.rules.yml"


@contextmanager
def served(metrics: Metrics) -> Iterator[str]:
    """host:port where the metrics are, served by a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(application(metrics.registry), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def a_day_in_the_life(metrics: Metrics, now: datetime) -> None:
    """One of each thing that an engine may tell."""
    metrics.cover(
        [
            VmCoverage("vc", "v1", "web-1", CoverageState.PROTECTED, now, now, "gold", 3600.0, moref="vm-1"),
            VmCoverage("vc", "v2", "late", CoverageState.PROTECTED, now - timedelta(days=1), None, "gold", 3600.0),
            VmCoverage("vc", "v3", "bare", CoverageState.UNPROTECTED, now),
        ]
    )
    metrics.policies_loaded(["gold"])
    metrics.policy_files_checked(0)
    metrics.reload_pending(1, now)
    metrics.queue(waiting=2, running=1)
    metrics.repositories.seen(
        RepositoryState(
            "main", 10, 100, 10_000, 5, 1, 3, last_verified=now, verify=VerifyState.DAMAGED, damaged_objects=1
        )
    )
    metrics.snapshots(SnapshotState("vc", 1, now - timedelta(days=2), 2, now - timedelta(days=9), 1, 1))
    metrics.nats_durability(Durability.NOT_DURABLE)
    metrics.clock_skew("vcenter", 0.5)
    metrics.rehearsals.stand({"gold": (3, 0, 0)})
    metrics.repositories.verification_wanted({"gold": (7 * 86400.0, 0, now - timedelta(days=3))})
    metrics.notices.waiting({"ops": False})


def work(metrics: Metrics) -> None:
    """What goes on between two scrapes."""
    metrics.run_finished("gold", "done", 7.0, read=1000, stored=100, deduplicated=600, zero=200)
    metrics.stage("read", 1.5)
    metrics.standing.stood_still("creation", 0.2)
    metrics.standing.stood_still("removal", 0.1)
    metrics.disk_read("hotadd")
    metrics.disk_read("nbd", whole="first")
    metrics.transport_failed("hotadd")
    metrics.event_seen("vm.powered_off", "vcenter", 0.2)
    metrics.event_source_alive("vcenter")
    metrics.event_found_by_reconcile("vm.created")
    metrics.repositories.points_expired(1)
    metrics.repositories.reclaimed(1000)
    metrics.notices.attempted("ops", "sent")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    metrics = Metrics(version="0.1")
    a_day_in_the_life(metrics, datetime.now(UTC))
    with (
        served(metrics) as target,
        prometheus(tmp_path_factory.mktemp("prometheus"), [target], rules=[RULES]) as server,
    ):
        server.wait_for("backstay_build_info")
        work(metrics)
        server.wait_for("increase(backstay_runs_total{result='done'}[1h]) > 0")
        yield server


def test_the_scrape_succeeds(scraped: Prometheus) -> None:
    assert scraped.targets_up()


@pytest.mark.parametrize("panel", dashboard_expressions(DASHBOARD))
def test_every_expression_of_the_dashboard_shows_data(scraped: Prometheus, panel: str) -> None:
    assert scraped.wait_for(dashboard_expressions(DASHBOARD)[panel])


def test_the_alerts_that_should_fire_do_and_the_others_do_not(scraped: Prometheus) -> None:
    immediate = {"VerifyFailed", "CorruptObject", "OrphanSnapshot"}
    waiting = {"VMUnprotected", "RPOViolated", "NeverBackedUp", "ReloadPending", "NATSNotDurable"}
    until = time.monotonic() + 30
    while set(scraped.alerts()) != immediate | waiting and time.monotonic() < until:
        time.sleep(0.1)
    states = scraped.alerts()
    assert {name for name, state in states.items() if state == "firing"} == immediate
    assert {name for name, state in states.items() if state == "pending"} == waiting


def test_openmetrics_is_what_prometheus_asks_for_and_gets(scraped: Prometheus) -> None:
    metrics = Metrics()
    with served(metrics) as target:
        accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
        answer = httpx.get(f"http://{target}/metrics", headers=accept)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert httpx.get(f"http://{target}/").status_code == 404
        assert httpx.post(f"http://{target}/metrics").status_code == 405


def promtool(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, cwd=ALERTS, timeout=60, check=False
    )


def test_promtool_finds_the_rules_well_formed() -> None:
    outcome = promtool("check", "rules", RULES.name)
    assert outcome.returncode == 0, outcome.stderr.decode()


def test_promtool_finds_that_each_alert_fires_when_it_should() -> None:
    outcome = promtool("test", "rules", "backstay.test.yml")
    assert outcome.returncode == 0, outcome.stderr.decode() + outcome.stdout.decode()


def test_promtool_finds_nothing_to_say_about_the_names(tmp_path: Path) -> None:
    metrics = Metrics(version="0.1")
    a_day_in_the_life(metrics, datetime.now(UTC))
    work(metrics)
    with served(metrics) as target:
        page = httpx.get(f"http://{target}/metrics").content
    outcome = promtool("check", "metrics", stdin=page)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")
