"""The same event of vCenter by two ways: from vCenter itself, and by the bus. Pure.

Whichever comes first has its effect, and the other none. A message cannot say all that vCenter does (which disks a
reconfiguration was about, say), so what it says first never keeps change tracking from being distrusted. And as
anybody who may publish could guess the key of an event to come, a message hides only what says the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from connectors.vcenter_messages import echo_key
from engine.world import World
from policies.decision import Decision, DistrustTracking, Skip
from policies.facts import Address, Event, EventType, VmId


def echo_of(event: Event) -> str:
    """The key that a message about this event of a vCenter has."""
    about = event.address.moref if event.address is not None else event.vm_name
    return echo_key(event.key, event.detail.get("class", ""), about)


def what_is_new(event: Event, decisions: Iterable[Decision]) -> list[Decision]:
    """What vCenter's event leads to after a message told it already."""
    kept: list[Decision] = [one for one in decisions if isinstance(one, DistrustTracking)]
    return kept or [Skip(event.vm, "", "", "the bus told it already", event.key)]


def named(world: World, event: Event) -> list[VmId]:
    """The VMs that an event without an address may mean: of its vCenter, where it tells which that is."""
    vcenter = event.source.removeprefix("vcenter:") if event.address is None else ""
    vcenter = event.detail.get("vcenter", "") if event.source == "nats" else vcenter
    found = world.named(event.vm_name)
    if vcenter not in world.complete:
        return found
    return [vm for vm in found if vm in world.vms and world.vms[vm].address.vcenter == vcenter]


def addresses(world: World, vcenter: str, events: Iterable[Event]) -> set[Address]:
    """Where the VMs stand that these events of a vCenter are about; those that only a name tells as far as known."""
    found: set[Address] = set()
    for event in events:
        if event.address is not None:
            found.add(event.address)
        else:
            found |= {world.vms[vm].address for vm in named(world, event) if vm in world.vms}
    return {address for address in found if address.vcenter == vcenter}


def about_nothing(world: World, event: Event) -> bool:
    """Whether a tag was attached to something that is no VM, or to one of several with its name.

    These were read again; what that shows is told by comparing.
    """
    return event.type is EventType.RETAGGED and event.address is None and len(named(world, event)) != 1
