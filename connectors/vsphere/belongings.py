"""What a restored VM gets back beside its hardware: NVRAM, tags and custom attributes, or why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError
from connectors.kept_vm import KeptVm
from connectors.vsphere.folder_files import FolderFile, write_file
from connectors.vsphere.session import Session
from connectors.vsphere.tags import TagReader

log = logging.getLogger(__name__)


async def put_nvram(session: Session, vm: Any, kept: KeptVm, datacenter: str, *, encrypted: bool) -> list[str]:
    """Lay the saved NVRAM where the VM looks for it. Before its first power-on; what is lacking, in sentences."""
    why = str(kept.summary.get("missing", {}).get("nvram", "")) if kept.summary else "it was not kept"
    if not kept.nvram:
        return [f"without the NVRAM of the original: {why}"] if why else []
    if encrypted:
        return ["without the NVRAM of the original: it is encrypted with the original's key"]
    path = str((await session.properties(vm, ["config.files.vmPathName"])).get("config.files.vmPathName") or "")
    file = FolderFile(f"{path.removesuffix('.vmx')}.nvram", datacenter)
    try:
        await write_file(session, file, kept.nvram)
        name = vim.option.OptionValue(key="nvram", value=file.name.rpartition("/")[2])
        spec = vim.vm.ConfigSpec(extraConfig=[name])
        await session.task(lambda: vm.ReconfigVM_Task(spec), entity=vm, operation="Reconfig")
    except ConnectorError as error:
        log.warning("NVRAM not restored", extra={"moref": vm._moId, "error": str(error)})
        return [f"without the NVRAM of the original: {error}"]
    return []


async def put_labels(session: Session, tags: TagReader, vm: Any, summary: Mapping[str, Any]) -> list[str]:
    """Set tags and custom attributes again where they exist; the others, in sentences."""
    return [*await _attributes(session, vm, summary.get("attributes") or {}), *await _tags(tags, vm, summary)]


async def _attributes(session: Session, vm: Any, wanted: Mapping[str, str]) -> list[str]:
    manager = session.content.customFieldsManager
    if not wanted or manager is None:
        return [f"without the custom attribute {name}" for name in wanted]
    said: list[str] = []
    try:
        fields = (await session.properties(manager, ["field"])).get("field") or ()
        keys = {str(f.name): f.key for f in fields if f.managedObjectType in (None, vim.VirtualMachine)}
        for name, value in wanted.items():
            if name in keys:
                await session.call(manager.SetField, vm, keys[name], value, mutating=True)
            else:
                said.append(f"without the custom attribute {name}, which is not there")
    except ConnectorError as error:
        said.append(f"custom attributes could not be set: {error}")
    return said


async def _tags(tags: TagReader, vm: Any, summary: Mapping[str, Any]) -> list[str]:
    wanted = [str(tag) for tag in summary.get("tags") or ()]
    try:
        absent = await tags.attach(vm._moId, wanted)
    except ConnectorError as error:
        return [f"tags could not be set: {error}"] if wanted else []
    return [f"without the tag {tag}, which is not there" for tag in absent]
