"""A TCP relay before a lab: it can be turned to another one, swallow everything, and counts connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE_BYTES = 1 << 16


class Relay:
    """Listens on `port` and passes on to `target` (host, port), or to nobody while that is None.

    `open` are the connections of now, `most` is how many there were at once, `accepted` how many in all.
    """

    def __init__(self, target: tuple[str, int] | None) -> None:
        self.target = target
        self.port = 0
        self.open = self.most = self.accepted = 0
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection of now."""
        for task in self._passing:
            task.cancel()

    async def _connected(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        self.open += 1
        self.accepted += 1
        self.most = max(self.most, self.open)
        try:
            if self.target is None:
                await asyncio.Event().wait()
            else:
                server, there = await asyncio.open_connection(*self.target)
                try:
                    async with asyncio.TaskGroup() as group:
                        ways = [group.create_task(_pass(client, there)), group.create_task(_pass(server, back))]
                        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                        for way in ways:
                            way.cancel()
                finally:
                    there.close()
        except asyncio.CancelledError:
            pass
        finally:
            self.open -= 1
            self._passing.discard(task)
            back.close()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(PIECE_BYTES):
            sink.write(data)
            await sink.drain()
