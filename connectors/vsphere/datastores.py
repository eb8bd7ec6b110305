"""How full datastores are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Unreachable
from connectors.hypervisor import DatastoreSpace
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.session import Session
from connectors.vsphere.vmfacts import datastore_of, disk_facts

log = logging.getLogger(__name__)

SUMMARY = ("summary",)
WRITTEN_TO = ("datastore", "config.files", "config.hardware.device")

FRESH_SECONDS = 5.0
"""So old may be what is told of a datastore: runs on one datastore do not each have its hosts look anew."""


class Datastores:
    """The datastores of one vCenter. Single event loop."""

    def __init__(self, session: Session, inventory: Inventory, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        self._session = session
        self._inventory = inventory
        self._fresh_seconds = fresh_seconds
        self._refreshed: dict[str, float] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, moref: str) -> list[DatastoreSpace]:
        """Those that a snapshot of the VM is written to, as they are now; raises Gone when the VM is not there.

        vCenter shows what it was told some time ago, so it is made to ask first (RefreshDatastore needs System.Read).
        """
        vm = self._session.managed(vim.VirtualMachine, moref)
        told = await self._session.properties(vm, WRITTEN_TO)
        held = told.get("datastore") or []
        if not held:
            return []
        for datastore in held:
            await self._refresh(datastore._moId)
        names = written_to(told)
        shown = await self._session.read(held, vim.Datastore, SUMMARY)
        return [space for space in _spaces(shown.values()) if space.name in names]

    async def all(self) -> list[DatastoreSpace]:
        """Every datastore of the vCenter, as it shows them."""
        return _spaces((await self._inventory.read_all(SUMMARY, vim.Datastore)).values())

    async def _refresh(self, moref: str) -> None:
        async with self._turns[moref]:
            if time.monotonic() - self._refreshed.get(moref, float("-inf")) < self._fresh_seconds:
                return
            managed = self._session.managed(vim.Datastore, moref)
            try:
                await self._session.call(managed.RefreshDatastore)
            except Unreachable:
                raise
            except ConnectorError as error:
                log.info("datastore not refreshed", extra={"datastore": moref, "why": str(error)})
            self._refreshed[moref] = time.monotonic()


def written_to(told: Mapping[str, Any]) -> frozenset[str]:
    """The names of the datastores that a snapshot of the VM is written to, by WRITTEN_TO. Pure.

    Deltas lie beside their disks, or where its configuration sends them. A datastore from which the VM only has an
    image in its CD drive is none of these: it may well be full.
    """
    files = told.get("config.files")
    places = {datastore_of(str(getattr(files, name, None) or "")) for name in ("vmPathName", "snapshotDirectory")}
    disks = disk_facts(told.get("config.hardware.device") or ())
    return frozenset({*places, *(disk.datastore for disk in disks if not disk.unprotected)} - {""})


def _spaces(told: Iterable[Mapping[str, Any]]) -> list[DatastoreSpace]:
    shown = [properties["summary"] for properties in told if "summary" in properties]
    found = [
        DatastoreSpace(str(one.name), int(one.capacity), int(one.freeSpace))
        for one in shown
        if one.accessible and one.capacity
    ]
    return sorted(found, key=lambda one: one.name)
