"""From an event of vCenter to one of ours. Pure: properties of the objects that an event names are never read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from pyVmomi import vim

from connectors.vcenter_messages import TAG_EVENTS, vcenter_key
from policies.facts import Address, Event, EventType

DRS = "drs"
MANUAL = "manual"
HA = "ha"
REVERT = "revert"
RELOAD = "reload"
UPGRADE = "hardware upgrade"

Found = tuple[EventType, str]
"""The type of one of our events and its cause."""


def event_key(vcenter: str, event: Any) -> str:
    """The key of an event, unique for ever.

    vCenter's own keys begin anew when its database is restored, so the second in which the event was created
    belongs to the key. Only the second: finer parts may differ between an event seen live and read back later.
    """
    return vcenter_key(vcenter, created(event), event.key)


def created(event: Any) -> datetime:
    """When the event was created, by vCenter's clock; aware, UTC."""
    at: datetime = event.createdTime
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def normalise(vcenter: str, event: Any) -> Event | None:
    """Our event, or None for one that no policy can ask about."""
    if event.vm is None:
        return _about_a_tag(vcenter, event)
    found = _classify(event)
    if found is None:
        return None
    kind, cause = found
    return Event(
        key=event_key(vcenter, event),
        type=kind,
        at=created(event),
        source=f"vcenter:{vcenter}",
        vm_name=unquote(str(event.vm.name or "")),
        address=Address(vcenter, str(event.vm.vm._moId)),
        cause=cause,
        from_host=_name(getattr(event, "sourceHost", None)),
        to_host=_name(event.host),
        user=str(event.userName or ""),
        detail=_detail(event, cause),
    )


def _about_a_tag(vcenter: str, event: Any) -> Event | None:
    """A tag that was attached or detached: vCenter names the object by its name alone, whatever it is."""
    id = str(getattr(event, "eventTypeId", None) or "")
    told = {str(one.key): str(one.value) for one in getattr(event, "arguments", None) or ()}
    if id not in TAG_EVENTS or not told.get("Object"):
        return None
    return Event(
        key=event_key(vcenter, event),
        type=EventType.RETAGGED,
        at=created(event),
        source=f"vcenter:{vcenter}",
        vm_name=unquote(told["Object"].strip()),
        cause=MANUAL,
        user=str(told.get("User") or event.userName or ""),
        detail={"class": id, "vcenter_key": str(event.key), "tags": f"{TAG_EVENTS[id]} {told.get('Tag', '').strip()}"},
    )


def _classify(event: Any) -> Found | None:
    for kind, classify in _RULES:
        if isinstance(event, kind):
            return classify(event)
    return None


def _always(kind: EventType, cause: str = "") -> Callable[[Any], Found]:
    return lambda _: (kind, cause)


def _moved(cause: str) -> Callable[[Any], Found]:
    """A move to another datastore is a relocation, whatever else moved; every other one is a migration."""

    def classify(event: Any) -> Found:
        before, after = _moref(event.sourceDatastore, "datastore"), _moref(event.ds, "datastore")
        relocated = bool(before and after and before != after)
        return (EventType.RELOCATED if relocated else EventType.MIGRATED), cause

    return classify


def _relocated(event: Any) -> Found:
    """A cold move: a relocation too, unless only the host differs."""
    before, after = _moref(event.sourceDatastore, "datastore"), _moref(event.ds, "datastore")
    other_host = bool(event.sourceHost and event.host) and _name(event.sourceHost) != _name(event.host)
    if before and before == after and other_host:
        return EventType.MIGRATED, MANUAL
    return EventType.RELOCATED, MANUAL


def _task(event: Any) -> Found | None:
    """Snapshots have no events of their own: that a VM goes back to one is told by its task alone, as it begins."""
    named = f"{event.info.descriptionId or ''} {event.info.name or ''}".lower()
    return (EventType.RECONFIGURED, REVERT) if "revert" in named else None


def _powered_off(event: Any) -> Found:
    return EventType.POWERED_OFF, MANUAL if event.userName else "guest"


_E = vim.event
_RULES: tuple[tuple[Any, Callable[[Any], Found | None]], ...] = (
    (_E.DrsVmMigratedEvent, _moved(DRS)),
    (_E.VmMigratedEvent, _moved(MANUAL)),
    (_E.VmRelocatedEvent, _relocated),
    (_E.DrsVmPoweredOnEvent, _always(EventType.POWERED_ON, DRS)),
    (_E.VmRestartedOnAlternateHostEvent, _always(EventType.POWERED_ON, HA)),
    (_E.VmPoweredOnEvent, _always(EventType.POWERED_ON, MANUAL)),
    (_E.VmPowerOffOnIsolationEvent, _always(EventType.POWERED_OFF, HA)),
    (_E.VmShutdownOnIsolationEvent, _always(EventType.POWERED_OFF, HA)),
    (_E.VmPoweredOffEvent, _powered_off),
    (_E.VmSuspendedEvent, _always(EventType.SUSPENDED, MANUAL)),
    (_E.VmClonedEvent, _always(EventType.CLONED, MANUAL)),
    (_E.VmDeployedEvent, _always(EventType.CREATED, "template")),
    (_E.VmCreatedEvent, _always(EventType.CREATED, MANUAL)),
    (_E.VmRemovedEvent, _always(EventType.REMOVED, MANUAL)),
    (_E.VmDiscoveredEvent, _always(EventType.REGISTERED, "discovered")),
    (_E.VmRegisteredEvent, _always(EventType.REGISTERED, MANUAL)),
    (_E.VmRenamedEvent, _always(EventType.RENAMED, MANUAL)),
    (_E.VmAutoRenameEvent, _always(EventType.RENAMED, "vcenter")),
    (_E.VmReconfiguredEvent, _always(EventType.RECONFIGURED, MANUAL)),
    (_E.VmReloadFromPathEvent, _always(EventType.RECONFIGURED, RELOAD)),
    (_E.VmUpgradeCompleteEvent, _always(EventType.RECONFIGURED, UPGRADE)),
    (_E.TaskEvent, _task),
    (_E.VmInstanceUuidChangedEvent, _always(EventType.RECONFIGURED, "identity")),
    (_E.VmUuidChangedEvent, _always(EventType.RECONFIGURED, "identity")),
    (_E.VmEmigratingEvent, _always(EventType.RECONFIGURED, "emigrating")),
    (_E.VmResourcePoolMovedEvent, _always(EventType.RECONFIGURED, "resource pool")),
)
"""The first class that fits decides, so a subclass stands before what it is derived from."""


_REPLACED = {
    REVERT: "it was reverted to a snapshot",
    RELOAD: "its configuration was loaded again from a file",
    UPGRADE: "its virtual hardware was upgraded",
}
"""By cause: what happened to all of the VM's disks at once, as far as change tracking is concerned."""


def _disks(event: Any) -> str:
    """What a reconfiguration did to disks that a snapshot holds, such as "Hard disk 2 added, Hard disk 1 extended".

    Independent ones are nothing to change tracking, among them those that backups attach to a proxy for a while.
    """
    spec, told = getattr(event, "configSpec", None), getattr(event, "configChanges", None)
    modified = str(getattr(told, "modified", None) or "")
    done = []
    for change in getattr(spec, "deviceChange", None) or ():
        disk = change.device
        mode = str(getattr(getattr(disk, "backing", None), "diskMode", None) or "")
        if not isinstance(disk, vim.vm.device.VirtualDisk) or mode.startswith("independent"):
            continue
        label = (disk.deviceInfo.label if disk.deviceInfo else "") or f"disk {disk.key}"
        extended = change.operation == _EDIT and f"device({disk.key}).capacityIn" in modified
        done.append(f"{label} {'extended' if extended else _DONE.get(change.operation, 'changed')}")
    return ", ".join(done)


_EDIT = "edit"
_DONE = {"add": "added", "remove": "removed", _EDIT: "changed"}


def _tracking(event: Any) -> str:
    """Whether a reconfiguration switched change tracking "on" or "off"; empty when neither."""
    wanted = getattr(getattr(event, "configSpec", None), "changeTrackingEnabled", None)
    return "" if wanted is None else "on" if wanted else "off"


def _detail(event: Any, cause: str) -> dict[str, str]:
    told = {
        "class": type(event).__name__.rpartition(".")[2],
        "vcenter_key": str(event.key),
        "chain": str(event.chainId),
        "datacenter": _name(event.datacenter),
        "from_datastore": _name(getattr(event, "sourceDatastore", None)),
        "to_datastore": _name(event.ds),
        "source_vm": _name(getattr(event, "sourceVm", None) or getattr(event, "srcTemplate", None)),
        "old_name": unquote(str(getattr(event, "oldName", None) or "")),
        "new_name": unquote(str(getattr(event, "newName", None) or "")),
        "disks": _REPLACED.get(cause) or _disks(event),
        "tracking": _tracking(event),
        "template": "true" if getattr(event, "template", False) else "",
    }
    return {name: value for name, value in told.items() if value}


def _name(argument: Any) -> str:
    return unquote(str(argument.name or "")) if argument is not None else ""


def _moref(argument: Any, field: str) -> str:
    return str(getattr(argument, field)._moId) if argument is not None else ""
