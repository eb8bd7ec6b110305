"""The reference of all metrics as Markdown: `python -m metrics.reference > docs/metrics.md`."""

from __future__ import annotations

import sys

from metrics.labels import SeriesDoc
from metrics.registry import PREFIX, VM_SERIES_LIMIT, Metrics

INTRODUCTION = f"""# Metrics

This page is made from `metrics/registry.py`: `python -m metrics.reference > docs/metrics.md`.

`/metrics` answers in the classic text format, or as OpenMetrics where the scraper asks for it.
Times are seconds, sizes bytes, and points in time seconds since 1970 with 0 for never.
A label with values in the last column takes only these; `other` counts whatever is none of them.
VMs have series of their own up to {VM_SERIES_LIMIT:,} VMs; above that the VMs in trouble keep theirs, and
`{PREFIX}vm_series_dropped` tells how many have none.
The label `vm_id` is Backstay's own id of a VM, `vm` its name now.

The dashboard is `metrics/grafana/backstay.json`, the alert rules are `metrics/alerts/backstay.rules.yml`, and
[the runbook](runbook.md) says what to do when one fires.

| metric | kind | labels | meaning | values |
|---|---|---|---|---|
"""

OUTRO = f"""
`{PREFIX}process_*` are the figures of the engine's own process: memory, processor time, open files, start time.
"""


def reference() -> str:
    """The page."""
    return INTRODUCTION + "".join(_row(doc) for doc in Metrics().reference) + OUTRO


def _row(doc: SeriesDoc) -> str:
    labels = ", ".join(f"`{name}`" for name, _ in doc.labels)
    values = "; ".join(f"`{name}`: {', '.join(values)}" for name, values in doc.labels if values)
    return f"| `{PREFIX}{doc.name}` | {doc.kind} | {labels} | {doc.help} | {values} |\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
