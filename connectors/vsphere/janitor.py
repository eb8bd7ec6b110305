"""Finding and removing snapshots that a dead run of this engine left, and only those."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyVmomi import vim

from connectors.errors import Gone
from connectors.hypervisor import Leftover
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.naming import tree_nodes
from connectors.vsphere.removal import RemovalSettings, read_tree, remove_snapshot
from connectors.vsphere.session import Session
from policies.facts import Address

SNAPSHOT = "snapshot"


async def snapshot_leftovers(
    session: Session, inventory: Inventory, is_active: Callable[[str], bool]
) -> Sequence[Leftover]:
    """Snapshots in vCenter with this engine's mark whose run is_active denies."""
    found: list[Leftover] = []
    for moref, told in (await inventory.read_all(("name", "snapshot"))).items():
        for node in tree_nodes(getattr(told.get("snapshot"), "rootSnapshotList", None)):
            mark = node.mark
            if mark is not None and mark.engine == session.settings.engine_id and not is_active(mark.run):
                address = Address(session.vcenter, moref)
                found.append(
                    Leftover(SNAPSHOT, address, str(told.get("name", "")), node.name, mark.run, node.created_at)
                )
    return found


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
