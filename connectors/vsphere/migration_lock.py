"""Keeping a VM where it is while it is backed up, by vCenter's switch that VMware's own VDDK uses.

A method that is switched off stays so until the same source switches it on (see method_switches), so a start looks for
what an engine that died has left.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pyVmomi import vim

from connectors.cleanup import acquired
from connectors.errors import Busy, ConnectorError, Gone, NotOurs, Rejected, Unreachable
from connectors.hypervisor import Leftover
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.method_switches import PRIVILEGES, HeldByOther, LockSettings, Switches, cannot
from connectors.vsphere.session import Session
from policies.facts import Address, Vm

log = logging.getLogger(__name__)

MIGRATION_LOCK = "migration lock"
"""The kind of left-over that is a VM whose moves are switched off."""

RELOCATE, MIGRATE = "RelocateVM_Task", "MigrateVM_Task"
"""Storage moves, and most others since vSphere 6; and moves to another host alone. VDDK switches off the first."""


class MigrationLocks:
    """The switches of this engine in one vCenter. For one event loop."""

    def __init__(self, session: Session, inventory: Inventory, settings: LockSettings) -> None:
        self._switches = Switches(session, settings)
        self._session = session
        self._inventory = inventory
        self._settings = settings
        self._held: dict[str, str] = {}
        self._owed: dict[str, str] = {}
        self._looked = False
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def hold(self, vm: Vm, run: str) -> AsyncIterator[str]:
        """Nobody moves the VM meanwhile. Yields why somebody may after all; empty when nobody can.

        Busy at once where another product has switched moves off: it may take its switch back at any time. Unreachable
        when nobody knows whether they are off. Leaving raises when the switch could not be taken back; it is a
        left-over then.
        """
        moref = vm.address.moref
        within = 3 * self._session.settings.answer_seconds * self._settings.tries + 60.0
        taking = acquired(partial(self._take, moref, run), partial(self._release, moref), within=within)
        try:
            async with taking as why:
                if why:
                    log.warning("the VM may move while it is backed up", extra={"vm": vm.name, "why": why})
                yield why
        except TimeoutError as error:
            raise Unreachable(f"moves were not switched off or on within {within:g} s", where=vm.name) from error

    async def leftovers(self, is_active: Callable[[str], bool], *, of: Address | None = None) -> Sequence[Leftover]:
        """VMs whose moves we have switched off for a run that is_active denies; the first time, those that may be ours.

        vCenter tells which methods are off, not by whom: `remove` finds out. With `of` that VM alone, as far as known.
        """
        if of is None and not self._looked:
            for moref, told in (await self._inventory.read_all(("disabledMethod",))).items():
                if _switched_off(told) and moref not in self._held:
                    self._owed.setdefault(moref, "")
            self._looked = True
        owed = {
            moref: run
            for moref, run in self._owed.items()
            if moref not in self._held and not is_active(run) and (of is None or moref == of.moref)
        }
        vms = [self._session.managed(vim.VirtualMachine, moref) for moref in owed]
        told = await self._session.read(vms, vim.VirtualMachine, ["name", "disabledMethod"]) if vms else {}
        for moref in owed.keys() - {moref for moref, of in told.items() if _switched_off(of)}:
            self._owed.pop(moref, None)
        vcenter = self._session.vcenter
        return [
            Leftover(MIGRATION_LOCK, Address(vcenter, moref), str(told[moref].get("name", moref)), RELOCATE, run)
            for moref, run in owed.items()
            if moref in self._owed
        ]

    async def remove(self, leftover: Leftover) -> None:
        """Let the VM move again. Raises NotOurs when somebody else keeps it in its place. Idempotent."""
        moref = leftover.vm.moref
        async with self._turns[moref]:
            if moref in self._held:
                return
            known = self._owed.get(moref, leftover.run)
            try:
                await self._switch_on(moref)
            except Gone:
                self._owed.pop(moref, None)
                return
            except ConnectorError as error:
                if known or not cannot(error):
                    raise
                self._owed.pop(moref, None)
                raise NotOurs(f"its moves are switched off, by whom cannot be told: {error.what}") from error
            self._owed.pop(moref, None)
        vm = self._session.managed(vim.VirtualMachine, moref)
        if _switched_off(await self._session.properties(vm, ["disabledMethod"])):
            raise NotOurs("its moves are switched off by another product, or by what it is", where=leftover.vm_name)

    async def _take(self, moref: str, run: str) -> str:
        """Switch moves off; why not, where that is not for us to do. Busy when another product has."""
        async with self._turns[moref]:
            self._held[moref] = run
            try:
                await self._switch_off(moref, run)
            except (Unreachable, Busy):
                # It may have been carried out all the same, or for one of the methods alone.
                self._owed[moref] = run
                del self._held[moref]
                raise
            except ConnectorError as error:
                del self._held[moref]
                if isinstance(error, Gone):
                    raise
                return _refusal(error)
            self._owed.pop(moref, None)
            return ""

    async def _release(self, moref: str, _: str) -> None:
        async with self._turns[moref]:
            run = self._held.pop(moref, "")
            if not run:
                return
            try:
                await self._switch_on(moref)
            except Gone:
                return
            except BaseException:
                self._owed[moref] = run
                raise

    async def _switch_off(self, moref: str, run: str) -> None:
        for methods in ((RELOCATE, MIGRATE), (RELOCATE,)):
            try:
                await self._switches.off(moref, methods, f"backup run {run}")
            except Rejected:
                if methods == (RELOCATE,):
                    raise
            except HeldByOther as other:
                what = f"another product, {other.source}, keeps the VM in its place and may let it go at any time"
                raise Busy(what, where=self._session.where) from other
            else:
                return

    async def _switch_on(self, moref: str) -> None:
        await self._switches.on(moref, (RELOCATE, MIGRATE))


def _switched_off(told: dict[str, Any]) -> bool:
    return bool({RELOCATE, MIGRATE} & set(told.get("disabledMethod") or ()))


def _refusal(error: ConnectorError) -> str:
    if cannot(error):
        return f"moves cannot be switched off: {error.what}; it takes {PRIVILEGES}"
    return f"moves cannot be switched off: {error.what}"
