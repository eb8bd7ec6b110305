"""Many VMs and many events a second at a whole engine. At full size: `python -m benchmarks.vsphere`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.vsphere import measure

VMS = 400
RATE = 200
SECONDS = 4.0


def test_the_first_inventory_comes_soon_and_no_event_is_lost_or_taken_twice(tmp_path: Path) -> None:
    figures = measure(tmp_path, vms=VMS, rate=RATE, seconds=SECONDS)
    assert figures.first_inventory_s <= 10
    assert figures.posted >= RATE * SECONDS
    assert (figures.events_lost, figures.events_twice) == (0, 0)
    assert figures.rss_growth_mib < 64
