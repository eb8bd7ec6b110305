"""What a restore point keeps of a VM beside its disks, gathered while its snapshot stands.

Nothing of this fails a backup: what cannot be had is told in the summary and in the log.
"""

from __future__ import annotations

import logging
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Gone
from connectors.kept_vm import KeptVm, pack
from connectors.vsphere.folder_files import FolderFile, datacenter_of_host, forget_datacenter, read_file
from connectors.vsphere.session import Session
from connectors.vsphere.storage_policies import names_of
from connectors.vsphere.summary import summary
from policies.facts import Vm

log = logging.getLogger(__name__)

_Distributed = vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo


async def kept(session: Session, vm: Vm, config: Any, configuration: bytes) -> bytes:
    """The archive for the restore point. `config` is the snapshot's own, `configuration` the same serialised."""
    managed = session.managed(vim.VirtualMachine, vm.address.moref)
    missing: dict[str, str] = {}
    nvram = b""
    try:
        nvram = await _nvram(session, managed)
        if not nvram:
            missing["nvram"] = "the VM has none; it is made at the first power-on"
    except ConnectorError as error:
        missing["nvram"] = str(error)
        log.warning("NVRAM not kept", extra={"vm": vm.name, "error": str(error)})
    portgroups: dict[str, str] = {}
    try:
        if any(isinstance(getattr(d, "backing", None), _Distributed) for d in config.hardware.device):
            portgroups = await _portgroups(session, managed)
    except ConnectorError as error:
        missing["networks"] = str(error)
        log.warning("names of port groups not kept", extra={"vm": vm.name, "error": str(error)})
    keys = [d.key for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]
    policies, unknown = await names_of(session, vm.address.moref, keys)
    if unknown:
        missing["policies"] = unknown
    told = summary(vm, config, portgroups=portgroups, policies=policies, missing=missing)
    return pack(KeptVm(configuration, nvram, told))


async def _nvram(session: Session, managed: Any) -> bytes:
    told = await session.properties(managed, ["layoutEx.file", "runtime.host"])
    files = told.get("layoutEx.file") or ()
    name = next((str(f.name) for f in files if str(f.type) == "nvram"), "")
    host = told.get("runtime.host")
    if not name or host is None:
        return b""
    try:
        return await read_file(session, FolderFile(name, await datacenter_of_host(session, host)))
    except Gone:
        forget_datacenter(session, host)
        raise


async def _portgroups(session: Session, managed: Any) -> dict[str, str]:
    told = await session.properties(managed, ["network"])
    groups = [n for n in told.get("network") or () if isinstance(n, vim.dvs.DistributedVirtualPortgroup)]
    found = await session.read(groups, vim.dvs.DistributedVirtualPortgroup, ["key", "name"]) if groups else {}
    return {str(t["key"]): str(t["name"]) for t in found.values() if "key" in t and "name" in t}
