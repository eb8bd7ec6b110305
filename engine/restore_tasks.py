"""The bodies of the tasks that restore into a vCenter. Each returns plain values that tell what was achieved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from connectors.hypervisor import Identity, RestoreTarget
from engine.commands import RestoreToVm
from engine.failures import BadInput
from engine.parts import Parts
from engine.ports import Hypervisor
from engine.restore import DiskWritten, Means, RestoredVm, restore_vm
from engine.tasks import Body, Watch
from engine.threads import settled
from policies.facts import PointId
from storage.repository import PointDetail


def restore_to_vm(parts: Parts, point: PointId, hypervisor: Hypervisor, asked: RestoreToVm) -> Body:
    """A restore point becomes a new VM."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        detail = await settled(parts.threads.repository, parts.repository.detail, point)
        target = RestoreTarget(
            name=asked.name,
            folder=asked.folder,
            resource_pool=asked.resource_pool,
            datastore=asked.datastore,
            host=asked.host,
            network_map=dict(asked.network_map),
            disk_datastores=disk_datastores(detail, asked.disk_datastores),
            identity=Identity(asked.identity),
            connect=asked.connect,
        )
        advance = started(watch, f"{point} to {asked.name}", detail)
        run = parts.mint_run()
        with parts.crew.alive(run), parts.crew.restoring(hypervisor.vcenter, asked.name):
            made = await restore_vm(point, target, means(parts, hypervisor, advance), run=run)
        parts.metrics.operation_finished("restore", "done")
        return told(parts, detail, made)

    return body


def means(parts: Parts, hypervisor: Hypervisor, advance: Callable[[int], None]) -> Means:
    """What a restore needs of the engine."""
    return Means(
        parts.repository,
        hypervisor,
        parts.threads,
        parts.config.state_dir,
        parts.config.transport.order,
        advance=advance,
    )


def started(watch: Watch, note: str, detail: PointDetail) -> Callable[[int], None]:
    """Begin to show how the restore gets on; what tells of each step."""
    watch.note, watch.done, watch.total = note, 0, sum(record.mapped_bytes for record in detail.disks)

    def advance(step: int) -> None:
        watch.done += step

    return advance


def disk_datastores(detail: PointDetail, asked: Mapping[str, str]) -> dict[int, str]:
    """Datastores by device key, from those by label; BadInput names the labels that there are."""
    keys = {record.head.name: record.head.key for record in detail.disks}
    for label in asked:
        if not keys.get(label):
            raise BadInput(f"the restore point has no disk {label}", hint=f"it has: {', '.join(keys)}")
    return {keys[label]: datastore for label, datastore in asked.items()}


def told(parts: Parts, detail: PointDetail, made: RestoredVm) -> dict[str, Any]:
    """What was achieved, for the command and for programs."""
    vcenter = made.vm.address.vcenter
    return {
        "point": detail.id,
        "vm": made.vm.name,
        "moref": made.vm.address.moref,
        "vcenter": parts.names.get(vcenter, vcenter),
        "identity": made.vm.identity,
        "resumed": made.vm.resumed,
        "written_bytes": made.written_bytes,
        "disks": [_disk(disk) for disk in made.disks],
        "warnings": list(made.warnings),
        "without": [list(one) for one in detail.unprotected],
    }


def _disk(disk: DiskWritten) -> dict[str, Any]:
    return {
        "disk": disk.label,
        "capacity_bytes": disk.capacity_bytes,
        "written_bytes": disk.written_bytes,
        "transport": disk.transport,
        "fallbacks": [[one.transport, one.reason] for one in disk.fallbacks],
        "compared": disk.compared,
        "resumed_at": disk.resumed_at,
    }
