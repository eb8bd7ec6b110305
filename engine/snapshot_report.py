"""What stands in vCenter now: snapshots of ours and of others, who holds what, what waits, how full datastores are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from connectors.gates import Gates
from engine.headroom import blocked
from engine.jobs import minted_at
from engine.parts import Parts
from metrics.labels import SnapshotState
from policies.facts import ForeignSnapshot, Vm
from policies.protection import Protection, left_out, protection
from policies.units import counted, span

NAMED = 5
"""So many VMs or datastores are named in one sentence."""


def publish(parts: Parts) -> None:
    """Bring the metrics up to date, and have the janitor look where snapshots of ours stand without a run."""
    alone = unused(parts, parts.world.vms.values())
    twice = parts.alone & alone  # the inventory shows a snapshot a moment longer than it is there
    for vcenter in parts.hypervisors:
        vms = [vm for vm in parts.world.vms.values() if vm.address.vcenter == vcenter]
        parts.metrics.snapshots(_state(parts, vcenter, vms, twice))
        if vcenter in parts.cleaners:
            left = {name for vm in vms for name in vm.own_snapshots if name in twice}
            parts.cleaners[vcenter].unused(left, parts.now())
    parts.alone = alone


def unused(parts: Parts, vms: Iterable[Vm]) -> frozenset[str]:
    """The names of our snapshots of these VMs that no run of now uses."""
    names = {name for vm in vms for name in vm.own_snapshots}
    crew = parts.crew
    return frozenset(name for name in names if not (crew.is_active(_run(name)) or crew.runs.another(_run(name))))


def left_out_disks(effective: Protection, vm: Vm) -> list[list[str]]:
    """The disks of the VM that policies leave out, and why."""
    said = [[disk.label, left_out(effective, disk)] for disk in vm.disks if not disk.unprotected]
    return [one for one in said if one[1]]


def _state(parts: Parts, vcenter: str, vms: list[Vm], orphans: frozenset[str]) -> SnapshotState:
    foreign = [snapshot for vm in vms for snapshot in vm.snapshots]
    own = [name for vm in vms for name in vm.own_snapshots]
    spaces = parts.stores.get(vcenter, ())
    return SnapshotState(
        vcenter=parts.names.get(vcenter, vcenter),
        orphans=sum(name in orphans for name in own),
        oldest_orphan=_oldest(name for name in own if name in orphans),
        own=len(own),
        oldest_own=_oldest(own),
        foreign=len(foreign),
        oldest_foreign=min((snapshot.created_at for snapshot in foreign), default=None),
        old_foreign=len(list(_old(parts, foreign))),
        deepest_chain=max((depth(vm) for vm in vms), default=0),
        unprotected_disks=sum(bool(disk.unprotected) for vm in vms for disk in vm.disks),
        left_out_disks=sum(len(left_out_disks(protection(parts.rulebook.in_force, vm), vm)) for vm in vms),
        need_consolidation=sum(vm.consolidation_needed for vm in vms),
        full_datastores=len(_blocking(parts, vcenter)),
        least_free_share=min((one.free_bytes / one.capacity_bytes for one in spaces), default=None),
    )


def depth(vm: Vm) -> int:
    """The VM's longest chain of snapshots, as far as others made it; ours, that stands on top, counts as one more."""
    return max((snapshot.depth for snapshot in vm.snapshots), default=0) + len(vm.own_snapshots)


def _old(parts: Parts, foreign: Iterable[ForeignSnapshot]) -> Iterator[ForeignSnapshot]:
    oldest = parts.now() - parts.config.limits.foreign_snapshot_age
    return (snapshot for snapshot in foreign if snapshot.created_at < oldest)


def _oldest(names: Iterable[str]) -> datetime | None:
    made = (minted_at(_run(name)) for name in names)
    return min((at for at in made if at is not None), default=None)


def _run(name: str) -> str:
    return name.rpartition("-")[2]


def _blocking(parts: Parts, vcenter: str) -> dict[str, str]:
    """The datastores without room for any snapshot, of those that VMs of policies have disks on."""
    full = blocked(parts.stores.get(vcenter, ()), parts.room.marks)
    if not full:
        return {}
    policies = parts.rulebook.in_force
    vms = (vm for vm in parts.world.vms.values() if vm.address.vcenter == vcenter and full.keys() & _with_disks(vm))
    wanted = {name for vm in vms if protection(policies, vm).policies for name in _with_disks(vm)}
    return {name: sentence for name, sentence in full.items() if name in wanted}


def _with_disks(vm: Vm) -> set[str]:
    """Where snapshots of the VM grow; what it has an image in a CD drive from is none of these."""
    return {disk.datastore for disk in vm.disks if not disk.unprotected}


def full_datastores(parts: Parts) -> dict[str, str]:
    """Datastores of protected VMs on which no snapshot is begun, each with why."""
    return {
        f"{name} of {parts.names[vcenter]}": f"{parts.names[vcenter]}: {why}"
        for vcenter in parts.hypervisors
        for name, why in _blocking(parts, vcenter).items()
    }


def to_consolidate(parts: Parts) -> list[tuple[Vm, str]]:
    """VMs that need consolidation, whoever caused it, by name, each with the sentence."""
    vms = sorted((vm for vm in parts.world.vms.values() if vm.consolidation_needed), key=lambda vm: vm.name)
    return [(vm, f"{parts.names.get(vm.address.vcenter, vm.address.vcenter)}: {_needs(parts, vm)}") for vm in vms]


def problems(parts: Parts) -> list[str]:
    """What a person should look at, each in a sentence."""
    found = [f"{why}, so backups of VMs there wait" for why in full_datastores(parts).values()]
    found += [sentence for _, sentence in to_consolidate(parts)]
    for vcenter, name in parts.names.items():
        vms = sorted((vm for vm in parts.world.vms.values() if vm.address.vcenter == vcenter), key=lambda vm: vm.name)
        found += [
            f"{name}: snapshot {one} on {vm.name} was made by another engine that is called {parts.config.name} too;"
            " give each engine a name of its own"
            for vm in vms
            for one in vm.own_snapshots
            if parts.crew.runs.another(_run(one))
        ]
        old = {vm.name: list(_old(parts, vm.snapshots)) for vm in vms if vm.snapshots}
        late = [f"{vm} ({counted(len(listed), 'snapshot')})" for vm, listed in old.items() if listed]
        if late:
            age = span(parts.config.limits.foreign_snapshot_age)
            found.append(f"{name}: snapshots of others are older than {age} and slow their VMs down: {_few(late)}")
    return found


def _needs(parts: Parts, vm: Vm) -> str:
    known = parts.crew.merging.failed.get(vm.address)
    if known is None:
        return f"{vm.name} needs consolidation: deltas grow that no snapshot accounts for; consolidate it in vCenter"
    tries, again, why = known
    return (
        f"{vm.name} needs consolidation behind a snapshot of ours, which failed {counted(tries, 'time')} and is tried"
        f" again at {again:%H:%M} UTC: {why}"
    )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def standing(parts: Parts) -> dict[str, Any]:
    """For the status: what runs hold and since when, what waits, how full datastores are, whose snapshots stand."""
    now = parts.now()
    return {
        "leases": [
            {
                "vm": attempt.vm.name,
                "vcenter": parts.names.get(attempt.vm.address.vcenter, attempt.vm.address.vcenter),
                "run": attempt.run,
                "kind": lease.kind,
                "name": lease.name,
                "transport": lease.way,
                "since": lease.since,
                "seconds": max(0.0, (now - lease.since).total_seconds()),
            }
            for attempt in parts.crew.active.values()
            for lease in attempt.tally.leases.held
        ],
        "gates": [
            gate for vcenter, hypervisor in parts.hypervisors.items()
            for gate in _gates(parts.names.get(vcenter, vcenter), hypervisor.gates)
        ],
        "datastores": [
            {
                "vcenter": parts.names.get(vcenter, vcenter),
                "name": space.name,
                "capacity_bytes": space.capacity_bytes,
                "free_bytes": space.free_bytes,
                "no_snapshots": blocked([space], parts.room.marks).get(space.name, ""),
            }
            for vcenter, spaces in parts.stores.items()
            for space in spaces
        ],
        "snapshots": [
            {
                "vm": vm.name,
                "vcenter": parts.names.get(vm.address.vcenter, vm.address.vcenter),
                "depth": depth(vm),
                "own": list(vm.own_snapshots),
                "foreign": [
                    {"name": one.name, "created_at": one.created_at, "depth": one.depth} for one in vm.snapshots
                ],
                "old_foreign": len(list(_old(parts, vm.snapshots))),
                "consolidation_needed": vm.consolidation_needed,
            }
            for vm in sorted(parts.world.vms.values(), key=lambda vm: vm.name)
            if vm.snapshots or vm.own_snapshots or vm.consolidation_needed
        ],
    }  # fmt: skip


def _gates(vcenter: str, gates: Gates) -> Iterator[Mapping[str, Any]]:
    """Each gate that somebody holds a place of, or waits for."""
    held = Counter(gate for one in gates.held for gate in one.gates)
    waiting = Counter(gate for one in gates.waiting for gate in one.gates)
    for gate in sorted({*held, *waiting}):
        yield {
            "vcenter": vcenter,
            "what": gate.act.value,
            "place": f"{gate.kind} {gate.name}" if gate.name else vcenter,
            "limit": gates.limits.of(gate),
            "held": held[gate],
            "waiting": waiting[gate],
        }
