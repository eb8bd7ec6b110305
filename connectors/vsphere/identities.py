"""Whose UUIDs and MAC addresses a restored VM gets: those of the original only where nobody has them now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

from connectors.errors import AlreadyThere
from connectors.hypervisor import Identity
from connectors.vsphere.session import Session

READ_AT_ONCE = 500
"""VMs whose devices are held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Who has what the original had, by the names of VMs; empty where nobody has it."""

    bios_uuid: str = ""
    instance_uuid: str = ""
    macs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whether the identity is the original's, and a sentence about it."""

    kept: bool
    sentence: str


def choose(wanted: Identity, taken: Taken) -> Chosen:
    """Rejected when the original's identity is asked for and somebody has a part of it. Pure."""
    uuids = (("BIOS UUID", taken.bios_uuid), ("instance UUID", taken.instance_uuid))
    said = [f"{vm} has its {what}" for what, vm in uuids if vm]
    said += [f"{vm} has its MAC address {mac}" for mac, vm in sorted(taken.macs.items())]
    if wanted is Identity.NEW:
        return Chosen(False, "UUIDs and MAC addresses of its own")
    if not said:
        return Chosen(True, "UUIDs and MAC addresses of the original, which nobody has now")
    if wanted is Identity.KEEP:
        raise AlreadyThere(
            f"the identity of the original is in use: {'; '.join(said)}",
            hint="remove that VM, or restore with new identities",
        )
    return Chosen(False, f"UUIDs and MAC addresses of its own: {'; '.join(said)}")


async def taken(session: Session, saved: Any) -> Taken:
    """Who in this vCenter has the saved VM's UUIDs and MAC addresses."""
    index = session.content.searchIndex
    bios = await _named(session, await session.call(index.FindByUuid, None, saved.uuid, True, False), saved.uuid)
    instance = await _named(
        session, await session.call(index.FindByUuid, None, saved.instanceUuid, True, True), saved.instanceUuid
    )
    wanted = set(macs(saved.hardware.device))
    found: dict[str, str] = {}
    vms = await session.call(_all_vms, session) if wanted and not (bios or instance) else []
    for start in range(0, len(vms), READ_AT_ONCE):
        part = vms[start : start + READ_AT_ONCE]
        for each in (await session.read(part, vim.VirtualMachine, ["name", "config.hardware.device"])).values():
            for mac in wanted & set(macs(each.get("config.hardware.device") or ())):
                found[mac] = str(each.get("name", ""))
    return Taken(bios, instance, found)


def macs(devices: Iterable[Any]) -> list[str]:
    """The MAC addresses of the network cards among the devices, in lower case."""
    cards = (d for d in devices if isinstance(d, vim.vm.device.VirtualEthernetCard))
    return [str(card.macAddress).lower() for card in cards if card.macAddress]


async def _named(session: Session, managed: Any, uuid: Any) -> str:
    if managed is None or not uuid:
        return ""
    return str((await session.properties(managed, ["name"])).get("name") or managed._moId)


def _all_vms(session: Session) -> list[Any]:
    content = session.content
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    try:
        return list(view.view)
    finally:
        view.DestroyView()
