"""vCenter's switch that turns single methods of a VM off until the same source turns them on again.

DisableMethods and EnableMethods of the AuthorizationManager are not in the public API; govmomi sends them in the
namespace urn:internalvim25 (object/authorization_manager_internal.go), and VMware's own VDDK uses them. A method that
is switched off stays so until the same source switches it on, whatever becomes of sessions and engines. So every
switch of ours is under one name for as long as the engine has its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import Object

from connectors.errors import Busy, ConnectorError, NotPermitted
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.naming import PREFIX
from connectors.vsphere.session import Session

_OFF, _ON = "Global.DisableMethods", "Global.EnableMethods"

PRIVILEGES = f"{_OFF} and {_ON} on the vCenter's root"

_UNLICENSED = (vim.fault.RestrictedVersion, vmodl.fault.NotSupported, vmodl.fault.MethodNotFound)


@dataclass(frozen=True, slots=True)
class LockSettings:
    """How often a switch is tried to be taken, while a run waits, and to be taken back, and the pauses between."""

    first_pause: float = 1.0
    longest_pause: float = 15.0
    takes: int = 2
    tries: int = 8


class HeldByOther(Busy):
    """Another source has switched the method off."""

    def __init__(self, source: str, where: str) -> None:
        super().__init__(f"another product, {source}, has switched it off", where=where)
        self.source = source


class Switches:
    """The switches of this engine in one vCenter. Both calls may be put again: a second finds what the first did."""

    def __init__(self, session: Session, settings: LockSettings) -> None:
        self.source = f"{PREFIX}.{session.settings.engine_id}"
        self._session = session
        self._settings = settings
        self._can_take_back = False

    async def off(self, moref: str, methods: Sequence[str], reason: str) -> None:
        """Switch methods of a VM off. HeldByOther, with nothing changed, where somebody else has one of them off.

        NotPermitted where the account may switch off and not on: what it took it could never give back.
        """
        await self._assert_can_take_back()
        why = escape(reason)
        inside = "".join(f"<method><method>{m}</method><reasonId>{why}</reasonId></method>" for m in methods)
        await self._patiently("DisableMethods", moref, inside, self.source, self._settings.takes)

    async def on(self, moref: str, methods: Sequence[str], *, source: str = "") -> None:
        """Switch them on. What another source has switched off stays off: vCenter compares it."""
        inside = "".join(f"<method>{method}</method>" for method in methods)
        await self._patiently("EnableMethods", moref, inside, source or self.source, self._settings.tries)

    async def _assert_can_take_back(self) -> None:
        if self._can_take_back:
            return
        try:
            held = await self._session.call(_held, self._session)
        except ConnectorError:
            return  # vCenter says itself what may not be done
        if held.get(_OFF, False) and not held.get(_ON, True):
            raise NotPermitted(f"the account lacks the privilege {_ON}, so it could not be let go", where=self.source)
        self._can_take_back = held.get(_ON, False)

    async def _patiently(self, name: str, moref: str, inside: str, source: str, tries: int) -> None:
        backoff = Backoff(self._settings.first_pause, self._settings.longest_pause)
        for attempt in range(1, tries + 1):
            try:
                await self._session.call(_invoke, self._session, name, moref, inside, source, mutating=True)
                return
            except ConnectorError as error:
                fault = error.__cause__
                if isinstance(fault, vim.fault.MethodAlreadyDisabledFault):
                    if fault.sourceId == source:
                        return
                    raise HeldByOther(str(fault.sourceId), self._session.where) from error
                if cannot(error) or not error.retry or attempt == tries:
                    raise
                await backoff.sleep()


def cannot(error: ConnectorError) -> bool:
    """Whether the account may not do it: vCenter then speaks of licences (VDDK guide, privileges)."""
    return isinstance(error, NotPermitted) or isinstance(error.__cause__, _UNLICENSED)


def _held(session: Session) -> dict[str, bool]:
    """Which of the two privileges the account holds on the vCenter's root. Blocking; raises as a pyVmomi call does."""
    content = session.content
    key = content.sessionManager.currentSession.key
    told = content.authorizationManager.HasPrivilegeOnEntities(
        entity=[content.rootFolder], sessionId=key, privId=[_OFF, _ON]
    )
    return {str(one.privId): bool(one.isGranted) for each in told or () for one in each.privAvailability or ()}


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
