"""How a VM looks after an event, as far as the event tells. Pure.

The engine reads the VM again after each event. Where nobody can be asked any more, in a replay of what was recorded,
this stands for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from policies.facts import Event, EventType, PowerState, Vm

_POWER = {
    EventType.POWERED_ON: PowerState.ON,
    EventType.POWERED_OFF: PowerState.OFF,
    EventType.SUSPENDED: PowerState.SUSPENDED,
}


def changed_by(vm: Vm, event: Event) -> Vm:
    """The VM after the event: its power, host, cluster, datastores and name. The same value where nothing changes."""
    told = event.detail
    after: dict[str, Any] = {
        "power": _POWER.get(event.type, vm.power),
        "host": event.to_host or vm.host,
        "cluster": told.get("to_cluster") or vm.cluster,
        "name": (told.get("new_name") or vm.name) if event.type is EventType.RENAMED else vm.name,
        "datastores": vm.datastores,
    }
    left, reached = told.get("from_datastore"), told.get("to_datastore")
    if left and reached and left in vm.datastores:
        after["datastores"] = tuple(dict.fromkeys(reached if name == left else name for name in vm.datastores))
    return vm if all(getattr(vm, name) == value for name, value in after.items()) else replace(vm, **after)
