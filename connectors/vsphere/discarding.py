"""What a restore has made and cannot write to is taken away again, still empty: a new VM, or a disk that it added."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyVmomi import vim

from connectors.errors import Gone, NotOurs
from connectors.vsphere.restore_marks import RestoreMark, option, read_mark
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


async def discard_disk(session: Session, moref: str, *, run: str, uuid: str) -> None:
    """Remove the disk that this run has added to a VM, and its file; nothing to do where it has added none.

    What may go is what the VM's mark tells of; with `uuid`, where that is known, no other disk in its place. NotOurs
    when the mark is of another run, or somebody has taken VM or disk into use.
    """
    vm = session.managed(vim.VirtualMachine, moref)
    paths = ["name", "config.extraConfig", "config.hardware.device", "runtime.powerState", "snapshot"]
    told = await session.properties(vm, paths)
    mark, name = read_mark(told.get("config.extraConfig") or ()), str(told.get("name") or moref)
    if mark is None or not mark.added:
        return
    disk = _added_disk(mark, told.get("config.hardware.device") or ())
    if disk is None:
        return
    if (mark.engine, mark.run) != (session.settings.engine_id, run):
        raise NotOurs("the disk stays: another run has added it", where=name)
    off = told.get("runtime.powerState") == vim.VirtualMachine.PowerState.poweredOff
    other = uuid and str(disk.backing.uuid or "") != uuid
    if not off or other or told.get("snapshot") is not None or getattr(disk.backing, "parent", None) is not None:
        raise NotOurs("the disk stays: somebody has taken the VM into use", where=name)
    change = vim.vm.device.VirtualDeviceSpec
    gone = change(operation=change.Operation.remove, fileOperation=change.FileOperation.destroy, device=disk)
    spec = vim.vm.ConfigSpec(deviceChange=[gone], extraConfig=[option(replace(mark, disk="", added=""))])
    await session.task(lambda: vm.ReconfigVM_Task(spec), timeout=TASK_SECONDS, entity=vm, operation="Reconfig")
    log.info("empty disk removed", extra={"vm": name, "disk": mark.added})


def _added_disk(mark: RestoreMark, devices: Sequence[Any]) -> Any:
    """The disk in the place that the mark tells of; None where there is none. Pure."""
    disks = (device for device in devices if isinstance(device, vim.vm.device.VirtualDisk))
    return next((disk for disk in disks if f"{disk.controllerKey}:{disk.unitNumber}" == mark.added), None)
