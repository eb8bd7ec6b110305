"""Taking a VM that is there over for a restore into it, and handing it back.

A snapshot for safety holds the disks as they were before: what is restored goes into the deltas above it, as a guest's
own writes would, and a revert undoes all of it. The snapshot carries no mark that the janitor looks for, so that it
stays until the restore is finished, or a person decides. It is made before the VM is marked, so that a reverted VM
carries no mark.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pyVmomi import vim

from connectors.cleanup import finish
from connectors.errors import Busy, NotOurs, Rejected
from connectors.hypervisor import CreatedVm, MarkedVm, StoragePolicy
from connectors.vsphere.naming import PREFIX, TreeNode, tree_nodes
from connectors.vsphere.proxy import VSAN
from connectors.vsphere.removal import RemovalSettings, consolidate, read_tree
from connectors.vsphere.restore_marks import RestoreMark, cleared, marked, option, read_mark, warned
from connectors.vsphere.session import Session
from connectors.vsphere.storage_policies import Policies, specification, with_policy
from connectors.vsphere.vmfacts import disk_facts
from policies.facts import Address, Disk

log = logging.getLogger(__name__)

TASK_SECONDS = 600.0

_PATHS = (
    "name",
    "snapshot",
    "config.template",
    "config.annotation",
    "config.extraConfig",
    "config.changeVersion",
    "config.hardware.device",
    "runtime.powerState",
    "runtime.consolidationNeeded",
    "datastore",
)


def safety_prefix(engine_id: str) -> str:
    """How the names of this engine's snapshots for safety begin."""
    return f"{PREFIX}-safety-{engine_id}-"


async def power_off(session: Session, moref: str) -> None:
    """Switch the VM off at once, without asking its guest. Nothing to do when it is off."""
    vm = session.managed(vim.VirtualMachine, moref)
    told = await session.properties(vm, ["runtime.powerState"])
    if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
        await session.task(vm.PowerOffVM_Task, timeout=TASK_SECONDS, entity=vm, operation="PowerOff")


async def take_over(
    session: Session, moref: str, keys: Sequence[int], *, point: str, run: str, safety: bool, earlier: str = ""
) -> CreatedVm:
    """Make a VM ready for its disks with these device keys to be written, in this order, and mark it as half restored.

    Rejected, with nothing changed, when it is not off, or has snapshots that are not ours for safety. `resumed` when
    an interrupted restore of the same restore point has left it so. A snapshot for safety is ours as long as the mark
    names it, or, where there is no mark, when it is the one of the run `earlier`: one that a finished restore has left
    holds what somebody wanted to keep.
    """
    vm = session.managed(vim.VirtualMachine, moref)
    told = await session.properties(vm, _PATHS)
    name = str(told.get("name") or moref)
    tree = getattr(told.get("snapshot"), "rootSnapshotList", None)
    mark = read_mark(told.get("config.extraConfig") or ())
    kept = _safety(tree, session.settings.engine_id, earlier, mark)
    if why := refusal(told, list(tree_nodes(tree)), kept):
        raise Rejected(why, where=name)
    there = {device.key for device in told.get("config.hardware.device") or ()}
    if missing := [key for key in keys if key not in there]:
        raise Rejected(f"its disk {missing[0]} is not there any more", where=name)
    resumed = mark is not None and (mark.engine, mark.point) == (session.settings.engine_id, point)
    if safety and not kept:
        await _check_datastores(session, told, name)
        kept = f"{safety_prefix(session.settings.engine_id)}{run}"
        await finish(_make_safety(session, vm, kept, point, run), within=2 * TASK_SECONDS)
    notes = marked(str(told.get("config.annotation") or ""), point)
    fresh = RestoreMark(session.settings.engine_id, point, run, kept)
    if mark is not None and resumed:
        fresh = replace(fresh, disk=mark.disk, added=mark.added)
    await _reconfigure(session, vm, vim.vm.ConfigSpec(annotation=notes, extraConfig=[option(fresh)]))
    now = await session.properties(vm, ["config.changeVersion", "config.hardware.device"])
    facts = {fact.key: fact for fact in disk_facts(now.get("config.hardware.device") or ())}
    if missing := [key for key in keys if key not in facts]:
        raise Rejected(f"its disk {missing[0]} is not there any more", where=name)
    return CreatedVm(
        Address(session.vcenter, moref),
        name,
        tuple(facts[key] for key in keys),
        identity="as it was: it is the VM that was there",
        resumed=resumed,
        version=str(now.get("config.changeVersion") or ""),
        found_version=str(told.get("config.changeVersion") or ""),
        safety=kept,
        other=mark is not None and not resumed,
        added_for=fresh.disk,
        added=_added(fresh, now.get("config.hardware.device") or ()),
    )


async def hand_back(
    session: Session,
    moref: str,
    settings: RemovalSettings,
    *,
    safety: str,
    keep_safety: bool,
    whole: Callable[[], Awaitable[None]],
) -> None:
    """Everything is written: take the snapshot for safety away, unless it is to be kept, then mark and warning.

    The mark goes last: cut off before, the VM is still known as ours to finish, and no snapshot stays unknown. `whole`
    is awaited before it goes.
    """
    vm = session.managed(vim.VirtualMachine, moref)
    await assert_still_ours(session, vm)
    if safety and not keep_safety and safety.startswith(safety_prefix(session.settings.engine_id)):
        for node in [node for node in await read_tree(session, vm) if node.name == safety]:
            snapshot = session.managed(vim.vm.Snapshot, node.moref)
            await session.task(
                partial(snapshot.RemoveSnapshot_Task, removeChildren=False, consolidate=True),
                timeout=settings.seconds,
                entity=vm,
                operation="RemoveSnapshot",
            )
            log.info("snapshot for safety removed", extra={"snapshot": node.name, "vm": moref})
    await whole()
    told = await session.properties(vm, ["config.annotation"])
    notes = cleared(str(told.get("config.annotation") or ""))
    await _reconfigure(session, vm, vim.vm.ConfigSpec(annotation=notes, extraConfig=[option(None)]))
    if safety and not keep_safety:
        await consolidate(session, vm, settings)


async def assert_still_ours(session: Session, vm: Any) -> None:
    """NotOurs when another engine has taken the half-restored VM over meanwhile: it is not whole by our work."""
    told = await session.properties(vm, ["name", "config.extraConfig"])
    mark = read_mark(told.get("config.extraConfig") or ())
    if mark is not None and mark.engine != session.settings.engine_id:
        raise NotOurs(
            f"the engine {mark.engine} has taken it over and restores {mark.point}: what is on its disks is of both",
            where=str(told.get("name") or vm._moId),
            hint="when that one is done, restore again from one engine alone",
        )


async def half_restored(session: Session, moref: str) -> bool:
    """Whether the VM carries the mark of a restore that is not over, of this engine or another. Busy: not known now."""
    vm = session.managed(vim.VirtualMachine, moref)
    return says_half_restored(await session.properties(vm, ["name", "config.extraConfig", "config.changeVersion"]))


def says_half_restored(told: Mapping[str, Any]) -> bool:
    """Whether these properties carry the mark. Pure.

    Busy where vCenter shows no configuration, as of a VM whose host or files are away (API: VirtualMachine.config).
    """
    if not {"config.extraConfig", "config.changeVersion"} & set(told):
        raise Busy("vCenter does not show the VM's configuration now", where=str(told.get("name") or ""))
    return read_mark(told.get("config.extraConfig") or ()) is not None


async def marked_vms(
    session: Session, shown: Mapping[str, Mapping[str, Any]], also: Collection[str]
) -> Sequence[MarkedVm]:
    """The VMs that carry the mark of a restore, of whichever engine, among those whose notes say so and these others.

    `shown` holds `config.annotation` of every VM by moRef: the options of all would be much to read.
    """
    morefs = {moref for moref, told in shown.items() if warned(str(told.get("config.annotation") or ""))}
    vms = [session.managed(vim.VirtualMachine, moref) for moref in sorted(morefs | set(also))]
    read = await session.read(vms, vim.VirtualMachine, ["name", "config.extraConfig"]) if vms else {}
    found: list[MarkedVm] = []
    for moref, told in read.items():
        mark = read_mark(told.get("config.extraConfig") or ())
        if mark is not None:
            address, name = Address(session.vcenter, moref), str(told.get("name") or moref)
            found.append(MarkedVm(address, name, mark.point, mark.engine, mark.safety, mark.disk))
    return found


async def add_empty_disk(
    session: Session,
    moref: str,
    capacity_bytes: int,
    datastore: str,
    *,
    thin: bool,
    label: str,
    policy: StoragePolicy,
) -> tuple[Disk, tuple[str, ...]]:
    """Give a VM that is taken over one more disk, on its first SCSI, NVMe or SATA controller with room.

    The call that adds it writes its place into the VM's mark, as the one for the restore point's disk of this label:
    who finds the mark finds the disk. Rejected when the VM does not carry this engine's mark. What the disk lacks of
    its storage policy is told.
    """
    vm = session.managed(vim.VirtualMachine, moref)
    told = await session.properties(vm, ["config.hardware.device", "config.extraConfig"])
    before = list(told.get("config.hardware.device") or ())
    mark = read_mark(told.get("config.extraConfig") or ())
    if mark is None or mark.engine != session.settings.engine_id:
        raise Rejected("it does not carry the mark of this engine's restore any more", where=moref)
    controller, unit = free_place(before)
    disk = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=capacity_bytes // 1024,
        capacityInBytes=capacity_bytes,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{datastore}] ", diskMode="persistent", thinProvisioned=thin
        ),
    )
    change = vim.vm.device.VirtualDeviceSpec
    marked_so = option(replace(mark, disk=label, added=f"{controller}:{unit}"))

    async def add(id_: str) -> None:
        made = change(operation=change.Operation.add, fileOperation=change.FileOperation.create, device=disk)
        made.profile = specification(id_) or []
        await _reconfigure(session, vm, vim.vm.ConfigSpec(deviceChange=[made], extraConfig=[marked_so]))

    chosen = Policies({label: policy.id}, {policy.id: policy.name}, policy.lacking)
    _, refused = await with_policy(add, chosen, label, "the added disk")
    after = (await session.properties(vm, ["config.hardware.device"])).get("config.hardware.device") or ()
    found = _disk_at(f"{controller}:{unit}", after)
    if found is None:
        raise Rejected("vCenter made no disk", where=moref)
    return found, (*policy.lacking, *refused)


def _added(mark: RestoreMark, devices: Sequence[Any]) -> str:
    """The UUID of the disk that the mark tells of, if it is there. Pure."""
    found = _disk_at(mark.added, devices) if mark.added else None
    return found.uuid if found is not None else ""


def _disk_at(place: str, devices: Sequence[Any]) -> Disk | None:
    """The disk on this controller and unit. Pure."""
    disks = (d for d in devices if isinstance(d, vim.vm.device.VirtualDisk))
    key = next((d.key for d in disks if f"{d.controllerKey}:{d.unitNumber}" == place), None)
    return next((fact for fact in disk_facts(devices) if fact.key == key), None)


def free_place(devices: Sequence[Any]) -> tuple[int, int]:
    """A controller's key and a free unit on it; Rejected when all are full. Pure."""
    kinds: tuple[tuple[Any, tuple[int, ...]], ...] = (
        (vim.vm.device.VirtualSCSIController, tuple(unit for unit in range(16) if unit != 7)),
        (vim.vm.device.VirtualNVMEController, tuple(range(15))),
        (vim.vm.device.VirtualSATAController, tuple(range(30))),
    )
    for kind, units in kinds:
        for controller in (d for d in devices if isinstance(d, kind)):
            taken = {d.unitNumber for d in devices if d.controllerKey == controller.key}
            if free := [unit for unit in units if unit not in taken]:
                return controller.key, free[0]
    raise Rejected("no controller of the VM has room for one more disk", hint="add a SCSI controller")


def refusal(told: Mapping[str, Any], nodes: Sequence[TreeNode], safety: str) -> str:
    """Why no restore may write into the VM as it is, as a sentence; empty when one may. Pure."""
    if told.get("config.template"):
        return "it is a template"
    if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
        return "it is not powered off: shut it down first, or let the restore switch it off with --power-off"
    others = [node.name for node in nodes if node.name != safety]
    if others:
        return f"it has snapshots, above which nothing may be written: {', '.join(others)}; remove them first"
    if told.get("runtime.consolidationNeeded"):
        return "its disks need consolidation first"
    return ""


def _safety(trees: Sequence[Any] | None, engine: str, earlier: str, mark: RestoreMark | None) -> str:
    """The name of the snapshot for safety that an interrupted restore has made; empty when none has. Pure."""
    if mark is not None:
        name = mark.safety if mark.engine == engine else ""
    else:
        name = f"{safety_prefix(engine)}{earlier}" if earlier else ""
    return name if name and name in {str(tree.name) for tree in trees or ()} else ""


async def _check_datastores(session: Session, told: Mapping[str, Any], name: str) -> None:
    found = await session.read(told.get("datastore") or (), vim.Datastore, ["name", "summary.type"])
    for each in found.values():
        if str(each.get("summary.type")) in VSAN:
            raise Rejected(
                f"datastore {each.get('name')} is vSAN, which may not let a disk be written above a snapshot",
                where=name,
                hint="back the VM up first, then restore with --without-safety",
            )


async def _make_safety(session: Session, vm: Any, name: str, point: str, run: str) -> None:
    told = {"engine": session.settings.engine_id, "run": run, "restores": point, "for": "the state before the restore"}
    await session.task(
        lambda: vm.CreateSnapshot_Task(name, json.dumps(told), False, False),
        timeout=TASK_SECONDS,
        entity=vm,
        operation="CreateSnapshot",
    )
    log.info("snapshot for safety made", extra={"vm": vm._moId, "snapshot": name})


async def _reconfigure(session: Session, vm: Any, spec: Any) -> None:
    await session.task(lambda: vm.ReconfigVM_Task(spec), timeout=TASK_SECONDS, entity=vm, operation="Reconfig")
