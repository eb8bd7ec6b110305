"""How this engine reaches the disks of VMs: what is configured, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from connectors.nbd import NbdLimits

HOT_ADD = "hotadd"
NBD = "nbd"
EXPORT = "export"
HTTPS = "https"
TRANSPORTS = (HOT_ADD, NBD, EXPORT, HTTPS)
"""Every transport there is, the one that is usually the fastest first."""

IMPORT = "import"
"""What `export` is in the other direction: it makes a whole new VM."""

HotAddWish = Literal["auto", "always", "never"]
"""Whether disks are hot-added: as the table of editions says, whatever it says, or not at all."""

Compression = Literal["", "none", "zlib", "fastlz", "skipz"]
"""What VDDK compresses with on the network; empty leaves it to VDDK."""


@dataclass(frozen=True, slots=True)
class AttachIntent:
    """A disk that is about to be attached to a proxy VM, or, with `done`, that is known to be detached again."""

    vcenter: str
    proxy_moref: str
    disk_uuid: str
    file_name: str
    run: str
    done: bool = False


def ignore_intent(intent: AttachIntent) -> None:
    """Keep no record: what is attached carries its run in the proxy's own configuration anyway."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """What the transports need to know beside the session.

    order: the transports to try, where a policy names none.
    nbdkit: the program; `plugin` its plugin by name or path, with further words where the plugin is a script.
    libdir: the folder of VMware's VDDK, which the user brings; NBD is refused without it when plugin is "vddk".
    vddk_transports: what VDDK may use below, in its own words.
    compression: what VDDK compresses with on its way from the host; "none" suits a fast network.
    hotadd: whether disks are hot-added; see editions.py for "auto".
    retries: how often nbdkit reopens the disk after an error before it reports it.
    ready_seconds: how long nbdkit may take until it listens; stop_seconds: until it has stopped by itself.
    proxy: the VM that this engine runs in, by moRef, UUID or name; empty finds it by this machine's own UUID.
    device_folder: where the guest's udev names SCSI disks by their identity.
    device_seconds: how long a hot-added disk may take to appear there.
    limits: of each NBD connection.
    stats_folder: where nbdkit writes what was read of each disk; None for not at all.
    scratch: where sockets lie for as long as a disk is open; None for the system's temporary folder.
    environment: further variables for nbdkit, which inherits none but PATH.
    on_intent: is told, in a thread, before a disk is attached and after it was detached; what it raises keeps a disk
        from being attached.
    """

    order: tuple[str, ...] = TRANSPORTS
    nbdkit: str = "nbdkit"
    plugin: tuple[str, ...] = ("vddk",)
    libdir: str = ""
    vddk_transports: str = "nbdssl:nbd"
    compression: Compression = ""
    hotadd: HotAddWish = "auto"
    retries: int = 3
    ready_seconds: float = 60.0
    stop_seconds: float = 30.0
    proxy: str = ""
    device_folder: Path = Path("/dev/disk/by-id")
    device_seconds: float = 30.0
    limits: NbdLimits = field(default_factory=NbdLimits)
    stats_folder: Path | None = None
    scratch: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    on_intent: Callable[[AttachIntent], None] = ignore_intent
