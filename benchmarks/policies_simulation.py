"""How long a simulation takes: 10,000 VMs for 90 days, a goal of 24 h, an event a VM and day, GFS retention.

python -m benchmarks.policies_simulation [--json] [--vms N] [--days N] [--skip-naive]

The same case with 100 of the VMs is compared with a simulation that takes no short cut: every VM asked at every tick
of the clock, retention planned in full. All decisions, starts and expiries must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from benchmarks._naive_simulation import Naive, digest, line_of
from engine.simulating import simulate
from policies.aging import age
from policies.assumptions import Assumptions
from policies.facts import Facts, VmId
from policies.fleet import daily_events, synthetic_fleet
from policies.limits import Limits
from policies.loading import load_texts
from policies.recorded import Recorded
from policies.simulation import Simulation

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
LIMITS = Limits(running=32)
NAIVE_VMS = 100
NAIVE_TICK = timedelta(minutes=15)
"""The naive one asks every VM at every tick: with the engine's 30 s it would take a quarter of an hour."""

POLICIES = """
schema = 1
[policy.daily]
rpo = "24h"
select.all = ["*"]
[policy.daily.retention]
keep_daily = 14
keep_weekly = 8
keep_monthly = 12
keep_yearly = 3
"""

Figures = dict[str, float]


def _events(facts: Facts, days: int) -> Iterator[Recorded]:
    return (Recorded(event.at, event) for event in daily_events(facts, days, 1.0))


def simulate_seconds(vms: int = 10_000, days: int = 90) -> Figures:
    """The whole of it: runs, retention in two processes, and the report as data."""
    facts = synthetic_fleet(vms, now=NOW, points_each=1)
    policies = load_texts({"daily.toml": POLICIES})
    began, before = time.perf_counter(), sum(os.times()[:4])
    found = simulate(policies, facts, Assumptions(limits=LIMITS), NOW + timedelta(days=days), _events(facts, days))
    told = json.dumps(found.as_json())
    seconds = time.perf_counter() - began
    runs = sum(found.trace.runs.values())
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    return {
        "simulate_s": round(seconds, 2),
        "simulated runs": runs,
        "simulated events": found.trace.events,
        "restore points expired": sum(found.aged.expired),
        "simulate cpu_s": round(sum(os.times()[:4]) - before, 2),
        "simulate us a run": round(seconds / runs * 1e6, 1),
        "simulate peak MiB": round(peak),
        "simulate report MiB": round(len(told) / 2**20, 1),
    }


def compare(days: int = 90, vms: int = NAIVE_VMS) -> Figures:
    """The fast simulation against the naive one; AssertionError when they differ."""
    whole = synthetic_fleet(10_000, now=NOW, points_each=1)
    some = dict(list(whole.vms.items())[:vms])
    facts = replace(whole, vms=some, points={vm: whole.points[vm] for vm in some}, history={})
    policies = load_texts({"daily.toml": POLICIES})
    assumed, until = Assumptions(limits=LIMITS, tick=NAIVE_TICK), NOW + timedelta(days=days)
    events = list(_events(facts, days))
    began = time.perf_counter()
    naive = Naive(policies, facts, assumed, until)
    naive.run(events)
    naive_seconds = time.perf_counter() - began
    decided: list[Sequence[str]] = []
    expired: list[tuple[VmId, str, str]] = []
    began = time.perf_counter()
    trace = Simulation(policies, facts, assumed, until, ruled=lambda e, d: decided.append(line_of(e, d))).run(events)
    age(
        trace,
        dict.fromkeys([*trace.initial, *trace.made]),
        assumed,
        expired=lambda vm, point, at: expired.append((vm, point.taken_at.isoformat(), at.isoformat())),
    )
    fast_seconds = time.perf_counter() - began
    assert digest(decided) == digest(naive.decided), "the decisions differ from the naive simulation's"
    assert digest(sorted(expired)) == digest(sorted(naive.expired)), "the expiries differ from the naive simulation's"
    return {
        "simulate compared decisions": len(decided),
        "simulate compared expiries": len(expired),
        "simulate naive_s": round(naive_seconds, 2),
        "simulate fast_s": round(fast_seconds, 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Figures; they are printed, never judged, but for decisions that differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies_simulation", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--skip-naive", action="store_true")
    given = parser.parse_args(arguments)
    figures = simulate_seconds(given.vms, given.days)
    if not given.skip_naive:
        figures |= compare()
    if given.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:32} {figure:>14,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
