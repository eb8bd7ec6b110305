"""The events of a vCenter, each once along a chain of cursors, across restarts of either side.

Events are read oldest first from a history collector that begins a while before the cursor, and those in the overlap
that were handled are left out by their keys. Where events may be missing, the batch says so: what was missed is found
by reading the inventory, never guessed here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pyVmomi import vim

from connectors.cleanup import finish
from connectors.errors import ConnectorError, Gone, Unreachable
from connectors.hypervisor import Cursor, EventBatch
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.eventfacts import created, normalise
from connectors.vsphere.faults import Unreadable
from connectors.vsphere.line import Line
from connectors.vsphere.session import Session
from policies.facts import Event

log = logging.getLogger(__name__)

SAME_EVENT = timedelta(seconds=1)
"""Two times of one event may differ by its rounding when it was seen live and is read back later."""


@dataclass(frozen=True, slots=True)
class FollowSettings:
    """How events are followed; the defaults are for a vCenter in service.

    `overlap` is how far before the cursor reading begins again: events of a host that was cut off are recorded late.
    `retention` is how long vCenter keeps events (its default is 30 days, cleared lazily).
    """

    overlap: timedelta = timedelta(minutes=10)
    retention: timedelta = timedelta(days=29)
    page: int = 500
    idle_seconds: float = 0.7
    heartbeat_seconds: float = 3.0
    stall_seconds: float = 15.0
    longest_stall_seconds: float = 600.0


@dataclass(slots=True)
class Position:
    """Where the follower is.

    `at` and `key` are of the newest event read, of whatever type. `seen` holds our events in the overlap, each with
    the time up to which its key is known to be in use. Events up to the key `floor`, or up to the time `since`, count
    as handled. `anchor` is the key of an event that a new collector must still hold. `gap` is what the next batch has
    to tell. While `settling`, the keys in the overlap are not all known, and the cursor is not fit to be kept.
    """

    at: datetime
    key: int
    seen: dict[int, datetime] = field(default_factory=dict)
    floor: int | None = None
    since: datetime | None = None
    anchor: int | None = None
    gap: str = ""
    settling: bool = False

    @classmethod
    def behind(cls, cursor: Cursor) -> Self:
        """Where a follower was that kept this cursor."""
        return cls(cursor.at, cursor.key, dict.fromkeys(cursor.seen, cursor.at))

    def batch(self, vcenter: str, events: Sequence[Event] = ()) -> EventBatch:
        """The events with the cursor behind them and the gap to tell, which is told then."""
        gap, self.gap = self.gap, ""
        return EventBatch(tuple(events), self.cursor(vcenter), gap)

    def miss(self, gap: str) -> None:
        """Tell with the next batch that events may be missing."""
        self.gap = f"{self.gap}; {gap}" if self.gap else gap

    def cursor(self, vcenter: str) -> Cursor:
        return Cursor(vcenter, self.at, self.key, frozenset(self.seen))

    def take(self, events: Sequence[Any], vcenter: str, overlap: timedelta) -> list[Event]:
        """The events that were not handled yet, in order; the position moves behind them."""
        fresh: list[Event] = []
        for event in sorted(events, key=lambda e: (created(e), e.key)):
            at = created(event)
            if event.key == self.anchor:
                self.anchor = None
            ours = normalise(vcenter, event)
            if ours is not None:
                used = self.seen.get(event.key)
                if used is not None and at > used + SAME_EVENT:
                    self.miss(f"vCenter uses the event key {event.key} a second time: its database was set back")
                    used = None
                if used is None:
                    self.seen[event.key] = at
                    if not self._handled(event.key, at):
                        fresh.append(ours)
            self.key = max(self.key, event.key)
            self.at = max(self.at, at)
        horizon = self.at - overlap
        self.seen = {key: at for key, at in self.seen.items() if at >= horizon}
        return fresh

    def set_back(self, newest: int) -> None:
        """Keys begin anew at `newest`: those known are void, and what vCenter still tells of before is handled."""
        self.miss(f"vCenter's event keys went backwards (from {self.key} to {newest}): its database was set back")
        self.seen, self.since, self.key, self.anchor = {}, self.at, newest, None
        self.settling = True

    def settled(self) -> None:
        """All that vCenter holds of the overlap was read."""
        self.settling, self.floor = False, None
        if self.anchor is not None:
            self.miss(f"vCenter does not hold event {self.anchor} any more, the last one handled")
            self.anchor = None

    def _handled(self, key: int, at: datetime) -> bool:
        return (self.floor is not None and key <= self.floor) or (self.since is not None and at <= self.since)


@dataclass(slots=True)
class _Idle:
    """When a sign of life is due, and whether a collector that tells nothing is stuck."""

    how: FollowSettings
    patience: float
    told_at: float = field(default_factory=time.monotonic)
    quiet_since: float | None = None

    def progress(self) -> None:
        self.quiet_since = None
        self.patience = self.how.stall_seconds

    def due(self) -> bool:
        return time.monotonic() - self.told_at >= self.how.heartbeat_seconds

    def told(self) -> None:
        self.told_at = time.monotonic()

    def stuck(self, differs: bool) -> bool:
        """True when vCenter's newest key has differed from the newest one read for longer than patience lasts."""
        now = time.monotonic()
        if not differs:
            self.quiet_since = None
            return False
        if self.quiet_since is None:
            self.quiet_since = now
        if now - self.quiet_since < self.patience:
            return False
        self.patience = min(2 * self.patience, self.how.longest_stall_seconds)
        self.quiet_since = None
        return True


async def follow(
    session: Session, cursor: Cursor | None, settings: FollowSettings | None = None
) -> AsyncGenerator[EventBatch, None]:
    """Events after the cursor, for ever; without a cursor, from now on.

    Each batch carries the cursor to persist when its events are handled. An empty batch every few seconds is a sign
    of life. `gap` is a sentence when events may have been missed.
    """
    how = settings or FollowSettings()
    position: Position | None = None
    idle = _Idle(how, how.stall_seconds)
    backoff = Backoff()
    why = "events are followed from now on: what happened before is known from the inventory only"
    if cursor is not None and cursor.vcenter == session.vcenter:
        position = Position.behind(cursor)
    elif cursor is not None:
        why = f"the cursor belongs to another vCenter ({cursor.vcenter}): events are followed from now on"
    while True:
        try:
            clock = await _clock(session)
            if position is None:
                position = Position(clock.newest_at, clock.newest, floor=clock.newest, gap=why, settling=True)
            elif not position.settling:
                _resume(position, clock, how)
            async with _collector(session, min(position.at, clock.now) - how.overlap) as (line, collector):
                async for batch in _read(session, line, collector, position, how, idle):
                    backoff.reset()
                    yield batch
        except (Unreachable, Gone) as error:
            log.warning("event follower interrupted", extra={"error": str(error)})
            await backoff.sleep()


async def _read(
    session: Session, line: Line, collector: Any, position: Position, how: FollowSettings, idle: _Idle
) -> AsyncIterator[EventBatch]:
    """Batches until the collector proves to be stuck and a new one is due."""
    vcenter = session.vcenter
    drained = False
    while True:
        try:
            events = await line.call(collector.ReadNextEvents, how.page)
        except Unreadable:
            # The collector stands behind this page already: asking again would not bring it back.
            position.miss(f"up to {how.page} events after key {position.key} were not understood")
            continue
        if events:
            idle.progress()
            fresh = position.take(events, vcenter, how.overlap)
            if fresh or (idle.due() and not position.settling):
                idle.told()
                yield position.batch(vcenter, fresh)
            continue
        if not drained:
            drained = True
            position.settled()
        if position.gap:
            idle.told()
            yield position.batch(vcenter)
        elif idle.due():
            clock = await _clock(session)
            if idle.stuck(clock.known and clock.newest != position.key):
                _stuck(position, clock.newest)
                return
            idle.told()
            yield position.batch(vcenter)
        await asyncio.sleep(how.idle_seconds)


def _stuck(position: Position, newest: int) -> None:
    if newest < 0:
        position.miss("vCenter's event keys have overflowed, and its collector tells no new events")
    elif newest < position.key:
        position.set_back(newest)
    else:
        position.miss(f"vCenter has events up to key {newest}, but its collector tells none after {position.key}")


def _resume(position: Position, clock: _Clock, how: FollowSettings) -> None:
    """Prepare to read on from a known position, and note what may have been missed since."""
    if clock.newest < 0:
        position.miss("vCenter's event keys have overflowed, and its collector may tell no new events")
    elif clock.known and clock.newest < position.key:
        position.set_back(clock.newest)
    elif clock.now - position.at > how.retention:
        position.miss(f"the cursor is of {position.at:%Y-%m-%d}, and vCenter does not keep events as long as that")
    else:
        position.anchor = position.key or None


@dataclass(frozen=True, slots=True)
class _Clock:
    """vCenter's time, and the key and time of its newest event (0 and its time when it has none or it is not known)."""

    now: datetime
    newest: int
    newest_at: datetime
    known: bool = True


async def _clock(session: Session) -> _Clock:
    now = (await session.call(session.now)).astimezone(UTC)
    manager = session.content.eventManager
    try:
        newest = (await session.properties(manager, ["latestEvent"])).get("latestEvent")
    except Unreadable:
        return _Clock(now, 0, now, known=False)
    if newest is None:
        return _Clock(now, 0, now)
    return _Clock(now, newest.key, created(newest))


@asynccontextmanager
async def _collector(session: Session, begin: datetime) -> AsyncIterator[tuple[Line, Any]]:
    line = session.line("events")
    collector: Any = None
    try:
        # No filter by type: whether a base class stands for its subclasses differs between versions of vCenter.
        spec = vim.event.EventFilterSpec(time=vim.event.EventFilterSpec.ByTime(beginTime=begin))
        spec.disableFullMessage = True
        manager = line.managed(session.content.eventManager)
        collector = await line.call(manager.CreateCollectorForEvents, spec)
        yield line, collector
    finally:
        await finish(_destroy(line, collector), within=2 * session.settings.answer_seconds)


async def _destroy(line: Line, collector: Any) -> None:
    try:
        if collector is not None:
            await line.call(collector.DestroyCollector)
    except ConnectorError as error:
        log.info("event collector is gone already", extra={"error": str(error)})
    finally:
        await line.aclose()
