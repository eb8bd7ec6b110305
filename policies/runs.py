"""Backups under way in a simulation: what they read, how long that takes, and when each ends. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from policies.assumptions import Assumptions, Rate, rate_of
from policies.decision import BackUp
from policies.facts import EventType, RestorePoint, Vm, VmHistory, VmId
from policies.gauges import Gauges, Places
from policies.overload import TYPICAL_RUN
from policies.policy import OnMigrate
from policies.policyset import PolicySet

RUNS_REMEMBERED = 16
"""The typical run is a mean in which each run counts for one in so many, as the engine's queue has it."""


def at_rest(history: Mapping[VmId, VmHistory]) -> dict[VmId, VmHistory]:
    """What is remembered of each VM, without runs that were waiting or under way: a simulation begins with none."""
    return {
        vm: replace(one, running=False, pending=False, reading_on="") if one.running or one.pending else one
        for vm, one in history.items()
    }


class Run(NamedTuple):
    """A backup under way."""

    decision: BackUp
    began: datetime
    read: int
    stored: int
    places: Places
    host: str = ""


class Runs:
    """See the module. `ends` is a heap of when each run ends; `distrusted` are VMs whose next run reads in full."""

    def __init__(self, assumed: Assumptions, gauges: Gauges) -> None:
        self.ends: list[tuple[datetime, int, VmId]] = []
        self.under_way: dict[VmId, Run] = {}
        self.distrusted: set[VmId] = set()
        self.typical = TYPICAL_RUN
        self._assumed, self._gauges = assumed, gauges
        self._rates: dict[VmId, Rate] = {}
        self._places: dict[VmId, tuple[Vm, Places]] = {}
        self._begun = 0

    def __contains__(self, vm: object) -> bool:
        return vm in self.under_way

    def know(self, vm: Vm, points: Iterable[RestorePoint]) -> None:
        """What backups of this VM come to."""
        self._rates[vm.id] = rate_of(vm, points, self._assumed)

    def begin(self, decision: BackUp, vm: Vm, last: datetime | None, now: datetime) -> None:
        """A run starts that builds on the restore point of `last`."""
        vm_id = vm.id
        rate = self._rates[vm_id]
        read = rate.read_after(last, now)
        stored = int(read * rate.stored_share)
        if self.distrusted and vm_id in self.distrusted:
            self.distrusted.discard(vm_id)
            read = rate.full_bytes
        known = self._places.get(vm_id)
        if known is None or known[0] is not vm:
            known = self._places[vm_id] = vm, self._gauges.places_of(vm)
        self.under_way[vm_id] = Run(decision, now, read, stored, known[1], vm.host)
        self._gauges.began(decision, known[1], now)
        self._begun += 1
        ends = now + self._assumed.run_overhead + timedelta(0, read / self._assumed.bytes_per_second)
        heappush(self.ends, (ends, self._begun, vm_id))

    def call_back(self, vm: VmId) -> Run:
        """The run ends without a restore point."""
        run = self.under_way.pop(vm)
        self.ends[:] = [one for one in self.ends if one[2] != vm]
        heapify(self.ends)
        self._gauges.freed(run.places)
        if run.read >= self._rates[vm].full_bytes:
            self.distrusted.add(vm)
        return run

    def end(self, now: datetime) -> Run:
        """The run that ends first is over."""
        run = self.under_way.pop(heappop(self.ends)[2])
        self.typical += (now - run.began - self.typical) / RUNS_REMEMBERED
        self._gauges.freed(run.places)
        return run


_ALWAYS_HEARD = frozenset(
    {
        EventType.CREATED, EventType.CLONED, EventType.REGISTERED, EventType.RELOCATED, EventType.REMOVED,
        EventType.BACKUP_REQUESTED, EventType.HOLD_REQUESTED,
    }
)  # fmt: skip


def heard_by(policies: PolicySet) -> frozenset[EventType]:
    """Events that lead to something, with a trigger or without. Others do only when they tell of changed disks."""
    moves = {EventType.MIGRATED} if any(one.on_migrate is OnMigrate.REQUEUE for one in policies.policies) else set()
    return _ALWAYS_HEARD.union(moves, *(one.on for policy in policies.policies for one in policy.triggers))


def gave_way(known: VmHistory) -> VmHistory:
    """The history of a VM whose run waits again."""
    return replace(known, running=False, pending=True, reading_on="", called_back=known.called_back + 1)
