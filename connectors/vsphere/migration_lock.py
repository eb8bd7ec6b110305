"""Keeping a VM where it is while it is backed up, by vCenter's switch that VMware's own VDDK uses.

DisableMethods and EnableMethods of the AuthorizationManager are not in the public API; govmomi sends them in the
namespace urn:internalvim25 (object/authorization_manager_internal.go). A method that is switched off stays so until
the same source switches it on, whatever becomes of sessions and engines. Therefore every switch of ours is under one
name for as long as the engine has its id, and a start looks for what an engine that died has left.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from xml.sax.saxutils import escape

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import Object

from connectors.cleanup import acquired
from connectors.errors import Busy, ConnectorError, Gone, NotOurs, NotPermitted, Rejected, Unreachable
from connectors.hypervisor import Leftover
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.naming import PREFIX
from connectors.vsphere.session import Session
from policies.facts import Address, Vm

log = logging.getLogger(__name__)

MIGRATION_LOCK = "migration lock"
"""The kind of left-over that is a VM whose moves are switched off."""

RELOCATE, MIGRATE = "RelocateVM_Task", "MigrateVM_Task"
"""Storage moves, and most others since vSphere 6; and moves to another host alone. VDDK switches off the first."""

PRIVILEGES = "Global.DisableMethods and Global.EnableMethods on the vCenter's root"

_UNLICENSED = (vim.fault.RestrictedVersion, vmodl.fault.NotSupported, vmodl.fault.MethodNotFound)


@dataclass(frozen=True, slots=True)
class LockSettings:
    """How often a switch is tried to be taken, while a run waits, and to be taken back, and the pauses between."""

    first_pause: float = 1.0
    longest_pause: float = 15.0
    takes: int = 2
    tries: int = 8


class MigrationLocks:
    """The switches of this engine in one vCenter. For one event loop."""

    def __init__(self, session: Session, inventory: Inventory, settings: LockSettings) -> None:
        self.source = f"{PREFIX}.{session.settings.engine_id}"
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
                if known or not _cannot(error):
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
        reason = escape(f"backup run {run}")
        for methods in ((RELOCATE, MIGRATE), (RELOCATE,)):
            inside = "".join(f"<method><method>{m}</method><reasonId>{reason}</reasonId></method>" for m in methods)
            try:
                await self._patiently("DisableMethods", moref, inside, self._settings.takes)
            except Rejected:
                if methods == (RELOCATE,):
                    raise
            else:
                return

    async def _switch_on(self, moref: str) -> None:
        """What somebody else has switched off stays off: vCenter compares the source."""
        inside = "".join(f"<method>{method}</method>" for method in (RELOCATE, MIGRATE))
        await self._patiently("EnableMethods", moref, inside, self._settings.tries)

    async def _patiently(self, name: str, moref: str, inside: str, tries: int) -> None:
        """Both calls may be put again: a second one finds what the first has done."""
        backoff = Backoff(self._settings.first_pause, self._settings.longest_pause)
        for attempt in range(1, tries + 1):
            try:
                await self._session.call(_invoke, self._session, name, moref, inside, self.source, mutating=True)
                return
            except ConnectorError as error:
                fault = error.__cause__
                if isinstance(fault, vim.fault.MethodAlreadyDisabledFault):
                    if fault.sourceId == self.source:
                        return
                    what = f"another product, {fault.sourceId}, keeps the VM in its place and may let it go at any time"
                    raise Busy(what, where=self._session.where) from error
                if _cannot(error) or not error.retry or attempt == tries:
                    raise
                await backoff.sleep()


def _switched_off(told: dict[str, Any]) -> bool:
    return bool({RELOCATE, MIGRATE} & set(told.get("disabledMethod") or ()))


def _cannot(error: ConnectorError) -> bool:
    """Whether the account may not do it: vCenter then speaks of licences (VDDK guide, privileges)."""
    return isinstance(error, NotPermitted) or isinstance(error.__cause__, _UNLICENSED)


def _refusal(error: ConnectorError) -> str:
    if _cannot(error):
        return f"moves cannot be switched off: {error.what}; it takes {PRIVILEGES}"
    return f"moves cannot be switched off: {error.what}"


def _invoke(session: Session, name: str, moref: str, inside: str, source: str) -> None:
    """Put one call that pyVmomi does not know. Blocking; raises as a pyVmomi call does."""
    manager = session.content.authorizationManager
    if manager is None:
        raise vmodl.fault.NotSupported(msg="there is no authorization manager here")
    body = (
        f'<{name} xmlns="urn:internalvim25"><_this type="AuthorizationManager">'
        f"{escape(manager._moId)}</_this>"
        f'<entity type="VirtualMachine">{escape(moref)}</entity>{inside}'
        f"<sourceId>{escape(source)}</sourceId></{name}>"
    )
    envelope = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">'
        f"<soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>"
    )
    stub = session.new_stub()
    session.adopt(stub)
    stub.requestModifierList = [lambda _: envelope.encode()]
    call = Object(name=name, wsdlName=name, version=stub.version, params=(), result=type(None))
    try:
        stub.InvokeMethod(manager, call, ())
    finally:
        stub.DropConnections()
