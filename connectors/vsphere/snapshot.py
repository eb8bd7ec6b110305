"""A snapshot of ours, held for as long as its context is open and removed on every way out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from pyVmomi import SoapAdapter, vim, vmodl
from pyVmomi.VmomiSupport import newestVersions

from connectors.cleanup import acquired
from connectors.errors import Busy, ConnectorError, Gone, Rejected, SnapshotFailed, Unreachable
from connectors.gates import creation
from connectors.hypervisor import Snapshot, SnapshotDisk
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.keeping import kept
from connectors.vsphere.naming import TreeNode, snapshot_description, snapshot_name
from connectors.vsphere.quiesce import Step, achieved, at_least, ladder
from connectors.vsphere.removal import RemovalSettings, consolidate, read_tree, remove_snapshot
from connectors.vsphere.session import Session
from connectors.vsphere.vmfacts import change_id, disk_facts
from policies.facts import Consistency, Vm

log = logging.getLogger(__name__)

_NOT_QUIESCED = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable)


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """How snapshots are made.

    `deepest` is the longest chain of snapshots on which another one is made: vSphere's limit is 32, and each one
    slows the VM down. `quiesce_tries` are for writers that are busy for a moment.
    """

    create_seconds: float = 1800.0
    quiesce_minutes: int = 15
    quiesce_tries: int = 2
    quiesce_pause: float = 10.0
    busy_seconds: float = 900.0
    deepest: int = 20
    removal: RemovalSettings = field(default_factory=RemovalSettings)


@dataclass(frozen=True, slots=True)
class _Made:
    node: TreeNode
    consistency: Consistency
    reason: str


@asynccontextmanager
async def hold_snapshot(
    session: Session,
    inventory: Inventory,
    vm: Vm,
    *,
    run: str,
    want: Consistency,
    fallback: Consistency,
    track: bool,
    settings: SnapshotSettings,
) -> AsyncIterator[Snapshot]:
    """A snapshot of the VM, named after the run.

    Raises Rejected when the VM cannot be snapshotted as it is, SnapshotFailed when not even the fall-back level can
    be reached, Gone when the VM is not there. Leaving raises when the snapshot could not be removed; the janitor
    finds it then.
    """
    moref = vm.address.moref
    managed = session.managed(vim.VirtualMachine, moref)
    fresh = await _prepared(session, inventory, moref, settings)
    tracking = await _track(session, managed, fresh) if track else "the run did not ask for change tracking"
    name = snapshot_name(session.settings.engine_id, run)

    async def release(_: _Made) -> None:
        await remove_snapshot(session, managed, name, settings.removal)

    within = max(settings.create_seconds * 4, settings.removal.seconds) + 10 * session.settings.answer_seconds
    making = _Making(session, managed, fresh, name, run, settings)
    try:
        async with acquired(lambda: making.climb(want, fallback), release, within=within) as made:
            yield await _describe(session, fresh, made, name, run, tracking)
    except TimeoutError as error:
        raise Busy(f"snapshot {name} was not made or removed within {within:g} s", where=fresh.name) from error


@dataclass(frozen=True, slots=True)
class _Making:
    """The creation of one snapshot, from the best level that is wanted down to the worst that is accepted."""

    session: Session
    managed: Any
    vm: Vm
    name: str
    run: str
    settings: SnapshotSettings

    async def climb(self, want: Consistency, fallback: Consistency) -> _Made:
        way = ladder(self.vm, want, fallback, timeout_minutes=self.settings.quiesce_minutes)
        reasons = [way.reason] if way.reason else []
        for step in way.steps:
            try:
                node = await self._quiesced(step)
            except ConnectorError as error:
                if not isinstance(error.__cause__, _NOT_QUIESCED):
                    raise
                reasons.append(f"the {step.best.value} level failed: {error.what}")
                continue
            level, why = achieved(step, self.vm, node)
            if why:
                reasons.append(why)
            if not at_least(level, fallback):
                await remove_snapshot(self.session, self.managed, self.name, self.settings.removal)
                break
            return _Made(node, level, "; ".join(reasons))
        raise SnapshotFailed(
            f"no snapshot of at least the level {fallback.value}: {'; '.join(reasons) or 'none was possible'}",
            where=self.vm.name,
            hint="mend the guest's quiescing, or allow a lower fall-back in the policy",
        )

    async def _quiesced(self, step: Step) -> TreeNode:
        """One level, tried again where the guest was only busy."""
        for attempt in range(1, self.settings.quiesce_tries + 1):
            try:
                return await self._started(step)
            except ConnectorError as error:
                quiesce = isinstance(error.__cause__, vim.fault.ApplicationQuiesceFault)
                if not quiesce or attempt == self.settings.quiesce_tries:
                    raise
                await asyncio.sleep(self.settings.quiesce_pause)
        raise AssertionError("unreachable")

    async def _started(self, step: Step) -> TreeNode:
        try:
            await self._created(step)
        except (Unreachable, Gone, Busy) as error:
            # Whether the snapshot was made is not known. Its name is of this run alone, so the tree tells.
            node = await self._find_patiently()
            if node is not None:
                return node
            running = getattr(error.__cause__, "task", None)
            if not isinstance(error.__cause__, vim.fault.TaskInProgress) or running is None:
                raise
            await self._waited(running)
            await self._created(step)
        node = await self._find()
        if node is None:
            raise SnapshotFailed("the snapshot vanished as soon as it was made", where=self.vm.name)
        return node

    async def _created(self, step: Step) -> None:
        started = (await self.session.call(self.session.now)).astimezone(UTC)
        description = snapshot_description(self.session.settings.engine_id, self.run, started)

        async def create(start: Callable[[], Any]) -> None:
            async with self.session.settings.gates.through(creation(), f"make {self.name}"):
                await self.session.task(
                    start, timeout=self.settings.create_seconds, entity=self.managed, operation="CreateSnapshot"
                )

        try:
            await create(lambda: self.managed.CreateSnapshotEx_Task(self.name, description, False, step.spec))
        except ConnectorError as error:
            if not isinstance(error.__cause__, vmodl.fault.MethodNotFound):
                raise
            quiesce = step.spec is not None
            await create(lambda: self.managed.CreateSnapshot_Task(self.name, description, False, quiesce))

    async def _find_patiently(self) -> TreeNode | None:
        """As _find, but a vCenter that is away for a moment is waited for."""
        backoff = Backoff()
        deadline = time.monotonic() + 2 * self.session.settings.answer_seconds
        while True:
            try:
                return await self._find()
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
                await backoff.sleep()

    async def _find(self) -> TreeNode | None:
        nodes = await read_tree(self.session, self.managed)
        return next((n for n in nodes if n.name == self.name and n.mark is not None), None)

    async def _waited(self, task: Any) -> None:
        """Wait for somebody else's task on the VM; how it ends does not matter here."""
        try:
            await self.session.wait(self.session.managed(vim.Task, task._moId), timeout=self.settings.busy_seconds)
        except Busy:
            raise
        except ConnectorError as error:
            log.info("the other task failed", extra={"vm": self.vm.name, "error": str(error)})


async def _prepared(session: Session, inventory: Inventory, moref: str, settings: SnapshotSettings) -> Vm:
    """The VM as it is now, fit for a snapshot."""
    vm = await inventory.one(moref)
    if vm.refusal:
        raise Rejected(f"no snapshot can be made: {vm.refusal}", where=vm.name)
    managed = session.managed(vim.VirtualMachine, moref)
    if vm.consolidation_needed:
        await consolidate(session, managed, settings.removal)
    depth = max((n.depth for n in await read_tree(session, managed)), default=0)
    if depth >= settings.deepest:
        raise Rejected(
            f"it has a chain of {depth} snapshots already", where=vm.name, hint="remove snapshots that are not needed"
        )
    return vm


async def _track(session: Session, managed: Any, vm: Vm) -> str:
    """Switch change tracking on where that is safe; else tell why it stays off."""
    if vm.tracking_enabled:
        return ""
    if not vm.tracking_supported:
        return "the VM does not support change tracking (its virtual hardware is too old)"
    if vm.snapshots or vm.own_snapshots:
        return "change tracking is off, and it is not switched on while the VM has snapshots: it would tell too little"
    if vm.consolidation_needed:
        return "change tracking is off, and it is not switched on while disks need consolidation"
    devices = (await session.properties(managed, ["config.hardware.device"])).get("config.hardware.device") or ()
    if any(isinstance(d, vim.vm.device.VirtualDisk) and getattr(d.backing, "parent", None) for d in devices):
        return "change tracking is off, and it is not switched on while a disk has a delta that no snapshot names"
    spec = vim.vm.ConfigSpec(changeTrackingEnabled=True)
    try:
        await session.task(lambda: managed.ReconfigVM_Task(spec), entity=managed, operation="Reconfig")
    except Gone:
        raise
    except ConnectorError as error:
        return f"change tracking could not be switched on: {error.what}"
    log.info("change tracking switched on", extra={"vm": vm.name})
    return ""


async def _describe(session: Session, vm: Vm, made: _Made, name: str, run: str, tracking: str) -> Snapshot:
    """What the snapshot holds, from its own configuration: the VM's may be a later one."""
    managed = session.managed(vim.vm.Snapshot, made.node.moref)
    config = (await session.properties(managed, ["config"])).get("config")
    if config is None:
        raise SnapshotFailed("vCenter does not tell the configuration of the snapshot", where=vm.name)
    devices = config.hardware.device
    ids = {d.key: change_id(d) for d in devices if isinstance(d, vim.vm.device.VirtualDisk)}
    disks = disk_facts(devices)
    return Snapshot(
        moref=made.node.moref,
        name=name,
        run=run,
        vm=vm,
        taken_at=made.node.created_at.astimezone(UTC),
        consistency=made.consistency,
        consistency_reason=made.reason,
        disks=tuple(SnapshotDisk(d, ids[d.key]) for d in disks if not d.unprotected),
        unprotected=tuple(d for d in disks if d.unprotected),
        configuration=await kept(session, vm, config, serialise(config)),
        tracking_reason=tracking,
    )


def serialise(config: Any) -> bytes:
    """A VM's configuration as SOAP XML, from which pyVmomi makes the same typed object again."""
    text = SoapAdapter.SerializeToStr(config, version=newestVersions.Get("vim"))
    return text if isinstance(text, bytes) else str(text).encode()
