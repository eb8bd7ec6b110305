"""From the saved configuration of a VM to the specification of a new one with the same hardware. Pure.

With identities of its own (UUIDs and MAC addresses are not taken over) it can live beside the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

from pyVmomi import SoapAdapter, vim

from connectors.errors import Rejected
from connectors.kept_vm import unpack
from connectors.vsphere.vmfacts import disk_facts

_SAME = (
    "alternateGuestName",
    "annotation",
    "cpuHotAddEnabled",
    "cpuHotRemoveEnabled",
    "firmware",
    "flags",
    "guestId",
    "latencySensitivity",
    "maxMksConnections",
    "memoryHotAddEnabled",
    "memoryReservationLockedToMax",
    "nestedHVEnabled",
    "swapPlacement",
    "vPMCEnabled",
)
"""Properties that a specification takes as the configuration tells them."""

_TOOLS = (
    "afterPowerOn",
    "afterResume",
    "beforeGuestReboot",
    "beforeGuestShutdown",
    "beforeGuestStandby",
    "syncTimeWithHost",
    "syncTimeWithHostAllowed",
    "toolsUpgradePolicy",
)

_DROPPED_OPTIONS = re.compile(
    r"""(.*\.)?ctkEnabled
    | (ide|sata|scsi|nvme)\d+:\d+\.(fileName|redo)
    | sched\.swap\.derivedName | nvram | vc\.uuid
    | (backstay|checkpoint|guestinfo|migrate|replay|uuid|vmotion)\..*""",
    re.VERBOSE,
)
"""Options that belong to the old VM's files, its identity or a moment of its life, not to its hardware."""

_CONTROLLERS = (
    vim.vm.device.VirtualSCSIController,
    vim.vm.device.VirtualSATAController,
    vim.vm.device.VirtualNVMEController,
    vim.vm.device.VirtualUSBController,
    vim.vm.device.VirtualUSBXHCIController,
)

_NOT_COPIED = (
    vim.vm.device.VirtualDisk,
    vim.vm.device.VirtualIDEController,
    vim.vm.device.VirtualPCIController,
    vim.vm.device.VirtualPS2Controller,
    vim.vm.device.VirtualSIOController,
    vim.vm.device.VirtualKeyboard,
    vim.vm.device.VirtualPointingDevice,
    vim.vm.device.VirtualVideoCard,
    vim.vm.device.VirtualVMCIDevice,
)
"""Disks are added later, one by one; the rest the server makes by itself."""

_STORAGE = (
    vim.vm.device.VirtualIDEController,
    vim.vm.device.VirtualSCSIController,
    vim.vm.device.VirtualSATAController,
    vim.vm.device.VirtualNVMEController,
)


@dataclass(frozen=True, slots=True)
class NewVm:
    """What to create: `config` makes the VM without disks, `disks` are then added one by one, in this order.

    `left_out` says which devices of the original the new VM will not have.
    """

    config: Any
    disks: tuple[Any, ...]
    left_out: tuple[str, ...]


def read_configuration(data: bytes) -> Any:
    """The saved vim.vm.ConfigInfo, from the archive or bare; raises Rejected for anything else."""
    try:
        saved = SoapAdapter.Deserialize(unpack(data).configuration.decode(), resultType=vim.vm.ConfigInfo)
    except (ExpatError, UnicodeDecodeError, TypeError, ValueError, KeyError, AttributeError) as exc:
        raise Rejected("the saved configuration is not one of a VM", hint="restore the disks to files instead") from exc
    if not isinstance(saved, vim.vm.ConfigInfo) or saved.hardware is None or saved.files is None:
        raise Rejected("the saved configuration is not one of a VM", hint="restore the disks to files instead")
    return saved


def new_vm(
    saved: Any,
    *,
    name: str,
    datastore: str,
    version: str,
    network_of: Callable[[Any], Any],
    keys: Sequence[int] = (),
    keep_identity: bool = False,
    connect: bool | None = None,
    cards: bool = True,
) -> NewVm:
    """The specification of a VM like the saved one, on a datastore.

    network_of gives the backing of a new network card for the saved one, or raises. `keys` are the disks that were
    backed up, in order; without them it is those that a snapshot holds. The rest is as in RestoreTarget.
    """
    hardware = saved.hardware
    config = vim.vm.ConfigSpec(
        name=name,
        version=version or None,
        numCPUs=hardware.numCPU,
        numCoresPerSocket=hardware.numCoresPerSocket,
        memoryMB=hardware.memoryMB,
        files=vim.vm.FileInfo(vmPathName=f"[{datastore}]"),
        tools=_tools(saved.tools),
        bootOptions=_boot_options(saved.bootOptions),
        cpuAllocation=saved.cpuAllocation,
        memoryAllocation=saved.memoryAllocation,
        extraConfig=kept_options(saved.extraConfig or ()),
    )
    if keep_identity:
        config.uuid, config.instanceUuid = saved.uuid, saved.instanceUuid
        # Else the first power-on waits for an answer to whether the VM was moved or copied.
        config.extraConfig.append(vim.option.OptionValue(key="uuid.action", value="keep"))
    for same in _SAME:
        if (value := getattr(saved, same, None)) is not None:
            setattr(config, same, value)
    changes: list[Any] = []
    left_out: list[str] = []
    for device in hardware.device:
        if isinstance(device, _NOT_COPIED):
            continue
        if isinstance(device, _CONTROLLERS):
            changes.append(_controller(device))
        elif isinstance(device, vim.vm.device.VirtualEthernetCard):
            if cards:
                changes.append(_card(device, network_of(device), keep_identity, connect))
            else:
                left_out.append(f"{_label(device)}: it is to have no network")
        elif isinstance(device, vim.vm.device.VirtualCdrom):
            changes.append(_cdrom(device))
        else:
            left_out.append(f"{type(device).__name__.rpartition('.')[2]} {_label(device)}")
    config.deviceChange = [
        vim.vm.device.VirtualDeviceSpec(operation=vim.vm.device.VirtualDeviceSpec.Operation.add, device=d)
        for d in changes
    ]
    facts = {f.key: f for f in disk_facts(hardware.device)}
    disks = sorted((d for d in hardware.device if isinstance(d, vim.vm.device.VirtualDisk)), key=lambda d: d.key)
    left_out += [f"{_label(d)}: {facts[d.key].unprotected}" for d in disks if facts[d.key].unprotected]
    held = {d.key: d for d in disks if not facts[d.key].unprotected}
    if keys:
        left_out += [f"{_label(d)}: it was not backed up" for key, d in held.items() if key not in keys]
        held = {key: held[key] for key in keys if key in held}
    return NewVm(config, tuple(held.values()), tuple(left_out))


def kept_options(options: Iterable[Any]) -> list[Any]:
    """The options of extraConfig that make sense on a new VM."""
    return [vim.option.OptionValue(key=o.key, value=o.value) for o in options if not _DROPPED_OPTIONS.fullmatch(o.key)]


def encrypted_disks(saved: Any, keys: Sequence[int]) -> list[int]:
    """The keys of the saved VM's encrypted disks; `keys` leaves out others, unless it is empty. Pure."""
    disks = (device for device in saved.hardware.device if isinstance(device, vim.vm.device.VirtualDisk))
    wanted = (disk for disk in disks if not keys or disk.key in keys)
    return [disk.key for disk in wanted if getattr(disk.backing, "keyId", None) is not None]


def add_disk(
    saved: Any, disk: Any, present: Iterable[Any], datastore: str, profile: Sequence[Any] | None = None
) -> Any:
    """The change that adds an empty disk like the saved one, at the same place; the server names its file.

    `present` are the devices of the new VM; raises Rejected when the disk's controller is not among them. `profile`
    gives it a storage policy.
    """
    controller = matching_controller(saved, disk, present)
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        # The server chooses a free name in the VM's own folder.
        fileName=f"[{datastore}] ",
        diskMode="persistent",
        thinProvisioned=_thin(disk.backing),
        eagerlyScrub=bool(getattr(disk.backing, "eagerlyScrub", None)) or None,
    )
    device = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=controller.key,
        unitNumber=disk.unitNumber,
        capacityInKB=disk.capacityInKB,
        capacityInBytes=disk.capacityInBytes or disk.capacityInKB * 1024,
        backing=backing,
    )
    change = vim.vm.device.VirtualDeviceSpec
    return vim.vm.ConfigSpec(
        deviceChange=[
            change(
                operation=change.Operation.add,
                fileOperation=change.FileOperation.create,
                device=device,
                profile=list(profile) if profile else None,
            )
        ]
    )


def matching_controller(saved: Any, disk: Any, present: Iterable[Any]) -> Any:
    """The new VM's controller of the same kind and bus as the one that the saved disk was on."""
    original = next((d for d in saved.hardware.device if d.key == disk.controllerKey), None)
    kind = next((k for k in _STORAGE if isinstance(original, k)), None)
    if original is not None and kind is not None:
        for device in present:
            if isinstance(device, kind) and device.busNumber == original.busNumber:
                return device
    raise Rejected(f"{_label(disk)} was on a controller that the new VM does not have")


def _controller(device: Any) -> Any:
    made = type(device)(key=-device.key, busNumber=device.busNumber)
    if isinstance(device, vim.vm.device.VirtualSCSIController):
        made.sharedBus = vim.vm.device.VirtualSCSIController.Sharing.noSharing
    return made


def _card(device: Any, backing: Any, keep_identity: bool, connect: bool | None) -> Any:
    was_connected = device.connectable is not None and bool(device.connectable.startConnected)
    # Beside the original, with its address in the guest, a card must be connected by a person.
    starts = connect if connect is not None else keep_identity and was_connected
    made = type(device)(
        key=-device.key,
        backing=backing,
        addressType="generated",
        wakeOnLanEnabled=device.wakeOnLanEnabled,
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=starts, allowGuestControl=True, connected=False
        ),
    )
    if keep_identity and device.macAddress:
        made.macAddress = device.macAddress
        # vCenter takes a given address as "assigned"; "manual" is only for those of VMware's range for it.
        made.addressType = "manual" if str(device.addressType).lower() == "manual" else "assigned"
    return made


def _cdrom(device: Any) -> Any:
    """An empty drive: an image that the original had in it may be gone."""
    return vim.vm.device.VirtualCdrom(
        key=-device.key,
        controllerKey=-device.controllerKey if device.controllerKey >= 1000 else device.controllerKey,
        unitNumber=device.unitNumber,
        backing=vim.vm.device.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=True, connected=False
        ),
    )


def _tools(saved: Any) -> Any:
    if saved is None:
        return None
    return vim.vm.ToolsConfigInfo(**{n: v for n in _TOOLS if (v := getattr(saved, n, None)) is not None})


def _boot_options(saved: Any) -> Any:
    """As saved, without the boot order, which names devices by keys of the old VM."""
    if saved is None:
        return None
    names = ("bootDelay", "bootRetryDelay", "bootRetryEnabled", "efiSecureBootEnabled", "enterBIOSSetup")
    return vim.vm.BootOptions(**{n: v for n in names if (v := getattr(saved, n, None)) is not None})


def _thin(backing: Any) -> bool:
    return not isinstance(backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo) or bool(backing.thinProvisioned)


def _label(device: Any) -> str:
    return str(getattr(device.deviceInfo, "label", None) or f"device {device.key}")
