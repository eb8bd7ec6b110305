"""One connection to an NBD server: it agrees on an export, sends requests, and hands each answer to who waits for it.

What arrives goes from the socket straight into the caller's buffer. A server is not trusted: whatever breaks the
protocol ends the connection and fails every request that waits on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, field

from connectors import nbd_protocol as wire
from connectors.disks import Extent, merge
from connectors.errors import ConnectorError, TransportFailed


class Request:
    """A request under way. `answer` becomes "" or the sentence that says what failed."""

    __slots__ = ("answer", "command", "covered", "end", "offset", "problem", "runs", "view")

    def __init__(self, command: wire.Command, offset: int, length: int, view: memoryview | None) -> None:
        self.command = command
        self.offset = offset
        self.end = offset + length
        self.view = view
        self.covered: list[Extent] = []
        self.runs: list[wire.StatusRun] = []
        self.problem = ""
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def finish(self, problem: str) -> None:
        """Wake whoever waits; later calls change nothing."""
        if not self.answer.done():
            self.answer.set_result(problem)

    def cover(self, offset: int, length: int) -> None:
        """Note that the server has told about these bytes; they must be asked for and told about once."""
        extent = Extent(offset, length)
        if self.command is not wire.Command.READ or length < 1 or offset < self.offset or extent.end > self.end:
            raise wire.Malformed(f"data of {length} bytes at offset {offset} that were not asked for")
        if any(offset < other.end and other.offset < extent.end for other in self.covered):
            raise wire.Malformed(f"data at offset {offset} came twice")
        self.covered = merge([*self.covered, extent])

    def complete(self) -> None:
        """Check a successful answer as a whole."""
        if self.command is wire.Command.READ and self.covered != [Extent(self.offset, self.end - self.offset)]:
            raise wire.Malformed(f"a read at offset {self.offset} was answered in part only")
        if self.command is wire.Command.BLOCK_STATUS and not self.runs:
            raise wire.Malformed(f"a block status at offset {self.offset} without extents")


@dataclass(slots=True)
class OpenExport:
    """What was agreed on: the export, the largest payload, and whether block status may be asked."""

    info: wire.ExportInfo
    maximum: int
    structured: bool
    context: int | None


@dataclass(slots=True)
class Connection(asyncio.BufferedProtocol):
    """One connection: a conversation that names the buffer it wants filled next, and the requests that wait."""

    export_name: str
    opened: asyncio.Future[OpenExport | str]
    closed: asyncio.Future[None]
    broken: str = ""
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    _transport: asyncio.Transport | None = None
    _pending: dict[int, Request] = field(default_factory=dict)
    _cookie: int = 0
    _talk: Generator[memoryview, None, None] | None = None
    _wanted: memoryview = field(default_factory=lambda: memoryview(bytearray()))
    _filled: int = 0
    _filling: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.writable.set()
        self._talk = self._conversation()
        self._wanted = next(self._talk)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wanted[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.broken or self._talk is None:
            return
        self._filled += nbytes
        if self._filled == len(self._wanted):
            try:
                self._wanted = next(self._talk)
                self._filled = 0
            except (wire.Malformed, ConnectorError) as exc:
                self.fail(str(exc))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the connection was cut: {exc}" if exc else "the server closed the connection")
        if not self.closed.done():
            self.closed.set_result(None)

    def fail(self, why: str) -> None:
        """End the connection; whoever waits learns why. Later calls change nothing."""
        if self.broken:
            return
        self.broken = why
        # What may still arrive must not reach a buffer that its owner has back.
        self._wanted, self._filled = memoryview(bytearray(65536)), 0
        self._filling = None
        if not self.opened.done():
            self.opened.set_result(why)
        for request in self._pending.values():
            request.finish(why)
        self._pending.clear()
        self.writable.set()
        if self._transport is not None:
            self._transport.abort()

    def submit(self, command: wire.Command, offset: int, length: int, view: memoryview | None = None) -> Request:
        """Send one request; a write's view is its payload, a read's view is where the answer goes."""
        request = Request(command, offset, length, view)
        if self.broken or self._transport is None:
            request.finish(self.broken or "the connection is not open")
            return request
        self._cookie += 1
        self._pending[self._cookie] = request
        self._transport.write(wire.request(command, self._cookie, offset, length))
        if command is wire.Command.WRITE and view is not None:
            self._transport.write(view)
        return request

    def abandon(self, request: Request) -> None:
        """Nobody waits any more: what still arrives for the request goes nowhere near its owner's buffer."""
        request.view = None
        if self._filling is request:
            self._wanted = memoryview(bytearray(len(self._wanted) - self._filled))
            self._filled = 0
            self._filling = None

    async def disconnect(self, within_seconds: float) -> None:
        """Say goodbye and close."""
        if self._transport is None:
            return
        if not self.broken:
            self._transport.write(wire.request(wire.Command.DISCONNECT, 0))
            self._transport.close()
            self.broken = "the disk was closed"
            for request in self._pending.values():
                request.finish(self.broken)
        try:
            async with asyncio.timeout(within_seconds):
                await asyncio.shield(self.closed)
        except TimeoutError:
            self._transport.abort()

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _conversation(self) -> Generator[memoryview, None, None]:
        export = yield from self._negotiate()
        if not self.opened.done():
            self.opened.set_result(export)
        head = memoryview(bytearray(wire.STRUCTURED_REST_BYTES))
        while True:
            magic = head[: wire.REPLY_MAGIC_BYTES]
            yield magic
            if wire.is_structured(magic):
                if not export.structured:
                    raise wire.Malformed("a structured reply, which was not agreed on")
                yield head
                yield from self._structured(wire.chunk_head(head), export)
            else:
                rest = head[: wire.SIMPLE_REST_BYTES]
                yield rest
                yield from self._simple(*wire.simple_reply(rest), export)

    def _negotiate(self) -> Generator[memoryview, None, OpenExport]:
        greeting = memoryview(bytearray(wire.GREETING_BYTES))
        yield greeting
        self._send(wire.check_greeting(greeting))
        self._send(wire.option(wire.Option.STRUCTURED_REPLY))
        structured = not (yield from self._answers(wire.Option.STRUCTURED_REPLY, [])).refused
        context: int | None = None
        if structured:
            told: list[bytes] = []
            self._send(wire.set_meta_context(self.export_name))
            agreed = yield from self._answers(wire.Option.SET_META_CONTEXT, told)
            if not agreed.refused:
                context = next((c for c in map(wire.meta_context, told) if c is not None), None)
        told = []
        self._send(wire.go(self.export_name))
        last = yield from self._answers(wire.Option.GO, told)
        if last.refused:
            detail = wire.printable(told[-1]) if told else ""
            raise TransportFailed(f"the server does not open the export: {detail or last.why}")
        infos = [wire.info(data) for data in told]
        exports = [i for i in infos if isinstance(i, wire.ExportInfo)]
        if not exports:
            raise wire.Malformed("the server did not tell the export's size")
        sizes = [i.maximum for i in infos if isinstance(i, wire.BlockSizes)]
        return OpenExport(exports[-1], sizes[-1] if sizes else 32 << 20, structured, context)

    def _answers(self, asked: wire.Option, told: list[bytes]) -> Generator[memoryview, None, wire.OptionAnswer]:
        head = memoryview(bytearray(wire.OPTION_REPLY_BYTES))
        for _ in range(64):
            yield head
            answer = wire.option_answer(head, asked)
            payload = yield from _payload(answer.length)
            if answer.kind == wire.OptionReply.ACK:
                return answer
            told.append(payload)
            if answer.refused:
                return answer
        raise wire.Malformed("the server never ends its answer in the negotiation")

    def _simple(self, error: int, cookie: int, export: OpenExport) -> Generator[memoryview, None, None]:
        request = self._known(cookie)
        if error:
            self._end(cookie, request, wire.error_name(error))
            return
        if request.command is wire.Command.READ:
            if export.structured:
                raise wire.Malformed("a simple reply to a read, where structured ones were agreed on")
            yield from self._data(request, request.offset, request.end - request.offset)
        self._end(cookie, request, "")

    def _structured(self, head: wire.ChunkHead, export: OpenExport) -> Generator[memoryview, None, None]:
        request = self._known(head.cookie)
        if head.kind == wire.Chunk.DATA:
            start = memoryview(bytearray(8))
            if head.length <= len(start):
                raise wire.Malformed("a chunk of data without data")
            yield start
            yield from self._data(request, int.from_bytes(start, "big"), head.length - len(start))
        elif head.kind == wire.Chunk.NONE:
            if head.length or not head.done:
                raise wire.Malformed("an empty chunk that is not the last one")
        else:
            most = wire.MAX_STATUS_BYTES if head.kind == wire.Chunk.BLOCK_STATUS else 2 * wire.MAX_MESSAGE_BYTES
            if head.length > most:
                raise wire.Malformed(f"a reply of kind {head.kind} claims {head.length} bytes")
            self._told(request, head, (yield from _payload(head.length)), export)
        if head.done:
            self._end(head.cookie, request, request.problem)

    def _told(self, request: Request, head: wire.ChunkHead, payload: bytes, export: OpenExport) -> None:
        if head.is_error:
            request.problem = request.problem or wire.error_text(payload)
        elif head.kind == wire.Chunk.HOLE:
            offset, length = wire.hole(payload)
            request.cover(offset, length)
            if request.view is not None:
                request.view[offset - request.offset : offset - request.offset + length] = bytes(length)
        elif head.kind == wire.Chunk.BLOCK_STATUS and request.command is wire.Command.BLOCK_STATUS:
            if request.runs or export.context is None:
                raise wire.Malformed("a block status that came twice or was not agreed on")
            request.runs = wire.status_runs(payload, export.context)
        else:
            raise wire.Malformed(f"a reply of kind {head.kind} to {request.command.name}")

    def _data(self, request: Request, offset: int, length: int) -> Generator[memoryview, None, None]:
        request.cover(offset, length)
        if request.view is None:
            yield from _payload(length)
            return
        self._filling = request
        yield request.view[offset - request.offset : offset - request.offset + length]
        self._filling = None

    def _known(self, cookie: int) -> Request:
        try:
            return self._pending[cookie]
        except KeyError:
            raise wire.Malformed(f"a reply to request {cookie}, which is not under way") from None

    def _end(self, cookie: int, request: Request, problem: str) -> None:
        if not problem:
            request.complete()
        del self._pending[cookie]
        request.finish(problem)


def _payload(length: int) -> Generator[memoryview, None, bytes]:
    """Wait for so many bytes, which were checked to be bearable."""
    if not length:
        return b""
    data = bytearray(length)
    yield memoryview(data)
    return bytes(data)
