"""Flat disks of powered-off VMs over HTTPS from their datastore, by ranged reads under the login of the session.

Slow, since vCenter stands in the way, but it needs nothing besides the API's own port. Only a base disk that no host
has open can be read so: not that of a running VM, not one in a chain of other snapshots, and only where a disk is a
file (VMFS, NFS). While our snapshot is held nothing writes to that file, whatever becomes of the VM.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from typing import Any

from pyVmomi import vim

from connectors.disks import Extent
from connectors.errors import ConnectorError, ReadFailed, TransportFailed
from connectors.vsphere.folder_files import FolderFile, datacenter_path
from connectors.vsphere.session import Session
from policies.facts import Disk

FLAT_KINDS = frozenset({"VMFS", "NFS", "NFS41"})
"""Types of datastores on which a disk is a file of its own bytes."""

TRIES = 4
"""How often in a row one read may be cut off before it has failed."""

_DESCRIPTOR_BYTES = 64 * 1024
_EXTENT = re.compile(r'^\s*(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\S+)\s+"([^"]+)"', re.MULTILINE)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def refusal(power: str, kind: str, disk: Disk, *, chained: bool) -> str:
    """Why a disk cannot be read over HTTPS, as a sentence; empty when it can. `power` is one of PowerState's words."""
    if power != "off":
        return "the VM is not powered off: no host gives away the file of a disk that it has open"
    if kind not in FLAT_KINDS:
        return (
            f"datastore {disk.datastore} is {kind or 'of an unknown kind'}: only on VMFS and NFS is a disk a flat file"
        )
    if chained:
        return "the VM has other snapshots, so the disk is a chain of files"
    return ""


@asynccontextmanager
async def open_folder_reader(
    session: Session, vm_moref: str, snapshot_moref: str, disk: Disk
) -> AsyncIterator[FolderReader]:
    """The disk of a snapshot, open for reading over HTTPS. Raises TransportFailed with the reason."""
    where = f"HTTPS to {disk.file_name}"
    backing = await _backing(session, snapshot_moref, disk)
    vm = session.managed(vim.VirtualMachine, vm_moref)
    power = str((await session.properties(vm, ["runtime.powerState"])).get("runtime.powerState"))
    store = await session.properties(backing.datastore, ["summary.type"])
    why = refusal(
        "off" if power == "poweredOff" else power,
        str(store.get("summary.type") or ""),
        disk,
        chained=getattr(backing, "parent", None) is not None,
    )
    if why:
        raise TransportFailed(why, where=where)
    place = FolderFile(disk.file_name, await datacenter_path(session, backing.datastore))
    connections = Connections(session)
    try:
        flat = await asyncio.to_thread(_flat_file, connections, place, disk)
        yield FolderReader(connections, flat, disk.capacity_bytes)
    finally:
        await asyncio.to_thread(connections.close)


class Connections:
    """HTTPS connections to one vCenter under the session's login: verified like all others, kept while they last."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._idle: list[HTTPSConnection] = []
        self._lock = threading.Lock()

    def get(self, file: FolderFile, offset: int, view: memoryview) -> tuple[int, int]:
        """Read from offset on into view: (bytes read, size of the whole file). Blocking.

        Fewer bytes than asked for mean that the answer was cut off or that the file ends. Raises ReadFailed.
        """
        logins = self._session.logins
        connection = self._take()
        got, keep = 0, False
        try:
            headers = {"Cookie": self._session.cookie, "Range": f"bytes={offset}-{offset + view.nbytes - 1}"}
            connection.request("GET", file.url, headers=headers)
            answer = connection.getresponse()
            if answer.status == 401:
                answer.close()
                self._session.login(unless_after=logins)
                return 0, -1
            size = _checked(answer, file, offset, view.nbytes)
            while got < view.nbytes and (count := answer.readinto(view[got:])):
                got += count
            keep = got == view.nbytes and answer.isclosed()
            return got, size
        except (OSError, HTTPException):
            # What else is idle is as old, and may be as dead.
            self.close()
            return got, -1
        finally:
            self._give_back(connection, keep=keep)

    def close(self) -> None:
        """End every connection."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> HTTPSConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        settings = self._session.settings
        return HTTPSConnection(settings.host, settings.port, timeout=settings.answer_seconds, context=self._session.tls)

    def _give_back(self, connection: HTTPSConnection, *, keep: bool) -> None:
        if keep:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()


class FolderReader:
    """A BlockingReader over one flat file of a datastore. Its holes are not told: every byte has to be fetched."""

    def __init__(self, connections: Connections, file: FolderFile, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._connections = connections
        self._file = file

    def extents(self) -> list[Extent]:
        """The whole disk."""
        return [Extent(0, self.capacity_bytes)] if self.capacity_bytes else []

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, or raise ReadFailed; a cut-off answer goes on where it ended. Thread-safe."""
        if offset < 0 or offset + view.nbytes > self.capacity_bytes:
            raise ReadFailed(
                f"{view.nbytes} bytes at offset {offset} are not all within the disk", where=self._file.name
            )
        done = tries = 0
        while done < view.nbytes:
            try:
                got, size = self._connections.get(self._file, offset + done, view[done:])
            except ConnectorError as exc:
                what = f"reading at offset {offset + done}: {exc.what}"
                raise ReadFailed(what, where=self._file.name, hint=exc.hint) from exc
            if size not in (-1, self.capacity_bytes):
                raise ReadFailed(
                    f"the file has {size} bytes now, the disk {self.capacity_bytes}", where=self._file.name
                )
            tries = 0 if got else tries + 1
            done += got
            if tries >= TRIES:
                raise ReadFailed(f"no answer to {tries} requests at offset {offset + done}", where=self._file.name)


async def datastore_kinds(session: Session) -> Mapping[tuple[str, str], str]:
    """The types of all datastores, by (datacenter, name)."""
    content = session.content
    view = await session.call(content.viewManager.CreateContainerView, content.rootFolder, [vim.Datacenter], True)
    try:
        centers = (await session.properties(view, ["view"])).get("view") or []
        told = await session.read(centers, vim.Datacenter, ["name", "datastore"])
    finally:
        await session.call(view.DestroyView)
    stores = [store for center in told.values() for store in center.get("datastore") or ()]
    known = await session.read(stores, vim.Datastore, ["name", "summary.type"])
    return {
        (str(center["name"]), str(known[store._moId]["name"])): str(known[store._moId].get("summary.type") or "")
        for center in told.values()
        for store in center.get("datastore") or ()
        if "name" in known.get(store._moId, {})
    }


async def _backing(session: Session, snapshot_moref: str, disk: Disk) -> Any:
    """The file behind the snapshot's disk, found by its key and held against its UUID."""
    snapshot = session.managed(vim.vm.Snapshot, snapshot_moref)
    devices = (await session.properties(snapshot, ["config.hardware.device"])).get("config.hardware.device") or ()
    for device in devices:
        if device.key == disk.key and str(getattr(device.backing, "uuid", None) or "") == disk.uuid:
            if not isinstance(device.backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo):
                break
            if device.backing.datastore is not None:
                return device.backing
    raise TransportFailed("the disk is no flat file of a datastore", where=f"HTTPS to {disk.file_name}")


def _flat_file(connections: Connections, descriptor: FolderFile, disk: Disk) -> FolderFile:
    """The file that holds the disk's bytes, as its descriptor names it, seen to be there in full size. Blocking."""
    where = f"HTTPS to {disk.file_name}"
    buffer = bytearray(_DESCRIPTOR_BYTES)
    try:
        got, size = _persistently(connections, descriptor, memoryview(buffer))
        if size > len(buffer) or got < size:
            raise TransportFailed(f"its descriptor has {size} bytes, of which {got} came", where=where)
        extents = _EXTENT.findall(buffer[:got].decode("utf-8", "replace"))
        kinds = ", ".join(sorted({kind for _, _, kind, _ in extents}))
        if len(extents) != 1 or kinds != "VMFS":
            raise TransportFailed(f"it is no flat disk ({len(extents)} extents: {kinds or 'none'})", where=where)
        _, sectors, _, name = extents[0]
        flat = _beside(descriptor, name)
        _, size = _persistently(connections, flat, memoryview(bytearray(1)))
    except ReadFailed as exc:
        raise TransportFailed(exc.what, where=where) from exc
    if size != disk.capacity_bytes or int(sectors) * 512 != disk.capacity_bytes:
        raise TransportFailed(
            f"the file has {size} bytes and its descriptor tells of {int(sectors) * 512}, "
            f"the disk has {disk.capacity_bytes}",
            where=where,
        )
    return flat


def _beside(file: FolderFile, name: str) -> FolderFile:
    """Another file of the same folder, or by its path from the datastore's root."""
    store, _, path = file.name.partition("] ")
    folder = path.rpartition("/")[0]
    return FolderFile(f"{store}] {name if '/' in name or not folder else f'{folder}/{name}'}", file.datacenter)


def _persistently(connections: Connections, file: FolderFile, view: memoryview) -> tuple[int, int]:
    for _ in range(TRIES):
        got, size = connections.get(file, 0, view)
        if size >= 0 and got == min(size, view.nbytes):
            return got, size
    raise ReadFailed(f"no answer to {TRIES} requests", where=file.name)


def _checked(answer: HTTPResponse, file: FolderFile, offset: int, length: int) -> int:
    """The size of the whole file, when the answer is what was asked for; ReadFailed when it is anything else."""
    told = _RANGE.fullmatch(answer.getheader("Content-Range", ""))
    if answer.status == 206 and told is not None:
        first, last, size = (int(number) for number in told.groups())
        if first == offset and last == min(offset + length, size) - 1:
            return size
    answer.close()
    if answer.status == 200:
        raise ReadFailed("the server does not answer for parts of a file", where=file.name)
    if answer.status == 206:
        raise ReadFailed("the server answered for another part of the file", where=file.name)
    hint = {
        403: "the account needs Datastore.Browse and Datastore.FileManagement, and no host may have the file open",
        404: "there is no such file",
    }.get(answer.status, "")
    raise ReadFailed(
        f"the server refuses to read it (HTTP {answer.status} {answer.reason})", where=file.name, hint=hint
    )
