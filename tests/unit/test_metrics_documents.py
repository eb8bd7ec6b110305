"""What is made from the registry is current, and what speaks of metrics speaks of ones that exist."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from metrics.grafana import build
from metrics.reference import reference
from metrics.registry import PREFIX, Metrics
from metrics.rehearsals import RehearsalMetrics
from metrics.repositories import RepositoryMetrics
from metrics.snapshots import SnapshotMetrics

ROOT = Path(build.__file__).parents[2]
RULES = ROOT / "metrics/alerts/backstay.rules.yml"
TESTS = ROOT / "metrics/alerts/backstay.test.yml"
RUNBOOK = ROOT / "docs/runbook.md"


def known() -> set[str]:
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {PREFIX + doc.name + suffix for doc in Metrics().reference for suffix in suffixes.get(doc.kind, ("",))}


def test_the_dashboard_is_as_its_code_makes_it() -> None:
    assert build.FILE.read_text(encoding="utf-8") == build.build(), "run: python -m metrics.grafana.build"


def test_the_reference_is_as_the_registry_makes_it() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m metrics.reference > docs/metrics.md"


@pytest.mark.parametrize("file", [build.FILE, RULES, TESTS, RUNBOOK], ids=lambda file: file.name)
def test_every_metric_that_is_named_exists(file: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}\w+", file.read_text(encoding="utf-8")))
    assert named
    assert named <= known()


def test_everything_that_the_registry_can_be_told_somebody_tells_it() -> None:
    tellers = [file for folder in ("engine", "connectors") for file in (ROOT / folder).rglob("*.py")]
    told = {
        node.func.attr
        for file in tellers
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "metrics" in ast.unparse(node.func)
    }
    kinds = (Metrics, RehearsalMetrics, RepositoryMetrics, SnapshotMetrics)
    methods = {name for kind in kinds for name, of in vars(kind).items() if callable(of) and not name.startswith("_")}
    assert methods - told == set(), "a metric that never moves is a lie: feed it or delete it"


def test_every_panel_has_its_own_id_and_a_title() -> None:
    panels = json.loads(build.FILE.read_text(encoding="utf-8"))["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    assert all(panel["title"] for panel in panels)


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))


def test_every_alert_has_a_test_that_fires_it() -> None:
    fired = set(re.findall(r"alertname: (\w+)\n", TESTS.read_text(encoding="utf-8")))
    assert set(alerts()) == fired


def test_every_alert_has_a_section_in_the_runbook_and_leads_to_it() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.M)
    anchors = re.findall(r"runbook_url: docs/runbook.md#(\w+)", RULES.read_text(encoding="utf-8"))
    assert headings == alerts()
    assert anchors == [name.lower() for name in alerts()]
