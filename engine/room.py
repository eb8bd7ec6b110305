"""Keeps snapshots from filling datastores: looks before one is made, and again and again while it stands."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from connectors.errors import ConnectorError, NoRoom, NotPermitted, Rejected
from connectors.hypervisor import DatastoreSpace
from engine.headroom import Expected, Marks, expect, no_room, running_low
from engine.ports import Hypervisor
from policies.facts import RestorePoint, Vm, VmId

log = logging.getLogger("engine.room")

LOOK_SECONDS = 30.0
"""How often the datastores of a VM are looked at while its snapshot stands."""

RUNS_REMEMBERED = 8
"""The typical speed of reading is a mean in which each run counts for one in so many."""

Place = tuple[str, str, str]
"""A datastore: vCenter, datacenter, name."""


@dataclass(slots=True)
class RoomKeeper:
    """What runs may still need, by datastore, and how fast they were. Single event loop; shared by all runs."""

    marks: Marks = field(default_factory=Marks)
    look_seconds: float = LOOK_SECONDS
    refused: Callable[[str], None] = lambda when: None
    """Told of each run that found no room, "before" its snapshot or "during" it."""
    bytes_per_second: float | None = None
    seconds: dict[VmId, float] = field(default_factory=dict)
    _promised: dict[str, Mapping[Place, int]] = field(default_factory=dict)

    async def check(
        self, hypervisor: Hypervisor, vm: Vm, run: str, points: Sequence[RestorePoint], *, whole: bool = False
    ) -> Expected:
        """NoRoom where a snapshot of the VM could fill a datastore; else what it may need is promised to the run.

        Between looking and promising nothing else happens, so that two runs never count on the same space.
        """
        speed, last = self.bytes_per_second, self.seconds.get(vm.id)
        expected = expect(vm, points, bytes_per_second=speed, last_seconds=last, whole=whole)
        spaces = await _spaces(hypervisor, vm, logging.WARNING)
        why = no_room(spaces, expected, self._promised_beside(vm, run), self.marks)
        if why:
            self.refused("before")
            _refuse(
                vm,
                "; ".join(why),
                "free space there or move VMs away; the backup is tried again by itself. How much has to be free say"
                " limits.datastore_free and, above what the deltas may come to, limits.datastore_low",
            )
        self._promised[run] = {_place(vm, name): needed for name, needed in expected.by_datastore.items()}
        return expected

    @contextmanager
    def promise(self, run: str) -> Iterator[None]:
        """What was promised to the run is given back at the end of the block."""
        try:
            yield
        finally:
            self._promised.pop(run, None)

    async def watch(self, hypervisor: Hypervisor, vm: Vm) -> NoReturn:
        """NoRoom as soon as a datastore of the VM runs low; for ever else. A vCenter that is away is waited for."""
        while True:
            await asyncio.sleep(self.look_seconds)
            try:
                spaces = await _spaces(hypervisor, vm, logging.DEBUG)
            except ConnectorError as error:
                log.info("datastores not looked at", extra={"vm": vm.name, "why": str(error)})
                continue
            if why := running_low(spaces, self.marks):
                self.refused("during")
                _refuse(
                    vm,
                    f"the run was ended and its snapshot removed: {'; '.join(why)}",
                    "free space there; the backup is tried again by itself, and limits.datastore_low says with how"
                    " much a snapshot may stay",
                )

    def took(self, vm: VmId, read_bytes: int, read_seconds: float, seconds: float) -> None:
        """A run has read so much in so long, and took so long in all."""
        self.seconds[vm] = seconds
        if read_bytes < (64 << 20) or read_seconds <= 0:
            return  # too little to tell a speed
        speed = read_bytes / read_seconds
        before = speed if self.bytes_per_second is None else self.bytes_per_second
        self.bytes_per_second = before + (speed - before) / RUNS_REMEMBERED

    def _promised_beside(self, vm: Vm, run: str) -> dict[str, int]:
        """By the names of datastores as this VM sees them."""
        found: Counter[str] = Counter()
        for other, needs in self._promised.items():
            for place, needed in needs.items():
                if other != run and place == _place(vm, place[2]):
                    found[place[2]] += needed
        return dict(found)


def _refuse(vm: Vm, why: str, hint: str) -> NoReturn:
    raise NoRoom(why, where=vm.name, hint=hint)


def _place(vm: Vm, datastore: str) -> Place:
    return vm.address.vcenter, vm.datacenter, datastore


async def _spaces(hypervisor: Hypervisor, vm: Vm, level: int) -> Sequence[DatastoreSpace]:
    """What can be known: an account that may not see datastores is no reason to have no backup."""
    try:
        return await hypervisor.space(vm.address)
    except (NotPermitted, Rejected) as error:
        log.log(level, "free space is not known", extra={"vm": vm.name, "why": str(error)})
        return ()
