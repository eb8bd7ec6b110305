"""Making a VM again from the configuration that a restore point holds: powered off, its disks empty."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyVmomi import vim

from connectors.cleanup import finish
from connectors.errors import AlreadyThere, Busy, ConnectorError, Gone, Rejected
from connectors.hypervisor import CreatedVm, RestoreTarget, StoragePolicy
from connectors.kept_vm import KeptVm, unpack
from connectors.vsphere import import_marks
from connectors.vsphere.belongings import put_labels, put_nvram
from connectors.vsphere.identities import Chosen, choose, taken
from connectors.vsphere.naming import escaped
from connectors.vsphere.placement import Place, Remembered, find_place
from connectors.vsphere.restore_marks import RestoreMark, cleared, marked, option, read_mark
from connectors.vsphere.session import Session
from connectors.vsphere.storage_policies import HOME, Policies, ids_by_name, remembered, specification, with_policy
from connectors.vsphere.storage_policies import choose as choose_policies
from connectors.vsphere.tags import TagReader
from connectors.vsphere.trial_marks import as_trial
from connectors.vsphere.vmfacts import disk_facts
from connectors.vsphere.vmspec import NewVm, add_disk, encrypted_disks, matching_controller, new_vm, read_configuration
from policies.facts import Address

log = logging.getLogger(__name__)

TASK_SECONDS = 600.0

LONGEST_NAME = 80
"""Characters of a VM's name: vSphere takes no more."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A new VM before it is made: what is kept of the old one, where it goes, as what, with whose identity and
    which storage policies.

    `found` is what is known of the half-restored VM that is there already, if one is.
    """

    kept: KeptVm
    saved: Any
    place: Place
    plan: NewVm
    chosen: Chosen
    policies: Policies
    found: Mapping[str, Any] | None
    warnings: tuple[str, ...]


async def create_vm(session: Session, tags: TagReader, configuration: bytes, target: RestoreTarget) -> CreatedVm:
    """A new VM like the saved one, with empty disks in the order of the restore point's.

    Its disks are made one by one, so that each is known by its place. On any failure, a cancellation included, the
    half-made VM is removed again. A VM of this name that carries this engine's mark for the same restore point is
    what an interrupted restore left: it is taken up and completed. It carries the mark until `finish_vm`. Raises
    Rejected, naming what exists, for a wrong name.
    """
    planned = await plan_vm(session, configuration, target)
    kept, saved, place, plan = planned.kept, planned.saved, planned.place, planned.plan
    found, warnings = planned.found, list(planned.warnings)
    vm: Any = session.managed(vim.VirtualMachine, found["moref"]) if found is not None else None
    if vm is None:
        if target.trial:
            engine = session.settings.engine_id
            as_trial(plan.config, plan.disks, engine=engine, point=target.point, run=target.run)
        elif target.point:
            mark = RestoreMark(session.settings.engine_id, target.point, target.run)
            plan.config.extraConfig.append(option(mark))
            plan.config.annotation = marked(str(saved.annotation or ""), target.point)

        async def create(policy: str) -> Any:
            plan.config.vmProfile = specification(policy)
            return await _create(session, plan.config, place, target)

        vm, lacking = await with_policy(create, planned.policies, HOME, "its home")
        warnings += lacking
    try:
        disks, lacking = await _disks(session, vm, planned, target)
        warnings += lacking
        warnings += await put_nvram(session, vm, kept, place.datacenter, encrypted=saved.keyId is not None)
        if not target.trial:
            warnings += await put_labels(session, tags, vm, kept.summary)
        told = await session.properties(vm, ["config.changeVersion"])
    except BaseException as failure:
        if found is None:
            await _discard(session, vm, failure)
        raise
    for what in warnings:
        log.warning("restored VM differs", extra={"vm": target.name, "what": what})
    log.info("VM created", extra={"vm": target.name, "moref": vm._moId, "disks": len(disks)})
    return CreatedVm(
        Address(session.vcenter, vm._moId),
        target.name,
        tuple(disks),
        identity=planned.chosen.sentence,
        warnings=tuple(warnings),
        resumed=found is not None,
        version=str(told.get("config.changeVersion") or ""),
        found_version=str(found.get("config.changeVersion") or "") if found is not None else "",
    )


async def plan_vm(session: Session, configuration: bytes, target: RestoreTarget) -> Planned:
    """What a new VM like the saved one is to be, and where. Changes nothing; raises Rejected, naming what exists."""
    if not 0 < len(target.name) <= LONGEST_NAME:
        raise Rejected(f"a VM's name has 1 to {LONGEST_NAME} characters, not {len(target.name)}", where=target.name)
    kept = unpack(configuration)
    saved = read_configuration(configuration)
    place = await find_place(session, target, _remembered(kept, saved))
    _check(saved, kept, place, target)
    policies = await _policies(session, kept, saved, target)
    found = await _earlier(session, place, target)
    chosen = choose(target.identity, await taken(session, saved)) if found is None else _identity_of(found, saved)
    version = await _offered_version(session, place, str(saved.version or ""))
    warnings = [*place.warnings, *policies.warnings]
    if version != str(saved.version or ""):
        warnings.append(f"its hardware version is {version}: {saved.version} is not offered there")

    def network_of(card: Any) -> Any:
        return _network(card, place, target.network_map, kept)

    plan = new_vm(
        saved,
        name=escaped(target.name),
        datastore=place.datastore,
        version=version,
        network_of=network_of,
        keys=target.disks,
        keep_identity=chosen.kept,
        connect=target.connect,
        cards=target.cards,
    )
    warnings += [f"without {what}" for what in plan.left_out]
    return Planned(kept, saved, place, plan, chosen, policies, found, tuple(warnings))


async def policy_for_disk(session: Session, configuration: bytes, key: int, asked: Mapping[str, str]) -> StoragePolicy:
    """The storage policy of the saved VM's disk with this key, by name; the service is asked where it had one alone.

    Rejected for a name in `asked` that the disk had not, or that is not there.
    """
    name = remembered(unpack(configuration).summary).get(str(key), "") if configuration else ""
    had = {str(key): name} if name else {}
    there, unknown = await ids_by_name(session) if had else ({}, "")
    chosen = choose_policies(had, asked, there, unknown)
    id_ = chosen.of(str(key))
    return StoragePolicy(id_, chosen.names.get(id_, ""), chosen.warnings)


async def finish_vm(session: Session, moref: str) -> None:
    """All is written: take the mark and the warning away. Idempotent."""
    vm = session.managed(vim.VirtualMachine, moref)
    notes = str((await session.properties(vm, ["config.annotation"])).get("config.annotation") or "")
    await _reconfigure(session, vm, vim.vm.ConfigSpec(annotation=cleared(notes), extraConfig=[option(None)]))


async def _policies(session: Session, kept: KeptVm, saved: Any, target: RestoreTarget) -> Policies:
    """The storage policies of a VM to be made. Where none was, nothing is asked.

    A trial VM gets those that encrypt it alone: Rejected where what was encrypted would lie in the clear.
    """
    had = remembered(kept.summary, target.disks)
    secret = [str(key) for key in encrypted_disks(saved, target.disks)] if target.trial else []
    if target.trial:
        had = {key: name for key, name in had.items() if secret and key in (HOME, *secret)}
    there: Mapping[str, str] = {}
    unknown = ""
    if had:
        there, unknown = await ids_by_name(session)
    chosen = choose_policies(had, target.storage_policies, there, unknown)
    if any(not chosen.of(key) for key in secret):
        why = "; ".join(chosen.warnings) or "the restore point does not name the storage policy that encrypts it"
        raise Rejected(
            f"in a trial VM what is encrypted would lie in the clear: {why}",
            where=target.name,
            hint="restore it to a new VM by hand where it may lie so",
        )
    return replace(chosen, needed=bool(secret))


async def _disks(session: Session, vm: Any, planned: Planned, target: RestoreTarget) -> tuple[list[Any], list[str]]:
    """Make those that are not there yet; the facts of all, in the plan's order, and what they lack.

    They are made in the order of the saved VM: vCenter numbers labels ("Hard disk 1") in the order it makes disks.
    """
    saved, lacking = planned.saved, []
    for disk in sorted(planned.plan.disks, key=lambda disk: disk.key):
        present = await _devices(session, vm)
        if _at(saved, disk, present) is None:
            datastore = target.disk_datastores.get(disk.key, planned.place.datastore)

            async def add(policy: str, disk: Any = disk, present: Any = present, datastore: str = datastore) -> None:
                await _reconfigure(session, vm, add_disk(saved, disk, present, datastore, specification(policy)))

            label = getattr(disk.deviceInfo, "label", None) or f"disk {disk.key}"
            _, said = await with_policy(add, planned.policies, str(disk.key), str(label))
            lacking += said
    return await disks_made(session, vm, saved, planned.plan, target), lacking


async def disks_made(session: Session, vm: Any, saved: Any, plan: NewVm, target: RestoreTarget) -> list[Any]:
    """The facts of a new VM's disks, in the plan's order. Rejected when one is missing or has another size."""
    made = await _devices(session, vm)
    by_key = {fact.key: fact for fact in disk_facts(made)}
    disks = []
    for disk in plan.disks:
        device = _at(saved, disk, made)
        if device is None or device.key not in by_key:
            raise Rejected(f"vCenter made no disk in the place of {disk.key} of {target.name}", where=session.where)
        if by_key[device.key].capacity_bytes != (disk.capacityInBytes or disk.capacityInKB * 1024):
            raise Rejected(f"{by_key[device.key].label} of {target.name} has another size", where=session.where)
        disks.append(by_key[device.key])
    return disks


def _at(saved: Any, disk: Any, present: Sequence[Any]) -> Any | None:
    """The disk that is in the saved one's place."""
    place = (matching_controller(saved, disk, present).key, disk.unitNumber)
    disks = (d for d in present if isinstance(d, vim.vm.device.VirtualDisk))
    return next((d for d in disks if (d.controllerKey, d.unitNumber) == place), None)


def _remembered(kept: KeptVm, saved: Any) -> Remembered:
    told = kept.summary
    return Remembered(
        _datastore_in(saved.files.vmPathName),
        *(str(told.get(name) or "") for name in ("datacenter", "folder", "cluster", "resource_pool")),
    )


def _check(saved: Any, kept: KeptVm, place: Place, target: RestoreTarget) -> None:
    """Rejected for a name that the target tells and that is not there: of an old network, or of a disk's datastore."""
    cards = [d for d in saved.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard)]
    were = {_saved_network(card, place, kept) for card in cards}
    if unknown := sorted(set(target.network_map) - were):
        raise Rejected(f"the VM was on no network {unknown[0]}", hint=f"it was on: {', '.join(sorted(were)) or 'none'}")
    for datastore in target.disk_datastores.values():
        if datastore not in place.datastores:
            raise Rejected(
                f"there is no datastore called {datastore} for its disks",
                hint=f"there are: {', '.join(sorted(place.datastores))}",
            )


async def _earlier(session: Session, place: Place, target: RestoreTarget) -> Mapping[str, Any] | None:
    """What is known of the VM that an interrupted restore of the same point left under the name; None when none did.

    AlreadyThere when something else has the name.
    """
    there = await session.call(session.content.searchIndex.FindChild, place.folder, escaped(target.name))
    if there is None:
        return None
    if isinstance(there, vim.VirtualMachine) and target.point:
        told = await session.properties(
            session.managed(vim.VirtualMachine, there._moId),
            ["config.extraConfig", "config.uuid", "config.changeVersion", "runtime.powerState", "snapshot"],
        )
        mark = read_mark(told.get("config.extraConfig") or ())
        if mark is not None and (mark.engine, mark.point) == (session.settings.engine_id, target.point):
            if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
                raise Rejected(
                    f"{target.name} is half restored and is not powered off",
                    where=session.where,
                    hint="switch it off to have its disks written over, or restore under another name",
                )
            if told.get("snapshot") is not None:
                raise Rejected(f"{target.name} is half restored and has snapshots", hint="remove them first")
            if import_marks.read_mark(told.get("config.extraConfig") or ()) is not None:
                raise Busy(
                    f"an interrupted import has left {target.name}, and it is not gone yet",
                    where=session.where,
                    hint="the janitor removes it once vCenter has ended its lease, within some minutes: try again then",
                )
            log.info("half-restored VM found", extra={"vm": target.name, "moref": there._moId, "run": mark.run})
            return {**told, "moref": there._moId}
    raise name_taken(session, target)


def _identity_of(found: Mapping[str, Any], saved: Any) -> Chosen:
    kept = str(found.get("config.uuid")) == str(saved.uuid)
    whose = "of the original" if kept else "of its own"
    return Chosen(kept, f"UUIDs and MAC addresses {whose}, as chosen before the break")


def name_taken(session: Session, target: RestoreTarget) -> AlreadyThere:
    """That something has the name already, and what to do."""
    folder = f"the folder {target.folder}" if target.folder else "its folder"
    return AlreadyThere(
        f"a VM or folder called {target.name} is there already in {folder}",
        where=session.where,
        hint="restore under another name, or into another folder",
    )


async def _create(session: Session, config: Any, place: Place, target: RestoreTarget) -> Any:
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
            raise name_taken(session, target) from failure
        raise
    return made[0]


async def _reconfigure(session: Session, vm: Any, spec: Any) -> None:
    await session.task(lambda: vm.ReconfigVM_Task(spec), timeout=TASK_SECONDS, entity=vm, operation="Reconfig")


async def _discard(session: Session, vm: Any, failure: BaseException) -> None:
    """Remove the VM that was made for this restore; its disks are empty."""
    try:
        await session.task(vm.Destroy_Task, timeout=TASK_SECONDS, entity=vm, operation="Destroy")
    except Gone:
        return
    except ConnectorError as exc:
        failure.add_note(f"the half-made VM {vm._moId} could not be removed: {exc}")
        log.error("half-made VM left behind", extra={"moref": vm._moId, "error": str(exc)})


async def _devices(session: Session, vm: Any) -> list[Any]:
    told = await session.properties(vm, ["config.hardware.device"])
    return list(told.get("config.hardware.device") or ())


def _network(card: Any, place: Place, network_map: Mapping[str, str], kept: KeptVm) -> Any:
    """The backing of a new card for a saved one: the network of the same name, or the one that the map names."""
    saved_name = _saved_network(card, place, kept)
    wanted = network_map.get(saved_name, saved_name)
    backing = place.networks.get(wanted)
    if backing is None:
        raise Rejected(
            f"there is no network {wanted or 'for a network card'} at the target",
            hint=f"map it to one of: {', '.join(sorted(place.networks)) or 'none'}",
        )
    return backing


def _saved_network(card: Any, place: Place, kept: KeptVm) -> str:
    """The saved network's name; of a distributed port group that nothing tells the name of, its key."""
    backing = card.backing
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
        told: Mapping[str, Any] = next((c for c in kept.summary.get("cards", ()) if c.get("key") == card.key), {})
        key = str(backing.port.portgroupKey or "")
        # The name first: in another vCenter the key may be another port group's.
        return str(told.get("network") or "") or place.portgroups.get(key, key)
    return str(getattr(backing, "deviceName", None) or getattr(backing, "opaqueNetworkId", None) or "")


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
