"""Asks a vCenter what a doctor wants to know: privileges, clock, hosts, and what speaks against hot-add. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from connectors.diagnosis import Diagnosis, Gap, ProxyReport
from connectors.errors import ConnectorError, Gone, TransportFailed
from connectors.privileges import Place, at
from connectors.vsphere.drs import who_moves
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.proxy import Proxy, find_proxy, free_slots, read_proxy
from connectors.vsphere.session import Session
from connectors.vsphere.transport_settings import HOT_ADD, TransportSettings

ENTITIES_PER_CALL = 100
"""Privileges are asked for on so many objects at a time; an answer has a line for each object and privilege."""

_KINDS: Mapping[Place, Any] = {
    "vms": vim.VirtualMachine,
    "datastores": vim.Datastore,
    "pools": vim.ResourcePool,
    "networks": vim.Network,
}


async def diagnose(session: Session, inventory: Inventory, settings: TransportSettings) -> Diagnosis:
    """What this vCenter is, what the account may do in it, and whether disks can be attached here."""
    about = session.content.about
    theirs, ours = await session.call(session.now), datetime.now(UTC)
    proxy: Any = None
    if HOT_ADD in settings.order and settings.hotadd != "never":
        try:
            proxy = await find_proxy(session, settings)
        except ConnectorError:
            proxy = None  # the report says why
    known = {str(one.privId) for one in await _privilege_list(session)}
    gaps: list[Gap] = []
    unknown: set[str] = set()
    for place in ("root", "vms", "proxy", "datastores", "folders", "pools", "networks"):
        asked = at(place)
        unknown |= set(asked) - known
        names = await _entities(session, inventory, place, proxy)
        gaps += await _gaps(session, place, names, [one for one in asked if one in known])
    hosts = await inventory.read_all(("name", "runtime.connectionState"), vim.HostSystem)
    return Diagnosis(
        product=f"{about.fullName}" if about.fullName else f"{about.name} {about.version}",
        api_type=str(about.apiType),
        skew_seconds=(theirs - ours).total_seconds(),
        gaps=tuple(gaps),
        unknown=tuple(sorted(unknown)),
        proxy=await proxy_report(session, inventory, settings) if HOT_ADD in settings.order else None,
        hosts=tuple(
            sorted(
                str(told["name"])
                for told in hosts.values()
                if "name" in told and str(told.get("runtime.connectionState")) == "connected"
            )
        ),
    )


async def proxy_report(session: Session, inventory: Inventory, settings: TransportSettings) -> ProxyReport:
    """What stands for and against hot-add on the VM that this engine runs in."""
    if settings.hotadd == "never":
        return ProxyReport('hot-add is switched off: the configuration says hotadd = "never"')
    try:
        proxy = await read_proxy(session, settings)
    except TransportFailed as error:
        return ProxyReport(f"{error.what} ({error.hint})" if error.hint else error.what)
    except ConnectorError as error:
        return ProxyReport(str(error))
    with_vms = await inventory.read_all(("name", "vm"), vim.Datastore)
    used = {str(told["name"]) for told in with_vms.values() if told.get("vm") and "name" in told}
    return ProxyReport(
        trouble=_trouble(proxy),
        name=proxy.name,
        edition=proxy.edition.said,
        controllers=tuple(
            type(device).__name__.rpartition(".")[2]
            for device in proxy.devices
            if isinstance(device, vim.vm.device.VirtualSCSIController)
        ),
        free_places=len(free_slots(proxy.devices)),
        attached=len(proxy.marks),
        unseen=tuple(sorted(used - proxy.datastores)),
        tells_uuids=proxy.tells_uuids,
        moved_by=await _moved_by(session, proxy),
    )


async def _moved_by(session: Session, proxy: Proxy) -> str:
    try:
        vm = session.managed(vim.VirtualMachine, proxy.moref)
        host = (await session.properties(vm, ["runtime.host"])).get("runtime.host")
    except ConnectorError:
        return ""
    return "" if host is None else await who_moves(session, host, proxy.moref)


def _trouble(proxy: Proxy) -> str:
    """Why the proxy takes no disk at all, whichever it is."""
    if not proxy.edition.tried:
        return proxy.edition.said
    if not proxy.powered_on:
        return f"the proxy {proxy.name} is not powered on"
    if proxy.tells_uuids is False:
        return f"the proxy {proxy.name} has disk.EnableUUID = FALSE"
    if not free_slots(proxy.devices):
        return f"the proxy {proxy.name} has no free place on a SCSI controller"
    return ""


async def _privilege_list(session: Session) -> Sequence[Any]:
    manager = session.content.authorizationManager
    return list((await session.properties(manager, ["privilegeList"])).get("privilegeList") or ())


async def _entities(session: Session, inventory: Inventory, place: Place, proxy: Any) -> list[tuple[Any, str]]:
    """The objects of a place, with their names."""
    match place:
        case "root":
            return [(session.content.rootFolder, "the root of the inventory")]
        case "proxy":
            if proxy is None:
                return []
            try:
                return [(proxy, str((await session.properties(proxy, ["name"])).get("name", proxy._moId)))]
            except Gone:
                return []
        case "folders":
            centers = await inventory.read_all(("name", "vmFolder"), vim.Datacenter)
            return [
                (told["vmFolder"], f"the VM folder of {told.get('name', '')}")
                for told in centers.values()
                if "vmFolder" in told
            ]
        case _:
            found = await _objects(session, _KINDS[place])
            told = await session.read(found, _KINDS[place], ["name"])
            return [(one, str(told.get(one._moId, {}).get("name", one._moId))) for one in found]


async def _objects(session: Session, kind: Any) -> list[Any]:
    """Every object of a kind, each as what it is: a distributed port group is a network too."""
    content = session.content
    view = await session.call(content.viewManager.CreateContainerView, content.rootFolder, [kind], True)
    try:
        return list((await session.properties(view, ["view"])).get("view") or ())
    finally:
        await session.call(view.DestroyView)


async def _gaps(session: Session, place: Place, entities: list[tuple[Any, str]], asked: Sequence[str]) -> list[Gap]:
    """The privileges that are lacking on some of these objects."""
    lacking: dict[str, list[str]] = {}
    named = {managed._moId: name for managed, name in entities}
    for start in range(0, len(entities) if asked else 0, ENTITIES_PER_CALL):
        some = [managed for managed, _ in entities[start : start + ENTITIES_PER_CALL]]
        for answer in await _answers(session, some, list(asked)):
            for one in answer.privAvailability or ():
                if not one.isGranted:
                    lacking.setdefault(str(one.privId), []).append(named[answer.entity._moId])
    return [Gap(privilege, place, tuple(sorted(names)), len(entities)) for privilege, names in sorted(lacking.items())]


async def _answers(session: Session, entities: list[Any], asked: list[str]) -> list[Any]:
    """What vCenter says of these objects; those that went meanwhile are left out."""
    try:
        return await session.call(_ask, session, entities, asked)
    except Gone:
        if len(entities) == 1:
            return []
    return [answer for one in entities for answer in await _answers(session, [one], asked)]


def _ask(session: Session, entities: list[Any], privileges: list[str]) -> list[Any]:
    content = session.content
    key = content.sessionManager.currentSession.key
    return list(
        content.authorizationManager.HasPrivilegeOnEntities(entity=entities, sessionId=key, privId=privileges) or ()
    )
