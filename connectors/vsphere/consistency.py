"""Which consistency a snapshot of a guest can be expected to have, and why not more. Pure; docs/consistency.md.

Only what vCenter tells counts: dynamic disks and Storage Spaces of a Windows guest, and whether the writers of its
applications take part, show first in what a snapshot has achieved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pyVmomi import vim

from policies.facts import Consistency, PowerState

TOOLS_FOR_2016 = 10_272
"""VMware Tools 10.1.0 as vCenter counts versions: 1,024 per major number, 32 per minor one."""

SCSI_PLACES = 15
"""Units of a SCSI controller beside its own. Newer paravirtual ones have 64, which is not counted on."""


class Guest(Enum):
    """Families of guest systems that are quiesced alike."""

    WINDOWS_SERVER_2003 = "Windows Server 2003"
    WINDOWS_SERVER_2008 = "Windows Server 2008 to 2012"
    WINDOWS_SERVER_2016 = "Windows Server 2016 and later"
    WINDOWS_DESKTOP = "a Windows desktop"
    WINDOWS_OLD = "a Windows from before 2000"
    LINUX = "Linux"
    LINUX_OLD = "Linux with a kernel before 2.6.32"
    OTHER = "another system"


_SERVERS_WITH_RULES = (Guest.WINDOWS_SERVER_2008, Guest.WINDOWS_SERVER_2016)

_BY_ID: tuple[tuple[str, Guest], ...] = (
    (r"win(31|95|98|me|nt)guest", Guest.WINDOWS_OLD),
    (r"win(2000|xp|vista)", Guest.WINDOWS_DESKTOP),
    (r"winnet", Guest.WINDOWS_SERVER_2003),
    (r"winlonghorn|windows[78]server", Guest.WINDOWS_SERVER_2008),
    (r"windows9server|windows20\d\d|windowshyperv", Guest.WINDOWS_SERVER_2016),
    (r"windows\d", Guest.WINDOWS_DESKTOP),
    (
        r"other24x|redhatguest|rhel[2-5](_?64)?guest|sles(10)?(_?64)?guest|debian[45](_64)?guest|(centos|oraclelinux)(64)?guest",
        Guest.LINUX_OLD,
    ),
    (
        r"linux|ubuntu|debian|rhel|centos|sles|suse|fedora|photon|coreos|asianux|mandr|crx(pod|sys)|fusionos|other\dx",
        Guest.LINUX,
    ),
)
"""The beginning or a part of vSphere's guestId in lower case; the first that is found counts."""

_BY_NAME: tuple[tuple[str, Guest], ...] = (
    (r"windows server 2003", Guest.WINDOWS_SERVER_2003),
    (r"windows server (2008|2012)", Guest.WINDOWS_SERVER_2008),
    (r"windows server", Guest.WINDOWS_SERVER_2016),
    (r"windows", Guest.WINDOWS_DESKTOP),
    (r"linux|ubuntu|debian|centos|suse|fedora|photon", Guest.LINUX),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a prediction looks at. None is what vCenter does not tell; it is not held against the VM.

    `controllers` has one name for each virtual disk, `free_scsi_places` are those of all its SCSI controllers, and
    `tools_version` is 0 where it is not known.
    """

    guest_id: str
    guest_name: str = ""
    power: PowerState = PowerState.ON
    tools_running: bool = True
    tools_version: int = 0
    controllers: tuple[str, ...] = ("scsi",)
    free_scsi_places: int | None = None
    disk_uuids: bool | None = None
    encrypted: bool = False


def expected(machine: Machine) -> tuple[Consistency, str]:
    """The best level that a snapshot can be expected to have, and why it is not more (or why it is, powered off)."""
    if machine.power is PowerState.OFF:
        return Consistency.APPLICATION, "it is powered off, so nothing is being written"
    if machine.power is PowerState.SUSPENDED:
        return Consistency.CRASH, "it is suspended, and its memory is not part of the snapshot"
    if not machine.tools_running:
        return Consistency.CRASH, "VMware Tools do not run in the guest"
    guest = guest_of(machine.guest_id, machine.guest_name)
    match guest:
        case Guest.OTHER:
            return Consistency.CRASH, "VMware Tools quiesce neither files nor applications of its guest system"
        case Guest.WINDOWS_OLD:
            return Consistency.CRASH, "VMware Tools quiesce no Windows from before 2000"
        case Guest.LINUX_OLD:
            return Consistency.CRASH, "its kernel is too old for VMware Tools to freeze file systems"
        case Guest.LINUX:
            return Consistency.FILESYSTEM, "only Windows guests have an application level without scripts"
        case Guest.WINDOWS_DESKTOP:
            return Consistency.FILESYSTEM, "of Windows only the server editions have an application level"
        case Guest.WINDOWS_SERVER_2003:
            return Consistency.APPLICATION, ""
        case _:
            hindrance = next(_hindrances(machine, guest), "")
            return (Consistency.FILESYSTEM, hindrance) if hindrance else (Consistency.APPLICATION, "")


def guest_of(guest_id: str, name: str = "") -> Guest:
    """The family of a guest system by vSphere's id for it; by its full name only where there is no id."""
    text, table = (guest_id, _BY_ID) if guest_id else (name, _BY_NAME)
    return next((family for pattern, family in table if re.search(pattern, text.lower())), Guest.OTHER)


def free_scsi_places(devices: Iterable[Any]) -> int:
    """Units that are free on the SCSI controllers among these devices."""
    known = list(devices)
    controllers = {d.key for d in known if isinstance(d, vim.vm.device.VirtualSCSIController)}
    used = sum(d.controllerKey in controllers for d in known)
    return max(0, SCSI_PLACES * len(controllers) - used)


def _hindrances(machine: Machine, guest: Guest) -> Iterator[str]:
    """Why Windows Server stays below the application level: the conditions of VMware's guide, one by one."""
    if guest not in _SERVERS_WITH_RULES:
        return
    if machine.encrypted:
        yield "it is encrypted, and vSphere quiesces no applications of encrypted VMs"
    other = sorted({name for name in machine.controllers if name != "scsi"})
    if other:
        yield f"it has disks on {' and '.join(other)} controllers, and the application level needs SCSI disks only"
    if machine.disk_uuids is False:
        yield "disk.EnableUUID is off, so its shadow copies cannot be told from its disks"
    disks = len(machine.controllers)
    if machine.free_scsi_places is not None and machine.free_scsi_places < disks:
        yield (
            f"its SCSI controllers have too few free places ({machine.free_scsi_places}) for the {disks} that the"
            " application level adds"
        )
    if guest is Guest.WINDOWS_SERVER_2016 and 0 < machine.tools_version < TOOLS_FOR_2016:
        yield "its VMware Tools are older than 10.1.0"
