"""A new VM whose disks turn out to be out of reach is taken away again, before anything was written to it."""

from __future__ import annotations

import logging

from pyVmomi import vim

from connectors.errors import Gone, NotOurs
from connectors.vsphere.restore_marks import read_mark
from connectors.vsphere.session import Session

log = logging.getLogger(__name__)

TASK_SECONDS = 600.0


async def discard_vm(session: Session, moref: str, *, run: str) -> None:
    """Remove a VM that this run has made and written nothing to. Idempotent; NotOurs for any other."""
    vm = session.managed(vim.VirtualMachine, moref)
    try:
        told = await session.properties(vm, ["name", "config.extraConfig", "runtime.powerState", "snapshot"])
        mark = read_mark(told.get("config.extraConfig") or ())
        if mark is None or (mark.engine, mark.run) != (session.settings.engine_id, run):
            raise NotOurs("this VM stays: another run has made it", where=str(told.get("name") or moref))
        off = told.get("runtime.powerState") == vim.VirtualMachine.PowerState.poweredOff
        if not off or told.get("snapshot") is not None:
            raise NotOurs("this VM stays: somebody has taken it into use", where=str(told.get("name") or moref))
        await session.task(vm.Destroy_Task, timeout=TASK_SECONDS, entity=vm, operation="Destroy")
    except Gone:
        return
    log.info("VM without content removed", extra={"vm": str(told.get("name") or ""), "moref": moref})
