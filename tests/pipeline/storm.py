"""An event storm over a whole engine: thousands of VMs without disks, events at a rate, and how late the loop runs.

Also what `benchmarks.policies` measures. Backups do not start: the queue is paused, so that what waits can be counted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from connectors.hypervisor import Cursor, EventBatch, InventoryUpdate
from engine.garbage import keep_out_of_search
from engine.threads import settled
from policies.aftermath import changed_by
from policies.facts import Address, Event, EventType, Vm
from policies.fleet import synthetic_events, synthetic_fleet
from tests.pipeline.hypervisor_in_memory import Guest, HypervisorInMemory
from tests.pipeline.running import Running, configure, running

BUSY_HOST = "esx-000"
PERIOD = 0.005
"""Seconds that the loop is asked to sleep between two looks at how late it wakes us."""

POLICIES = """
schema = 1
[policy.tier]
priority = 10
rpo = "24h"
select.all = ["tag:backup=*"]
[policy.moves]
select.all = ["*"]
[[policy.moves.trigger]]
on = ["vm.migrated", "vm.powered_off"]
settle = "10m"
[[policy.moves.trigger]]
on = "vm.renamed"
"""

MOST_AT_ONCE = 1000
"""Events in one batch, as a vCenter's collector gives them."""


class StormHypervisor(HypervisorInMemory):
    """VMs without disk files. Events come in batches as they were posted."""

    handled = 0

    def __init__(self, directory: Path, vcenter: str = "vc-1") -> None:
        super().__init__(directory, vcenter)
        self._touched: dict[Address, Vm] = {}
        self.evacuated: list[Address] = []

    def populate(self, vms: int, on_busy_host: int) -> None:
        """A synthetic fleet; so many of it on one host."""
        fleet = synthetic_fleet(vms, now=datetime.now(UTC))
        for number, vm in enumerate(fleet.vms.values()):
            host = BUSY_HOST if number < on_busy_host else vm.host if vm.host != BUSY_HOST else "esx-001"
            address = replace(vm.address, vcenter=self.vcenter)
            self.guests[address] = Guest(replace(vm, address=address, host=host), {})

    def happen(self, event: Event, vm: Vm) -> Event:
        """The VM changes as the event says, and the event is told."""
        guest = self.guests[vm.address]
        guest.vm = changed_by(guest.vm, event)
        self._touched[vm.address] = guest.vm
        key = f"vc:{self.vcenter}:{len(self.sent) + 1}"
        told = replace(event, key=key, source="vcenter", vm=None, address=vm.address, at=datetime.now(UTC))
        self.sent.append(told)
        return told

    async def watch(self) -> AsyncIterator[InventoryUpdate]:
        yield InventoryUpdate(tuple(guest.vm for guest in self.guests.values()), (), complete=True)
        while True:
            self._changed.clear()
            touched, self._touched = self._touched, {}
            if touched:
                yield InventoryUpdate(tuple(touched.values()), (), complete=False)
            await self._changed.wait()

    async def events(self, cursor: Cursor | None) -> AsyncIterator[EventBatch]:
        reached = cursor.key if cursor is not None else 0
        while True:
            some = self.sent[reached : reached + MOST_AT_ONCE]
            reached += len(some)
            yield EventBatch(tuple(some), Cursor(self.vcenter, datetime.now(UTC), reached))
            self.handled = reached  # the engine asks for more when the effect is written
            if reached == len(self.sent):
                await asyncio.sleep(0.05)


@dataclass
class Lag:
    """How late a loop woke a task that slept, in seconds.

    `own` leaves out what the machine is to blame for: no wait was longer than this process computed meanwhile.
    """

    found: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before, computed = loop.time(), time.process_time()
            await asyncio.sleep(PERIOD)
            late = loop.time() - before - PERIOD
            self.found.append(late)
            self.own.append(min(late, time.process_time() - computed))


def share(found: Sequence[float], part: float) -> float:
    """The lag that so large a part of all looks did not exceed."""
    ordered = sorted(found)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


@asynccontextmanager
async def lag_of_loop() -> AsyncIterator[Lag]:
    """How late this loop runs meanwhile."""
    lag = Lag()
    watching = asyncio.ensure_future(lag.watch())
    try:
        yield lag
    finally:
        watching.cancel()


@contextmanager
def lag_of_machine() -> Iterator[Lag]:
    """How late a process wakes meanwhile that does nothing else: what the machine alone is to blame for."""
    lag = Lag()
    code = (
        "import sys, time, select\n"
        "while not select.select([sys.stdin], [], [], 0)[0]:\n"
        f"    before = time.monotonic(); time.sleep({PERIOD})\n"
        f"    print(time.monotonic() - before - {PERIOD})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            yield lag
        finally:
            lag.found += map(float, other.communicate()[0].split())


def resident_bytes() -> int:
    """The memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Blown:
    """What a storm did."""

    sent: int
    journaled: list[str]
    undecided: int
    jobs: list[tuple[str, str]]
    """VM and rule of each job that there is."""
    lag: Lag
    machine: Lag
    behind_seconds: float
    """How long after the last event the journal had it."""
    grown_bytes: int
    most_waiting: int


@asynccontextmanager
async def paused_engine(root: Path, hypervisor: StormHypervisor) -> AsyncIterator[Running]:
    """An engine that knows the whole fleet and starts nothing."""
    config, before = configure(root, POLICIES), gc.get_threshold()
    keep_out_of_search()
    async with running(root, hypervisor, config, grace=30.0) as engine:
        engine.parts.queue.paused = True
        # As `run_service` does it.
        engine.parts.dispatcher.noted = replace(engine.parts.dispatcher.noted, inventoried=keep_out_of_search)
        await engine.until(lambda: len(engine.parts.world.vms) == len(hypervisor.guests), seconds=60)
        await engine.until(lambda: engine.parts.dispatcher.standing, seconds=60)
        try:
            yield engine
        finally:
            gc.unfreeze()
            gc.set_threshold(*before)


async def blow(engine: Running, hypervisor: StormHypervisor, per_second: int, seconds: float) -> Blown:
    """So many events a second, and in the third second a host that enters maintenance mode."""
    fleet = synthetic_fleet(len(hypervisor.guests), now=engine.parts.now())
    events = list(synthetic_events(fleet, per_second, seconds))
    keep_out_of_search()  # what this test itself holds
    before, most = resident_bytes(), 0
    with lag_of_machine() as machine:
        async with lag_of_loop() as lag:
            most = await _post(engine, hypervisor, events, per_second)
            last = time.monotonic()
            await engine.until(lambda: hypervisor.handled == len(hypervisor.sent), seconds=60)
            behind = time.monotonic() - last
    parts = engine.parts
    [undecided, jobs] = await settled(parts.threads.state, _written, engine)
    return Blown(
        sent=len(hypervisor.sent),
        journaled=await settled(parts.threads.state, parts.state.event_keys, "vcenter"),
        undecided=undecided,
        jobs=jobs,
        lag=lag,
        machine=machine,
        behind_seconds=behind,
        grown_bytes=resident_bytes() - before,
        most_waiting=most,
    )


async def _post(engine: Running, hypervisor: StormHypervisor, events: Sequence[Event], per_second: int) -> int:
    vms = {vm.name: vm for vm in (guest.vm for guest in hypervisor.guests.values())}
    leaving = [guest.vm for guest in hypervisor.guests.values() if guest.vm.host == BUSY_HOST]
    began, most = time.monotonic(), 0
    for number, event in enumerate(events):
        hypervisor.happen(event, vms[event.vm_name])
        if number == 2 * per_second:
            for vm in leaving:
                away = replace(event, type=EventType.MIGRATED, cause="maintenance", vm_name=vm.name, detail={})
                hypervisor.happen(replace(away, from_host=BUSY_HOST, to_host="esx-002"), vm)
                hypervisor.evacuated.append(vm.address)
        if number % 20 == 0:
            hypervisor.tell_watchers()
            most = max(most, len(engine.parts.inbox))
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
    return most


def _written(engine: Running) -> tuple[int, list[tuple[str, str]]]:
    state = engine.parts.state
    undecided = state.table(
        "SELECT count(*) AS n FROM events WHERE source = 'vcenter' AND key NOT IN (SELECT event_key FROM decisions)"
    ).to_pylist()
    jobs = state.table("SELECT vm, rule FROM jobs").to_pylist()
    return undecided[0]["n"], [(row["vm"], row["rule"]) for row in jobs]
