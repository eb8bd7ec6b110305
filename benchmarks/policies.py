"""Policies at 10,000 VMs and 200 policies: events to decisions, all VMs anew, plans, simulation, event storms.

python -m benchmarks.policies [--json] [--only PART] [--vms N] [--policies N]

Each part runs in a process of its own. Of the events 30 % are of a kind that no policy names, and 20 % change which
policies select the VM; every decision is compared with a second, plain evaluation.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._naive_policies import Said, naive_decisions
from benchmarks.policies_simulation import compare, simulate_seconds
from engine.garbage import keep_out_of_search
from policies.aftermath import changed_by
from policies.decision import BackUp, Decision
from policies.evaluation import evaluate
from policies.facts import Event, EventType, Facts, Vm, VmId
from policies.fleet import synthetic_events, synthetic_fleet, synthetic_policies
from policies.forecast import plan
from policies.limits import Limits
from policies.line import Line
from policies.loading import load_texts
from policies.planwords import plan_words
from policies.policyset import PolicySet
from tests.pipeline.storm import Blown, StormHypervisor, blow, paused_engine, share

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
EVENTS = 100_000
ARRIVING = 20_000
"""Events a second when the time from an event's arrival to its decision is measured."""

ROUNDS = 3
"""So often the events come; the round that others on the machine disturbed least counts."""

CHECKED = 5_000
"""Events of which each decision is compared; spread over all."""

POINTS = 14

Figures = dict[str, float]

TARGETS = {
    "events_per_second": "≥ 20000",
    "p99_ms": "≤ 5",
    "reevaluate_s": "≤ 1",
    "plan_s": "≤ 15",
    "simulate_s": "≤ 60",
    "storm_lag_p99_ms": "≤ 100",
}


def _world(vms: int, count: int) -> tuple[Facts, PolicySet]:
    facts = synthetic_fleet(vms, now=NOW, points_each=POINTS)
    return replace(facts, vms=dict(facts.vms), fired={}), load_texts({"all.toml": synthetic_policies(count)})


def _said(decisions: Sequence[Decision]) -> list[Said]:
    return [
        (type(one).__name__, getattr(one, "policy", ""), getattr(one, "rule", ""), getattr(one, "not_before", None))
        for one in decisions
    ]


# --- the parts ---


def _events(vms: int, count: int) -> Figures:
    """As fast as possible for the rate, then as they come for the time of each; the inventory is read beforehand."""
    facts, policies = _world(vms, count)
    found: Figures = {}
    happened = _with_vms(facts, EVENTS, seed=1)
    arriving = _with_vms(facts, EVENTS, seed=2)
    keep_out_of_search()  # as an engine does with what it has loaded
    began = time.perf_counter()
    kinds = _decide_all(policies, facts, happened)
    seconds = time.perf_counter() - began
    found["events_per_second"] = round(len(happened) / seconds)
    found["decisions"] = sum(kinds.values())
    found["backups decided"] = kinds["BackUp"]
    waits = min((_as_they_come(policies, facts, arriving) for _ in range(ROUNDS)), key=lambda one: share(one, 0.99))
    for name, part in (("p50_ms", 0.50), ("p99_ms", 0.99), ("p999_ms", 0.999)):
        found[name] = round(share(waits, part) * 1000, 4)
    found["longest_ms"] = round(max(waits) * 1000, 3)
    found["checked"] = _checked(policies, facts, _with_vms(facts, EVENTS, seed=3))
    return found


def _with_vms(facts: Facts, number: int, seed: int) -> list[tuple[Event, Vm]]:
    """Events with their VM as the inventory shows it after each."""
    vms = dict(facts.vms)
    happened = []
    for event in synthetic_events(facts, ARRIVING, number / ARRIVING, seed):
        assert event.vm is not None
        vms[event.vm] = changed_by(vms[event.vm], event)
        happened.append((event, vms[event.vm]))
    return happened


Fired = dict[tuple[str, str, VmId], datetime]


def _decide(policies: PolicySet, facts: Facts, event: Event, vm: Vm, fired: Fired) -> tuple[Decision, ...]:
    assert isinstance(facts.vms, dict), "a table that changes, as the engine's is"
    facts.vms[vm.id] = vm
    decisions = evaluate(policies, event, replace(facts, now=event.at))
    for one in decisions:
        if isinstance(one, BackUp):
            fired[one.policy, one.rule, one.vm] = event.at
    return decisions


def _decide_all(policies: PolicySet, facts: Facts, happened: Sequence[tuple[Event, Vm]]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    fired: Fired = {}
    facts = replace(facts, fired=fired)
    for event, vm in happened:
        for one in _decide(policies, facts, event, vm, fired):
            kinds[type(one).__name__] += 1
    return kinds


def _as_they_come(policies: PolicySet, facts: Facts, happened: Sequence[tuple[Event, Vm]]) -> list[float]:
    """The seconds from each event's arrival to its decision, at a steady rate of arrivals.

    Who waits for the next event sleeps, as an engine does: one that keeps its core busy is interrupted for longer.
    """
    fired: Fired = {}
    facts = replace(facts, fired=fired)
    waits = []
    began = time.perf_counter()
    for number, (event, vm) in enumerate(happened):
        arrives = began + number / ARRIVING
        early = arrives - time.perf_counter()
        if early > 0:
            time.sleep(early)
        _decide(policies, facts, event, vm, fired)
        waits.append(time.perf_counter() - arrives)
    return waits


def _checked(policies: PolicySet, facts: Facts, happened: Sequence[tuple[Event, Vm]]) -> int:
    """How many events were compared; the first difference ends the run."""
    fired: Fired = {}
    facts = replace(facts, fired=fired)
    every = max(1, len(happened) // CHECKED)
    for number, (event, vm) in enumerate(happened):
        plain = None
        if number % every == 0:
            plain = naive_decisions(policies.policies, event, vm, fired, event.at)
        said = _said(_decide(policies, facts, event, vm, fired))
        if plain is not None and plain != said:
            raise SystemExit(f"{event}\nof {vm.name}: {said}, and plainly {plain}")
    return len(range(0, len(happened), every))


def _reevaluate(vms: int, count: int) -> Figures:
    """The clock asks for every VM: right after the policies were loaded, and once more."""
    facts, _ = _world(vms, count)
    took = []
    for _ in range(3):
        policies = load_texts({"all.toml": synthetic_policies(count)})
        gc.collect()
        for number in range(2):
            clock = Event(f"clock:{number}", EventType.CLOCK, NOW + timedelta(minutes=number), "clock")
            began = time.perf_counter()
            decisions = evaluate(policies, clock, replace(facts, now=clock.at))
            took.append(time.perf_counter() - began)
            assert len(decisions) == vms
    return {"reevaluate_s": round(max(took[0::2]), 3), "reevaluate again_s": round(max(took[1::2]), 3)}


def _plan(vms: int, count: int) -> Figures:
    """A change of retention and selection against 100 restore points each, and what a person reads of it."""
    facts = synthetic_fleet(vms, now=NOW, points_each=100)
    text = synthetic_policies(count)
    old = load_texts({"all.toml": text})
    began = time.perf_counter()
    new = load_texts(
        {"all.toml": text.replace("keep_daily = 14", "keep_daily = 10").replace("name:*-scratch", "host:esx-001")}
    )
    found = plan(old, new, facts)
    words = plan_words(found)
    seconds = time.perf_counter() - began
    return {
        "plan_s": round(seconds, 2),
        "plan: VMs that change": len(found.reload.vms),
        "plan: restore points that would expire": len(found.reload.expiring),
        "plan: lines of text": words.count("\n"),
    }


def _simulate(vms: int, count: int) -> Figures:
    return simulate_seconds(vms) | compare()


def _admission(vms: int, count: int) -> Figures:
    """Everything is due at once, as after an outage: what each start costs, however many wait."""
    facts = synthetic_fleet(vms, now=NOW)
    chance = Random(1)
    due = [
        BackUp(
            f"{vm}", vm, f"p{chance.randrange(count)}", "rpo", "due", NOW, _in(chance.randrange(-600, 600)), number % 4
        )
        for number, vm in enumerate(facts.vms)
    ]
    line = Line(Limits(running=8), facts.vms)
    line.advance(NOW)
    began = time.perf_counter()
    for one in due:
        line.add(one)
    added = time.perf_counter()
    now, ends, longest, starts = NOW, list[tuple[datetime, VmId]](), 0.0, 0
    while len(line):
        before = time.perf_counter()
        run = line.start(now)
        longest = max(longest, time.perf_counter() - before)
        if run is not None:
            starts += 1
            heappush(ends, (now + timedelta(seconds=chance.randrange(60, 600)), run.vm))
        else:
            now, vm = heappop(ends)
            line.finished(vm)
    seconds = time.perf_counter() - added
    assert starts == vms
    return {
        "admission: µs to join the line": round((added - began) / vms * 1e6, 1),
        "admission: µs a start": round(seconds / vms * 1e6, 1),
        "admission: longest start (ms)": round(longest * 1000, 2),
    }


def _in(minutes: int) -> datetime:
    return NOW + timedelta(minutes=minutes)


def _storm(vms: int, count: int) -> Figures:
    """A whole engine, its state included, under 2,000 events a second for 10 s; 500 VMs leave one host meanwhile."""

    async def measured(root: Path) -> Blown:
        hypervisor = StormHypervisor(root)
        hypervisor.populate(vms, on_busy_host=min(vms, 500))
        async with paused_engine(root, hypervisor) as engine:
            return await blow(engine, hypervisor, per_second=2_000, seconds=10)

    with TemporaryDirectory() as folder:
        logging.disable()
        blown = asyncio.run(measured(Path(folder)))
    assert len(blown.journaled) == len(set(blown.journaled)) == blown.sent and not blown.undecided
    assert max(Counter(blown.jobs).values()) == 1
    return {
        "storm_lag_p50_ms": round(share(blown.lag.found, 0.5) * 1000, 1),
        "storm_lag_p99_ms": round(share(blown.lag.found, 0.99) * 1000, 1),
        "storm_lag_longest_ms": round(max(blown.lag.found) * 1000, 1),
        "storm: the machine's own lag, p99 (ms)": round(share(blown.machine.found, 0.99) * 1000, 1),
        "storm: events": blown.sent,
        "storm: jobs": len(blown.jobs),
        "storm: last event in the journal after (s)": round(blown.behind_seconds, 2),
        "storm: memory grown (MiB)": round(blown.grown_bytes / 2**20),
    }


PARTS: dict[str, Callable[[int, int], Figures]] = {
    "events": _events,
    "reevaluate": _reevaluate,
    "admission": _admission,
    "storm": _storm,
    "plan": _plan,
    "simulate": _simulate,
}


def measure(parts: Sequence[str], vms: int, count: int) -> Figures:
    """The figures of these parts, each in a process of its own."""
    figures: Figures = {}
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.policies", "--part", part]
        done = subprocess.run(
            [*command, "--vms", str(vms), "--policies", str(count)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"part {part} ended with {done.returncode}")
        figures |= json.loads(done.stdout)
    return figures


def _show(figures: Figures) -> None:
    for name, value in figures.items():
        target = f"   (target {TARGETS[name]})" if name in TARGETS else ""
        print(f"{name:40} {value:>14,.6g}{target}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table or JSON; figures are never judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=200)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="measure these parts alone")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(PARTS[options.part](options.vms, options.policies)))
        return 0
    figures = measure(options.only or list(PARTS), options.vms, options.policies)
    if options.json:
        print(json.dumps(figures))
    else:
        _show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
