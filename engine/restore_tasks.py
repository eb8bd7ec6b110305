"""The bodies of the tasks that restore into a vCenter. Each returns plain values that tell what was achieved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from connectors.errors import ConnectorError
from connectors.hypervisor import Identity, RestoreTarget
from engine.beside import restore_beside
from engine.commands import RestoreDisk, RestoreInPlace, RestoreToVm
from engine.doubts import distrust_disks, newest_is_gone
from engine.failures import BadInput, Declined
from engine.overwrite import IN_PLACE, OVER_DISK, Overwrite, Pair, checked, matched, overwrite
from engine.parts import Parts
from engine.ports import Hypervisor
from engine.restore import DiskWritten, Means, RestoredVm
from engine.restore_ways import restore_new_vm
from engine.tasks import Body, Watch
from engine.threads import settled
from engine.ways import IMPORT, WRITES, in_writing, none_writes
from policies.facts import PointId, PowerState, Vm, VmId
from storage.repository import DiskRecord, PointDetail, Repository

NAME_LENGTH = 80
"""The longest name that vCenter gives a VM."""


def restore_to_vm(parts: Parts, point: PointId, hypervisor: Hypervisor, asked: RestoreToVm) -> Body:
    """A restore point becomes a new VM."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        check_name(asked.name)
        ways = ways_of_writing(parts, asked.transports)
        home = await settled(parts.threads.repository, parts.repositories.home, point)
        detail = await settled(parts.threads.repository, home.detail, point)
        original = parts.world.vms.get(detail.head.vm)
        # The target's vCenter sees only its own VMs; the original may live in another.
        lives = original is not None and original.address.vcenter != hypervisor.vcenter
        if lives and original is not None and asked.identity == Identity.KEEP.value:
            where = parts.names.get(original.address.vcenter, original.address.vcenter)
            raise Declined(
                f"the identity of the original is in use: {original.name} is still in {where}",
                where=asked.name,
                hint="remove that VM, or restore with a new identity",
            )
        target = RestoreTarget(
            name=asked.name,
            folder=asked.folder,
            resource_pool=asked.resource_pool,
            datastore=asked.datastore,
            host=asked.host,
            network_map=dict(asked.network_map),
            disk_datastores=disk_datastores(detail, asked.disk_datastores),
            identity=Identity.NEW if lives else Identity(asked.identity),
            connect=asked.connect,
            storage_policies=dict(asked.storage_policies),
        )
        advance = started(watch, f"{point} to {asked.name}", detail)
        run = parts.mint_run()
        try:
            with parts.crew.alive(run), parts.crew.restoring(hypervisor.vcenter, asked.name):
                how = means(parts, home, hypervisor, advance)
                made = await restore_new_vm(point, target, how, ways, run=run)
        finally:
            await settled(parts.threads.long, parts.crew.remember_unfinished, parts.config.state_dir)
        parts.metrics.operation_finished("restore", "done")
        result = {**told(parts, detail, made), **await _stands(hypervisor, made)}
        if lives and original is not None and asked.identity == Identity.AUTO.value:
            where = parts.names.get(original.address.vcenter, original.address.vcenter)
            result["identity"] += f": the original, {original.name}, is still in {where}"
        return result

    return body


async def _stands(hypervisor: Hypervisor, made: RestoredVm) -> dict[str, Any]:
    """Where the new VM stands; nothing where vCenter cannot tell just now, as it is restored all the same."""
    try:
        vm = await hypervisor.vm(made.vm.address)
    except ConnectorError:
        return {}
    place = {"folder": vm.folder, "datacenter": vm.datacenter, "host": vm.host, "datastores": list(vm.datastores)}
    return {"place": place, "power": vm.power.value}


def check_name(name: str) -> None:
    """BadInput for what is no name of a VM: vCenter would take it for another, or for none. Pure."""
    if not name.strip() or not name.isprintable() or "/" in name or "\\" in name or len(name) > NAME_LENGTH:
        raise BadInput(
            f"{name!r} is no name of a VM",
            where="--to-vm",
            hint=f"1 to {NAME_LENGTH} characters that can be seen, without slashes; vCenter writes a slash as %2f",
        )


def restore_in_place(parts: Parts, point: PointId, asked: RestoreInPlace) -> Body:
    """A restore point is written over the VM that it is of."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        home = await settled(parts.threads.repository, parts.repositories.home, point)
        detail = await settled(parts.threads.repository, home.detail, point)
        if detail.head.vm not in parts.world.vms:
            raise BadInput(
                f"{detail.head.vm_name} is not in the inventory now",
                where=point,
                hint="restore to a new VM: backstay restore POINT --to-vm NAME",
            )
        what = Overwrite(IN_PLACE, point, asked.safety, asked.keep_safety, asked.discard)
        async with _target(parts, detail.head.vm, asked, f"restores it to {point}", watch) as (vm, hypervisor):
            pairs = matched(detail, vm)
            return await _overwritten(parts, home, detail, what, vm, pairs, hypervisor, watch)

    return body


def restore_disk(parts: Parts, point: PointId, target: VmId, asked: RestoreDisk) -> Body:
    """One disk of a restore point is written into a VM: over one of its disks, or as a further one."""

    async def body(watch: Watch) -> Mapping[str, Any]:
        home = await settled(parts.threads.repository, parts.repositories.home, point)
        detail = await settled(parts.threads.repository, home.detail, point)
        record = _record(detail, asked.disk)
        if asked.over:
            what = Overwrite(OVER_DISK, point, asked.safety, asked.keep_safety, asked.discard)
            does = f"writes {record.head.name} of {point} over its {asked.over}"
            async with _target(parts, target, asked, does, watch) as (vm, hypervisor):
                disk = next((d for d in vm.disks if d.label == asked.over), None)
                if disk is None:
                    there = ", ".join(d.label for d in vm.disks)
                    raise BadInput(f"{vm.name} has no disk {asked.over}", hint=f"it has: {there or 'none'}")
                return await _overwritten(parts, home, detail, what, vm, [checked(record, disk, vm)], hypervisor, watch)
        async with _target(parts, target, replace(asked, yes=True), "", watch) as (vm, hypervisor):
            datastore = asked.datastore or next(iter(vm.datastores), "")
            advance = started(watch, f"{point} {record.head.name} to {vm.name}", detail)
            run = parts.mint_run()
            with parts.crew.alive(run):
                made = await restore_beside(
                    point,
                    record,
                    vm,
                    datastore,
                    means(parts, home, hypervisor, advance),
                    run=run,
                    storage_policies=asked.storage_policies,
                )
        parts.metrics.operation_finished("restore", "done")
        return told(parts, detail, made)

    return body


@asynccontextmanager
async def _target(
    parts: Parts, vm_id: VmId, asked: RestoreInPlace | RestoreDisk, does: str, watch: Watch
) -> AsyncIterator[tuple[Vm, Hypervisor]]:
    """The VM to write into, read again and off, while nobody backs it up; Declined without a person's confirmation.

    The task tells however it ends that it was switched off for it.
    """
    assert_writing(parts)
    known = parts.world.vms[vm_id]
    hypervisor = parts.hypervisors.get(known.address.vcenter)
    if hypervisor is None:
        raise BadInput(f"the vCenter of {known.name} is not connected now", hint="see: backstay status")
    seen = replace(await hypervisor.vm(known.address), id=vm_id)
    if await hypervisor.is_own(known.address):
        raise Declined(
            "this engine runs in it or attaches the disks of others to it: it cannot write over what it stands on",
            where=seen.name,
            hint="restore to a new VM, or from the engine of another machine",
        )
    if not asked.yes:
        raise Declined(
            f"this {does}, and what was written since is no longer there" + _on(seen, asked.power_off),
            where=seen.name,
            hint="confirm with --yes",
        )
    if any(attempt.vm.id == vm_id for attempt in parts.crew.active.values()):
        raise Declined("it is being backed up", where=seen.name, hint="wait for that to end, see: backstay status")
    try:
        with parts.crew.restoring(known.address.vcenter, seen.name, known.address.moref):
            watch.facts = {"vm": seen.name, "switched_off": False}
            if asked.power_off and seen.power is not PowerState.OFF:
                watch.facts["switched_off"] = None  # until vCenter has answered
                watch.standing = f"{seen.name} was to be switched off for this: look whether it is on"
                await hypervisor.power_off(known.address)
                watch.facts["switched_off"] = True
                watch.standing = f"{seen.name} was switched off for this, and is off now"
                seen = replace(await hypervisor.vm(known.address), id=vm_id)
            if seen.power is PowerState.OFF:
                watch.facts["power"] = seen.power.value
            yield seen, hypervisor
    finally:
        await settled(parts.threads.long, parts.crew.remember_unfinished, parts.config.state_dir)


def _on(vm: Vm, power_off: bool) -> str:
    return "; it is switched off first, without asking its guest" if power_off and vm.power is PowerState.ON else ""


async def _overwritten(
    parts: Parts,
    home: Repository,
    detail: PointDetail,
    what: Overwrite,
    vm: Vm,
    pairs: Sequence[Pair],
    hypervisor: Hypervisor,
    watch: Watch,
) -> Mapping[str, Any]:
    advance = started(watch, f"{detail.id} to {vm.name}", detail)
    told_of = await settled(parts.threads.state, parts.state.distrust_of, vm.id)
    reasons = [*(each.reason for each in told_of), *newest_is_gone(parts.world, vm.id)]

    async def distrusted() -> None:
        reason = f"it was restored to {detail.id}"
        await distrust_disks(parts.threads, parts.state, parts.metrics, vm.id, "restored", reason, parts.now())

    run = parts.mint_run()
    with parts.crew.alive(run):
        made = await overwrite(
            what,
            vm,
            pairs,
            means(parts, home, hypervisor, advance),
            run=run,
            distrust="; ".join(dict.fromkeys(reasons)),
            newest=max((p for p in parts.world.points.get(vm.id, ())), key=lambda p: p.taken_at, default=None),
            distrusted=distrusted,
        )
    parts.metrics.operation_finished("restore", "done")
    return told(parts, detail, made)


def _record(detail: PointDetail, label: str) -> DiskRecord:
    labels = [record.head.name for record in detail.disks]
    if not label and len(labels) == 1:
        return detail.disks[0]
    for record in detail.disks:
        if record.head.name == label:
            return record
    raise BadInput(f"the restore point has no disk {label}" if label else "name the disk", hint=", ".join(labels))


def means(parts: Parts, repository: Repository, hypervisor: Hypervisor, advance: Callable[[int], None]) -> Means:
    """What a restore into a vCenter needs of the engine."""
    return Means(
        repository,
        hypervisor,
        parts.threads,
        parts.config.state_dir,
        parts.config.transport.order,
        lanes=parts.config.limits.lanes,
        advance=advance,
    )


def assert_writing(parts: Parts) -> None:
    """Declined where no transport of the configuration writes disks of a VM that is there."""
    if why := none_writes(parts.config.transport.order):
        new = bool(in_writing(parts.config.transport.order))
        raise Declined(
            f"nothing is restored into a VM that is there: {why}",
            where="[transport] order",
            hint="add hotadd or nbd (docs/transports.md), or restore to "
            + ("a new VM with --to-vm" if new else "a file with --to-file"),
        )


def ways_of_writing(parts: Parts, asked: Sequence[str]) -> tuple[str, ...]:
    """The ways to make a new VM by, in order: those that were asked for, else the configuration's.

    BadInput for one that there is not, Declined where the configuration has none that writes.
    """
    for way in asked:
        if way not in WRITES:
            raise BadInput(
                f"disks are not written by {way}", where="--transport", hint=f"there are {', '.join(WRITES)}"
            )
    order = parts.config.transport.order
    if not asked and (why := none_writes(order, new=True)):
        raise Declined(
            f"nothing is restored into a vCenter: {why}",
            where="[transport] order",
            hint="add hotadd, nbd or export (docs/transports.md), or restore to a file with --to-file",
        )
    return tuple(dict.fromkeys(asked)) or in_writing(order)


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
        "resumable": all(disk.transport != IMPORT for disk in made.disks),
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
