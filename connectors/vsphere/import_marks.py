"""The mark of a VM that an import is making: whoever finds it after the engine was killed knows that it may go.

An import cannot go on where it was cut off. What it left is removed and made again, unless somebody made it his: by
switching it on, renaming it, making a snapshot of it, giving it another's disk, or taking the warning out of its notes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyVmomi import vim

from connectors.vsphere.optionmarks import read_option
from connectors.vsphere.restore_marks import cleared

KEY = "backstay.importing"


@dataclass(frozen=True, slots=True)
class ImportMark:
    """Which engine imports which restore point, in which run, as what: `instance` is the VM's instance UUID."""

    engine: str
    point: str
    run: str
    name: str
    instance: str
    disks: int


def option(mark: ImportMark | None) -> Any:
    """The option that says it; without a mark the one that takes it away."""
    return vim.option.OptionValue(key=KEY, value=json.dumps(asdict(mark)) if mark is not None else "")


def read_mark(options: Iterable[Any]) -> ImportMark | None:
    """The mark among a VM's options, if there is one of ours."""
    told = read_option(options, KEY)
    if told is None or not isinstance(told.get("disks"), int):
        return None
    engine, point, run, name, instance = (
        str(told.get(key, "")) for key in ("engine", "point", "run", "name", "instance")
    )
    return ImportMark(engine, point, run, name, instance, disks=told["disks"])


def warned(notes: str) -> bool:
    """Whether a VM's notes say that it is half restored."""
    return cleared(notes) != notes


def kept_by_somebody(told: Mapping[str, Any], engine: str) -> str:
    """Why the VM with these properties, those of WHOSE, is not this engine's to remove; "" when it is. Pure."""
    mark = read_mark(told.get("config.extraConfig") or ())
    if mark is None or mark.engine != engine:
        return "it does not carry the mark of this engine's imports"
    if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
        return "it is not powered off"
    if str(told.get("name") or "") != mark.name:
        return f"it was renamed from {mark.name}"
    if not warned(str(told.get("config.annotation") or "")):
        return "its notes do not call it half restored any more"
    if str(told.get("config.instanceUuid") or "") != mark.instance:
        return "it is a copy of a half-restored VM"
    if getattr(told.get("snapshot"), "rootSnapshotList", None):
        return "somebody has made a snapshot of it"
    devices = told.get("config.hardware.device") or ()
    if (disks := sum(isinstance(device, vim.vm.device.VirtualDisk) for device in devices)) != mark.disks:
        return f"it has {disks} disks, not the {mark.disks} that it was made with"
    home = str(told.get("config.files.vmPathName") or "")
    for device in devices:
        file = str(getattr(device.backing, "fileName", None) or "")
        if isinstance(device, vim.vm.device.VirtualDisk) and file and not _beside(file, home):
            return f"it has a disk that is not its own, {file}"
    return ""


def _beside(file: str, home: str) -> bool:
    """Whether a disk lies where vCenter puts it: in the VM's home, or elsewhere in a folder of that name (or `_1`)."""
    (there, _, folder), (at, _, own) = (path.rpartition("/")[0].partition("] ") for path in (file, home))
    return folder == own if there == at else re.fullmatch(rf"{re.escape(own)}(_\d+)?", folder) is not None
