"""What a vCenter looks like to a backup: what can be protected and what cannot, and what policies would do about it.

Reads only: no repository, no snapshot, no change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from connectors.hypervisor import Fallback
from policies.facts import Disk, Vm
from policies.policyset import PolicySet
from policies.units import counted


class Foreseen(Protocol):
    """The way to a disk that a backup would take now, "" for none, and why not the ones before it."""

    @property
    def transport(self) -> str: ...

    @property
    def fallbacks(self) -> tuple[Fallback, ...]: ...


class Visited(Protocol):
    """A vCenter that is only looked at."""

    @property
    def vcenter(self) -> str:
        """The vCenter's instance UUID."""
        ...

    async def inventory(self) -> Sequence[Vm]:
        """Every VM now."""
        ...

    async def predictions(self, vms: Sequence[Vm]) -> Mapping[tuple[str, int], Foreseen]:
        """By (moRef, disk key)."""
        ...


async def look(visited: Visited, policies: PolicySet | None, now: datetime) -> dict[str, Any]:
    """Everything that `backstay look` shows, as JSON values, VMs in the order of their names."""
    vms = sorted(await visited.inventory(), key=lambda vm: (vm.name, vm.address.moref))
    ways = await visited.predictions(vms)
    rows = [_vm_row(vm, ways, policies, now) for vm in vms]
    return {
        "vcenter": visited.vcenter,
        "looked_at": now,
        "summary": _summary(rows),
        "vms": rows,
        "policies": _selections(policies, rows),
        "selected_by_none": [row["vm"] for row in rows if policies is not None and not row["policies"]],
    }


def unreadable(vms: Sequence[Vm], ways: Mapping[tuple[str, int], Foreseen]) -> list[str]:
    """In a sentence per reason, how many disks that could be protected no transport reaches from here."""
    reasons = Counter(
        "; ".join(f"{one.transport}: {one.reason}" for one in way.fallbacks)
        for vm in vms
        for disk in vm.disks
        if not disk.unprotected and (way := ways.get((vm.address.moref, disk.key))) is not None and not way.transport
    )
    total = sum(not disk.unprotected for vm in vms for disk in vm.disks)
    return [
        f"{disks} of {counted(total, 'disk')} cannot be read from here: {why}" for why, disks in reasons.most_common()
    ]


def _vm_row(
    vm: Vm, ways: Mapping[tuple[str, int], Foreseen], policies: PolicySet | None, now: datetime
) -> dict[str, Any]:
    disks = [_disk_row(disk, ways.get((vm.address.moref, disk.key))) for disk in vm.disks]
    return {
        "vm": vm.name,
        "moref": vm.address.moref,
        "power": vm.power.value,
        "folder": vm.folder,
        "cluster": vm.cluster,
        "host": vm.host,
        "template": vm.template,
        "tools_running": vm.tools_running,
        "protectable": not vm.refusal and any(disk["protectable"] for disk in disks),
        "refusal": vm.refusal or ("" if vm.disks else "it has no disks"),
        "tracking": _tracking(vm),
        "disks": disks,
        "snapshots": [
            {
                "name": one.name,
                "created_at": one.created_at,
                "age_seconds": (now - one.created_at).total_seconds(),
                "depth": one.depth,
            }
            for one in vm.snapshots
        ],
        "own_snapshots": list(vm.own_snapshots),
        "consistency": vm.reach.value if vm.reach is not None and not vm.refusal else "",
        "consistency_why": vm.reach_why if not vm.refusal else "",
        "consolidation_needed": vm.consolidation_needed,
        "policies": [policy.name for policy in policies.matching(vm)] if policies is not None else [],
    }


def _disk_row(disk: Disk, way: Foreseen | None) -> dict[str, Any]:
    fallbacks = way.fallbacks if way is not None else ()
    transport = way.transport if way is not None and not disk.unprotected else ""
    refused = [{"transport": one.transport, "reason": one.reason} for one in fallbacks]
    return {
        "label": disk.label,
        "capacity_bytes": disk.capacity_bytes,
        "datastore": disk.datastore,
        "mode": disk.mode,
        "protectable": not disk.unprotected,
        "why_not": disk.unprotected,
        "transport": transport,
        "fallbacks": [] if disk.unprotected else refused,
    }


def _tracking(vm: Vm) -> str:
    if not vm.tracking_supported:
        return "unsupported"
    return "on" if vm.tracking_enabled else "off"


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    disks = [disk for row in rows for disk in row["disks"]]
    return {
        "vms": len(rows),
        "protectable_vms": sum(row["protectable"] for row in rows),
        "disks": len(disks),
        "protectable_disks": sum(disk["protectable"] for disk in disks),
        "disk_bytes": sum(disk["capacity_bytes"] for disk in disks),
        "tracking_on": sum(row["tracking"] == "on" for row in rows),
        "foreign_snapshots": sum(len(row["snapshots"]) for row in rows),
        "without_transport": sum(disk["protectable"] and not disk["transport"] for disk in disks),
    }


def _selections(policies: PolicySet | None, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if policies is None:
        return []
    return [
        {"policy": policy.name, "vms": [row["vm"] for row in rows if policy.name in row["policies"]]}
        for policy in policies.policies
    ]
