"""The device of a hot-added disk in this machine, found by the disk's UUID and by nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from connectors.errors import TransportFailed

_POLL_SECONDS = 0.05
_RESCAN_EVERY = 20


def names(plain_uuid: str) -> Sequence[str]:
    """What udev calls the device of a disk with this UUID."""
    return (f"wwn-0x{plain_uuid}", f"scsi-3{plain_uuid}")


def present(folder: Path, plain_uuid: str) -> Path | None:
    """The device if it is there now; TransportFailed when its two names mean different devices."""
    found = {path.resolve() for name in names(plain_uuid) if (path := folder / name).exists()}
    if len(found) > 1:
        raise TransportFailed(f"two devices carry the UUID {plain_uuid}", where=str(folder))
    return next(iter(found), None)


async def appeared(folder: Path, plain_uuid: str, within_seconds: float) -> Path:
    """Wait for the device; TransportFailed when it does not come."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    tries = 0
    while (path := present(folder, plain_uuid)) is None:
        if loop.time() > deadline:
            raise TransportFailed(
                f"no device with the UUID {plain_uuid} came within {within_seconds:g} s",
                where=str(folder),
                hint="the proxy VM needs disk.EnableUUID=TRUE and a running udev",
            )
        if tries % _RESCAN_EVERY == 4:
            await asyncio.to_thread(rescan, folder)
        tries += 1
        await asyncio.sleep(_POLL_SECONDS)
    return path


async def vanished(folder: Path, plain_uuid: str, within_seconds: float) -> None:
    """Wait until no device carries the UUID; TransportFailed when one stays: it would be taken for the new one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    while present(folder, plain_uuid) is not None:
        if loop.time() > deadline:
            raise TransportFailed(f"a device with the UUID {plain_uuid} is there before its disk is", where=str(folder))
        await asyncio.sleep(_POLL_SECONDS)


def rescan(folder: Path) -> None:
    """Ask the kernel to look for new SCSI disks, where the devices are the kernel's."""
    if folder.is_relative_to("/dev"):
        for scan in Path("/sys/class/scsi_host").glob("host*/scan"):
            with suppress(OSError):
                scan.write_text("- - -", encoding="ascii")


def let_go(device: Path) -> None:
    """Tell the kernel that a SCSI disk is about to go, so that it does not report errors afterwards."""
    with suppress(OSError):
        if device.is_block_device():
            (Path("/sys/block") / device.name / "device/delete").write_text("1", encoding="ascii")
