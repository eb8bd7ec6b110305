"""What happened, as an operator says it."""

from __future__ import annotations

from policies.facts import Event, EventType, Vm

_PLAIN = {
    EventType.POWERED_ON: "was powered on",
    EventType.POWERED_OFF: "was powered off",
    EventType.SUSPENDED: "was suspended",
    EventType.RELOCATED: "was moved to other storage",
    EventType.CREATED: "was created",
    EventType.CLONED: "was cloned from another VM",
    EventType.REMOVED: "was removed from the inventory",
    EventType.RECONFIGURED: "was reconfigured",
    EventType.RENAMED: "was renamed",
    EventType.REGISTERED: "was registered",
    EventType.RETAGGED: "got other tags",
}

_MOVERS = {"drs": " by DRS", "ha": " by HA", "manual": " by hand"}


def name_of(event: Event, vm: Vm | None) -> str:
    """The VM's name now, else what the event called it."""
    return (vm.name if vm else "") or event.vm_name or event.vm or "a VM"


def asked(event: Event) -> str:
    """Who asked for a hold or a backup, and why: such as "alice asked (before the upgrade)"."""
    who = event.user or event.source or "a message"
    why = event.detail.get("reason", "")
    return f"{who} asked ({why})" if why else f"{who} asked"


def happened(event: Event, vm: Vm | None) -> str:
    """Such as "web-3 was moved by DRS from esx1 to esx2"."""
    name = name_of(event, vm)
    if event.type is EventType.MIGRATED:
        mover = _MOVERS.get(event.cause, f" ({event.cause})" if event.cause else "")
        origin = f" from {event.from_host}" if event.from_host else ""
        goal = f" to {event.to_host}" if event.to_host else ""
        return f"{name} was moved{mover}{origin}{goal}"
    if event.type is EventType.HOLD_REQUESTED:
        return f"{asked(event)} to hold the restore points of {name}"
    if event.type is EventType.RETAGGED and event.detail.get("tags"):
        return f"{name} got other tags ({event.detail['tags']})"
    if event.type is EventType.RECONFIGURED and event.detail.get("disks"):
        return f"the disks of {name} were changed ({event.detail['disks']})"
    if event.type is EventType.RECONFIGURED and event.cause == "emigrating":
        return f"{name} is on its way to another vCenter"
    if event.type is EventType.RECONFIGURED and event.detail.get("tracking"):
        return f"change tracking of {name} was switched {event.detail['tracking']}"
    if event.cause == "ha" and event.type in (EventType.POWERED_ON, EventType.POWERED_OFF):
        return f"{name} {_PLAIN[event.type]} by HA, as its host failed"
    return f"{name} {_PLAIN.get(event.type, f'had the event {event.type}')}"
