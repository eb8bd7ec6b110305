"""How full datastores are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Unreachable
from connectors.hypervisor import DatastoreSpace
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.session import Session

log = logging.getLogger(__name__)

SUMMARY = ("summary",)


async def space_of(session: Session, moref: str) -> list[DatastoreSpace]:
    """The datastores that the VM's files lie on, as they are now; raises Gone when the VM is not there.

    vCenter shows what it was told some time ago, so it is made to ask first (RefreshDatastore needs System.Read).
    """
    vm = session.managed(vim.VirtualMachine, moref)
    held = (await session.properties(vm, ["datastore"])).get("datastore") or []
    for datastore in held:
        managed = session.managed(vim.Datastore, datastore._moId)
        try:
            await session.call(managed.RefreshDatastore)
        except Unreachable:
            raise
        except ConnectorError as error:
            log.info("datastore not refreshed", extra={"datastore": datastore._moId, "why": str(error)})
    told = await session.read(held, vim.Datastore, SUMMARY) if held else {}
    return _spaces(told.values())


async def all_space(inventory: Inventory) -> list[DatastoreSpace]:
    """Every datastore of the vCenter, as it shows them."""
    return _spaces((await inventory.read_all(SUMMARY, vim.Datastore)).values())


def _spaces(told: Iterable[Mapping[str, Any]]) -> list[DatastoreSpace]:
    shown = [properties["summary"] for properties in told if "summary" in properties]
    found = [
        DatastoreSpace(str(one.name), int(one.capacity), int(one.freeSpace))
        for one in shown
        if one.accessible and one.capacity
    ]
    return sorted(found, key=lambda one: one.name)
