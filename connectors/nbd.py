"""A disk behind an NBD server, read and written with several requests under way.

A server that stays silent loses its connection: nothing here waits for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from connectors import nbd_protocol as wire
from connectors.disks import Extent, merge
from connectors.errors import ConnectorError, ReadFailed, TransportFailed, WriteFailed
from connectors.nbd_connection import Connection, OpenExport, Request

log = logging.getLogger(__name__)

_STATUS_BYTES = 1 << 30
_ZERO_BYTES = 1 << 26
_SMALLEST_RUN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class NbdLimits:
    """What one connection may ask and how long it may wait.

    request_bytes: the largest read or write; vCenter refuses more than 2 MiB.
    answer_seconds: the longest silence after a request before the server counts as dead.
    connect_seconds: the longest time until the export is open.
    """

    request_bytes: int = 2 << 20
    answer_seconds: float = 120.0
    connect_seconds: float = 30.0


class NbdDisk:
    """An open export: an AsyncReader, and an AsyncWriter where the server allows it."""

    def __init__(self, connection: Connection, export: OpenExport, where: str, limits: NbdLimits) -> None:
        self.capacity_bytes = export.info.capacity_bytes
        self.request_bytes = max(1, min(limits.request_bytes, export.maximum))
        self.flags = export.info.flags
        self._connection = connection
        self._context = export.context
        self._where = where
        self._answer_seconds = limits.answer_seconds

    async def extents(self) -> list[Extent]:
        """The parts that may hold data; the whole disk where the server cannot tell."""
        if self._context is None:
            return merge([Extent(0, self.capacity_bytes)])
        found: list[Extent] = []
        offset = 0
        for _ in range(self.capacity_bytes // _SMALLEST_RUN_BYTES + 16):
            if offset >= self.capacity_bytes:
                return merge(found)
            request = self._connection.submit(
                wire.Command.BLOCK_STATUS, offset, min(_STATUS_BYTES, self.capacity_bytes - offset)
            )
            if problem := await self._settled([request]):
                if self._connection.broken:
                    raise ReadFailed(f"asking for extents at offset {offset}: {problem}", where=self._where)
                log.info("block status refused, reading all", extra={"disk": self._where, "problem": problem})
                break
            for run in request.runs:
                end = min(offset + run.length, self.capacity_bytes)
                if not run.zero and end > offset:
                    found.append(Extent(offset, end - offset))
                offset = end
        return merge([*found, Extent(offset, self.capacity_bytes - offset)])

    async def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on. A cancelled read never touches view again."""
        if problem := await self._cut(wire.Command.READ, offset, view):
            raise ReadFailed(f"reading {view.nbytes} bytes at offset {offset}: {problem}", where=self._where)

    async def write(self, offset: int, view: memoryview) -> None:
        """Write all of view at offset."""
        if problem := await self._cut(wire.Command.WRITE, offset, view):
            raise WriteFailed(f"writing {view.nbytes} bytes at offset {offset}: {problem}", where=self._where)

    async def zero(self, offset: int, length: int) -> None:
        """Make the bytes read as zeros, by a hole where the server can."""
        if wire.Export.WRITE_ZEROES in self.flags:
            await self._ranged(wire.Command.WRITE_ZEROES, offset, length)
            return
        zeros = memoryview(bytes(min(length, self.request_bytes)))
        for start in range(offset, offset + length, self.request_bytes):
            await self.write(start, zeros[: min(self.request_bytes, offset + length - start)])

    async def trim(self, offset: int, length: int) -> None:
        """Tell the server that the bytes are not needed; what they read as afterwards is undefined."""
        if wire.Export.TRIM in self.flags:
            await self._ranged(wire.Command.TRIM, offset, length)

    async def flush(self) -> None:
        """Return when everything written is durable."""
        if wire.Export.FLUSH in self.flags:
            request = self._connection.submit(wire.Command.FLUSH, 0, 0)
            if problem := await self._settled([request]):
                raise WriteFailed(f"flushing: {problem}", where=self._where)

    async def _ranged(self, command: wire.Command, offset: int, length: int) -> None:
        self._inside(offset, length, WriteFailed)
        for start in range(offset, offset + length, _ZERO_BYTES):
            request = self._connection.submit(command, start, min(_ZERO_BYTES, offset + length - start))
            if problem := await self._settled([request]):
                raise WriteFailed(f"{command.name.lower()} at offset {start}: {problem}", where=self._where)

    async def _cut(self, command: wire.Command, offset: int, view: memoryview) -> str:
        self._inside(offset, view.nbytes, WriteFailed if command is wire.Command.WRITE else ReadFailed)
        data = view.cast("B")
        requests: list[Request] = []
        try:
            for start in range(0, len(data), self.request_bytes):
                piece = data[start : start + self.request_bytes]
                if command is wire.Command.WRITE:
                    await self._room()
                requests.append(self._connection.submit(command, offset + start, len(piece), piece))
            return await self._settled(requests)
        finally:
            for request in requests:
                if not request.answer.done() or request.answer.cancelled():
                    self._connection.abandon(request)

    async def _room(self) -> None:
        if not self._connection.writable.is_set():
            try:
                async with asyncio.timeout(self._answer_seconds):
                    await self._connection.writable.wait()
            except TimeoutError:
                self._connection.fail(f"the server took no data for {self._answer_seconds:g} s")

    async def _settled(self, requests: Sequence[Request]) -> str:
        """Wait for all; the first problem, or "". A server that stays silent loses its connection."""
        problem = ""
        try:
            async with asyncio.timeout(self._answer_seconds):
                for request in requests:
                    answer = await request.answer
                    problem = problem or answer
        except TimeoutError:
            self._connection.fail(f"the server gave no answer for {self._answer_seconds:g} s")
            return self._connection.broken
        return problem

    def _inside(self, offset: int, length: int, error: type[ConnectorError]) -> None:
        if offset < 0 or length < 0 or offset + length > self.capacity_bytes:
            raise error(f"{length} bytes at offset {offset} do not lie on the disk", where=self._where)


@asynccontextmanager
async def open_nbd(
    address: wire.NbdAddress, *, limits: NbdLimits | None = None, writable: bool = False
) -> AsyncIterator[NbdDisk]:
    """The export, open until the block ends. Raises TransportFailed when it cannot be opened."""
    limits = limits or NbdLimits()
    where = str(address)
    loop = asyncio.get_running_loop()
    connection = Connection(address.export, loop.create_future(), loop.create_future())
    try:
        try:
            async with asyncio.timeout(limits.connect_seconds):
                if isinstance(address, wire.UnixAddress):
                    await loop.create_unix_connection(lambda: connection, address.path)
                else:
                    await loop.create_connection(lambda: connection, address.host, address.port)
                export = await connection.opened
        except TimeoutError as exc:
            raise TransportFailed(
                f"the NBD server gave no answer for {limits.connect_seconds:g} s", where=where
            ) from exc
        except OSError as exc:
            raise TransportFailed(f"cannot connect: {exc.strerror or exc}", where=where) from exc
        if isinstance(export, str):
            raise TransportFailed(export, where=where)
        if writable and wire.Export.READ_ONLY in export.info.flags:
            raise TransportFailed("the export is read-only", where=where)
        yield NbdDisk(connection, export, where, limits)
    finally:
        await connection.disconnect(min(5.0, limits.connect_seconds))
