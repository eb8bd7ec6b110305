"""A snapshot of ours, held for as long as its context is open and removed on every way out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC
from typing import Any

from pyVmomi import SoapAdapter, vim
from pyVmomi.VmomiSupport import newestVersions

from connectors.errors import Busy, Rejected, SnapshotFailed
from connectors.hypervisor import Snapshot, SnapshotDisk, TrackingDoubt
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.keeping import kept
from connectors.vsphere.making import Made, Making, SnapshotSettings
from connectors.vsphere.naming import snapshot_name
from connectors.vsphere.removal import consolidate
from connectors.vsphere.session import Session
from connectors.vsphere.tracking import Tracking, believed, host_build, switch_on
from connectors.vsphere.vmfacts import change_id, disk_facts
from policies.facts import USUAL_QUIESCING, Consistency, Quiescing, Vm

log = logging.getLogger(__name__)


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
    quiescing: Quiescing = USUAL_QUIESCING,
    about_to: Callable[[], None] = lambda: None,
    doubted: TrackingDoubt | None = None,
) -> AsyncIterator[Snapshot]:
    """A snapshot of the VM, named after the run.

    Raises Rejected when the VM cannot be snapshotted as it is, SnapshotFailed when not even the fall-back level can
    be reached, Gone when the VM is not there, and what `about_to` raises before a creation. Leaving raises when the
    snapshot could not be removed; the janitor finds it then.
    """
    moref = vm.address.moref
    managed = session.managed(vim.VirtualMachine, moref)
    fresh = await _prepared(session, inventory, moref, settings)
    unwanted = Tracking("the run did not ask for change tracking", doubted)
    tracking = await switch_on(session, managed, fresh, doubted) if track else unwanted
    name = snapshot_name(session.settings.engine_id, run)

    making = Making(session, managed, fresh, name, run, settings, quiescing, about_to)
    try:
        async with AsyncExitStack() as held:
            made = await making.climb(held, want, fallback)
            yield await _describe(session, fresh, made, name, run, tracking, settings)
    except TimeoutError as error:
        raise Busy(f"snapshot {name} was not made or removed in time", where=fresh.name) from error


async def _prepared(session: Session, inventory: Inventory, moref: str, settings: SnapshotSettings) -> Vm:
    """The VM as it is now, fit for a snapshot."""
    vm = await inventory.one(moref)
    if vm.refusal:
        raise Rejected(f"no snapshot can be made: {vm.refusal}", where=vm.name)
    managed = session.managed(vim.VirtualMachine, moref)
    if vm.consolidation_needed:
        await consolidate(session, managed, settings.removal)
    return vm


async def _describe(
    session: Session, vm: Vm, made: Made, name: str, run: str, tracking: Tracking, settings: SnapshotSettings
) -> Snapshot:
    """What the snapshot holds, from its own configuration: the VM's may be a later one."""
    managed = session.managed(vim.vm.Snapshot, made.node.moref)
    config = (await session.properties(managed, ["config"])).get("config")
    if config is None:
        raise SnapshotFailed("vCenter does not tell the configuration of the snapshot", where=vm.name)
    devices = config.hardware.device
    found = {d.key: change_id(d) for d in devices if isinstance(d, vim.vm.device.VirtualDisk)}
    told = believed(tracking, made.node.depth, found)
    disks = disk_facts(devices)
    return Snapshot(
        moref=made.node.moref,
        name=name,
        run=run,
        vm=vm,
        taken_at=made.node.created_at.astimezone(UTC),
        consistency=made.consistency,
        consistency_reason=made.reason,
        disks=tuple(SnapshotDisk(d, told.ids[d.key]) for d in disks if not d.unprotected),
        unprotected=tuple(d for d in disks if d.unprotected),
        configuration=await kept(session, vm, config, serialise(config)),
        tracking_reason=told.reason,
        doubted=told.doubted,
        host_build=await host_build(session, session.managed(vim.VirtualMachine, vm.address.moref)),
        made_in_seconds=made.seconds,
        slow=_slow(made, settings),
    )


def _slow(made: Made, settings: SnapshotSettings) -> str:
    if made.seconds <= settings.slow_seconds:
        return ""
    return f"making the snapshot took {made.seconds:.0f} s, and the guest stood still for a part of it"


def serialise(config: Any) -> bytes:
    """A VM's configuration as SOAP XML, from which pyVmomi makes the same typed object again."""
    text = SoapAdapter.SerializeToStr(config, version=newestVersions.Get("vim"))
    return text if isinstance(text, bytes) else str(text).encode()
