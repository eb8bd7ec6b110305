"""Disks by NFC export: each as one compressed stream from its first byte to its last, without VDDK and without a proxy.

A stream knows no offsets: it is read once, forward, and all of it. So it serves where a disk is read in full; where
only changes are wanted it is read in full as well.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any

from connectors.cleanup import finish
from connectors.disks import Extent
from connectors.errors import ReadFailed, TransportFailed
from connectors.vsphere.export_lease import Lease, Leases
from connectors.vsphere.nfc_line import NfcLine
from connectors.vsphere.session import Session
from connectors.vsphere.vmdk_stream import Forward, VmdkStream
from policies.facts import Disk

_PLACE = re.compile(r"(?:^|/)([A-Za-z]+)(\d+):(\d+)$")
_BUSES = (("scsi", ("scsi", "lsilogic", "buslogic")), ("sata", ("sata", "ahci")), ("nvme", ("nvm",)), ("ide", ("ide",)))


def refusal(*, encrypted: bool) -> str:
    """Why a disk cannot be exported, as a sentence; empty when it can."""
    return "the VM is encrypted, and vCenter does not export encrypted VMs" if encrypted else ""


def place(key: str) -> tuple[str, int, int] | None:
    """Bus, controller and unit in the key of a device's URL, "/vm-16/ParaVirtualSCSIController0:1"; None for others.

    All controllers of one bus are numbered together, so that these three name one device.
    """
    found = _PLACE.search(key)
    bus = bus_of(found[1]) if found else ""
    return (bus, int(found[2]), int(found[3])) if found and bus else None


def bus_of(controller: str) -> str:
    """The bus of a controller, by the name of its type; empty for others."""
    name = controller.lower()
    return next((bus for bus, words in _BUSES if any(word in name for word in words)), "")


@asynccontextmanager
async def open_export_reader(
    session: Session, leases: Leases, exported: Any, disk: Disk
) -> AsyncIterator[ExportReader]:
    """The disk of a snapshot, or of a VM that is off, as a stream. Raises a ConnectorError with the reason."""
    where = f"export of {disk.file_name}"
    sought = await _place_of(session, exported, disk, where)
    async with leases.hold(exported) as lease:
        url = _url_of(lease, sought, where)
        download = Download(session, str(url.url), str(url.sslThumbprint or ""), where)
        within = 4 * session.settings.answer_seconds
        try:
            stream = await finish(asyncio.to_thread(_begun, download, disk, where), within=within)
            yield ExportReader(stream, lease, where)
        finally:
            await finish(asyncio.to_thread(download.close), within=within)


class ExportReader:
    """A BlockingReader over a stream: reads only go forward. Its holes are not known before they come by."""

    def __init__(self, stream: VmdkStream, lease: Lease, where: str) -> None:
        self.capacity_bytes = stream.capacity_bytes
        self._forward = Forward(stream, where)
        self._lease = lease
        self._where = where
        self._lock = threading.Lock()

    def extents(self) -> list[Extent]:
        """The whole disk."""
        return [Extent(0, self.capacity_bytes)]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, or raise ReadFailed, as for an offset that went by already."""
        with self._lock:
            if self._lease.trouble:
                raise ReadFailed(self._lease.trouble, where=self._where)
            self._forward.read_into(offset, view)
        self._lease.advance(view.nbytes)


class Download:
    """One disk on its way, over a connection of its own. Blocking; for one thread at a time."""

    def __init__(self, session: Session, url: str, thumbprint: str, where: str) -> None:
        self._line = NfcLine(session, url, thumbprint, where)
        self._answer: HTTPResponse | None = None

    def begin(self) -> None:
        """Connect, verify, and ask for the disk. Raises TransportFailed."""
        line = self._line
        line.connect()
        try:
            line.http.request("GET", line.path, headers={"Accept-Encoding": "identity"})
            answer = line.http.getresponse()
        except (OSError, HTTPException) as error:
            raise line.refused("serve the disk", error) from error
        if answer.status != 200:
            raise TransportFailed(
                f"host {line.host} refuses the disk (HTTP {answer.status} {answer.reason})", where=line.where
            )
        self._answer = answer

    def read(self, count: int, /) -> bytes:
        """At most count bytes, none at the end or where the connection broke. Raises ReadFailed for silence."""
        if self._answer is None:
            raise ReadFailed("the stream is closed", where=self._line.where)
        try:
            return self._answer.read(count)
        except TimeoutError as error:
            raise ReadFailed(f"host {self._line.host} sends nothing", where=self._line.where) from error
        except (OSError, HTTPException):
            return b""

    def close(self) -> None:
        """End the connection. Idempotent."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()
        self._line.close()


def _begun(download: Download, disk: Disk, where: str) -> VmdkStream:
    download.begin()
    stream = VmdkStream(download, where)
    if stream.capacity_bytes != disk.capacity_bytes:
        raise TransportFailed(
            f"the stream is of a disk of {stream.capacity_bytes} bytes, the disk has {disk.capacity_bytes}",
            where=where,
        )
    return stream


async def _place_of(session: Session, exported: Any, disk: Disk, where: str) -> tuple[str, int, int]:
    """Bus, controller and unit of the disk, found by its key and held against its UUID."""
    told = await session.properties(exported, ["config.hardware.device"])
    devices = {device.key: device for device in told.get("config.hardware.device") or ()}
    device = devices.get(disk.key)
    controller = devices.get(getattr(device, "controllerKey", None))
    same = device is not None and str(getattr(device.backing, "uuid", None) or "") == disk.uuid
    bus = bus_of(type(controller).__name__.rpartition(".")[2]) if controller is not None else ""
    if device is None or controller is None or not same or not bus or device.unitNumber is None:
        raise TransportFailed("vCenter does not tell where the disk is attached", where=where)
    return bus, int(controller.busNumber), int(device.unitNumber)


def _url_of(lease: Lease, sought: tuple[str, int, int], where: str) -> Any:
    found = [url for url in lease.urls if url.disk and place(str(url.key)) == sought]
    if len(found) != 1:
        told = ", ".join(str(url.key) for url in lease.urls if url.disk) or "none"
        raise TransportFailed(f"vCenter exports other disks ({told})", where=where)
    return found[0]
