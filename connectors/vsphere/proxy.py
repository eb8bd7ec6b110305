"""The proxy: the VM that this engine runs in, to which disks of other VMs are attached. What fits on it, or why not."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pyVmomi import vim, vmodl

from connectors.errors import ConnectorError, Gone, TransportFailed
from connectors.vsphere.editions import Verdict, judge
from connectors.vsphere.nfs_locks import stands_still
from connectors.vsphere.session import Session
from connectors.vsphere.tracking_defects import HostBuild
from connectors.vsphere.transport_settings import TransportSettings
from policies.facts import Disk

MARK_PREFIX = "backstay.attached."
"""Keys in the proxy's extraConfig that say which run attached which disk: written and removed with the disk itself."""

_UNITS = tuple(unit for unit in range(16) if unit != 7)
"""The places on a SCSI controller; 7 is the controller's own."""

VSAN = frozenset({"vsan", "vsanD"})
"""What summary.type says of a vSAN datastore, of this cluster or mounted from another."""

_MACHINE_UUID = Path("/sys/class/dmi/id/product_uuid")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a disk: a controller by its device key, and a unit on it."""

    controller: int
    unit: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What the proxy's configuration says about a disk that an engine attached."""

    engine: str
    run: str
    disk_uuid: str
    file_name: str
    slot: Slot
    attached_at: datetime

    @property
    def key(self) -> str:
        """The key of extraConfig that holds it."""
        return MARK_PREFIX + plain_uuid(self.disk_uuid)


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxy as vCenter tells it now. `devices` are its virtual devices as pyVmomi read them.

    `datastores` are those that its host can read now, `kinds` their types ("VMFS", "NFS", "vsan", ...). `version` is
    its host's, `edition` what is known of hot-add there. `tells_uuids` is disk.EnableUUID, None where it is not set.
    `host` and `build` are its host's name and build; `insisted` says that the configuration wants hot-add always.
    """

    moref: str
    name: str
    datacenter: str
    powered_on: bool
    encrypted: bool
    datastores: frozenset[str]
    devices: tuple[Any, ...] = field(repr=False)
    marks: tuple[Mark, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    edition: Verdict = field(default_factory=Verdict)
    version: str = ""
    tells_uuids: bool | None = None
    host: str = ""
    build: int = 0
    insisted: bool = False

    @property
    def foreign(self) -> frozenset[str]:
        """The files of the disks that are attached for a run and are not its own."""
        return frozenset(mark.file_name for mark in self.marks)

    def disks(self) -> list[Any]:
        """Its disks, those of others included."""
        return [d for d in self.devices if isinstance(d, vim.vm.device.VirtualDisk)]


def plain_uuid(text: str) -> str:
    """A disk's UUID as SCSI tells it: 32 lower-case hexadecimal digits."""
    return "".join(c for c in text.lower() if c in "0123456789abcdef")


def refusal(proxy: Proxy, *, vm_moref: str, datacenter: str, encrypted: bool, disk: Disk, runs_on: str = "") -> str:
    """Why this disk cannot be attached to the proxy, as a sentence; empty when it can.

    `runs_on` is the host of a VM that runs, empty for one that is off.
    """
    if disk.unprotected:
        return disk.unprotected
    if vm_moref == proxy.moref:
        return "the disk belongs to the proxy itself"
    if not proxy.edition.tried:
        return proxy.edition.said
    if not proxy.powered_on:
        return f"the proxy {proxy.name} is not powered on"
    if proxy.tells_uuids is False:
        return f"the proxy {proxy.name} has disk.EnableUUID = FALSE, so no disk could be told from another there"
    if disk.controller == "ide":
        return "the disk is on an IDE controller, which hot-add does not support"
    if len(plain_uuid(disk.uuid)) != 32:
        return "the disk has no UUID by which its device could be found"
    if datacenter != proxy.datacenter:
        return (
            f"the proxy {proxy.name} is in datacenter {proxy.datacenter}, the disk in {datacenter or 'an unknown one'}"
        )
    if disk.datastore not in proxy.datastores:
        return f"the host of the proxy {proxy.name} does not see datastore {disk.datastore}"
    if why := _vsan_refusal(proxy, disk):
        return why
    if not proxy.insisted and (
        why := stands_still(
            proxy.kinds.get(disk.datastore, ""), runs_on, proxy.host, HostBuild(proxy.version, proxy.build)
        )
    ):
        return why
    if encrypted and not proxy.encrypted:
        return f"the VM is encrypted and the proxy {proxy.name} is not"
    if any(plain_uuid(_backing_uuid(d)) == plain_uuid(disk.uuid) for d in proxy.disks()):
        return f"a disk with the UUID {disk.uuid} is attached to the proxy {proxy.name} already"
    if free_slot(proxy.devices) is None:
        return f"the proxy {proxy.name} has no free place on a SCSI controller"
    return ""


def _vsan_refusal(proxy: Proxy, disk: Disk) -> str:
    """The two ways in which vSAN keeps a disk from being attached (VDDK: HotAdd transport; KB on vSAN proxies)."""
    lies_on = {proxy.kinds.get(_datastore(d)) for d in proxy.disks() if d.backing.fileName not in proxy.foreign}
    kind = proxy.kinds.get(disk.datastore, "")
    if kind in VSAN and not lies_on & VSAN:
        return f"datastore {disk.datastore} is vSAN, which needs a proxy that lies on vSAN, and {proxy.name} does not"
    if kind and kind not in VSAN and lies_on & VSAN and proxy.version.startswith("6."):
        return (
            f"the proxy {proxy.name} lies on vSAN and its host runs ESXi {proxy.version}: "
            f"there a snapshot's disk on {kind} cannot be attached"
        )
    return ""


def free_slot(devices: Iterable[Any]) -> Slot | None:
    """The first free place, paravirtual controllers first; None when every SCSI controller is full."""
    return next(iter(free_slots(devices)), None)


def free_slots(devices: Iterable[Any]) -> list[Slot]:
    """Every free place, in the order in which they are taken. Controllers whose bus is shared have none."""
    known = list(devices)
    taken = {(d.controllerKey, d.unitNumber) for d in known if getattr(d, "unitNumber", None) is not None}
    controllers = [c for c in known if isinstance(c, vim.vm.device.VirtualSCSIController)]
    unshared = [c for c in controllers if str(c.sharedBus or "noSharing") == "noSharing"]
    unshared.sort(key=lambda c: (not isinstance(c, vim.vm.device.ParaVirtualSCSIController), c.busNumber))
    return [
        Slot(controller.key, unit) for controller in unshared for unit in _UNITS if (controller.key, unit) not in taken
    ]


def attached(proxy: Proxy, mark: Mark) -> Any | None:
    """The device that the mark is about, if it is there. A disk of the proxy's own never matches."""
    for device in proxy.disks():
        same_place = (device.controllerKey, device.unitNumber) == (mark.slot.controller, mark.slot.unit)
        if plain_uuid(_backing_uuid(device)) == plain_uuid(mark.disk_uuid) and (
            same_place or device.backing.fileName == mark.file_name
        ):
            return device
    return None


def mark_value(mark: Mark) -> str:
    """The mark as extraConfig holds it."""
    return json.dumps(
        {
            "engine": mark.engine,
            "run": mark.run,
            "uuid": mark.disk_uuid,
            "file": mark.file_name,
            "controller": mark.slot.controller,
            "unit": mark.slot.unit,
            "at": mark.attached_at.isoformat(),
        }
    )


def read_marks(extra_config: Iterable[Any]) -> tuple[Mark, ...]:
    """The marks in an extraConfig; what is no mark of ours is left out."""
    # The last value of a key counts; an empty one stands for none.
    values = {str(o.key): str(o.value) for o in extra_config if str(o.key).startswith(MARK_PREFIX)}
    return tuple(mark for value in values.values() if (mark := _mark(value)) is not None)


def _mark(value: str) -> Mark | None:
    try:
        told = json.loads(value)
        slot = Slot(int(told["controller"]), int(told["unit"]))
        at = datetime.fromisoformat(told["at"])
        return Mark(str(told["engine"]), str(told["run"]), str(told["uuid"]), str(told["file"]), slot, at)
    except (ValueError, KeyError, TypeError):
        return None


_licences: WeakKeyDictionary[Session, dict[str, str]] = WeakKeyDictionary()
"""The edition of each host that a proxy stood on, for as long as the login lasts: it hardly ever changes."""

_found: WeakKeyDictionary[Session, dict[str, str]] = WeakKeyDictionary()
"""The moRefs under which proxies were found, since a search by name asks for every VM."""


async def find_proxy(session: Session, settings: TransportSettings) -> Any:
    """The managed VM that is the proxy; raises TransportFailed when there is none or more than one."""
    wanted = settings.proxy
    if re.fullmatch(r"vm-\d+", wanted):
        return session.managed(vim.VirtualMachine, wanted)
    if not wanted or _is_uuid(wanted):
        texts = [wanted] if wanted else _machine_uuids()
        for text in texts:
            for instance in (False, True):
                index = session.content.searchIndex
                if (found := await session.call(index.FindByUuid, None, text, True, instance)) is not None:
                    return found
        what = f"no VM has the UUID {wanted}" if wanted else "this engine does not run in a VM of this vCenter"
        raise TransportFailed(what, where=session.where, hint="name the proxy VM in the configuration")
    named = await _vms_named(session, wanted)
    if len(named) != 1:
        raise TransportFailed(
            f"{len(named)} VMs are called {wanted}", where=session.where, hint="name the proxy by its UUID or moRef"
        )
    return named[0]


async def own_vms(session: Session, settings: TransportSettings) -> frozenset[str]:
    """The moRefs of the VM that this engine runs in, by its UUID, and of the one that is named as the proxy."""
    found: set[str] = set()
    for wanted in {"", settings.proxy}:
        try:
            found.add((await find_proxy(session, replace(settings, proxy=wanted)))._moId)
        except TransportFailed:
            continue
    return frozenset(found)


async def read_proxy(session: Session, settings: TransportSettings) -> Proxy:
    """The proxy as it is now; raises TransportFailed when it cannot be found or read."""
    known = _found.setdefault(session, {})
    try:
        if settings.proxy not in known:
            known[settings.proxy] = (await find_proxy(session, settings))._moId
        vm = session.managed(vim.VirtualMachine, known[settings.proxy])
        paths = ["name", "runtime.powerState", "runtime.host", "config.keyId", "config.hardware.device"]
        told = await session.properties(vm, [*paths, "config.extraConfig", "config.flags.diskUuidEnabled"])
        host = told.get("runtime.host")
        wanted = ["name", "datastore", "config.product.version", "config.product.build"]
        of_host = await session.properties(host, wanted) if host else {}
        named = await session.read(
            of_host.get("datastore") or [], vim.Datastore, ["name", "summary.type", "summary.accessible"]
        )
        datacenter = await datacenter_of(session, host)
        version = str(of_host.get("config.product.version") or session.content.about.version)
        licence = await _licence(session, host) if settings.hotadd == "auto" else ""
    except Gone as exc:
        known.pop(settings.proxy, None)
        raise TransportFailed(f"the proxy {settings.proxy} is not there", where=session.where) from exc
    return Proxy(
        moref=vm._moId,
        name=str(told.get("name", vm._moId)),
        datacenter=datacenter,
        powered_on=told.get("runtime.powerState") == vim.VirtualMachine.PowerState.poweredOn,
        encrypted="config.keyId" in told,
        datastores=frozenset(
            str(n["name"]) for n in named.values() if "name" in n and n.get("summary.accessible") is not False
        ),
        devices=tuple(told.get("config.hardware.device") or ()),
        marks=read_marks(told.get("config.extraConfig") or ()),
        kinds={str(n["name"]): str(n.get("summary.type") or "") for n in named.values() if "name" in n},
        edition=judge(settings.hotadd, version, licence),
        version=version,
        tells_uuids=_tells_uuids(
            told.get("config.extraConfig") or (), told.get("config.flags.diskUuidEnabled") is True
        ),
        host=str(of_host.get("name") or ""),
        build=int(build) if (build := str(of_host.get("config.product.build") or "")).isdecimal() else 0,
        insisted=settings.hotadd == "always",
    )


async def datacenter_of(session: Session, host: Any) -> str:
    """The name of the datacenter that a host is in; empty when that is not told."""
    place = host
    while place is not None:
        told = await session.properties(place, ["parent", "name"])
        if isinstance(place, vim.Datacenter):
            return str(told.get("name", ""))
        place = told.get("parent")
    return ""


async def _licence(session: Session, host: Any) -> str:
    """The key of the edition that the host is licensed with; empty where the account may not see it."""
    known = _licences.setdefault(session, {})
    if host is None:
        return ""
    if host._moId not in known:
        known[host._moId] = await session.call(_read_licence, session, host._moId)
    return known[host._moId]


def _read_licence(session: Session, host: str) -> str:
    try:
        manager = session.content.licenseManager.licenseAssignmentManager
        found = manager.QueryAssignedLicenses(host) if manager is not None else ()
    except vim.fault.NotAuthenticated:
        raise
    except vmodl.MethodFault:
        # Who may not see licences, or a vCenter that tells none, is no reason against the disk.
        return ""
    return next((str(one.assignedLicense.editionKey) for one in found or () if one.assignedLicense), "")


def _tells_uuids(extra_config: Iterable[Any], flag: bool) -> bool | None:
    """What disk.EnableUUID says; where it is not set, True if the VM's flags say so, else unknown."""
    said = {str(o.key).lower(): str(o.value).lower() for o in extra_config}.get("disk.enableuuid", "")
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(said, flag or None)


def _datastore(device: Any) -> str:
    file_name = str(getattr(device.backing, "fileName", None) or "")
    return file_name[1:].partition("]")[0] if file_name.startswith("[") else ""


def _backing_uuid(device: Any) -> str:
    return str(getattr(device.backing, "uuid", None) or "")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _machine_uuids() -> list[str]:
    """This machine's UUID, in both orders of bytes that firmware has told it in."""
    try:
        own = uuid.UUID(_MACHINE_UUID.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as exc:
        raise TransportFailed(
            f"the UUID of this machine cannot be read from {_MACHINE_UUID}",
            hint="run as root inside the proxy VM, or name the proxy in the configuration",
        ) from exc
    return [str(own), str(uuid.UUID(bytes=own.bytes_le))]


async def _vms_named(session: Session, name: str) -> list[Any]:
    content = session.content
    view = await session.call(content.viewManager.CreateContainerView, content.rootFolder, [vim.VirtualMachine], True)
    try:
        vms = (await session.properties(view, ["view"])).get("view") or []
        told = await session.read(vms, vim.VirtualMachine, ["name"])
    finally:
        await session.call(view.DestroyView)
    return [vm for vm in vms if told.get(vm._moId, {}).get("name") == name]


async def proxy_or_reason(session: Session, settings: TransportSettings) -> Proxy | str:
    """The proxy, or why there is none, for a forecast."""
    try:
        return await read_proxy(session, settings)
    except ConnectorError as exc:
        return str(exc)
