"""Which way a disk is read or written: chosen for each disk, in order, with the reason for each way not taken.

A transport is a module that can say beforehand why a disk cannot go by it and can open one, a name in
transport_settings.TRANSPORTS, and a line in each of `_why_not`, `open_disk` and `write_disk` here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

from pyVmomi import vim

from connectors.disk_files import FileWriter
from connectors.disks import DiskReader
from connectors.errors import ConnectorError, NoTransport, TransportFailed
from connectors.gates import connection
from connectors.hypervisor import CreatedVm, Fallback, OpenDisk, OpenTarget, Snapshot, SnapshotDisk
from connectors.nbd import NbdDisk
from connectors.vsphere import datastore_https, export, vddk
from connectors.vsphere.datastore_https import datastore_kinds, open_folder_reader
from connectors.vsphere.export import open_export_reader
from connectors.vsphere.export_lease import Leases
from connectors.vsphere.hotadd import AttachRequest, open_reader, open_writer
from connectors.vsphere.naming import tree_nodes
from connectors.vsphere.proxy import Proxy, datacenter_of, proxy_or_reason, refusal
from connectors.vsphere.session import Session
from connectors.vsphere.transport_settings import EXPORT, HOT_ADD, HTTPS, NBD, TRANSPORTS, TransportSettings
from connectors.vsphere.vddk import NetworkDisk, open_network_disk
from policies.facts import Disk, PowerState, Vm

T = TypeVar("T")

log = logging.getLogger(__name__)


ONLY_WHOLE = "vCenter imports whole new VMs, not disks into VMs that are there"
ONLY_READ = "over HTTPS a disk is only read: a file there cannot be written in part"


@dataclass(frozen=True, slots=True)
class Means:
    """What this engine has at hand: a proxy or the reason for none, and why NBD cannot be used, if it cannot.

    `kinds` are the types of datastores, by (datacenter, name); `encrypted` the moRefs of encrypted VMs.
    """

    proxy: Proxy | str
    nbd_refusal: str
    kinds: Mapping[tuple[str, str], str] = field(default_factory=dict)
    encrypted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The transport that would be tried first with hope of success, "" for none, and why not those before it."""

    transport: str
    fallbacks: tuple[Fallback, ...]


async def survey(session: Session, settings: TransportSettings, vms: Sequence[Vm] = ()) -> Means:
    """What there is to reach the disks of these VMs with. Changes nothing."""
    proxy = await proxy_or_reason(session, settings) if HOT_ADD in settings.order else "hot-add is not configured"
    kinds = await datastore_kinds(session) if HTTPS in settings.order else {}
    encrypted: frozenset[str] = frozenset()
    if EXPORT in settings.order or (isinstance(proxy, Proxy) and not proxy.encrypted):
        managed = [session.managed(vim.VirtualMachine, vm.address.moref) for vm in vms]
        keys = await session.read(managed, vim.VirtualMachine, ["config.keyId"])
        encrypted = frozenset(moref for moref, told in keys.items() if "config.keyId" in told)
    return Means(proxy, vddk.refusal(settings), kinds, encrypted)


def predict(means: Means, vm: Vm, disk: Disk, order: Sequence[str]) -> Prediction:
    """Which transport a backup of the disk would use now. Pure."""
    fallbacks: list[Fallback] = []
    for name in order:
        if not (why := _why_not(means, vm, disk, name)):
            return Prediction(name, tuple(fallbacks))
        fallbacks.append(Fallback(name, why))
    return Prediction("", tuple(fallbacks))


def _why_not(means: Means, vm: Vm, disk: Disk, name: str) -> str:
    if disk.unprotected:
        return disk.unprotected
    if name == NBD:
        return means.nbd_refusal
    if name == EXPORT:
        return export.refusal(encrypted=vm.address.moref in means.encrypted)
    if name == HTTPS:
        kind = means.kinds.get((vm.datacenter, disk.datastore), "")
        return datastore_https.refusal(vm.power.value, kind, disk, chained=bool(vm.snapshots))
    if name != HOT_ADD:
        return _unknown(name)
    if isinstance(means.proxy, str):
        return means.proxy
    encrypted = vm.address.moref in means.encrypted
    return refusal(
        means.proxy,
        vm_moref=vm.address.moref,
        datacenter=vm.datacenter,
        encrypted=encrypted,
        disk=disk,
        runs_on="" if vm.power is PowerState.OFF else vm.host,
    )


@asynccontextmanager
async def open_disk(
    session: Session,
    leases: Leases,
    snapshot: Snapshot,
    disk: SnapshotDisk,
    *,
    transports: Sequence[str],
    run: str,
    settings: TransportSettings,
) -> AsyncIterator[OpenDisk]:
    """A disk of the snapshot, open for reading by the first transport that works; closed on every way out.

    Raises TransportFailed with the reason of each transport when none works.
    """
    facts = disk.disk
    moref = snapshot.vm.address.moref

    async def enter(stack: AsyncExitStack, name: str) -> DiskReader:
        match name:
            case "hotadd":
                encrypted = await _encrypted(session, moref)
                runs_on = "" if snapshot.vm.power is PowerState.OFF else snapshot.vm.host
                request = AttachRequest(moref, snapshot.vm.datacenter, facts, run, encrypted, runs_on=runs_on)
                return await stack.enter_async_context(open_reader(session, request, settings))
            case "nbd":
                gates = session.settings.gates
                await stack.enter_async_context(gates.through(connection(snapshot.vm.host), f"{run} {facts.label}"))
                which = NetworkDisk(moref, facts.file_name, run, snapshot.moref)
                opened = await stack.enter_async_context(open_network_disk(session, which, settings))
                _check_size(opened.capacity_bytes, facts)
                return opened
            case "export":
                if why := export.refusal(encrypted=await _encrypted(session, moref)):
                    raise TransportFailed(why)
                gates = session.settings.gates
                await stack.enter_async_context(gates.through(connection(snapshot.vm.host), f"{run} {facts.label}"))
                exported = session.managed(vim.vm.Snapshot, snapshot.moref)
                return await stack.enter_async_context(open_export_reader(session, leases, exported, facts))
            case "https":
                return await stack.enter_async_context(open_folder_reader(session, moref, snapshot.moref, facts))
            case _:
                raise TransportFailed(_unknown(name))

    if facts.unprotected:
        raise TransportFailed(facts.unprotected, where=facts.file_name)
    async with _first_that_works(enter, transports or settings.order, facts) as (reader, name, fallbacks):
        yield OpenDisk(reader, name, fallbacks, sequential=name == EXPORT)


async def unwritable(session: Session, settings: TransportSettings, names: Sequence[str]) -> dict[str, str]:
    """By transport: why no disk at all can be written by it now. Those that may serve are left out."""
    found: dict[str, str] = {}
    for name in names:
        match name:
            case "hotadd":
                proxy = await proxy_or_reason(session, settings)
                found[name] = proxy if isinstance(proxy, str) else ""
            case "nbd":
                found[name] = vddk.refusal(settings)
            case "https":
                found[name] = ONLY_READ
            case _:
                found[name] = "" if name == EXPORT else _unknown(name)
    return {name: why for name, why in found.items() if why}


@asynccontextmanager
async def write_disk(
    session: Session,
    created: CreatedVm,
    index: int,
    *,
    transports: Sequence[str],
    run: str,
    settings: TransportSettings,
) -> AsyncIterator[OpenTarget]:
    """The index-th disk of a VM that we made, open for writing by the first transport that works; closed afterwards.

    The VM must be off and without snapshots, but for the one for safety that `created` names, and stay so. Everything
    is durable when the block has ended well.
    """
    facts = created.disks[index]
    moref = created.address.moref
    vm = session.managed(vim.VirtualMachine, moref)
    told = await session.properties(vm, ["runtime.powerState", "runtime.host", "snapshot", "config.keyId"])
    if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
        raise TransportFailed("the VM is not powered off, so its disks are in use", where=created.name)
    above = [node.name for node in tree_nodes(getattr(told.get("snapshot"), "rootSnapshotList", None))]
    if above != ([created.safety] if created.safety else []):
        raise TransportFailed("the VM has a snapshot, so its disks may not be written", where=created.name)

    async def enter(stack: AsyncExitStack, name: str) -> FileWriter | NbdDisk:
        match name:
            case "hotadd" if created.safety:
                raise TransportFailed("above a snapshot a disk is not attached for writing")
            case "hotadd":
                datacenter = await datacenter_of(session, told.get("runtime.host"))
                request = AttachRequest(moref, datacenter, facts, run, "config.keyId" in told, writable=True)
                return await stack.enter_async_context(open_writer(session, request, settings))
            case "nbd":
                gates, host = session.settings.gates, await _name_of(session, told.get("runtime.host"))
                await stack.enter_async_context(gates.through(connection(host), f"{run} {facts.label}"))
                which = NetworkDisk(moref, facts.file_name, run)
                opened = await stack.enter_async_context(open_network_disk(session, which, settings))
                _check_size(opened.capacity_bytes, facts)
                return opened
            case "export":
                raise TransportFailed(ONLY_WHOLE)
            case "https":
                raise TransportFailed(ONLY_READ)
            case _:
                raise TransportFailed(_unknown(name))

    hint = "set hot-add or NBD up (backstay doctor), or restore to a file"
    async with _first_that_works(enter, transports or settings.order, facts, hint) as (writer, name, fallbacks):
        log.info("disk open for writing", extra={"disk": facts.file_name, "transport": name})
        yield OpenTarget(writer, name, fallbacks)
        if isinstance(writer, FileWriter):
            await asyncio.to_thread(writer.flush)
        else:
            await writer.flush()


@asynccontextmanager
async def _first_that_works(
    enter: Callable[[AsyncExitStack, str], Awaitable[T]], names: Sequence[str], disk: Disk, hint: str = ""
) -> AsyncIterator[tuple[T, str, tuple[Fallback, ...]]]:
    """What enter() makes with the first of the transports that it does not fail for."""
    fallbacks: list[Fallback] = []
    for name in names:
        async with AsyncExitStack() as stack:
            try:
                opened = await enter(stack, name)
            except ConnectorError as exc:
                log.info("transport not used", extra={"disk": disk.file_name, "transport": name, "reason": str(exc)})
                fallbacks.append(Fallback(name, str(exc)))
                continue
            yield opened, name, tuple(fallbacks)
            return
    raise NoTransport.because([(one.transport, one.reason) for one in fallbacks], where=disk.file_name, hint=hint)


async def _name_of(session: Session, host: Any) -> str:
    return unquote(str((await session.properties(host, ["name"])).get("name") or "")) if host is not None else ""


async def _encrypted(session: Session, moref: str) -> bool:
    vm = session.managed(vim.VirtualMachine, moref)
    return "config.keyId" in await session.properties(vm, ["config.keyId"])


def _check_size(found_bytes: int, disk: Disk) -> None:
    if found_bytes != disk.capacity_bytes:
        raise TransportFailed(
            f"the server offers {found_bytes} bytes, the disk has {disk.capacity_bytes}", where=disk.file_name
        )


def _unknown(name: str) -> str:
    return f"there is no transport {name!r}; there are {', '.join(TRANSPORTS)}"
