"""From properties that were read to the facts of a VM. No call is made here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any
from urllib.parse import unquote

from pyVmomi import vim

from connectors.vsphere.consistency import Machine, expected, free_scsi_places
from connectors.vsphere.naming import tree_nodes
from policies.facts import Address, Disk, ForeignSnapshot, PowerState, Vm, VmId

VM_PATHS: tuple[str, ...] = (
    "name",
    "parent",
    "parentVApp",
    "customValue",
    "config.instanceUuid",
    "config.uuid",
    "config.template",
    "config.annotation",
    "config.changeVersion",
    "config.changeTrackingEnabled",
    "config.guestFullName",
    "config.guestId",
    "config.keyId",
    "config.flags.diskUuidEnabled",
    "config.hardware.device",
    "capability.changeTrackingSupported",
    "capability.diskOnlySnapshotOnSuspendedVMSupported",
    "runtime.host",
    "runtime.powerState",
    "runtime.bootTime",
    "runtime.cleanPowerOff",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.question",
    "runtime.faultToleranceState",
    "resourcePool",
    "datastore",
    "network",
    "snapshot",
    "guest.toolsRunningStatus",
    "guest.toolsVersion",
)
"""All that the facts of a VM are made of: narrow paths, since `config` as a whole is heavy on thousands of VMs."""

LONGEST_CHAIN = 20
"""On a longer chain of snapshots no other is made: vSphere allows 32, and each one slows the VM down."""

MISSING = "backstay.missing"
"""The key under which a reader puts the sentence that tells which properties the account may not read."""

_POWER = {"poweredOn": PowerState.ON, "poweredOff": PowerState.OFF, "suspended": PowerState.SUSPENDED}

_CONTROLLERS: tuple[tuple[Any, str], ...] = (
    (vim.vm.device.VirtualSCSIController, "scsi"),
    (vim.vm.device.VirtualAHCIController, "sata"),
    (vim.vm.device.VirtualNVMEController, "nvme"),
    (vim.vm.device.VirtualIDEController, "ide"),
)

_STATES = {
    "disconnected": "its ESXi host is disconnected from vCenter",
    "orphaned": "it is orphaned: its ESXi host does not know it any more",
    "inaccessible": "its files are not accessible from its ESXi host",
    "invalid": "its configuration file is invalid",
}


@dataclass(frozen=True, slots=True)
class Places:
    """What VMs refer to: the properties of folders, hosts, pools, ... by moRef, and the custom attributes' names."""

    by_moref: Mapping[str, Mapping[str, Any]]
    attribute_names: Mapping[int, str] = field(default_factory=dict)


def vm_facts(
    vcenter: str, moref: str, properties: Mapping[str, Any], places: Places, tags: frozenset[str], engine_id: str
) -> Vm:
    """The facts of one VM. Its id is provisional: the engine puts its own in its place."""
    devices = list(properties.get("config.hardware.device") or ())
    disks = disk_facts(devices)
    nodes = list(tree_nodes(getattr(properties.get("snapshot"), "rootSnapshotList", None)))
    own = [n for n in nodes if n.mark is not None and n.mark.engine == engine_id]
    host = places.by_moref.get(_moref(properties.get("runtime.host")), {})
    folder, datacenter = _folder(properties, places)
    connection = str(properties.get("runtime.connectionState") or "connected")
    power = _POWER.get(str(properties.get("runtime.powerState")), PowerState.OFF)
    booted = properties.get("runtime.bootTime")
    reach, reach_why = expected(_machine(properties, devices, disks, power))
    return Vm(
        id=VmId(f"{vcenter}/{moref}"),
        address=Address(vcenter, moref),
        name=unquote(str(properties.get("name") or "")),
        instance_uuid=str(properties.get("config.instanceUuid") or ""),
        bios_uuid=str(properties.get("config.uuid") or ""),
        datacenter=datacenter,
        folder=folder,
        cluster=_cluster(host, places),
        host=_name(host),
        resource_pool=_pool(properties, places),
        datastores=_names(properties.get("datastore"), places),
        networks=_names(properties.get("network"), places),
        tags=tags,
        attributes=_attributes(properties, places),
        power=power,
        guest_os=str(properties.get("config.guestFullName") or ""),
        tools_running=str(properties.get("guest.toolsRunningStatus")) == "guestToolsRunning",
        template=bool(properties.get("config.template")),
        disks=disks,
        tracking_enabled=bool(properties.get("config.changeTrackingEnabled")),
        tracking_supported=properties.get("capability.changeTrackingSupported") is not False,
        snapshots=tuple(ForeignSnapshot(n.name, n.created_at, n.depth) for n in nodes if n not in own),
        own_snapshots=tuple(n.name for n in own),
        consolidation_needed=bool(properties.get("runtime.consolidationNeeded")),
        connected=connection == "connected",
        change_version=str(properties.get("config.changeVersion") or ""),
        refusal=refusal(properties, devices),
        reach=reach,
        reach_why=reach_why,
        boot_time=None if booted is None else booted.astimezone(UTC),
        clean_power_off=properties.get("runtime.cleanPowerOff"),
    )


def disk_facts(devices: Iterable[Any]) -> tuple[Disk, ...]:
    """The virtual disks among the devices of a VM or of a snapshot's configuration, by device key."""
    by_key = {device.key: device for device in devices}
    disks = [d for _, d in sorted(by_key.items()) if isinstance(d, vim.vm.device.VirtualDisk)]
    return tuple(_disk(disk, by_key.get(disk.controllerKey)) for disk in disks)


def datastore_of(path: str) -> str:
    """The datastore in a path such as "[ssd-1] web/web.vmdk"; empty where there is none."""
    return path[1:].partition("]")[0] if path.startswith("[") else ""


def change_id(device: Any) -> str:
    """The change id of a disk device of a snapshot's configuration; empty when its changes are not tracked."""
    return str(getattr(device.backing, "changeId", None) or "")


def refusal(properties: Mapping[str, Any], devices: Iterable[Any]) -> str:
    """Why no snapshot of the VM can be made, as a sentence; empty when one can."""
    connection = str(properties.get("runtime.connectionState") or "connected")
    if missing := properties.get(MISSING):
        return str(missing)
    if properties.get("config.template"):
        return "it is a template, and templates cannot be snapshotted"
    if connection != "connected":
        return _STATES.get(connection, f"its connection state is {connection}")
    if "config.changeVersion" not in properties and "config.uuid" not in properties:
        return "vCenter does not tell its configuration"
    if str(properties.get("runtime.faultToleranceState") or "notConfigured") != "notConfigured":
        return "it is protected by Fault Tolerance, which does not allow snapshots"
    suspended = str(properties.get("runtime.powerState")) == "suspended"
    if suspended and not properties.get("capability.diskOnlySnapshotOnSuspendedVMSupported"):
        return "it is suspended, and its host would put its memory into the snapshot; resume it or power it off"
    if (question := properties.get("runtime.question")) is not None:
        return f"it waits for an answer to a question: {str(question.text).strip()}"
    known = list(devices)
    controllers = {d.key: d for d in known}
    for disk in known:
        if isinstance(disk, vim.vm.device.VirtualDisk) and not _independent(disk):
            shared = _shared(disk, controllers.get(disk.controllerKey))
            if shared:
                return f"{_label(disk)} is shared ({shared}), and vSphere makes no snapshot of a VM with a shared disk"
    return _pointless(disk_facts(known)) or _too_deep(properties)


def _pointless(disks: tuple[Disk, ...]) -> str:
    """Why a restore point of the VM would hold nothing."""
    if not disks:
        return "it has no disks"
    if not all(disk.unprotected for disk in disks):
        return ""
    return f"a snapshot holds none of its disks: {'; '.join(f'{disk.label}: {disk.unprotected}' for disk in disks)}"


def _too_deep(properties: Mapping[str, Any]) -> str:
    nodes = tree_nodes(getattr(properties.get("snapshot"), "rootSnapshotList", None))
    depth = max((node.depth for node in nodes), default=0)
    return f"it has a chain of {depth} snapshots already, of 32 that vSphere allows" if depth >= LONGEST_CHAIN else ""


def _machine(
    properties: Mapping[str, Any], devices: Iterable[Any], disks: tuple[Disk, ...], power: PowerState
) -> Machine:
    """What the prediction of the consistency looks at."""
    version = str(properties.get("guest.toolsVersion") or "")
    return Machine(
        guest_id=str(properties.get("config.guestId") or ""),
        guest_name=str(properties.get("config.guestFullName") or ""),
        power=power,
        tools_running=str(properties.get("guest.toolsRunningStatus")) == "guestToolsRunning",
        tools_version=int(version) if version.isascii() and version.isdigit() else 0,
        controllers=tuple(disk.controller for disk in disks),
        free_scsi_places=free_scsi_places(devices),
        disk_uuids=properties.get("config.flags.diskUuidEnabled"),
        encrypted=properties.get("config.keyId") is not None,
    )


def _disk(disk: Any, controller: Any) -> Disk:
    file_name = str(getattr(disk.backing, "fileName", None) or getattr(disk.backing, "descriptorFileName", None) or "")
    capacity = disk.capacityInBytes if disk.capacityInBytes else int(disk.capacityInKB or 0) * 1024
    return Disk(
        key=disk.key,
        label=_label(disk),
        capacity_bytes=int(capacity),
        uuid=str(getattr(disk.backing, "uuid", None) or ""),
        datastore=datastore_of(file_name),
        file_name=file_name,
        mode=str(getattr(disk.backing, "diskMode", None) or ""),
        controller=next((name for kind, name in _CONTROLLERS if isinstance(controller, kind)), "scsi"),
        unprotected=_unprotected(disk, controller),
    )


def _unprotected(disk: Any, controller: Any) -> str:
    if str(getattr(disk.backing, "compatibilityMode", "")) == "physicalMode":
        return "it is a raw device mapping in physical mode, which a snapshot does not hold"
    if _independent(disk):
        return f"its mode is {disk.backing.diskMode}: a snapshot does not hold independent disks"
    if isinstance(disk.backing, vim.vm.device.VirtualDisk.RawDiskVer2BackingInfo):
        return "it is a raw device of its host, which a snapshot does not hold"
    if shared := _shared(disk, controller):
        return f"it is shared between VMs ({shared}), which does not allow snapshots"
    return ""


def _independent(disk: Any) -> bool:
    return str(getattr(disk.backing, "diskMode", "") or "").startswith("independent")


def _shared(disk: Any, controller: Any) -> str:
    if str(getattr(disk.backing, "sharing", "") or "") == "sharingMultiWriter":
        return "multi-writer"
    if str(getattr(controller, "sharedBus", "") or "") in ("physicalSharing", "virtualSharing"):
        return f"SCSI bus sharing: {controller.sharedBus}"
    return ""


def _label(disk: Any) -> str:
    return str(getattr(disk.deviceInfo, "label", None) or f"disk {disk.key}")


def _folder(properties: Mapping[str, Any], places: Places) -> tuple[str, str]:
    """The path below the datacenter's VM folder, and the datacenter's name."""
    parent = _moref(properties.get("parent"))
    if not parent and (vapp := _moref(properties.get("parentVApp"))):
        parent = _folder_of_vapp(vapp, places)
    names: list[str] = []
    while place := places.by_moref.get(parent):
        above = _moref(place.get("parent"))
        if isinstance(place.get("parent"), vim.Datacenter):
            return "/" + "/".join(reversed(names)), _name(places.by_moref.get(above, {}))
        names.append(_name(place))
        parent = above
    return "/" + "/".join(reversed(names)), ""


def _folder_of_vapp(vapp: str, places: Places) -> str:
    while place := places.by_moref.get(vapp):
        if folder := _moref(place.get("parentFolder")):
            return folder
        vapp = _moref(place.get("parent"))
    return ""


def _cluster(host: Mapping[str, Any], places: Places) -> str:
    if isinstance(host.get("parent"), vim.ClusterComputeResource):
        return _name(places.by_moref.get(_moref(host["parent"]), {}))
    return ""


def _pool(properties: Mapping[str, Any], places: Places) -> str:
    """The path of the resource pool below the root pool of its cluster or host; the root pool's own name for it."""
    names: list[str] = []
    moref = _moref(properties.get("resourcePool"))
    while place := places.by_moref.get(moref):
        names.append(_name(place))
        if not isinstance(place.get("parent"), vim.ResourcePool):
            break
        moref = _moref(place.get("parent"))
    return "/".join(reversed(names[:-1] or names))


def _attributes(properties: Mapping[str, Any], places: Places) -> dict[str, str]:
    values = properties.get("customValue") or ()
    named = {places.attribute_names.get(v.key): str(getattr(v, "value", "") or "") for v in values}
    return {name: value for name, value in named.items() if name is not None and value}


def _names(references: Iterable[Any] | None, places: Places) -> tuple[str, ...]:
    found = (_name(places.by_moref.get(_moref(r), {})) for r in references or ())
    return tuple(sorted(name for name in found if name))


def _name(place: Mapping[str, Any]) -> str:
    return unquote(str(place.get("name") or ""))


def _moref(managed: Any) -> str:
    return str(managed._moId) if managed is not None else ""
