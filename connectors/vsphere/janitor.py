"""Finding and removing what a dead run of this engine left, and only that: snapshots, and disks on a proxy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from pyVmomi import vim

from connectors.errors import Gone
from connectors.hypervisor import Leftover
from connectors.vsphere import hotadd
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.naming import tree_nodes
from connectors.vsphere.removal import RemovalSettings, read_tree, remove_snapshot
from connectors.vsphere.session import Session
from connectors.vsphere.transport_settings import HOT_ADD, TransportSettings
from policies.facts import Address

SNAPSHOT = "snapshot"


async def snapshot_leftovers(
    session: Session, inventory: Inventory, is_active: Callable[[str], bool], *, of: Address | None = None
) -> Sequence[Leftover]:
    """Snapshots with this engine's mark whose run is_active denies, of one VM or of all in vCenter."""
    found: list[Leftover] = []
    paths = ("name", "snapshot")
    if of is None:
        read = await inventory.read_all(paths)
    else:
        read = await session.read([session.managed(vim.VirtualMachine, of.moref)], vim.VirtualMachine, paths)
    for moref, told in read.items():
        for node in tree_nodes(getattr(told.get("snapshot"), "rootSnapshotList", None)):
            mark = node.mark
            if mark is not None and mark.engine == session.settings.engine_id and not is_active(mark.run):
                address = Address(session.vcenter, moref)
                found.append(
                    Leftover(SNAPSHOT, address, str(told.get("name", "")), node.name, mark.run, node.created_at)
                )
    return found


async def attached_leftovers(
    session: Session, settings: TransportSettings, is_active: Callable[[str], bool], held: Collection[Address]
) -> Sequence[Leftover]:
    """Disks of dead runs on the proxy of now, and on the VMs `held`, which were proxies when the run began.

    They are found although hot-add is not configured any more, or another proxy is.
    """
    found = list(await hotadd.attached_leftovers(session, settings, is_active))
    for moref in sorted({address.moref for address in held} - {one.vm.moref for one in found}):
        found += await hotadd.attached_leftovers(session, _at(settings, moref), is_active)
    return found


async def detach(session: Session, settings: TransportSettings, leftover: Leftover) -> None:
    """Detach a disk that attached_leftovers found, from the VM that it is on. Idempotent; no file is ever deleted."""
    await hotadd.detach_leftover(session, _at(settings, leftover.vm.moref), leftover)


def _at(settings: TransportSettings, moref: str) -> TransportSettings:
    """The same with this VM as the proxy."""
    return replace(settings, proxy=moref, order=(HOT_ADD,))


async def remove_leftover(session: Session, leftover: Leftover, settings: RemovalSettings) -> None:
    """Remove a snapshot that snapshot_leftovers found. Idempotent; another engine's, or anybody's, is never touched."""
    vm = session.managed(vim.VirtualMachine, leftover.vm.moref)
    try:
        nodes = await read_tree(session, vm)
    except Gone:
        return
    for node in nodes:
        mark = node.mark
        if node.name == leftover.name and mark is not None and mark.engine == session.settings.engine_id:
            await remove_snapshot(session, vm, node.name, settings)
