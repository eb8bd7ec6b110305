"""Disks by hot-add: attached to the proxy VM that this engine runs in, read as a local device, detached again.

Reading attaches in a mode whose writes are thrown away. Each attached disk is marked with its run in the proxy's own
configuration by the same call, so that what a crash leaves is found and told from everything else. Nothing here
ever deletes a file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pyVmomi import vim

from connectors.cleanup import acquired
from connectors.disk_files import FileReader, FileWriter
from connectors.errors import ConnectorError, TransportFailed
from connectors.hypervisor import Leftover
from connectors.vsphere import guest_device
from connectors.vsphere.proxy import Mark, attached, free_slot, mark_value, plain_uuid, read_proxy, refusal
from connectors.vsphere.session import Session
from connectors.vsphere.transport_settings import AttachIntent, TransportSettings
from policies.facts import Address, Disk

log = logging.getLogger(__name__)

ATTACHED_DISK = "attached disk"
"""The kind of left-over that is ours to detach."""

TASK_SECONDS = 300.0
"""How long a reconfiguration of the proxy may take."""

DETACH_TRIES = 6
"""With pauses of 1, 2, 4, 8 and 16 s between them; what is then still attached is the janitor's."""

READ_ONLY = "independent_nonpersistent"
WRITABLE = "persistent"

_locks: WeakKeyDictionary[Session, asyncio.Lock] = WeakKeyDictionary()
"""The proxy is reconfigured by one call at a time: vCenter refuses more, and a free place is chosen under it."""


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """Which disk to attach, for which run, and whether it may be written. `runs_on`: the host of a VM that runs."""

    vm_moref: str
    datacenter: str
    disk: Disk
    run: str
    encrypted: bool = False
    writable: bool = False
    runs_on: str = ""


@asynccontextmanager
async def open_reader(
    session: Session, request: AttachRequest, settings: TransportSettings
) -> AsyncIterator[FileReader]:
    """The disk as a local device, open for reading; detached, verified, on every way out. Raises TransportFailed."""
    async with _device(session, request, settings) as path:
        try:
            with FileReader(path) as reader:
                _check_size(reader.capacity_bytes, request.disk, path)
                yield reader
        finally:
            guest_device.let_go(path)


@asynccontextmanager
async def open_writer(
    session: Session, request: AttachRequest, settings: TransportSettings
) -> AsyncIterator[FileWriter]:
    """The disk of a powered-off VM as a local device, open for writing; detached on every way out."""
    async with _device(session, request, settings) as path:
        try:
            with FileWriter(path) as writer:
                _check_size(writer.capacity_bytes, request.disk, path)
                yield writer
        finally:
            guest_device.let_go(path)


async def attached_leftovers(
    session: Session, settings: TransportSettings, is_active: Callable[[str], bool]
) -> Sequence[Leftover]:
    """Disks of this engine's dead runs that are still attached to the proxy. None where there is no proxy.

    Looked for whatever the configuration says: a policy may have wanted hot-add, or it was switched off since.
    """
    try:
        proxy = await read_proxy(session, settings)
    except TransportFailed:
        return []
    return [
        Leftover(ATTACHED_DISK, Address(session.vcenter, proxy.moref), proxy.name, m.file_name, m.run, m.attached_at)
        for m in proxy.marks
        if m.engine == session.settings.engine_id and not is_active(m.run)
    ]


async def detach_leftover(session: Session, settings: TransportSettings, leftover: Leftover) -> None:
    """Detach what attached_leftovers has found. Idempotent; a disk without our mark is never touched."""
    proxy = await read_proxy(session, settings)
    for mark in proxy.marks:
        ours = mark.engine == session.settings.engine_id
        if ours and (mark.run, mark.file_name) == (leftover.run, leftover.name) and proxy.moref == leftover.vm.moref:
            await _detach(session, settings, mark)


@asynccontextmanager
async def _device(session: Session, request: AttachRequest, settings: TransportSettings) -> AsyncIterator[Path]:
    within = DETACH_TRIES * (TASK_SECONDS + 4 * session.settings.answer_seconds) + settings.device_seconds
    async with acquired(
        lambda: _attach(session, request, settings),
        lambda mark: _detach(session, settings, mark),
        within=within,
    ):
        uuid = plain_uuid(request.disk.uuid)
        yield await guest_device.appeared(settings.device_folder, uuid, settings.device_seconds)


async def _attach(session: Session, request: AttachRequest, settings: TransportSettings) -> Mark:
    disk, where = request.disk, f"hot-add of {request.disk.file_name}"
    async with _lock(session):
        try:
            proxy = await read_proxy(session, settings)
        except TransportFailed:
            raise
        except ConnectorError as exc:
            raise TransportFailed(f"the proxy could not be read: {exc}", where=where) from exc
        why = refusal(
            proxy,
            vm_moref=request.vm_moref,
            datacenter=request.datacenter,
            encrypted=request.encrypted,
            disk=disk,
            runs_on=request.runs_on,
        )
        slot = free_slot(proxy.devices)
        if why or slot is None:
            raise TransportFailed(why or "no free place", where=where)
        await guest_device.vanished(settings.device_folder, plain_uuid(disk.uuid), settings.device_seconds)
        mark = Mark(session.settings.engine_id, request.run, disk.uuid, disk.file_name, slot, datetime.now(UTC))
        vm = session.managed(vim.VirtualMachine, proxy.moref)
        await asyncio.to_thread(settings.on_intent, _intent(session, proxy.moref, mark))
        try:
            await session.task(
                lambda: vm.ReconfigVM_Task(_attach_spec(mark, WRITABLE if request.writable else READ_ONLY)),
                timeout=TASK_SECONDS,
                entity=vm,
                operation="Reconfig",
            )
            if attached(await read_proxy(session, settings), mark) is None:
                raise TransportFailed("vCenter reports success, but the disk is not attached", where=where)
        except ConnectorError as exc:
            await _undo(session, settings, mark, exc)
            raise TransportFailed(f"the disk could not be attached: {exc}", where=where) from exc
    log.info("disk attached", extra={"disk": disk.file_name, "proxy": proxy.name, "run": request.run})
    return mark


async def _undo(session: Session, settings: TransportSettings, mark: Mark, failure: ConnectorError) -> None:
    """After a failed attach: whether it was carried out or not, nothing stays attached, or the error says so."""
    try:
        await _detach_once(session, settings, mark)
    except ConnectorError as exc:
        failure.add_note(f"whether the disk is attached is not known: {exc}")
        log.error("attach failed, state unknown", extra={"disk": mark.file_name, "run": mark.run, "error": str(exc)})


async def _detach(session: Session, settings: TransportSettings, mark: Mark) -> None:
    for attempt in range(1, DETACH_TRIES + 1):
        try:
            async with _lock(session):
                await _detach_once(session, settings, mark)
            break
        except ConnectorError as exc:
            if attempt == DETACH_TRIES:
                raise TransportFailed(
                    f"the disk could not be detached: {exc}",
                    where=f"hot-add of {mark.file_name}",
                    hint="detach it from the proxy VM by hand, without deleting its file, or wait for the janitor",
                ) from exc
            log.warning("detach failed, tried again", extra={"disk": mark.file_name, "error": str(exc)})
            await asyncio.sleep(0.5 * 2**attempt)
    log.info("disk detached", extra={"disk": mark.file_name, "run": mark.run})


async def _detach_once(session: Session, settings: TransportSettings, mark: Mark) -> None:
    proxy = await read_proxy(session, settings)
    vm = session.managed(vim.VirtualMachine, proxy.moref)
    device = attached(proxy, mark)
    if device is not None or any(m.key == mark.key for m in proxy.marks):
        await session.task(
            lambda: vm.ReconfigVM_Task(_detach_spec(mark, device)),
            timeout=TASK_SECONDS,
            entity=vm,
            operation="Reconfig",
        )
        if attached(await read_proxy(session, settings), mark) is not None:
            raise TransportFailed("vCenter reports success, but the disk is still attached")
    await asyncio.to_thread(settings.on_intent, _intent(session, proxy.moref, mark, done=True))


def _attach_spec(mark: Mark, mode: str) -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=mark.file_name, diskMode=mode)
    disk = vim.vm.device.VirtualDisk(
        key=-101, controllerKey=mark.slot.controller, unitNumber=mark.slot.unit, backing=backing
    )
    # Without a fileOperation: the file exists and stays another VM's.
    change = vim.vm.device.VirtualDeviceSpec(operation=vim.vm.device.VirtualDeviceSpec.Operation.add, device=disk)
    return vim.vm.ConfigSpec(
        deviceChange=[change], extraConfig=[vim.option.OptionValue(key=mark.key, value=mark_value(mark))]
    )


def _detach_spec(mark: Mark, device: Any | None) -> Any:
    # Without a fileOperation: "destroy" would delete the other VM's disk.
    remove = vim.vm.device.VirtualDeviceSpec.Operation.remove
    changes = [vim.vm.device.VirtualDeviceSpec(operation=remove, device=device)] if device is not None else []
    return vim.vm.ConfigSpec(deviceChange=changes, extraConfig=[vim.option.OptionValue(key=mark.key, value="")])


def _intent(session: Session, proxy_moref: str, mark: Mark, *, done: bool = False) -> AttachIntent:
    return AttachIntent(session.vcenter, proxy_moref, mark.disk_uuid, mark.file_name, mark.run, done)


def _check_size(found_bytes: int, disk: Disk, path: Path) -> None:
    if found_bytes != disk.capacity_bytes:
        raise TransportFailed(
            f"the device has {found_bytes} bytes, the disk {disk.file_name} has {disk.capacity_bytes}", where=str(path)
        )


def _lock(session: Session) -> asyncio.Lock:
    return _locks.setdefault(session, asyncio.Lock())
