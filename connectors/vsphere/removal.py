"""Taking a snapshot of ours away, until it is gone and its disks are one again."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from connectors.errors import Busy, ConnectorError, Gone, Unconsolidated
from connectors.gates import removal
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.naming import TreeNode, tree_nodes
from connectors.vsphere.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemovalSettings:
    """How long a removal is tried. Merging a large snapshot takes hours, and what is locked comes free again.

    With the pauses between them, the attempts outlast a restart of vCenter; what will not pass gets only a few.
    """

    seconds: float = 4 * 3600.0
    attempts: int = 20
    hopeless_attempts: int = 3
    first_pause: float = 1.0
    longest_pause: float = 60.0
    consolidations: int = 3


async def read_tree(session: Session, vm: Any) -> list[TreeNode]:
    """Every snapshot of the VM, parents first; raises Gone when the VM is not there."""
    info = (await session.properties(vm, ["snapshot"])).get("snapshot")
    return list(tree_nodes(getattr(info, "rootSnapshotList", None)))


async def remove_snapshot(session: Session, vm: Any, name: str, settings: RemovalSettings) -> None:
    """Remove the snapshot of this name, which carries our mark, and consolidate. Idempotent.

    Only the snapshot itself goes: snapshots that others made on top of it stay. Raises what the last attempt raised
    when it cannot be removed in the time that the settings give, and Unconsolidated when it is gone but has left
    deltas that could not be merged.
    """
    deadline = _Deadline(time.monotonic() + settings.seconds)
    backoff = Backoff(settings.first_pause, settings.longest_pause)
    for attempt in range(1, settings.attempts + 1):
        try:
            await _remove_once(session, vm, name, deadline)
            break
        except Gone:
            break
        except ConnectorError as error:
            allowed = settings.attempts if error.retry else settings.hopeless_attempts
            if attempt >= allowed or deadline.left <= 0:
                raise
            log.warning("snapshot not removed yet", extra={"snapshot": name, "error": str(error), "attempt": attempt})
            await backoff.sleep()
    try:
        await consolidate(session, vm, settings)
    except Gone:
        return
    except ConnectorError as error:
        log.error("disks not consolidated", extra={"snapshot": name, "error": str(error)})
        raise Unconsolidated(
            f"snapshot {name} is gone, but its VM's disks could not be consolidated: {error.what}",
            where=session.where,
            hint="it is tried again; or consolidate the VM in vCenter, and look who locks its disks",
        ) from error


async def consolidate(session: Session, vm: Any, settings: RemovalSettings) -> None:
    """Merge delta disks that no snapshot accounts for, if the VM needs it."""
    backoff = Backoff(settings.first_pause, settings.longest_pause)
    for attempt in range(1, settings.consolidations + 2):
        needed = (await session.properties(vm, ["runtime.consolidationNeeded"])).get("runtime.consolidationNeeded")
        if not needed:
            return
        if attempt > settings.consolidations:
            raise Busy("vCenter has consolidated its disks, but they need it still", where=session.where)
        try:
            async with session.settings.gates.through(
                removal(await _datastores(session, vm)), f"consolidate {vm._moId}"
            ):
                await session.task(
                    lambda: vm.ConsolidateVMDisks_Task(), timeout=settings.seconds, entity=vm, operation="Consolidate"
                )
        except Gone:
            raise
        except ConnectorError:
            if attempt == settings.consolidations:
                raise
        await backoff.sleep()


@dataclass(slots=True)
class _Deadline:
    """Until when a removal is tried, by `time.monotonic`. Waiting for a place moves it: else those that waited long
    would all be begun at once and be given up while vCenter still works on them."""

    at: float

    @property
    def left(self) -> float:
        return self.at - time.monotonic()

    @asynccontextmanager
    async def through(self, session: Session, vm: Any, what: str) -> AsyncIterator[None]:
        gates = removal(await _datastores(session, vm))
        began = time.monotonic()
        async with session.settings.gates.through(gates, what):
            self.at += time.monotonic() - began
            yield


async def _remove_once(session: Session, vm: Any, name: str, deadline: _Deadline) -> None:
    for node in await read_tree(session, vm):
        if node.name == name and node.mark is not None:
            async with deadline.through(session, vm, f"remove {name}"):
                await _remove_node(session, vm, node, deadline.left)


async def _datastores(session: Session, vm: Any) -> list[str]:
    """The names of the datastores that the VM's files lie on."""
    held = (await session.properties(vm, ["datastore"])).get("datastore") or []
    named = await session.read(held, vim.Datastore, ["name"]) if held else {}
    return sorted(str(told["name"]) for told in named.values() if "name" in told)


async def _remove_node(session: Session, vm: Any, node: TreeNode, seconds: float) -> None:
    snapshot = session.managed(vim.vm.Snapshot, node.moref)
    try:
        await session.task(
            lambda: snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True),
            timeout=max(seconds, 1.0),
            entity=vm,
            operation="RemoveSnapshot",
        )
    except Gone:
        # Either the snapshot is gone, or only its task is forgotten: the tree tells.
        if any(n.moref == node.moref for n in await read_tree(session, vm)):
            raise ConnectorError(f"vCenter forgot the removal of snapshot {node.name}", where=session.where) from None
    log.info("snapshot removed", extra={"snapshot": node.name, "vm": vm._moId})
