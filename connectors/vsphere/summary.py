"""A VM in words and numbers that people and other programs read: what the typed configuration says by keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from connectors.vsphere.vmfacts import disk_facts
from policies.facts import Disk, Vm

VERSION = 1

_card = vim.vm.device.VirtualEthernetCard


def summary(
    vm: Vm, config: Any, *, portgroups: Mapping[str, str], policies: Mapping[str, str], missing: Mapping[str, str]
) -> dict[str, Any]:
    """What is kept for reading. JSON values only.

    `portgroups` are names of distributed port groups by key, `policies` names of storage policies: of the disk with
    this key, of the VM's home under "home". `missing` says why something is not kept.
    """
    hardware = config.hardware
    by_key = {device.key: device for device in hardware.device}
    return {
        "version": VERSION,
        "name": vm.name,
        "datacenter": vm.datacenter,
        "folder": vm.folder,
        "cluster": vm.cluster,
        "host": vm.host,
        "resource_pool": vm.resource_pool,
        "datastores": list(vm.datastores),
        "networks": list(vm.networks),
        "tags": sorted(vm.tags),
        "attributes": dict(sorted(vm.attributes.items())),
        "storage_policy": policies.get("home", ""),
        "power": vm.power.value,
        "guest_os": str(config.guestFullName or vm.guest_os),
        "instance_uuid": str(config.instanceUuid or ""),
        "bios_uuid": str(config.uuid or ""),
        "hardware_version": str(config.version or ""),
        "firmware": str(config.firmware or ""),
        "secure_boot": bool(getattr(config.bootOptions, "efiSecureBootEnabled", None)),
        "cpus": int(hardware.numCPU or 0),
        "memory_bytes": int(hardware.memoryMB or 0) << 20,
        "disks": [_disk(fact, by_key, policies) for fact in disk_facts(hardware.device)],
        "cards": [_network_card(device, portgroups) for device in hardware.device if isinstance(device, _card)],
        "missing": dict(missing),
    }


def _disk(fact: Disk, by_key: Mapping[int, Any], policies: Mapping[str, str]) -> dict[str, Any]:
    device = by_key[fact.key]
    controller = by_key.get(device.controllerKey)
    backing = device.backing
    thin = getattr(backing, "thinProvisioned", None)
    return {
        "key": fact.key,
        "label": fact.label,
        "controller": type(controller).__name__.rpartition(".")[2] if controller is not None else "",
        "bus": getattr(controller, "busNumber", None),
        "unit": device.unitNumber,
        "capacity_bytes": fact.capacity_bytes,
        "mode": fact.mode,
        "provisioning": "thin" if thin else "eager" if getattr(backing, "eagerlyScrub", None) else "thick",
        "sharing": str(getattr(backing, "sharing", None) or ""),
        "datastore": fact.datastore,
        "file": fact.file_name,
        "uuid": fact.uuid,
        "change_id": str(getattr(backing, "changeId", None) or ""),
        "storage_policy": policies.get(str(fact.key), ""),
        "unprotected": fact.unprotected,
    }


def _network_card(device: Any, portgroups: Mapping[str, str]) -> dict[str, Any]:
    backing, connectable = device.backing, device.connectable
    switch = port = ""
    if isinstance(backing, _card.DistributedVirtualPortBackingInfo):
        switch, port = str(backing.port.switchUuid or ""), str(backing.port.portgroupKey or "")
    return {
        "key": device.key,
        "label": str(getattr(device.deviceInfo, "label", None) or f"device {device.key}"),
        "kind": type(device).__name__.rpartition(".")[2],
        "mac": str(device.macAddress or ""),
        "address_type": str(device.addressType or ""),
        "network": portgroups.get(port, "") if port else str(getattr(backing, "deviceName", None) or ""),
        "switch_uuid": switch,
        "portgroup_key": port,
        "connected": bool(connectable is not None and connectable.connected),
        "starts_connected": bool(connectable is not None and connectable.startConnected),
    }
