"""Keeping a half-restored VM from being switched on, by the switch that keeps VMs in their place (see method_switches).

What is kept off carries the mark of its restore: the switch is taken after the mark is set and given back before that
goes. A VM that our switch keeps off and that carries no mark, because a person reverted it or an engine died, is a
left-over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Gone, NotOurs
from connectors.hypervisor import Leftover
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.method_switches import PRIVILEGES, HeldByOther, LockSettings, Switches, cannot
from connectors.vsphere.naming import PREFIX
from connectors.vsphere.restore_marks import read_mark
from connectors.vsphere.session import Session
from policies.facts import Address

log = logging.getLogger(__name__)

POWER_LOCK = "power-on lock"
"""The kind of left-over that is a whole VM which cannot be switched on."""

POWER_ON = "PowerOnVM_Task"

_PATHS = ("name", "disabledMethod", "runtime.powerState", "config.template", "config.extraConfig")


class PowerLocks:
    """The VMs of one vCenter that this engine keeps off. For one event loop."""

    def __init__(self, session: Session, inventory: Inventory, settings: LockSettings) -> None:
        self._session = session
        self._inventory = inventory
        self._switches = Switches(session, settings)
        self._known: set[str] = set()
        self._looked = False
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def keep_off(self, moref: str, point: str) -> str:
        """Nobody switches the VM on meanwhile; why somebody may after all, empty when nobody can. Idempotent.

        The VM carries the mark already. No error: a restore does not depend on it. What another engine of Backstay
        has switched off becomes this one's, as the half-restored VM has.
        """
        async with self._turns[moref]:
            self._known.add(moref)  # an error may come after vCenter has done it
            try:
                await self._taken(moref, f"half restored from {point}")
            except ConnectorError as error:
                why = f"it can be switched on before it is whole: {error.what}"
                why = f"{why}; it takes {PRIVILEGES}" if cannot(error) else why
                log.warning("half-restored VM not kept off", extra={"moref": moref, "why": why})
                return why
        return ""

    async def let_on(self, moref: str) -> None:
        """The VM may be switched on again, as far as we kept it off. No error: what stays is a left-over."""
        async with self._turns[moref]:
            try:
                await self._switches.on(moref, (POWER_ON,))
            except Gone:
                pass
            except ConnectorError as error:
                if not cannot(error):
                    self._known.add(moref)
                    log.error("restored VM not let on yet", extra={"moref": moref, "why": str(error)})
                    return
            self._known.discard(moref)

    async def leftovers(self, *, of: Address | None = None) -> Sequence[Leftover]:
        """VMs that are kept off without a mark: of those that we know and, the first time, those that may be ours.

        vCenter tells which methods are off, not by whom: `remove` finds out.
        """
        if of is None and not self._looked:
            paths = ("disabledMethod", "runtime.powerState", "config.template")
            read = await self._inventory.read_all(paths)
            self._known |= {moref for moref, told in read.items() if _kept_off(told)}
            self._looked = True
        morefs = [moref for moref in sorted(self._known) if of is None or moref == of.moref]
        vms = [self._session.managed(vim.VirtualMachine, moref) for moref in morefs]
        read = await self._session.read(vms, vim.VirtualMachine, _PATHS) if vms else {}
        found: list[Leftover] = []
        for moref in morefs:
            told = read.get(moref, {})
            if not _kept_off(told):
                self._known.discard(moref)
            elif read_mark(told.get("config.extraConfig") or ()) is None:
                address = Address(self._session.vcenter, moref)
                found.append(Leftover(POWER_LOCK, address, str(told.get("name", moref)), POWER_ON, ""))
        return found

    async def remove(self, leftover: Leftover) -> None:
        """Let the VM be switched on again. NotOurs when somebody else keeps it off. Idempotent.

        What another engine of Backstay left so is let on too: without a mark it is nobody's to keep off.
        """
        moref = leftover.vm.moref
        vm = self._session.managed(vim.VirtualMachine, moref)
        async with self._turns[moref]:
            try:
                if read_mark((await self._session.properties(vm, _PATHS)).get("config.extraConfig") or ()) is not None:
                    return  # a restore has begun since
                await self._switches.on(moref, (POWER_ON,))
                told = await self._session.properties(vm, _PATHS)
                if _kept_off(told) and read_mark(told.get("config.extraConfig") or ()) is None:
                    await self._let_go_for_another(moref)
                    told = await self._session.properties(vm, _PATHS)
            except Gone:
                told = {}
            except ConnectorError as error:
                if not cannot(error):
                    raise
                self._known.discard(moref)
                raise NotOurs(f"it cannot be switched on, why cannot be told: {error.what}") from error
            self._known.discard(moref)
        if _kept_off(told):
            raise NotOurs("another product keeps it from being switched on", where=leftover.vm_name)

    async def _let_go_for_another(self, moref: str) -> None:
        """Only who tries to keep the VM off as well is told by whom it is."""
        try:
            await self._switches.off(moref, (POWER_ON,), "looking for who keeps it off")
        except HeldByOther as other:
            if other.source.startswith(f"{PREFIX}."):
                await self._switches.on(moref, (POWER_ON,), source=other.source)
                log.info("VM of another engine let on", extra={"moref": moref, "source": other.source})
            return
        except ConnectorError as error:
            if cannot(error):
                return
            log.info("who keeps the VM off is not known", extra={"moref": moref, "why": str(error)})
        await self._switches.on(moref, (POWER_ON,))

    async def _taken(self, moref: str, reason: str) -> None:
        try:
            await self._switches.off(moref, (POWER_ON,), reason)
        except HeldByOther as other:
            if not other.source.startswith(f"{PREFIX}."):
                raise
            await self._switches.on(moref, (POWER_ON,), source=other.source)
            await self._switches.off(moref, (POWER_ON,), reason)


def _kept_off(told: Mapping[str, Any]) -> bool:
    """Whether somebody may keep this VM off: one that is on, or a template, cannot be switched on as it is."""
    if told.get("config.template") or told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
        return False
    return POWER_ON in (told.get("disabledMethod") or ())
