"""Events of a vCenter that come by the bus, as VEBA and Knative wrap them, in structured or binary mode.

The same event comes by the follower, too. Its key names the vCenter, the second and vCenter's own key as the follower's
does, and besides what the message says: so one that says something else than vCenter itself does hides nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import unquote, urlsplit

from connectors.errors import Busy
from connectors.message_shapes import VimEvent
from policies.facts import Address, Event, EventType

VIM_EVENTS: Mapping[str, tuple[EventType, str]] = {
    "VmPoweredOnEvent": (EventType.POWERED_ON, ""),
    "DrsVmPoweredOnEvent": (EventType.POWERED_ON, "drs"),
    "VmPoweredOffEvent": (EventType.POWERED_OFF, ""),
    "VmSuspendedEvent": (EventType.SUSPENDED, ""),
    "VmMigratedEvent": (EventType.MIGRATED, "manual"),
    "DrsVmMigratedEvent": (EventType.MIGRATED, "drs"),
    "VmRelocatedEvent": (EventType.RELOCATED, ""),
    "VmCreatedEvent": (EventType.CREATED, ""),
    "VmClonedEvent": (EventType.CLONED, ""),
    "VmDeployedEvent": (EventType.CLONED, ""),
    "VmRemovedEvent": (EventType.REMOVED, ""),
    "VmReconfiguredEvent": (EventType.RECONFIGURED, ""),
    "VmRenamedEvent": (EventType.RENAMED, ""),
    "VmRegisteredEvent": (EventType.REGISTERED, ""),
}

TAG_EVENTS: Mapping[str, str] = {
    "com.vmware.cis.tagging.attach": "added",
    "com.vmware.cis.tagging.detach": "removed",
}
"""EventEx ids of tags that were attached or detached; they name the object by its name alone."""

_MODE = "ce-specversion"
_ATTRIBUTES = ("specversion", "id", "source", "type", "time", "subject", "datacontenttype")


def structured(headers: Mapping[str, str], data: bytes, *, most: int) -> bytes:
    """A message in structured mode; one in binary mode, with its attributes in headers "ce-...", is made one.

    What has more than `most` bytes, or is no JSON inside, is refused later for what it is.
    """
    told = {name.lower(): unquote(value) for name, value in headers.items()}
    content = told.get("content-type", "")
    if _MODE not in told or content.startswith("application/cloudevents") or len(data) > most:
        return data
    envelope: dict[str, object] = {name: told[f"ce-{name}"] for name in _ATTRIBUTES if f"ce-{name}" in told}
    if content:
        envelope["datacontenttype"] = content
    try:
        envelope["data"] = json.loads(data)
        return json.dumps(envelope).encode()
    except (ValueError, RecursionError):
        envelope["data"] = None
        return json.dumps(envelope).encode()


def class_of(type: str, subject: str) -> str:
    """The class, or the EventEx id, of the event inside a CloudEvent of this type and subject."""
    match = re.fullmatch(r"com\.vmware\.vsphere\.([\w.]+)\.v0", type)
    return match[1] if match else subject


def vcenter_key(vcenter: str, at: datetime, key: int) -> str:
    """The key of vCenter's event, as connectors.vsphere.eventfacts makes it."""
    return f"vc:{vcenter}:{int(at.timestamp())}:{key}"


def echo_key(key: str, name: str, told: str) -> str:
    """The key of a message about the event of vCenter with this key, by its class and what it is about."""
    return f"bus-{key}:{name}:{told}"


def echoed(key: str) -> str:
    """The key of vCenter's own event that a message tells of; empty when that is not known."""
    match = re.match(r"bus-(vc:[^:]*:-?\d+:\d+):", key)
    return match[1] if match else ""


def vcenter_of(source: str, vcenters: Mapping[str, str] | None) -> str | None:
    """The UUID of the vCenter that a CloudEvent comes from; empty when nobody said which there are, None for none.

    Raises Busy when it is one that is not reached yet.
    """
    if vcenters is None:
        return ""
    host = host_of(source)
    if host not in vcenters:
        return None
    if not vcenters[host]:
        raise Busy("this vCenter is not reached yet", where=host, hint="the message comes again")
    return vcenters[host]


def host_of(source: str) -> str:
    """The host in the source of a CloudEvent; empty when there is none."""
    try:
        return (urlsplit(source).hostname or "").lower()
    except ValueError:
        return ""


def told(data: VimEvent, name: str, *, vcenter: str, source: str, key: str, at: datetime) -> Event:
    """Our event. `name` is one of VIM_EVENTS or TAG_EVENTS."""
    type, cause = VIM_EVENTS.get(name, (EventType.RETAGGED, ""))
    vm, moref = data.vm, data.vm.vm.value if data.vm and data.vm.vm else ""
    detail = {"moref": moref, "vcenter": vcenter or host_of(source), "vim_event": name}
    if name in TAG_EVENTS:
        vm = None
        detail["tags"] = f"{TAG_EVENTS[name]} {data.argument('Tag')}"
    named = vm.name if vm else data.argument("Object")
    if vcenter and data.key and data.created is not None:
        key = echo_key(vcenter_key(vcenter, data.created, data.key), name, moref or named)
    return Event(
        key=key,
        type=type,
        at=at,
        source="nats",
        vm_name=named,
        address=Address(vcenter, moref) if vcenter and moref else None,
        cause=cause,
        from_host=data.source_host.name if data.source_host else "",
        to_host=data.host.name if data.host and data.source_host else "",
        user=data.user,
        detail=detail,
    )
