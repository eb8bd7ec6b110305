"""Making a VM again from the configuration that a restore point holds: powered off, its disks empty."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from connectors.cleanup import finish
from connectors.errors import ConnectorError, Rejected
from connectors.hypervisor import CreatedVm, RestoreTarget
from connectors.vsphere.placement import Place, find_place
from connectors.vsphere.session import Session
from connectors.vsphere.vmfacts import disk_facts
from connectors.vsphere.vmspec import add_disk, matching_controller, new_vm, read_configuration
from policies.facts import Address

log = logging.getLogger(__name__)

TASK_SECONDS = 600.0


async def create_vm(session: Session, configuration: bytes, target: RestoreTarget) -> CreatedVm:
    """A new VM like the saved one, with empty disks in the order of the restore point's.

    Its disks are made one by one, so that each is known by its place. On any failure, a cancellation included, the
    half-made VM is removed again. Raises Rejected, naming what exists, for a wrong name.
    """
    saved = read_configuration(configuration)
    place = await find_place(session, target, _datastore_in(saved.files.vmPathName))
    version = await _offered_version(session, place, str(saved.version or ""))

    def network_of(card: Any) -> Any:
        return _network(card, place, target.network_map)

    plan = new_vm(
        saved,
        name=target.name,
        datastore=place.datastore,
        version=version,
        network_of=network_of,
        keys=target.disks,
    )
    for what in plan.left_out:
        log.warning("restored without", extra={"vm": target.name, "device": what})
    vm = await _create(session, plan.config, place, target)
    try:
        for disk in plan.disks:
            present = await _devices(session, vm)
            spec = add_disk(saved, disk, present, place.datastore)
            await _reconfigure(session, vm, spec)
        made = await _devices(session, vm)
        by_key = {fact.key: fact for fact in disk_facts(made)}
        disks = []
        for disk in plan.disks:
            place_of = (matching_controller(saved, disk, made).key, disk.unitNumber)
            key = next((d.key for d in made if (d.controllerKey, d.unitNumber) == place_of and d.key in by_key), None)
            if key is None:
                raise Rejected(f"vCenter made no disk at {place_of} of {target.name}", where=session.where)
            disks.append(by_key[key])
    except BaseException as failure:
        await _discard(session, vm, failure)
        raise
    log.info("VM created", extra={"vm": target.name, "moref": vm._moId, "disks": len(disks)})
    return CreatedVm(Address(session.vcenter, vm._moId), target.name, tuple(disks))


async def _create(session: Session, config: Any, place: Place, target: RestoreTarget) -> Any:
    taken = Rejected(
        f"a VM or folder called {target.name} is there already in the folder {target.folder or '/'}",
        where=session.where,
        hint="restore under another name, or into another folder",
    )
    if await session.call(session.content.searchIndex.FindChild, place.folder, target.name) is not None:
        raise taken
    made: list[Any] = []

    async def create() -> None:
        made.append(
            await session.task(
                lambda: place.folder.CreateVM_Task(config, place.pool, place.host),
                timeout=TASK_SECONDS,
                entity=place.folder,
                operation="CreateVM",
            )
        )

    try:
        await finish(create(), within=TASK_SECONDS + 4 * session.settings.answer_seconds)
    except BaseException as failure:
        if made:
            await _discard(session, made[0], failure)
        if isinstance(failure.__cause__, (vim.fault.DuplicateName, vim.fault.AlreadyExists)):
            raise taken from failure
        raise
    return made[0]


async def _reconfigure(session: Session, vm: Any, spec: Any) -> None:
    await session.task(lambda: vm.ReconfigVM_Task(spec), timeout=TASK_SECONDS, entity=vm, operation="Reconfig")


async def _discard(session: Session, vm: Any, failure: BaseException) -> None:
    """Remove the VM that was made for this restore; its disks are empty."""
    try:
        await session.task(vm.Destroy_Task, timeout=TASK_SECONDS, entity=vm, operation="Destroy")
    except ConnectorError as exc:
        failure.add_note(f"the half-made VM {vm._moId} could not be removed: {exc}")
        log.error("half-made VM left behind", extra={"moref": vm._moId, "error": str(exc)})


async def _devices(session: Session, vm: Any) -> list[Any]:
    told = await session.properties(vm, ["config.hardware.device"])
    return list(told.get("config.hardware.device") or ())


def _network(card: Any, place: Place, network_map: Mapping[str, str]) -> Any:
    """The backing of a new card for a saved one: the network of the same name, or the one that the map names."""
    saved_name = _saved_network(card.backing, place)
    wanted = network_map.get(saved_name, saved_name)
    backing = place.networks.get(wanted)
    if backing is None:
        raise Rejected(
            f"there is no network {wanted or 'for a network card'} at the target",
            hint=f"map it to one of: {', '.join(sorted(place.networks)) or 'none'}",
        )
    return backing


def _saved_network(backing: Any, place: Place) -> str:
    """The saved network's name; of a distributed port group that is gone only its key is known."""
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
        key = str(backing.port.portgroupKey or "")
        return place.portgroups.get(key, key)
    return str(getattr(backing, "deviceName", None) or "")


async def _offered_version(session: Session, place: Place, version: str) -> str:
    """The saved hardware version, or the newest older one that the target offers."""
    if place.browser is None or not version:
        return version
    try:
        told = await session.call(place.browser.QueryConfigOptionDescriptor)
    except ConnectorError as exc:
        log.info("hardware versions of the target are not known", extra={"error": str(exc)})
        return version
    offered = sorted((str(d.key) for d in told or () if d.createSupported is not False), key=_number)
    if not offered or version in offered:
        return version
    older = [v for v in offered if _number(v) < _number(version)]
    chosen = older[-1] if older else offered[0]
    log.warning("hardware version not offered", extra={"saved": version, "used": chosen})
    return chosen


def _number(version: str) -> int:
    digits = version.removeprefix("vmx-")
    return int(digits) if digits.isdigit() else 0


def _datastore_in(path: str) -> str:
    return path[1:].partition("]")[0] if path.startswith("[") else ""
