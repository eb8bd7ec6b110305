"""A new VM that vCenter makes under an import lease: its disks go to the host as streams, without a proxy or VDDK.

Until the lease is completed the VM is nobody's to change, and an aborted or forgotten lease takes it away again. So it
is whole or it is not there; what a killed engine left until then carries a mark, and the janitor removes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from pyVmomi import vim

from connectors.cleanup import acquired, finish
from connectors.disks import Extent
from connectors.errors import Busy, ConnectorError, Gone, NotOurs, NotPermitted, Rejected, TransportFailed
from connectors.gates import connection
from connectors.hypervisor import CreatedVm, Leftover, OpenDisk, OpenTarget, RestoreTarget
from connectors.vsphere import import_marks
from connectors.vsphere.belongings import put_labels, put_nvram
from connectors.vsphere.export import bus_of, open_export_reader, place
from connectors.vsphere.export_lease import Lease, Leases
from connectors.vsphere.faults import Failed
from connectors.vsphere.import_marks import ImportMark, kept_by_somebody
from connectors.vsphere.nfc_line import NfcLine
from connectors.vsphere.optionmarks import WHOSE
from connectors.vsphere.provision import Planned, disks_made, name_taken, plan_vm
from connectors.vsphere.restore_marks import RestoreMark, cleared, marked
from connectors.vsphere.restore_marks import option as restoring
from connectors.vsphere.session import Session
from connectors.vsphere.storage_policies import HOME, Policies
from connectors.vsphere.storage_policies import specification as policy_specification
from connectors.vsphere.tags import TagReader
from connectors.vsphere.transport_settings import EXPORT, IMPORT
from connectors.vsphere.trial_marks import as_trial
from connectors.vsphere.trials import remove_trial
from connectors.vsphere.upload import Upload
from connectors.vsphere.vmdk_writer import StreamPlan, plan_stream
from connectors.vsphere.vmspec import add_disk
from policies.facts import Address

log = logging.getLogger(__name__)

IMPORTED_VM = "half-imported VM"

TASK_SECONDS = 600.0

READY_SECONDS = 4 * 3600.0
"""How long vCenter may take to make the VM: thick disks may be zeroed first."""

GONE_SECONDS = 30.0
"""How long vCenter may take to end an aborted lease, and to remove its VM, before that is left to the janitor."""


@asynccontextmanager
async def hold_import(
    session: Session,
    tags: TagReader,
    configuration: bytes,
    target: RestoreTarget,
    mapped: Sequence[Sequence[Extent]],
) -> AsyncIterator[Import]:
    """A VM like the saved one that is being imported; gone after the block unless `complete` has made it whole.

    A trial VM is gone after the block in any case: NotOurs when somebody has made it his.

    `mapped` are the extents that will be written to each disk, in the order of the target's disks. Raises, with nothing
    made, TransportFailed or NotPermitted where vCenter does not import it, Rejected for what a target names wrong, and
    Busy while an interrupted import has the name. Who is cancelled while vCenter makes the VM, which takes hours where
    thick disks are zeroed, waits for the lease to be aborted and no longer.
    """
    planned = await plan_vm(session, configuration, target)
    if planned.found is not None:
        raise TransportFailed(
            f"{target.name} is half restored, and an import makes a VM anew",
            where=session.where,
            hint="delete it, or have the restore go on by hot-add or NBD",
        )
    if planned.policies.needed:
        raise TransportFailed(
            "its disks are encrypted, and vCenter exports no encrypted VM to be compared", where=target.name
        )
    if len(planned.plan.disks) != len(mapped):
        raise Rejected(f"{len(planned.plan.disks)} disks would be made for {len(mapped)}", where=target.name)
    streams = [
        plan_stream(int(disk.capacityInBytes or disk.capacityInKB * 1024), extents)
        for disk, extents in zip(planned.plan.disks, mapped, strict=True)
    ]
    for disk, stream in zip(planned.plan.disks, streams, strict=True):
        if stream.refusal:
            raise TransportFailed(stream.refusal, where=f"import of disk {disk.key} of {target.name}")

    unwanted = asyncio.Event()

    async def make() -> Import:
        return await _made(session, tags, planned, target, streams, unwanted.is_set)

    async def release(importing: Import) -> None:
        await importing.end()

    async with acquired(make, release, within=READY_SECONDS + TASK_SECONDS, hurry=unwanted.set) as importing:
        yield importing


class Import:
    """An import under way. `vm` is what it makes."""

    def __init__(
        self,
        session: Session,
        tags: TagReader,
        planned: Planned,
        target: RestoreTarget,
        lease: Lease,
        vm: CreatedVm,
        streams: Sequence[tuple[Any, StreamPlan]],
    ) -> None:
        self.vm = vm
        self._session = session
        self._tags = tags
        self._planned = planned
        self._target = target
        self._lease = lease
        self._streams = streams
        self._sent: set[int] = set()
        self._host = ""
        self._over = False
        self._whole = False
        self._leases = Leases(session)

    @asynccontextmanager
    async def disk(self, index: int) -> AsyncIterator[OpenTarget]:
        """The index-th disk, to be written in its order; the host has all of it when the block has ended well."""
        session, facts = self._session, self.vm.disks[index]
        url, stream = self._streams[index]
        where = f"import of {facts.file_name}"
        upload = Upload(NfcLine(session, str(url.url), str(url.sslThumbprint or ""), where), self._lease, stream)
        within = 4 * session.settings.answer_seconds
        async with AsyncExitStack() as stack:
            self._host = self._host or await _host_of(session, self.vm.address.moref)
            gates, what = session.settings.gates, f"{self._target.run} {facts.label}"
            await stack.enter_async_context(gates.through(connection(self._host), what))
            try:
                await finish(asyncio.to_thread(upload.begin), within=within, hurry=upload.close)
                yield OpenTarget(upload, IMPORT, cut=upload.close)
                # Its own thread: a host may take an hour to zero a thick disk, and the loop's threads are few.
                waiting = ThreadPoolExecutor(1, "import")
                try:
                    await asyncio.get_running_loop().run_in_executor(waiting, upload.finish)
                finally:
                    waiting.shutdown(wait=False)
                self._sent.add(index)
            finally:
                await finish(asyncio.to_thread(upload.close), within=within)

    @asynccontextmanager
    async def read_back(self, index: int) -> AsyncIterator[OpenDisk]:
        """The index-th disk of the VM, which is whole and off, as vCenter exports it: read forward, by one thread."""
        vm = self._session.managed(vim.VirtualMachine, self.vm.address.moref)
        async with open_export_reader(self._session, self._leases, vm, self.vm.disks[index]) as reader:
            yield OpenDisk(reader, EXPORT, sequential=True)

    async def complete(self) -> CreatedVm:
        """Every disk is sent: have the VM whole, give it what belongs to it, and take the marks away."""
        if len(self._sent) != len(self._streams):
            raise ConnectorError(f"{len(self._sent)} of {len(self._streams)} disks were sent", where=self.vm.name)
        return await finish(self._completed(), within=READY_SECONDS)

    async def end(self) -> None:
        """Give up what is not whole, and a trial VM. What cannot be removed now is the janitor's."""
        moref = self.vm.address.moref
        if self._whole and self._target.trial:
            await remove_trial(self._session, moref)
        if self._whole:
            return
        if not self._over:
            await self._lease.end(failed=True)
        await _remove_patiently(self._session, moref, self._target)

    async def _completed(self) -> CreatedVm:
        session, planned = self._session, self._planned
        await self._lease.complete()
        self._over = True
        vm = session.managed(vim.VirtualMachine, self.vm.address.moref)
        encrypted = planned.saved.keyId is not None
        warnings = [*self.vm.warnings]
        warnings += await put_nvram(session, vm, planned.kept, planned.place.datacenter, encrypted=encrypted)
        if not self._target.trial:
            warnings += await self._unmarked(vm)
        self._whole = True
        self.vm = replace(self.vm, warnings=tuple(warnings))
        for what in warnings:
            log.warning("restored VM differs", extra={"vm": self.vm.name, "what": what})
        log.info("VM imported", extra={"vm": self.vm.name, "moref": self.vm.address.moref})
        return self.vm

    async def _unmarked(self, vm: Any) -> list[str]:
        """Give the VM its labels, and take the marks away; what it lacks."""
        session = self._session
        lacking = await put_labels(session, self._tags, vm, self._planned.kept.summary)
        notes = str((await session.properties(vm, ["config.annotation"])).get("config.annotation") or "")
        whole = vim.vm.ConfigSpec(annotation=cleared(notes), extraConfig=[import_marks.option(None), restoring(None)])
        await session.task(lambda: vm.ReconfigVM_Task(whole), timeout=TASK_SECONDS, entity=vm, operation="Reconfig")
        return lacking


async def import_leftovers(
    session: Session, shown: Mapping[str, Mapping[str, Any]], is_active: Callable[[str], bool]
) -> Sequence[Leftover]:
    """What imports of this engine left whose run is_active denies; `shown` has name and notes of every VM by moRef."""
    found: list[Leftover] = []
    for moref, seen in shown.items():
        if not import_marks.warned(str(seen.get("config.annotation") or "")):
            continue
        try:
            told = await session.properties(session.managed(vim.VirtualMachine, moref), WHOSE)
        except Gone:
            continue
        mark = import_marks.read_mark(told.get("config.extraConfig") or ())
        if mark is None or is_active(mark.run):
            continue
        name = str(told.get("name") or "")
        if why := kept_by_somebody(told, session.settings.engine_id):
            log.info("half-imported VM left alone", extra={"vm": name, "why": why})
            continue
        found.append(Leftover(IMPORTED_VM, Address(session.vcenter, moref), name, name, mark.run))
    return found


async def remove_import(session: Session, moref: str) -> None:
    """Delete a half-imported VM of this engine. Idempotent; NotOurs for any other, Busy while a lease holds it."""
    vm = session.managed(vim.VirtualMachine, moref)
    try:
        told = await session.properties(vm, WHOSE)
        if why := kept_by_somebody(told, session.settings.engine_id):
            raise NotOurs(f"this half-imported VM stays: {why}", where=str(told.get("name") or moref))
        await session.task(vm.Destroy_Task, timeout=TASK_SECONDS, entity=vm, operation="Destroy")
    except Gone:
        return
    log.info("half-imported VM removed", extra={"vm": str(told.get("name") or ""), "moref": moref})


async def _made(
    session: Session,
    tags: TagReader,
    planned: Planned,
    target: RestoreTarget,
    streams: Sequence[StreamPlan],
    unwanted: Callable[[], bool],
) -> Import:
    config, lacking = mark(planned, target, session.settings.engine_id), []
    try:
        lease = await _leased(session, add_disks(config, planned, target, planned.policies), planned, target, unwanted)
    except (Rejected, NotPermitted, Failed, TransportFailed) as refused:
        if not planned.policies.ids or planned.policies.needed:
            raise
        try:
            lease = await _leased(session, add_disks(config, planned, target, Policies()), planned, target, unwanted)
        except ConnectorError as again:
            raise refused from again
        names = ", ".join(sorted(set(planned.policies.names.values())))
        lacking.append(f"without its storage policies ({names}), which vCenter refused: {refused.what}")
    try:
        vm, saved = session.managed(vim.VirtualMachine, lease.vm._moId), planned.saved
        disks = await disks_made(session, vm, saved, planned.plan, target)
        urls = await _urls(session, vm, lease, [disk.key for disk in disks], target.name)
    except BaseException as failure:
        await _given_up(session, lease, failure, target)
        raise
    address = Address(session.vcenter, vm._moId)
    warnings, identity = (*planned.warnings, *lacking), planned.chosen.sentence
    made = CreatedVm(address, target.name, tuple(disks), identity=identity, warnings=warnings)
    log.info("VM is being imported", extra={"vm": target.name, "moref": vm._moId, "disks": len(disks)})
    return Import(session, tags, planned, target, lease, made, list(zip(urls, streams, strict=True)))


async def _leased(
    session: Session, config: Any, planned: Planned, target: RestoreTarget, unwanted: Callable[[], bool]
) -> Lease:
    """A lease that is ready, and the VM of this specification made under it. Nothing is left where there is none."""
    spec, at = vim.vm.VmImportSpec(configSpec=config), planned.place
    try:
        managed = await session.call(at.pool.ImportVApp, spec, at.folder, at.host, mutating=True)
    except ConnectorError as failure:
        if isinstance(failure.__cause__, (vim.fault.DuplicateName, vim.fault.AlreadyExists)):
            raise name_taken(session, target) from failure
        raise
    lease = Lease(session, managed)
    try:
        await lease.begin(does="import", within=READY_SECONDS, unwanted=unwanted)
    except BaseException as failure:
        await _given_up(session, lease, failure, target)
        raise
    return lease


async def _given_up(session: Session, lease: Lease, failure: BaseException, target: RestoreTarget) -> None:
    """Abort a lease, and see to it that its VM is gone."""
    lease.trouble = lease.trouble or str(failure) or type(failure).__name__
    await lease.end(failed=True)
    if lease.vm is not None:
        await _remove_patiently(session, lease.vm._moId, target)
    elif not await lease.over(GONE_SECONDS):
        log.warning("lease of an import ends late, and the janitor removes what it leaves", extra={"vm": target.name})


def mark(planned: Planned, target: RestoreTarget, engine: str) -> Any:
    """The specification of a VM that is to be imported, with its marks and without its disks."""
    plan, saved = planned.plan, planned.saved
    config = plan.config
    if target.trial:
        as_trial(config, plan.disks, engine=engine, point=target.point, run=target.run)
        return config
    config.instanceUuid = config.instanceUuid or str(uuid4())
    own = ImportMark(engine, target.point, target.run, str(config.name), config.instanceUuid, disks=len(plan.disks))
    config.extraConfig += [import_marks.option(own), restoring(RestoreMark(engine, target.point, target.run))]
    config.annotation = marked(str(saved.annotation or ""), target.point)
    return config


def add_disks(config: Any, planned: Planned, target: RestoreTarget, policies: Policies) -> Any:
    """The specification with its disks, in the order of the saved VM, and with these storage policies."""
    saved, disk_kind = planned.saved, vim.vm.device.VirtualDisk
    config.deviceChange = [change for change in config.deviceChange if not isinstance(change.device, disk_kind)]
    config.vmProfile = policy_specification(policies.of(HOME))
    made = [change.device for change in config.deviceChange]
    # The server makes IDE controllers by itself, with the keys that they always have.
    made += [d for d in saved.hardware.device if isinstance(d, vim.vm.device.VirtualIDEController)]
    for disk in sorted(planned.plan.disks, key=lambda disk: disk.key):
        datastore = target.disk_datastores.get(disk.key, planned.place.datastore)
        policy = policy_specification(policies.of(str(disk.key)))
        for change in add_disk(saved, disk, made, datastore, policy).deviceChange:
            change.device.key = -disk.key
            config.deviceChange.append(change)
    return config


async def _urls(session: Session, vm: Any, lease: Lease, keys: Sequence[int], name: str) -> list[Any]:
    """Where each of these disks is sent to."""
    told = await session.properties(vm, ["config.hardware.device"])
    devices = {device.key: device for device in told.get("config.hardware.device") or ()}
    by_place = {place(str(url.importKey or url.key)): url for url in lease.urls if url.disk}
    found = []
    for key in keys:
        device = devices[key]
        controller = devices[device.controllerKey]
        at = (bus_of(type(controller).__name__.rpartition(".")[2]), int(controller.busNumber), int(device.unitNumber))
        if at not in by_place:
            told_of = ", ".join(str(url.importKey or url.key) for url in lease.urls if url.disk) or "none"
            raise TransportFailed(f"vCenter tells no address for disk {at[0]}{at[1]}:{at[2]} ({told_of})", where=name)
        found.append(by_place[at])
    return found


async def _remove_patiently(session: Session, moref: str, target: RestoreTarget) -> None:
    """See to it that the VM of a lease that is over is gone, or say that the janitor has to."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + GONE_SECONDS
    pause = 0.05
    while True:
        try:
            await (remove_trial if target.trial else remove_import)(session, moref)
            return
        except Busy as error:
            if clock() > deadline:
                log.warning("half-imported VM left to the janitor", extra={"moref": moref, "why": str(error)})
                return
        except ConnectorError as error:
            log.warning("half-imported VM left to the janitor", extra={"moref": moref, "why": str(error)})
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, 2.0)


async def _host_of(session: Session, moref: str) -> str:
    vm = session.managed(vim.VirtualMachine, moref)
    host = (await session.properties(vm, ["runtime.host"])).get("runtime.host")
    return str((await session.properties(host, ["name"])).get("name") or "") if host is not None else ""
