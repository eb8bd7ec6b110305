"""The marks of a trial VM, which a rehearsal makes and removes again: for us in its options, for people in its notes.

A person who wants to keep a trial VM renames it, takes the sentence out of its notes, or makes a snapshot of it. From
then on it is a VM like any other, which nobody removes and policies may select.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from pyVmomi import vim

from connectors.hypervisor import TRIAL_PREFIX
from connectors.vsphere.optionmarks import read_option

KEY = "backstay.rehearsal"

NOTES = "TRIAL VM of a Backstay rehearsal"
"""How its notes begin."""

KEEPING = "it is removed again by itself; whoever wants to keep it renames it"

_NO_RESERVATION = vim.ResourceAllocationInfo(reservation=0)


@dataclass(frozen=True, slots=True)
class TrialMark:
    """Which engine made the trial VM, from which restore point and in which run.

    `name` and `instance`, its instance UUID, are what it was made with: a clone has the mark of the original as well.
    """

    engine: str
    point: str
    run: str
    name: str
    instance: str


def is_trial(name: str, notes: str) -> bool:
    """Whether a VM of this name with these notes is some engine's trial VM."""
    return name.startswith(TRIAL_PREFIX) and notes.startswith(NOTES)


def as_trial(config: Any, disks: Iterable[Any], *, engine: str, point: str, run: str) -> None:
    """Make the specification of a new VM that of a trial VM: marked, thin, and without a claim on anything.

    `disks` are the saved ones that it gets. Its identity is new, and it is never asked whether it was moved or copied.
    """
    config.instanceUuid = str(uuid4())
    mark = TrialMark(engine, point, run, str(config.name), config.instanceUuid)
    config.annotation = f"{NOTES} of {point}: {KEEPING}."
    config.extraConfig.append(vim.option.OptionValue(key=KEY, value=json.dumps(asdict(mark))))
    config.extraConfig.append(vim.option.OptionValue(key="uuid.action", value="create"))
    # A reservation that cannot be met would keep it from being switched on.
    config.cpuAllocation, config.memoryAllocation = _NO_RESERVATION, _NO_RESERVATION
    config.memoryReservationLockedToMax = False
    for disk in disks:
        disk.backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True
        )


def read_mark(options: Iterable[Any]) -> TrialMark | None:
    """The mark among a VM's options, if there is one of ours."""
    told = read_option(options, KEY)
    if told is None:
        return None
    return TrialMark(*(str(told.get(name, "")) for name in ("engine", "point", "run", "name", "instance")))


def kept_by_somebody(told: Mapping[str, Any], engine: str) -> str:
    """Why the VM with these properties, those of WHOSE, is not this engine's trial VM to remove; "" when it is.

    A disk of another VM that somebody has given to it would be deleted with it.
    """
    mark = read_mark(told.get("config.extraConfig") or ())
    if mark is None or mark.engine != engine:
        return "it does not carry the mark of this engine's trial VMs"
    name = str(told.get("name") or "")
    if name != mark.name:
        return f"it was renamed from {mark.name}"
    if not is_trial(name, str(told.get("config.annotation") or "")):
        return "its notes do not call it a trial VM any more"
    if str(told.get("config.instanceUuid") or "") != mark.instance:
        return "it is a copy of a trial VM"
    if getattr(told.get("snapshot"), "rootSnapshotList", None):
        return "somebody has made a snapshot of it"
    home = str(told.get("config.files.vmPathName") or "").rpartition("/")[0]
    for device in told.get("config.hardware.device") or ():
        if isinstance(device, vim.vm.device.VirtualDisk):
            file = str(getattr(device.backing, "fileName", None) or "")
            if file.rpartition("/")[0] != home:
                return f"it has a disk that is not its own, {file or 'without a file'}"
    return ""
