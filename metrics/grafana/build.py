"""Make the dashboard: `python -m metrics.grafana.build` writes backstay.json beside this file.

A development tool: it needs grafana-foundation-sdk, which an installation does not. The JSON is what is shipped.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from metrics.grafana.rows import ROWS, Curve, Listing, Number, Panel, Query

FILE = Path(__file__).with_name("backstay.json")
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def build() -> str:
    """The dashboard as JSON, the same for the same code."""
    made = (
        dashboard.Dashboard("Backstay")
        .uid("backstay")
        .description("Coverage first, then runs, data reduction, events, repositories and snapshots.")
        .tags(["backstay", "backup"])
        .editable()
        .refresh("1m")
        .time("now-24h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name, label, query in (
        ("job", "Job", "label_values(backstay_build_info, job)"),
        ("vcenter", "vCenter", 'label_values(backstay_vms{job=~"$job"}, vcenter)'),
        ("policy", "Policy", 'label_values(backstay_runs_total{job=~"$job"}, policy)'),
    ):
        made.with_variable(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query(query)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(text="All", value="$__all"))
        )
    ids = itertools.count(1)
    for title, panels in ROWS:
        made.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            made.with_panel(_panel(panel).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel | table.Panel:
    match panel:
        case Number():
            number = stat.Panel().title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit)
            number.thresholds(_steps(panel.steps)).color_mode(common_models.BigValueColorMode.VALUE)
            number.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
            return number.span(4).height(4).with_target(_query(panel.query, "A", instant=True))
        case Curve():
            curve = timeseries.Panel().title(panel.title).description(panel.description).datasource(SOURCE)
            curve.unit(panel.unit).span(12).height(8)
            if panel.stacked:
                curve.fill_opacity(30).stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
            for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
                curve.with_target(_query(query, letter, instant=False))
            return curve
        case Listing():
            listing = table.Panel().title(panel.title).description(panel.description).datasource(SOURCE)
            listing.unit(panel.unit).thresholds(_steps(panel.steps)).span(12).height(8)
            target = _query(panel.query, "A", instant=True).format(prometheus_models.PromQueryFormat.TABLE)
            return listing.with_target(target)


def _query(query: Query, letter: str, *, instant: bool) -> prometheus.Dataquery:
    made = prometheus.Dataquery().datasource(SOURCE).ref_id(letter).expr(query.expr)
    made = made.instant() if instant else made.range()
    return made.legend_format(query.legend) if query.legend else made


def _steps(steps: tuple[tuple[str, float | None], ...]) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(color=color, value=value) for color, value in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def main(write: Callable[[str], object] = sys.stdout.write) -> None:
    """Write the file."""
    FILE.write_text(build(), encoding="utf-8")
    write(f"{FILE}\n")


if __name__ == "__main__":
    main()
