"""A thread and a connection of its own under the login of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from connectors.vsphere.faults import FOREIGN, SessionLost, translate

T = TypeVar("T")


class Login(Protocol):
    """What a line needs of the session that it belongs to."""

    where: str
    logins: int

    def new_stub(self) -> Any:
        """A stub with connections of its own and no login yet."""
        ...

    def adopt(self, stub: Any) -> None:
        """Let a stub act under the present login."""
        ...

    def login(self, *, unless_after: int) -> None:
        """Log in again unless somebody has since the `unless_after`-th login."""
        ...

    def forget(self, line: Line) -> None:
        """The line is closed."""
        ...


class Line:
    """A thread and a connection of its own, for calls that block long or whose answers must not be asked for twice.

    Nothing is repeated here: after SessionLost, Gone or Unreachable the caller makes its collectors anew. A lost
    login has then already been renewed.
    """

    def __init__(self, session: Login, name: str) -> None:
        self._session = session
        self._stub = session.new_stub()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"vcenter-{name}")

    def managed(self, managed: Any) -> Any:
        """The same managed object on this line's connection."""
        return type(managed)(managed._moId, self._stub)

    async def call(self, fn: Callable[..., T], *args: Any) -> T:
        """Run one blocking call on the line; raises ConnectorErrors only."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, fn, args)

    def close(self) -> None:
        """End the thread, waiting for the call under way. Blocking and idempotent."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stub.DropConnections()
        self._session.forget(self)

    async def aclose(self) -> None:
        """As close(), without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def _call(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        logins = self._session.logins
        self._session.adopt(self._stub)
        try:
            return fn(*args)
        except FOREIGN as error:
            failure = translate(error, self._session.where)
            if isinstance(failure, SessionLost):
                self._session.login(unless_after=logins)
            raise failure from error
