"""How a VM looks after an event, as far as the event tells. Pure.

The engine reads the VM again after each event. Where nobody can be asked any more, in a replay of what was recorded,
this stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter

from policies.facts import Event, EventType, PowerState, Vm
from policies.sealing import maker

CHANGING = frozenset({"name", "cluster", "host", "datastore", "power"})
"""The properties, as terms of selections name them, that differ after an event."""

_POWER = {
    EventType.POWERED_ON: PowerState.ON,
    EventType.POWERED_OFF: PowerState.OFF,
    EventType.SUSPENDED: PowerState.SUSPENDED,
}

_FIELDS = [field.name for field in fields(Vm)]
_values = attrgetter(*_FIELDS)  # `replace` takes ten times as long, and simulations make millions of these
_make_vm = maker(Vm)
_POWER_AT, _HOST_AT, _CLUSTER_AT, _NAME_AT, _STORES_AT = map(
    _FIELDS.index, ("power", "host", "cluster", "name", "datastores")
)


def changed_by(vm: Vm, event: Event) -> Vm:
    """The VM after the event: its power, host, cluster, datastores and name. The same value where nothing changes."""
    told = event.detail
    power = _POWER.get(event.type, vm.power)
    host = event.to_host or vm.host
    cluster = (told.get("to_cluster") or vm.cluster) if told else vm.cluster
    name = (told.get("new_name") or vm.name) if told and event.type is EventType.RENAMED else vm.name
    stores = _stores(vm, told) if told and "to_datastore" in told else vm.datastores
    if power is vm.power and host == vm.host and name == vm.name and cluster == vm.cluster and stores == vm.datastores:
        return vm
    after = list(_values(vm))
    after[_POWER_AT], after[_HOST_AT], after[_CLUSTER_AT], after[_NAME_AT], after[_STORES_AT] = (
        power, host, cluster, name, stores,
    )  # fmt: skip
    return _make_vm(*after)


def _stores(vm: Vm, told: Mapping[str, str]) -> tuple[str, ...]:
    left, reached = told.get("from_datastore"), told["to_datastore"]
    if left and reached and left in vm.datastores:
        return tuple(dict.fromkeys(reached if name == left else name for name in vm.datastores))
    return vm.datastores
