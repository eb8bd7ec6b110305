"""A day of 100 VMs in the engine, recorded and simulated: the same decisions in the same order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from benchmarks._naive_simulation import line_of
from connectors.hypervisor import Cursor, EventBatch, InventoryUpdate
from engine.dispatch import Dispatcher
from engine.inbox import Happened, Inbox, Item, Rulings, Seen, Tick, Told
from engine.jobqueue import JobQueue
from engine.jobs import Job, JobId, JobState
from engine.needed import still_due
from engine.records import RunRow
from engine.state import State
from engine.threads import Threads
from engine.world import World
from policies.aftermath import changed_by
from policies.assumptions import Assumptions, rate_of
from policies.facts import Address, Event, EventType, Facts, PointId, RestorePoint, Vm, VmId
from policies.fleet import Dice
from policies.limits import Limits
from policies.loading import load_texts
from policies.policyset import PolicySet
from policies.recorded import Recorded
from policies.simulation import Simulation
from tests.pipeline.hypervisor_in_memory import Guest, HypervisorInMemory
from tests.pipeline.serving import served
from tests.pipeline.test_policy_plans import home

__all__ = ["home"]

START = datetime(2026, 11, 24, 6, tzinfo=UTC)
VMS = 100
STEP = timedelta(minutes=10)

POLICIES = """
schema = 1
[policy.everything]
rpo = "8h"
select.all = ["*"]
select.none = ["name:vm-*9"]

[policy.nightly]
priority = 5
schedule = ["30 21 * * *", "15 */6 * * *"]
timezone = "Europe/Berlin"
window = ["18:00-04:00", "11:00-13:30"]
select.any = ["name:vm-1*", "host:esx-2"]
[[policy.nightly.trigger]]
on = ["vm.migrated", "vm.relocated"]
settle = "8m"
cooldown = "5h"

[policy.follow]
priority = 3
select.all = ["name:*3"]
consistency = { want = "application", fallback = "filesystem" }
[[policy.follow.trigger]]
on = ["vm.powered_off", "vm.created"]
any_time = true
[[policy.follow.trigger]]
on = ["vm.renamed"]
settle = "30m"

[policy.few]
rpo = "2h"
priority = 9
select.all = ["name:vm-7*", "power:on"]
limits = { running = 2 }
"""


@dataclass
class Clock:
    at: datetime = START

    def __call__(self) -> datetime:
        return self.at


@dataclass
class Day:
    """The engine's dispatcher, world, state and queue under a virtual clock; workers only take their time."""

    policies: PolicySet
    hypervisor: HypervisorInMemory
    state: State
    threads: Threads
    assumed: Assumptions
    clock: Clock = field(default_factory=Clock)
    decided: list[tuple[str, ...]] = field(default_factory=list)
    running: list[tuple[datetime, int, Job, datetime]] = field(default_factory=list)
    given_up: int = 0
    coming: dict[Address, Guest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids, jobs = count(), count()
        self.world = World(mint=lambda: VmId(f"id-{next(ids):04}"), vcenters=1)
        self.queue = JobQueue(self.world, self.assumed.limits, self.clock, policies=lambda: self.policies)
        self.dispatcher = Dispatcher(
            world=self.world, state=self.state, threads=self.threads, inbox=Inbox(),
            hypervisors={self.hypervisor.vcenter: self.hypervisor}, policies=lambda: self.policies, now=self.clock,
            mint_job=lambda: JobId(f"job-{next(jobs):06}"),
        )  # fmt: skip
        self.begun = count()

    async def handle(self, item: Item) -> Rulings:
        rulings = await self.dispatcher.handle(item)
        for one in rulings:
            event = Event(one.decision.event_key, EventType.CLOCK, self.clock(), "")
            self.decided.append(line_of(event, one.decision))
        return rulings

    async def start(self) -> Facts:
        """The first sight of the inventory, and the clock with it."""
        present = tuple(await self.hypervisor.inventory())
        await self.handle(Seen(self.hypervisor.vcenter, InventoryUpdate(present, (), complete=True)))
        facts = Facts(START, dict(self.world.vms))
        await self.begin()
        return facts

    async def live(self, hours: float, happenings: list[tuple[datetime, Event]]) -> None:
        tick, end = START + self.assumed.tick, START + timedelta(hours=hours)
        while True:
            again = self.queue.line.ask_again(self.clock())
            times = [tick, *(one[0] for one in self.running[:1]), *(one[0] for one in happenings[:1])]
            self.clock.at = max(self.clock.at, min([*times, *([again] if again else [])]))
            if self.clock.at >= end:
                return
            while self.running and self.running[0][0] <= self.clock():
                self.finish(*self.running.pop(0)[2:])
            while happenings and happenings[0][0] <= self.clock():
                await self.happen(happenings.pop(0)[1])
            if tick <= self.clock():
                await self.handle(Tick(self.clock()))
                tick += self.assumed.tick
            await self.begin()

    async def happen(self, event: Event) -> None:
        """In the hypervisor first, then as an event of it."""
        assert event.address is not None
        if event.source == "api":
            await self.handle(Told(event))
            return
        if event.type is EventType.CREATED:
            self.hypervisor.guests[event.address] = self.coming.pop(event.address)
        guest = self.hypervisor.guests.get(event.address)
        if event.type is EventType.REMOVED and guest is not None:
            self.hypervisor.remove_vm(guest.vm)
        elif guest is not None:
            guest.vm = changed_by(guest.vm, event)
        cursor = Cursor(self.hypervisor.vcenter, self.clock(), len(self.decided))
        await self.handle(Happened(self.hypervisor.vcenter, EventBatch((event,), cursor)))

    async def begin(self) -> None:
        """Start what may start, as workers do."""
        while True:
            try:
                async with asyncio.timeout(0):
                    job = await self.queue.take()
            except TimeoutError:
                return
            vm = self.world.vms.get(job.vm)
            why = "gone" if vm is None else still_due(job, vm, self.policies, self.world.facts(self.clock()))
            if vm is None or why:
                self.world.set_job(replace(job, state=JobState.ABANDONED, last_error=why))
                self.world.forget_keys(job.id)
                self.given_up += 1
                continue
            points = self.world.points.get(job.vm)
            rate = rate_of(self.first[job.vm], (), self.assumed)
            read = rate.read_after(points[-1].taken_at if points else None, self.clock())
            doubts = self.state.distrust_of(job.vm)
            if doubts:
                read = rate.full_bytes
                self.state.settle(job, now=self.clock(), run=RunRow(job.vm), trusted=doubts)
            ends = self.clock() + self.assumed.run_overhead
            ends += timedelta(seconds=read / self.assumed.bytes_per_second)
            self.running.append((ends, next(self.begun), job, self.clock()))
            self.running.sort(key=lambda one: one[:2])

    @property
    def first(self) -> dict[VmId, Vm]:
        return {vm.id: vm for vm in self.world.vms.values()}

    def finish(self, job: Job, began: datetime) -> None:
        self.queue.took((self.clock() - began).total_seconds())
        self.world.set_job(replace(job, state=JobState.DONE))
        self.world.set_run(RunRow(job.vm, last_success=began, last_attempt=began))
        point = RestorePoint(
            PointId(f"{began:%Y%m%dT%H%M%S}-{job.vm}"), job.vm, "", began, consistency=job.consistency
        )  # fmt: skip
        self.world.set_points(job.vm, (*self.world.points.get(job.vm, ()), point))


@contextmanager
def a_day(root: Path) -> Iterator[Day]:
    hypervisor = HypervisorInMemory(root)
    for number in range(VMS):
        hypervisor.set(hypervisor.add(f"vm-{number}", mib=1, data=b"", host=f"esx-{number % 4}"), tags=frozenset())
    state, threads = State(root / "state", now=START), Threads()
    assumed = Assumptions(tick=STEP, limits=Limits(running=4, per_host=2), bytes_per_second=1000)
    try:
        yield Day(load_texts({"p.toml": POLICIES}), hypervisor, state, threads, assumed)
    finally:
        threads.close()
        state.close()


KINDS = (
    EventType.MIGRATED, EventType.MIGRATED, EventType.POWERED_OFF, EventType.POWERED_ON, EventType.RENAMED,
    EventType.RELOCATED, EventType.RECONFIGURED,
)  # fmt: skip


def a_days_events(
    hypervisor: HypervisorInMemory, hours: int, coming: dict[Address, Guest]
) -> list[tuple[datetime, Event]]:
    """Some 200 of all kinds; some at the same instant as a tick, some VMs removed, some made, some asked for."""
    vms = list(hypervisor.guests.values())
    happenings: list[tuple[datetime, Event]] = []
    for number in range(200):
        dice = Dice.of("day", number)
        vm = vms[dice.roll(len(vms))].vm
        at = START + timedelta(seconds=1 + dice.roll(hours * 3600 - 2))
        if number % 25 == 0:
            at = START + STEP * (1 + dice.roll(hours * 6 - 2))
        kind, detail, host = KINDS[dice.roll(len(KINDS))], {}, ""
        if kind is EventType.MIGRATED:
            host = f"esx-{dice.roll(4)}"
        if kind is EventType.RENAMED:
            detail = {"old_name": vm.name, "new_name": f"vm-{dice.roll(200)}x{dice.roll(10)}"}
        if kind is EventType.RELOCATED:
            detail = {"from_datastore": "ds-1", "to_datastore": f"ds-{dice.roll(3)}"}
        event = Event(
            f"vc:{number}", kind, at - timedelta(seconds=dice.roll(2)), "vcenter", None, vm.name, vm.address,
            "drs" if dice.roll(2) else "manual", vm.host, host, "", detail,
        )  # fmt: skip
        happenings.append((at, event))
        if number % 60 == 7:
            happenings.append((at + timedelta(hours=1), replace(event, key=f"gone:{number}", type=EventType.REMOVED)))
        if number % 50 == 9:
            asked = replace(event, key=f"ask:{number}", type=EventType.BACKUP_REQUESTED, source="api", user="ops")
            happenings.append((at + timedelta(minutes=1), asked))
        if number % 70 == 11:
            new = hypervisor.add(f"vm-new-{number}3", mib=1, data=b"")
            coming[new.address] = hypervisor.guests.pop(new.address)
            created = replace(event, key=f"new:{number}", type=EventType.CREATED, vm_name=new.name, address=new.address)
            happenings.append((at + timedelta(minutes=2), replace(created, to_host="", detail={})))
    return sorted(happenings, key=lambda one: (one[0], one[1].key))


async def test_the_engine_and_the_simulation_decide_the_same_over_a_recorded_day(tmp_path: Path) -> None:
    hours = 24
    with a_day(tmp_path) as day:
        happenings = a_days_events(day.hypervisor, hours, day.coming)
        facts = await day.start()
        await day.live(hours, happenings)
        recorded: list[Recorded] = []
        beyond: int | None = -1
        while beyond is not None:
            page, beyond = day.state.recorded(START, beyond)
            recorded += page
        assert len(recorded) > 250
        simulated: list[tuple[str, ...]] = []
        arriving = {id: vm for id, vm in day.world.vms.items() if id not in facts.vms}
        assert len(arriving) == 3
        simulation = Simulation(
            day.policies, facts, day.assumed, START + timedelta(hours=hours),
            arriving=arriving,
            ruled=lambda event, decision: simulated.append(line_of(event, decision)),
        )  # fmt: skip
        trace = simulation.run(recorded)
        assert simulated == day.decided
        kinds = {line[1] for line in simulated}
        assert kinds == {"BackUp", "Skip", "DistrustTracking", "Retire"}
        rules = {(line[3], line[4]) for line in simulated if line[1] == "BackUp"}
        assert {"rpo", "schedule", "trigger[0]", "trigger[1]", "request"} <= {rule for _, rule in rules}
        assert {"everything", "nightly", "follow", "few"} <= {policy for policy, _ in rules}
        assert trace.given_up == day.given_up > 0
        assert sum(trace.runs.values()) > 3 * VMS


@pytest.mark.parametrize("page", [1, 7, 5_000])
def test_the_journal_is_read_back_page_by_page(tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import replaying
    from engine.journal import Effect
    from engine.records import Change

    monkeypatch.setattr(replaying, "PAGE", page)
    events = [
        Event(f"k{number}", EventType.MIGRATED, START, "vc", VmId("v"), "n", None, "drs", "a", "b", "u", {"x": "y"})
        for number in range(7)
    ]
    state = State(tmp_path, now=START)
    state.apply(Change(effects=tuple(map(Effect, events[:2]))), now=START - timedelta(days=3))
    state.apply(Change(effects=tuple(map(Effect, events[2:]))), now=START + timedelta(seconds=2))
    found: list[Recorded] = []
    beyond: int | None = -1
    while beyond is not None:
        several, beyond = state.recorded(START, beyond)
        assert len(several) <= page
        found += several
    assert found == [Recorded(START + timedelta(seconds=2), event) for event in events[2:]]
    state.close()


async def test_a_running_engine_tells_its_journal_and_what_simulations_start_from(home: Path) -> None:
    async with served(home, "web-1", "web-2") as scene:
        vm = next(iter(scene.hypervisor.guests.values())).vm
        event = scene.hypervisor.post(vm, EventType.MIGRATED, cause="drs", from_host="esx-0", to_host="esx-1")
        await scene.engine.until_journaled({event.key})
        journal = await scene.command("policy", "journal")
        lines = [json.loads(line) for line in journal.out.splitlines()]
        assert event.key in [line["key"] for line in lines]
        told = (await scene.command("policy", "simulate", "--journal", "1d", "--days", "3", "--json")).data
        assert told["vms"] == 2
        assert told["events"] == len([line for line in lines if line["type"] != "clock"])
        assert (await scene.command("policy", "simulate", "--days", "3", "--json")).data["events"] == 0
