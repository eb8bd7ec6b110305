"""How much may happen at once in one vCenter: snapshots made, snapshots removed, disks read from one host.

A place is waited for, never refused. Whoever waits holds none, so that waiting can never become a deadlock, and
nobody is let past on a datastore or host that one who came earlier waits for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple


class Act(StrEnum):
    """What is limited."""

    CREATE = "snapshot creations"
    REMOVE = "snapshot removals"
    READ = "network connections"


class Gate(NamedTuple):
    """What a place is one of: the removals on datastore ssd-1. `name` is empty for the vCenter as a whole."""

    act: Act
    kind: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How many at once; the defaults are practitioners' start values.

    Merging a snapshot loads its datastore, and a host's buffers serve about 50 open disks in all of its sessions.
    """

    creations_per_vcenter: int = 10
    removals_per_vcenter: int = 8
    removals_per_datastore: int = 2
    connections_per_host: int = 8

    def of(self, gate: Gate) -> int:
        """How many places the gate has."""
        match gate.act, gate.kind:
            case Act.CREATE, _:
                return self.creations_per_vcenter
            case Act.REMOVE, "datastore":
                return self.removals_per_datastore
            case Act.REMOVE, _:
                return self.removals_per_vcenter
            case _:
                return self.connections_per_host


@dataclass(frozen=True, slots=True)
class Pass:
    """Places that are held or waited for: of which gates, for what, since when."""

    gates: tuple[Gate, ...]
    what: str
    since: datetime


@dataclass(slots=True, eq=False)
class _Waiting:
    wanted: Pass
    granted: asyncio.Event = field(default_factory=asyncio.Event)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Gates:
    """The gates of one vCenter. Single event loop."""

    def __init__(self, limits: GateLimits | None = None, now: Callable[[], datetime] = _utc_now) -> None:
        self.limits = limits or GateLimits()
        self._now = now
        self._held: list[Pass] = []
        self._waiting: list[_Waiting] = []

    @property
    def held(self) -> tuple[Pass, ...]:
        """Who holds places, in the order of coming."""
        return tuple(self._held)

    @property
    def waiting(self) -> tuple[Pass, ...]:
        """Who waits for places, in the order of coming."""
        return tuple(one.wanted for one in self._waiting)

    @asynccontextmanager
    async def through(self, gates: Sequence[Gate], what: str) -> AsyncIterator[None]:
        """Hold a place of each of the gates, all at once, for the length of the block.

        The block may not go through these gates itself. A cancellation while waiting leaves nothing behind.
        """
        one = _Waiting(Pass(tuple(dict.fromkeys(gates)), what, self._now()))
        self._waiting.append(one)
        self._let_in()
        try:
            await one.granted.wait()
            yield
        finally:
            if one in self._waiting:
                self._waiting.remove(one)
            else:
                self._held = [held for held in self._held if held is not one.wanted]
            self._let_in()

    def _let_in(self) -> None:
        taken = Counter(gate for held in self._held for gate in held.gates)
        for one in list(self._waiting):
            free = all(taken[gate] < self.limits.of(gate) for gate in one.wanted.gates)
            # Who waits keeps its places from those behind it, but those of the vCenter only where it lacks one:
            # else all that wait for one datastore would keep the vCenter from the others.
            lacking = [gate for gate in one.wanted.gates if taken[gate] >= self.limits.of(gate)]
            taken.update(one.wanted.gates if free else {*lacking, *(g for g in one.wanted.gates if g.name)})
            if free:
                self._waiting.remove(one)
                self._held.append(one.wanted)
                one.granted.set()


def creation() -> tuple[Gate, ...]:
    """What the making of one snapshot goes through."""
    return (Gate(Act.CREATE, "vcenter"),)


def removal(datastores: Sequence[str]) -> tuple[Gate, ...]:
    """What the removal of one snapshot, or a consolidation, goes through: its VM has disks on these datastores."""
    return (Gate(Act.REMOVE, "vcenter"), *(Gate(Act.REMOVE, "datastore", name) for name in datastores))


def connection(host: str) -> tuple[Gate, ...]:
    """What reading one disk over the network goes through."""
    return (Gate(Act.READ, "host", host),)
