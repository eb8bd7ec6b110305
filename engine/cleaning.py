"""When the janitor looks, and what it tries again: after an event, on a timer, and less often what does not pass."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from connectors.errors import ConnectorError, Gone
from engine.jobs import RunId, minted_at
from engine.ports import Hypervisor
from engine.records import Intent
from policies.facts import Address

log = logging.getLogger("engine.cleaning")

FIRST_AGAIN = timedelta(seconds=30)
"""How long what did not pass is left alone; doubled each time, up to the timer."""

SETTLES = timedelta(seconds=10)
"""How long the inventory may show what is gone: no pass is called for by what it shows sooner."""

FIRST_MERGE = timedelta(minutes=5)
LONGEST_MERGE = timedelta(hours=4)
"""Between two tries to consolidate a VM: what locks its disks mostly does so for long, and each try costs."""


RUNS_KNOWN = 50_000
"""Runs that are remembered as this engine's own: those of a month of 1,500 a day."""


@dataclass(slots=True)
class Cleaner:
    """The janitor of one vCenter: when it looks again. Single event loop."""

    interval: timedelta
    why: str = "the engine started"
    _again: timedelta = FIRST_AGAIN
    _not_before: datetime | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def nudge(self, why: str) -> None:
        """Something happened: look at once."""
        self.why = why
        self._wanted.set()

    def unused(self, names: Iterable[str], now: datetime) -> None:
        """These snapshots of ours have no run: look, but not at once again at what stayed the last time."""
        shown = ", ".join(sorted(names))
        if shown and (self._not_before is None or now >= self._not_before):
            self.nudge(f"no run uses {shown}")

    def looked(self, now: datetime, *, stuck: bool) -> None:
        """A pass is over; whether something stayed."""
        self._not_before = now + (self._again if stuck else SETTLES)
        self._again = min(self._again * 2, self.interval) if stuck else FIRST_AGAIN

    async def wait(self) -> None:
        """Until somebody nudges, or the timer is over."""
        try:
            async with asyncio.timeout(self.interval.total_seconds()):
                await self._wanted.wait()
        except TimeoutError:
            self.why = "its timer"
        self._wanted.clear()


@dataclass(slots=True)
class OwnRuns:
    """The runs of this engine, told from those of another that was given the same name by mistake."""

    since: datetime
    """When this engine started. What an earlier start of it left is older."""
    _minted: dict[str, None] = field(default_factory=dict)

    def minted(self, run: RunId) -> RunId:
        """The run is this engine's."""
        self._minted[run] = None
        if len(self._minted) > RUNS_KNOWN:
            del self._minted[next(iter(self._minted))]
        return run

    def another(self, run: str) -> bool:
        """Whether the run began after this engine started, and it knows nothing of it."""
        at = minted_at(run)
        return at is not None and at > self.since and run not in self._minted


@dataclass(slots=True)
class Merging:
    """VMs whose disks could not be consolidated behind a snapshot of ours, and when each is tried again."""

    failed: dict[Address, tuple[int, datetime, str]] = field(default_factory=dict)

    async def merge(self, hypervisor: Hypervisor, intents: Iterable[Intent], now: datetime) -> dict[str, str]:
        """Consolidate the VMs of these runs that need it and are due; by run, why its VM still needs it.

        A VM that needed it before our snapshot would not have got one, so what its run left open is ours.
        """
        left: dict[str, str] = {}
        for intent in intents:
            try:
                why = await self._merged(hypervisor, intent.address, now)
            except ConnectorError as error:
                why = f"its VM cannot be looked at: {error}"
            if why:
                left[intent.run] = why
        return left

    async def _merged(self, hypervisor: Hypervisor, address: Address, now: datetime) -> str:
        """Empty when the VM does not need it any more."""
        try:
            vm = await hypervisor.vm(address)
        except Gone:
            self.failed.pop(address, None)
            return ""
        if not vm.consolidation_needed:
            self.failed.pop(address, None)
            return ""
        tries, again, why = self.failed.get(address, (0, now, ""))
        if now < again:
            return why
        try:
            await hypervisor.consolidate(address)
        except ConnectorError as error:
            pause = min(FIRST_MERGE * 2**tries, LONGEST_MERGE)
            self.failed[address] = (tries + 1, now + pause, str(error))
            log.error("disks still not consolidated", extra={"vm": vm.name, "why": str(error), "tries": tries + 1})
            return str(error)
        self.failed.pop(address, None)
        log.info("disks consolidated", extra={"vm": vm.name})
        return ""
