"""A vCenter of 1,000 VMs and its events: `python -m benchmarks.vsphere [--json] [--vms N] [--rate N] [--seconds N]`.

A real engine process follows the simulated vCenter over TLS. Measured are the time from the start of the process to
its first whole inventory, whether each event of the lab's own log is in the engine's journal once, how far behind the
journal is when the last event was posted, and how the engine's memory grows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.acceptance.engine_process import EngineProcess, engine_for
from tests.acceptance.test_events_take_effect_once import NORMALISED
from tests.lab.vcenter import MIB, Lab, start_lab

KINDS = (
    "VmReconfiguredEvent", "VmPoweredOnEvent", "VmPoweredOffEvent", "DrsVmMigratedEvent", "VmMigratedEvent",
    "VmRenamedEvent", "VmMessageEvent",
)  # fmt: skip
"""The last is one that Backstay has no name for: it is read and left out, as most of a real vCenter's are."""

POLICY = """
schema = 1
[policy.everything]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[[policy.everything.trigger]]
on = ["vm.migrated", "vm.powered_off"]
settle = "1h"
"""
"""Events lead to decisions and to jobs, whose runs do not start meanwhile."""

AT_ONCE = 10
"""So many events are posted together: a burst each twentieth of a second at 200 a second."""

TARGETS = {"first_inventory_s": "≤ 10", "events_lost": "0", "events_twice": "0"}


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. `posted_per_second` is what the lab managed; memory is the engine process's resident set."""

    vms: int
    first_inventory_s: float
    posted: int
    posted_per_second: float
    events: int
    events_lost: int
    events_twice: int
    behind_s: float
    rss_mib: float
    rss_growth_mib: float
    rss_growth_second_half_mib: float


def measure(directory: Path, *, vms: int, rate: int, seconds: float) -> Figures:
    """Start lab and engine below a directory, post events, and compare the journal with the lab's log."""
    with (
        start_lab(directory / "lab", vms=vms, disks_per_vm=1, disk_bytes=8 * MIB, content=False) as lab,
        engine_for(lab, directory / "engine", POLICY) as engine,
    ):
        before = {event.key for event in lab.event_log()}
        began = time.perf_counter()
        engine.launch()
        engine.until(lambda: _knows(engine, vms), seconds=120)
        inventory = time.perf_counter() - began
        engine.until(engine.follows)
        rss = [_rss_mib(engine)]
        chance = Random(1)
        spent = 0.0
        for _ in range(2):
            spent += _post(lab, chance, rate, seconds / 2)
            rss.append(_rss_mib(engine))
        posted = [event for event in lab.event_log() if event.key not in before]
        wanted = Counter(event.key for event in posted if event.type in NORMALISED)
        ended = time.perf_counter()
        engine.until(lambda: _journalled(engine) >= len(wanted), seconds=60)
        behind = time.perf_counter() - ended
        journal = _journal(engine)
        return Figures(
            vms, round(inventory, 2), len(posted), round(len(posted) / spent, 1), len(wanted),
            len(wanted - journal), sum(count - 1 for count in journal.values() if count > 1), round(behind, 2),
            round(rss[-1]), round(rss[-1] - rss[0], 1), round(rss[-1] - rss[1], 1),
        )  # fmt: skip


def _post(lab: Lab, chance: Random, rate: int, seconds: float) -> float:
    """Post events of random kinds for random VMs at an even rate; the seconds that it took."""
    morefs = [vm.moref for vm in lab.vms()]
    began = time.perf_counter()
    for n in range(int(rate * seconds / AT_ONCE)):
        time.sleep(max(0.0, began + n * AT_ONCE / rate - time.perf_counter()))
        order = {"type": chance.choice(KINDS), "vm": chance.choice(morefs), "user": "", "count": AT_ONCE}
        lab.process.order("/events/post", order)
    time.sleep(max(0.0, began + seconds - time.perf_counter()))
    return time.perf_counter() - began


def _knows(engine: EngineProcess, vms: int) -> bool:
    if not engine.api.listens():
        return False
    seen = engine.status()["vcenters"]
    return bool(seen) and seen[0]["inventory_at"] is not None and seen[0]["vms"] == vms


def _journalled(engine: EngineProcess) -> int:
    return int(engine.rows("SELECT count(*) AS many FROM events WHERE key LIKE 'vc:%'")[0]["many"])


def _journal(engine: EngineProcess) -> Counter[int]:
    rows = engine.rows("SELECT key FROM events WHERE key LIKE 'vc:%'")
    return Counter(int(row["key"].rpartition(":")[2]) for row in rows)


def _rss_mib(engine: EngineProcess) -> float:
    assert engine.process is not None
    for line in Path(f"/proc/{engine.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the kernel does not tell VmRSS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; figures are printed, never judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vsphere", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=200, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="backstay-vsphere-") as directory:
        figures = measure(Path(directory), vms=options.vms, rate=options.rate, seconds=options.seconds)
    if options.json:
        print(json.dumps(asdict(figures)))
        return 0
    for name, value in asdict(figures).items():
        print(f"{name:28} {value:>10}  {TARGETS.get(name, '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
