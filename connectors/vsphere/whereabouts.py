"""Where a snapshot's disk lies and its VM runs by now: both may have moved since the snapshot was made."""

from __future__ import annotations

import logging
from dataclasses import replace

from pyVmomi import vim

from connectors.errors import ConnectorError, TransportFailed
from connectors.hypervisor import Snapshot, SnapshotDisk
from connectors.vsphere.proxy import datacenter_of
from connectors.vsphere.session import Session
from connectors.vsphere.vmfacts import disk_facts

log = logging.getLogger(__name__)


async def seen_again(session: Session, snapshot: Snapshot, disk: SnapshotDisk) -> tuple[Snapshot, SnapshotDisk]:
    """The same with the host, the datacenter and the file of this moment; change ids stay those of the snapshot.

    A storage move carries snapshots along under other names, and tickets for reading are for the host of the moment.
    Raises TransportFailed when vCenter does not tell, or when the snapshot is not there any more.
    """
    kept = session.managed(vim.vm.Snapshot, snapshot.moref)
    vm = session.managed(vim.VirtualMachine, snapshot.vm.address.moref)
    try:
        devices = (await session.properties(kept, ["config.hardware.device"])).get("config.hardware.device") or ()
        host = (await session.properties(vm, ["runtime.host"])).get("runtime.host")
        name = str((await session.properties(host, ["name"])).get("name", "")) if host is not None else ""
        if name and name != snapshot.vm.host:
            datacenter = await datacenter_of(session, host)
            log.info("VM runs elsewhere now", extra={"vm": snapshot.vm.name, "host": name})
            snapshot = replace(snapshot, vm=replace(snapshot.vm, host=name, datacenter=datacenter))
    except ConnectorError as error:
        raise TransportFailed(f"where the disk lies now is not told: {error}", where=disk.disk.file_name) from error
    found = next((one for one in disk_facts(devices) if (one.key, one.uuid) == (disk.disk.key, disk.disk.uuid)), None)
    if found is None:
        raise TransportFailed("the snapshot does not hold this disk any more", where=disk.disk.file_name)
    if found.file_name != disk.disk.file_name:
        log.info("disk lies elsewhere now", extra={"vm": snapshot.vm.name, "disk": found.file_name})
    return snapshot, SnapshotDisk(
        replace(disk.disk, file_name=found.file_name, datastore=found.datastore), disk.change_id
    )
