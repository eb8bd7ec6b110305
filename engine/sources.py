"""The loops that bring in what happens: vCenter events, the inventory, the bus, the clock, policy files.

Each hands its items to the inbox and goes on when they have taken effect; an error of the edges is waited out, so a
vCenter or a bus that is away stops nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from connectors.errors import BadMessage, ConnectorError
from connectors.hypervisor import EventBatch, InventoryUpdate
from connectors.messages import RefusedMessage, Unrelated, parse
from engine.inbox import Happened, Inbox, Seen, Tick, Told
from engine.ports import Bus, BusMessage, Hypervisor
from engine.rulebook import Rulebook
from engine.state import State
from engine.threads import Threads, settled
from metrics.registry import Metrics
from policies.units import counted
from storage.errors import StorageError

log = logging.getLogger("engine.sources")

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two tries of a source that fails; doubled each time."""


WRONG_CLOCK = timedelta(minutes=10)
"""From this difference between our clock and a vCenter's on, one of them is wrong, and nothing is removed by age."""


@dataclass(slots=True)
class Patience:
    """How long to wait after a failure."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    seconds: float = FIRST_PAUSE

    async def wait(self) -> None:
        """Wait, and longer the next time."""
        await self.sleep(self.seconds)
        self.seconds = min(self.seconds * 2, LONGEST_PAUSE)

    def restore(self) -> None:
        """It works again."""
        self.seconds = FIRST_PAUSE


@dataclass(slots=True)
class Sources:
    """What the loops share."""

    inbox: Inbox
    state: State
    threads: Threads
    metrics: Metrics
    now: Callable[[], datetime]
    alive: dict[str, datetime] = field(default_factory=dict)
    """When each source last said something, by "vCenter name/events" and so on."""
    troubles: dict[str, str] = field(default_factory=dict)
    """What is wrong with a source now, in a sentence; empty when all work."""
    answering: dict[str, bool] = field(default_factory=dict)
    """Whether each vCenter answered when it was last asked something."""
    skews: dict[str, float] = field(default_factory=dict)
    """By how many seconds each vCenter's clock is before ours."""
    vcenters: Callable[[], Mapping[str, str]] = dict
    """The instance UUIDs of all configured vCenters by their hosts, empty for those that are not reached yet."""
    reconnected: Callable[[str], None] = lambda vcenter: None
    """Told of each vCenter that is reached again."""
    elapsed: Callable[[], float] = time.monotonic
    """Seconds that go on evenly, whoever sets the clock."""
    _compared: tuple[datetime, float] | None = None
    """Our clock and `elapsed` when a vCenter's clock was last compared with ours."""

    @property
    def clock_doubt(self) -> str:
        """Why nothing may be removed by age now, in a sentence; empty when the clocks agree."""
        vcenter, skew = max(self.skews.items(), key=lambda one: abs(one[1]), default=("", 0.0))
        if abs(skew) > WRONG_CLOCK.total_seconds():
            minutes = counted(round(abs(skew) / 60), "minute")
            return f"the clocks of this machine and of vCenter {vcenter} differ by {minutes}"
        if self._compared is None:
            return ""
        at, elapsed = self._compared
        jumped = abs((self.now() - at).total_seconds() - (self.elapsed() - elapsed))
        if jumped <= WRONG_CLOCK.total_seconds():
            return ""
        return (
            f"this machine's clock was set by {counted(round(jumped / 60), 'minute')}, and no vCenter has told since "
            "what time it is"
        )

    async def follow_events(self, hypervisor: Hypervisor) -> None:
        """Events of one vCenter, from the cursor of the state on."""
        name = f"{hypervisor.vcenter}/events"
        patience = Patience()
        while True:
            try:
                cursor = await settled(self.threads.state, self.state.cursor, hypervisor.vcenter)
                async with _closing(hypervisor.events(cursor)) as following:
                    async for batch in following:
                        await self._take_batch(hypervisor.vcenter, batch)
                        self._well(name)
                        patience.restore()
            except (ConnectorError, StorageError) as error:
                await self._trouble(name, error, patience)

    async def _take_batch(self, vcenter: str, batch: EventBatch) -> None:
        await self.inbox.put(Happened(vcenter, batch))
        self.metrics.event_source_alive("vcenter")

    async def watch_inventory(self, hypervisor: Hypervisor) -> None:
        """Changes of one vCenter's inventory."""
        name = f"{hypervisor.vcenter}/inventory"
        patience = Patience()
        while True:
            try:
                async with _closing(hypervisor.watch()) as updates:
                    async for update in updates:
                        if update.complete and name in self.alive:
                            self.metrics.reconnected("vcenter")
                            self.reconnected(hypervisor.vcenter)
                        await self.inbox.put(Seen(hypervisor.vcenter, update))
                        self._well(name)
                        self._answers(hypervisor.vcenter, True)
                        patience.restore()
            except (ConnectorError, StorageError) as error:
                if isinstance(error, ConnectorError):
                    self._answers(hypervisor.vcenter, False)
                await self._trouble(name, error, patience)

    async def watch_clock(self, hypervisor: Hypervisor, every: timedelta) -> None:
        """Compare a vCenter's clock with ours now and then: it also tells whether anybody is there."""
        while True:
            try:
                before = self.now()
                theirs = await hypervisor.clock()
                ours = before + (self.now() - before) / 2
            except ConnectorError as error:
                # The other loops wait out such a time without a word.
                self.troubles[f"{hypervisor.vcenter}/clock"] = str(error)
                self._answers(hypervisor.vcenter, False)
            else:
                self._answers(hypervisor.vcenter, True)
                self.skews[hypervisor.vcenter] = (theirs - ours).total_seconds()
                self._compared = self.now(), self.elapsed()
                self.metrics.clock_skew("vcenter", max(self.skews.values(), key=abs))
            await asyncio.sleep(every.total_seconds())

    def _answers(self, vcenter: str, up: bool) -> None:
        self.answering[vcenter] = up
        if up:
            self._well(f"{vcenter}/clock")
        self.metrics.connection("vcenter", up=all(self.answering.values()))

    async def reconcile(self, hypervisor: Hypervisor, every: timedelta) -> None:
        """Read the whole inventory now and then, whatever the watch says."""
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                present = tuple(await hypervisor.inventory())
                await self.inbox.put(Seen(hypervisor.vcenter, InventoryUpdate(present, (), complete=True)))
            except (ConnectorError, StorageError) as error:
                log.warning("reconcile waits", extra={"vcenter": hypervisor.vcenter, "why": str(error)})

    async def read_bus(self, bus: Bus) -> None:
        """Messages of the bus; acknowledged when their effect is written."""
        async with _closing(bus.messages()) as messages:
            async for message in messages:
                patience = Patience()
                while True:
                    try:
                        await self._take_message(message)
                        self._well("bus")
                        break
                    except StorageError as error:
                        await self._trouble("bus", error, patience)
                    except ConnectorError as error:
                        # Not acknowledged: it comes again with the same key, whose effect happens once.
                        log.warning("message comes again", extra={"key": message.key, "why": str(error)})
                        break

    async def _take_message(self, message: BusMessage) -> None:
        now = self.now()
        try:
            said = parse(message.subject, message.data, key=message.key, received_at=now, vcenters=self.vcenters())
        except BadMessage as bad:
            self.metrics.message_refused(bad.kind if isinstance(bad, RefusedMessage) else "malformed")
            await message.refuse(str(bad))
            return
        if not isinstance(said, Unrelated):
            await self.inbox.put(Told(said))
        await message.done()

    async def tick(self, every: timedelta) -> None:
        """The clock."""
        while True:
            try:
                await self.inbox.put(Tick(self.now()))
                self._well("clock")
            except (ConnectorError, StorageError) as error:
                self.troubles["clock"] = str(error)
                log.error("clock tick failed", extra={"why": str(error)})
            await asyncio.sleep(every.total_seconds())

    async def watch_policies(self, rulebook: Rulebook, every: timedelta) -> None:
        """The policy files, by content, and a pending change against the inventory as it is by now."""
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                changed = await rulebook.look()
                if not changed and rulebook.stale(self.now()):
                    await rulebook.replan()
                if changed:
                    await self.inbox.put(Tick(self.now()))
                self._well("policies")
            except (ConnectorError, StorageError) as error:
                self.troubles["policies"] = str(error)
                log.error("policies not looked at", extra={"why": str(error)})

    def _well(self, name: str) -> None:
        self.alive[name] = self.now()
        if self.troubles.pop(name, None):
            log.info("source works again", extra={"source": name})

    async def _trouble(self, name: str, error: Exception, patience: Patience) -> None:
        if self.troubles.get(name) != str(error):
            log.error("source fails", extra={"source": name, "why": str(error)})
        self.troubles[name] = str(error)
        await patience.wait()


T = TypeVar("T")


@asynccontextmanager
async def _closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """The iterator, closed at the end if it can be: a generator must not be left to the garbage collector."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
