"""What comes in from outside, and the one bounded queue through which it reaches the dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from connectors.hypervisor import EventBatch, InventoryUpdate
from engine.journal import Ruling
from policies.facts import Event

INBOX_ITEMS = 64
"""Waiting items; a batch of 1,000 events is about 1 MB, so this bounds the inbox to some 64 MB."""


@dataclass(frozen=True, slots=True)
class Happened:
    """A batch of one vCenter's events."""

    vcenter: str
    batch: EventBatch


@dataclass(frozen=True, slots=True)
class Seen:
    """A change of one vCenter's inventory."""

    vcenter: str
    update: InventoryUpdate


@dataclass(frozen=True, slots=True)
class Told:
    """One event of the bus or the API."""

    event: Event


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Alone:
    """Work that must meet no other item half-way. It keeps its errors to itself."""

    work: Callable[[], Awaitable[None]]


Item = Happened | Seen | Told | Tick | Alone
Rulings = tuple[Ruling, ...]


class Inbox:
    """A bounded queue whose senders wait until their item has taken effect."""

    def __init__(self, size: int = INBOX_ITEMS) -> None:
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Rulings]]] = asyncio.Queue(size)

    async def put(self, item: Item) -> Rulings:
        """Wait for room, then for the item's effect; returns what was decided or raises what handling it did."""
        handled: asyncio.Future[Rulings] = asyncio.get_running_loop().create_future()
        await self._queue.put((item, handled))
        return await handled

    async def get(self) -> tuple[Item, asyncio.Future[Rulings]]:
        """The next item and the future to resolve when it has taken effect."""
        return await self._queue.get()

    def __len__(self) -> int:
        return self._queue.qsize()
