"""From what comes in to what is decided: resolve the VM, read it again, evaluate, journal, all effects in one write.

One loop handles one item at a time. Events are hints: the VM is re-read before any rule looks at it, and what the
inventory shows but no event told within a grace is made an event of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from connectors.errors import Busy, ConnectorError, Gone, Unreachable
from connectors.hypervisor import Cursor, EventBatch, InventoryUpdate
from connectors.vcenter_messages import echoed
from engine import echoes
from engine.drafting import Draft
from engine.inbox import Alone, Happened, Inbox, Item, Rulings, Seen, Tick, Told
from engine.jobs import Job, JobId, JobState
from engine.pauses import unhurried
from engine.ports import Hypervisor
from engine.reconcile import Suspicions, missed_events
from engine.records import VmRow
from engine.state import State
from engine.threads import Threads, settled
from engine.world import LOOK, World
from policies.decision import Decision, DistrustTracking, Requeue, Skip
from policies.evaluation import evaluate
from policies.facts import Address, Event, EventType, Vm, VmId
from policies.policyset import PolicySet
from storage.errors import StorageError

log = logging.getLogger("engine.dispatch")

READS_AT_ONCE = 8
READ_SECONDS = 30.0
"""How long the read of one VM may take: everything that happens waits behind it, in every vCenter."""

SWEEP_AT_ONCE = 500
"""VMs that the clock evaluates in one go: some 20 ms."""

BULK_READ = 32
"""From so many VMs on, one read of the whole inventory is cheaper than one per VM."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What the dispatcher tells about its work, for metrics. Each call must be quick."""

    event: Callable[[Event, bool], None] = lambda event, reconciled: None
    gap: Callable[[str, str], None] = lambda vcenter, why: None
    distrusted: Callable[[Event], None] = lambda event: None
    inventoried: Callable[[bool], None] = lambda first: None
    """A vCenter's whole inventory was taken over, for the first time since the start or again."""


@dataclass(slots=True)
class Dispatcher:
    """The loop and what it needs. `jobs_changed` wakes the job queue."""

    world: World
    state: State
    threads: Threads
    inbox: Inbox
    hypervisors: Mapping[str, Hypervisor]
    policies: Callable[[], PolicySet]
    now: Callable[[], datetime]
    mint_job: Callable[[], JobId]
    jobs_changed: Callable[[], None] = lambda: None
    given_up: Callable[[Job], None] = lambda job: None
    """Told of each job that an event gave up before it ran."""
    called_back: Callable[[Requeue], None] = lambda decision: None
    """Told of each run that is to give way."""
    noted: Noted = field(default_factory=Noted)
    reconcile_grace: timedelta = timedelta(seconds=30)
    standing: dict[VmId, Decision] = field(default_factory=dict)
    """The latest answer of the clock for each VM, for `explain`."""
    suspicions: Suspicions = field(default_factory=Suspicions)
    missed: Counter[str] = field(default_factory=Counter)
    """By type, the events that only comparing with the inventory has found since the start."""
    _new: dict[str, bool] = field(default_factory=dict)
    """Of each vCenter whether its inventory was never seen; see `_first_contact`."""
    _unwritten: dict[VmId, VmRow] = field(default_factory=dict)
    """Rows of the identity table that the world holds and a failed write did not take."""
    _draft_in_hand: Draft = field(init=False)

    def __post_init__(self) -> None:
        self._draft_in_hand = Draft(self.world, self.now(), self.mint_job)

    async def run(self) -> None:
        """Handle items for ever. An error of the edges goes to who sent the item, who tries again."""
        while True:
            item, handled = await self.inbox.get()
            try:
                rulings = await self.handle(item)
            except (ConnectorError, StorageError) as error:
                self._draft_in_hand.undo()
                self._unwritten.update(self._draft_in_hand.rows)
                self.suspicions.look(self.world, self._draft_in_hand.explained, self.now())
                if not handled.done():
                    handled.set_exception(error)
            else:
                if not handled.done():
                    handled.set_result(rulings)

    async def recall(self) -> None:
        """Make the world from what the state holds; before anything runs."""
        self.world.load(await settled(self.threads.state, self.state.recall, self.now()))

    async def handle(self, item: Item) -> Rulings:
        """Let one item take effect."""
        match item:
            case Happened():
                return await self._happened(item.vcenter, item.batch)
            case Seen():
                return await self._seen(item.vcenter, item.update)
            case Told():
                return await self._told(item.event)
            case Tick():
                return await self._tick(item.at)
            case Alone():
                await item.work()
                return ()

    def joined(self, old: VmId, new: VmId) -> None:
        """The VM that was known as `new` is known as `old` from now on; from within `Alone` only."""
        self._unwritten.pop(new, None)
        self.standing.pop(new, None)
        self.suspicions.noticed.pop(new, None)
        self.suspicions.look(self.world, [old], self.now())

    # events of a vCenter

    async def _happened(self, vcenter: str, batch: EventBatch) -> Rulings:
        now = self.now()
        await self._first_contact(vcenter)
        fresh = await self._fresh(batch.events)
        draft = self._draft(now)
        if batch.gap:
            log.warning("gap in the events", extra={"vcenter": vcenter, "why": batch.gap})
            self.noted.gap(vcenter, batch.gap)
        await self._read_again(vcenter, echoes.addresses(self.world, vcenter, fresh), draft)
        told = await settled(self.threads.state, self.state.known_keys, [echoes.echo_of(e) for e in fresh])
        async for event in unhurried(fresh):
            if not echoes.about_nothing(self.world, event):
                self._decide(self._resolved(event), draft, echo=echoes.echo_of(event) in told)
        if not (batch.events or batch.gap):
            self.suspicions.caught_up(vcenter, now)
        await self._commit(draft, batch.cursor)
        return _rulings(draft)

    async def _fresh(self, events: Sequence[Event]) -> list[Event]:
        keys = [key for event in events for key in (event.key, echoed(event.key)) if key]
        known = await settled(self.threads.state, self.state.known_keys, keys)
        return list({e.key: e for e in events if e.key not in known and echoed(e.key) not in known}.values())

    async def _read_again(self, vcenter: str, addresses: set[Address], draft: Draft) -> None:
        """Bring the world up to date about these addresses."""
        hypervisor = self.hypervisors.get(vcenter)
        if hypervisor is None or not addresses:
            return
        async for address, vm in unhurried((await _read(hypervisor, addresses)).items()):
            if vm is None:
                draft.row(self.world.leave(address, draft.now))
            else:
                await self._sight(vm, draft)

    async def _sight(self, seen: Vm, draft: Draft) -> Vm:
        for suspect in self.world.suspects(seen):
            address = self.world.vms[suspect].address
            if await self._is_gone(address):
                draft.row(self.world.leave(address, draft.now))
        sighting = self.world.sight(seen, draft.now)
        draft.row(sighting.row)
        if sighting.displaced is not None:
            draft.row(sighting.displaced)
            self.suspicions.look(self.world, [sighting.displaced.id], draft.now)
        if sighting.alert:
            draft.alert(sighting.vm.id, sighting.alert)
            log.warning("identity in doubt", extra={"vm": seen.name, "why": sighting.alert})
        return sighting.vm

    async def _is_gone(self, address: Address) -> bool:
        """Whether nothing stands there any more; not so where nobody can tell: one vCenter never waits for another."""
        hypervisor = self.hypervisors.get(address.vcenter)
        try:
            return hypervisor is not None and (await _read(hypervisor, {address}))[address] is None
        except ConnectorError as error:
            log.warning("not told whether a VM is still there", extra={"vm": address.moref, "why": str(error)})
            return False

    def _resolved(self, event: Event) -> Event:
        if event.vm is not None:
            return event
        if event.address is not None:
            return replace(event, vm=self.world.book.at(event.address))
        named = echoes.named(self.world, event)
        return replace(event, vm=named[0]) if len(named) == 1 else event

    def _decide(self, event: Event, draft: Draft, *, reconciled: bool = False, echo: bool = False) -> None:
        if event.vm is not None and event.type is EventType.REMOVED and event.vm in self.world.vms:
            # A hint that was overtaken: the inventory shows the VM.
            decisions: Iterable[Decision] = (
                Skip(event.vm, "", "", "it is in the inventory again: nothing to retire", event.key),
            )
        else:
            decisions = evaluate(self.policies(), event, self.world.facts(draft.now))
        if echo:
            decisions = echoes.what_is_new(event, decisions)
        draft.take(event, decisions, reconciled=reconciled)
        if event.vm is not None:
            draft.explains(event.vm)
            if event.type is EventType.REMOVED:
                draft.row(self.world.account_gone(event.vm))
            elif event.type in LOOK:
                draft.row(self.world.account(event.vm, LOOK[event.type]))

    # inventory

    async def _seen(self, vcenter: str, update: InventoryUpdate) -> Rulings:
        now = self.now()
        first = update.complete and await self._first_contact(vcenter)
        known = vcenter in self.world.complete
        if update.complete and known:
            update = await self._confirmed(vcenter, update)
        draft = self._draft(now)
        touched: set[VmId] = set()
        for address in update.left:
            row = self.world.leave(address, now)
            draft.row(row)
            if row is not None:
                touched.add(row.id)
        if update.complete:
            here = {vm.address for vm in update.present}
            for address in [a for a in self.world.standing_in(vcenter) if a not in here]:
                row = self.world.leave(address, now)
                draft.row(row)
                if row is not None:
                    touched.add(row.id)
        async for seen in unhurried(update.present):
            vm = await self._sight(seen, draft)
            touched.add(vm.id)
            if first:
                draft.row(self.world.account_all(vm.id))
        if update.complete:
            self.world.complete[vcenter] = now
        async for id in unhurried(touched):
            self.suspicions.look(self.world, [id], now)
        await self._commit(draft)
        if not update.complete:
            return ()
        self._new[vcenter] = False
        self.jobs_changed()
        rulings = await self._tick(now)  # what a start finds due shall not wait for the clock
        self.noted.inventoried(not known)
        return rulings

    async def _confirmed(self, vcenter: str, update: InventoryUpdate) -> InventoryUpdate:
        """A whole inventory, with what differs from the world read again: events may have overtaken it on its way."""
        present = {vm.address: vm for vm in update.present}
        doubtful = {vm.address async for vm in unhurried(update.present) if self.world.differs(vm)}
        doubtful |= set(self.world.standing_in(vcenter)) - present.keys()
        hypervisor = self.hypervisors.get(vcenter)
        if hypervisor is None or not doubtful:
            return update
        again = await _read(hypervisor, doubtful)
        found = {address: vm for address, vm in (present | again).items() if vm is not None}
        return replace(update, present=tuple(found.values()))

    async def _first_contact(self, vcenter: str) -> bool:
        """Whether this vCenter was never followed: what stands there now then needs no event to explain it.

        Asked before the first cursor is written, which may be before the inventory is known.
        """
        if vcenter not in self._new:
            addresses = (row.traits.address for row in self.world.rows.values())
            known = any(address is not None and address.vcenter == vcenter for address in addresses)
            self._new[vcenter] = not known or await settled(self.threads.state, self.state.cursor, vcenter) is None
        return self._new[vcenter]

    # requests and the clock

    async def _told(self, event: Event) -> Rulings:
        now = self.now()
        if not await self._fresh([event]):
            return ()
        draft = self._draft(now)
        event = self._resolved(event)
        known = None if event.vm is None else self.world.vms.get(event.vm)
        address = known.address if known is not None else event.address
        if event.type is EventType.HOLD_REQUESTED and event.vm is not None:
            known, address = None, None  # a hold is about restore points: it waits for no vCenter
        elif known is None and not self.world.inventory_known:
            raise Busy("the inventory is not known yet", where=event.vm_name or str(event.vm), hint="try again later")
        if address is not None:
            await self._read_again(address.vcenter, {address}, draft)
        self._decide(self._resolved(event), draft)
        await self._commit(draft)
        return _rulings(draft)

    async def _tick(self, now: datetime) -> Rulings:
        draft = self._draft(now)
        draft.bring_forward()
        for event in missed_events(self.world, self.suspicions, now, self.reconcile_grace):
            self._decide(event, draft, reconciled=True)
            self.missed[event.type.value] += 1
        clock = Event(key=f"clock:{now:%Y%m%dT%H%M%S.%fZ}", type=EventType.CLOCK, at=now, source="clock")
        decisions = await self._sweep(clock, now)
        self.standing = {d.vm: d for d in decisions if d.vm is not None}
        due = [d for d in decisions if not isinstance(d, Skip) and getattr(d, "key", "") not in self.world.job_keys]
        rulings = [draft.rule(decision, clock) async for decision in unhurried(due)]
        if rulings:
            draft.note(clock, rulings)
        await self._commit(draft)
        return _rulings(draft)

    async def _sweep(self, clock: Event, now: datetime) -> list[Decision]:
        """What the clock says of every VM, with room for other work between some hundreds of them."""
        vms = list(self.world.vms.items())
        decisions: list[Decision] = []
        for start in range(0, len(vms), SWEEP_AT_ONCE):
            some = dict(vms[start : start + SWEEP_AT_ONCE])
            decisions += evaluate(self.policies(), clock, replace(self.world.facts(now), vms=some))
            await asyncio.sleep(0)
        return decisions

    def _draft(self, now: datetime) -> Draft:
        self._draft_in_hand = Draft(self.world, now, self.mint_job, rows=dict(self._unwritten))
        return self._draft_in_hand

    async def _commit(self, draft: Draft, cursor: Cursor | None = None) -> None:
        if draft.empty and cursor is None:
            return
        await settled(self.threads.state, self.state.apply, draft.change(cursor), now=draft.now)
        self._unwritten.clear()
        for effect in draft.effects:
            self.noted.event(effect.event, effect.reconciled)
            for ruling in effect.rulings:
                if isinstance(ruling.decision, DistrustTracking):
                    self.noted.distrusted(effect.event)
                elif isinstance(ruling.decision, Requeue):
                    self.called_back(ruling.decision)
        for job in draft.jobs.values():
            if job.state is JobState.ABANDONED:
                self.given_up(job)
        if draft.jobs:
            self.jobs_changed()


def _rulings(draft: Draft) -> Rulings:
    return tuple(ruling for effect in draft.effects for ruling in effect.rulings)


async def _read(hypervisor: Hypervisor, addresses: set[Address]) -> dict[Address, Vm | None]:
    """The VMs at these addresses now; None where there is none any more."""
    if len(addresses) >= BULK_READ:
        present = {vm.address: vm for vm in await hypervisor.inventory()}
        return {address: present.get(address) for address in addresses}
    found: dict[Address, Vm | None] = {}
    slots = asyncio.Semaphore(READS_AT_ONCE)

    async def one(address: Address) -> None:
        async with slots:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    found[address] = await hypervisor.vm(address)
            except Gone:
                found[address] = None
            except TimeoutError:
                raise Unreachable(f"a VM was not read within {READ_SECONDS:g} s", where=address.vcenter) from None

    failure: ConnectorError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for address in addresses:
                group.create_task(one(address))
    except* ConnectorError as errors:
        # Raised outside: before Python 3.11.4, what is raised in here is put into a group again.
        failure = first_connector_error(errors)
    if failure is not None:
        raise failure
    return {address: found[address] for address in addresses}


def first_connector_error(errors: BaseExceptionGroup[ConnectorError]) -> ConnectorError:
    """One error to tell for several of a kind."""
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, ConnectorError)
    return first
