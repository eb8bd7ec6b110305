"""One login at one vCenter: verified TLS, bounded threads, re-login, and calls that are never carried out twice.

pyVmomi blocks, so every call runs in a thread. Reads are put again after a lost login or a broken connection.
A call that changes vCenter is put again only when it certainly was not carried out.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from pyVmomi import SoapStubAdapter, vim, vmodl

from connectors.cleanup import finish
from connectors.errors import Busy, ConnectorError, Gone, LoginRefused, Unreachable
from connectors.gates import Gates
from connectors.vsphere.endpoint import negotiate_version, tls_context
from connectors.vsphere.faults import FOREIGN, NEVER_SENT, SessionLost, translate
from connectors.vsphere.line import Line
from connectors.vsphere.properties import read_properties, retrieve

T = TypeVar("T")

log = logging.getLogger(__name__)

POOL_IDLE_SECONDS = 30.0
"""Idle connections are dropped before a server or a firewall does, so that a changing call rarely meets a dead one."""

LOGIN_SPACING_SECONDS = 1.0
"""At most one login in this time, however many calls find the session lost."""

REFUSAL_MEMORY_SECONDS = 30.0
"""After a refused login none is tried for this long: a wrong password must not lock the account."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How to reach a vCenter and as whom.

    `password` is asked at each login and its answer is kept nowhere. `ca_file` holds the CA of the server's
    certificate or, as a pin, that certificate itself (then its name is not compared); without it the system's
    CAs decide. `engine_id` marks everything that this engine makes in vCenter. What may not be done too often at
    once goes through `gates`.
    """

    host: str
    user: str
    password: Callable[[], str] = field(repr=False)
    engine_id: str
    port: int = 443
    ca_file: Path | None = None
    answer_seconds: float = 120.0
    keep_alive_seconds: float = 300.0
    threads: int = 8
    gates: Gates = field(default_factory=Gates, repr=False, compare=False)


class Session:
    """A login. `vcenter` is the vCenter's instance UUID, `content` its service content on the shared stub.

    Objects made from `content` or `managed` stay usable after a re-login; collectors, views and filters do not.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.settings = settings
        self.where = f"vCenter {settings.host}"
        self.vcenter = ""
        self.content: Any = None
        self.logins = 0
        self._stub: Any = None
        self._version = ""
        self._tls = tls_context(settings.ca_file)
        self._login_lock = threading.Lock()
        self._last_login = float("-inf")
        self._refused: LoginRefused | None = None
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="vcenter")
        self._lines: list[Line] = []
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, name="vcenter-keep-alive", daemon=True)

    @classmethod
    async def open(cls, settings: SessionSettings) -> Self:
        """Log in; raises LoginRefused (password or certificate) or Unreachable."""
        session = cls(settings)
        try:
            await session._finished(session._in_thread(session._connect), 4 * settings.answer_seconds)
        except BaseException:
            await session.aclose()
            raise
        session._keeper.start()
        return session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Log out and end every thread of the session. Idempotent; never raises for a vCenter that is gone."""
        if not self._closing.is_set():
            await finish(asyncio.to_thread(self._close), within=3 * self.settings.answer_seconds)

    @property
    def cookie(self) -> str:
        """The SOAP cookie as sent in a Cookie header, for HTTP requests beside the API. A secret."""
        return str(self._stub.cookie).partition(";")[0]

    @property
    def tls(self) -> Any:
        """The verifying TLS context of this vCenter, for HTTP requests beside the API. Not to be changed."""
        return self._tls

    def managed(self, kind: Any, moref: str) -> Any:
        """The managed object of this kind and moRef on the shared stub. No call is made."""
        return kind(moref, self._stub)

    async def call(self, fn: Callable[..., T], *args: Any, mutating: bool = False) -> T:
        """Run one blocking pyVmomi call in the pool; raises ConnectorErrors only.

        A read is put again once after a lost login or a broken connection. With mutating=True the call is put
        again only when it certainly was not carried out, and a cancelled caller waits for its answer first.
        """
        if mutating:
            return await self._finished(self._in_thread(self._once, fn, args), 3 * self.settings.answer_seconds)
        return await self._in_thread(self._again, fn, args)

    async def read(self, objects: Iterable[Any], kind: Any, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The properties at paths of each object, by moRef; objects that are gone and values unset are left out."""
        return await self.call(self._read, list(objects), kind, list(paths))

    async def properties(self, managed: Any, paths: Sequence[str]) -> dict[str, Any]:
        """The properties at paths of one object, unset ones left out; raises Gone when it is not there."""
        found = await self.read([managed], type(managed), paths)
        if managed._moId not in found:
            raise Gone(f"{type(managed).__name__} {managed._moId} is not there any more", where=self.where)
        return found[managed._moId]

    async def task(
        self,
        start: Callable[[], Any],
        *,
        mutating: bool = True,
        timeout: float = 900.0,
        entity: Any = None,
        operation: str = "",
    ) -> Any:
        """Start a task and return its result when it has succeeded; raises what its fault means.

        A cancelled caller waits for the task's end first: nothing that was started is abandoned. When the
        connection breaks while the task is being started, and `entity` and `operation` (how the task's name begins,
        such as "CreateSnapshot") are given, the entity's recent tasks tell whether it did start; it is never started
        a second time on a guess. Busy when the task still runs after timeout seconds; Gone when vCenter has
        forgotten it, its outcome then unknown.
        """
        within = timeout + 3 * self.settings.answer_seconds
        return await self._finished(self._run_task(start, mutating, timeout, entity, operation), within)

    def line(self, name: str) -> Line:
        """A thread and a connection of its own for long polls. Close it."""
        line = Line(self, name)
        self._lines.append(line)
        return line

    async def _run_task(
        self, start: Callable[[], Any], mutating: bool, timeout: float, entity: Any, operation: str
    ) -> Any:
        began = await self.call(self.now) if entity is not None else None
        try:
            task = await self.call(start, mutating=mutating)
        except Unreachable:
            task = await self._started_anyway(entity, operation, began) if entity is not None else None
            if task is None:
                raise
        return await self.wait(task, timeout=timeout)

    async def wait(self, task: Any, *, timeout: float) -> Any:
        """The result of a task that runs; raises as `task` does. Cancelling this leaves the task running."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while True:
            try:
                info = await self.properties(task, ["info.state", "info.error", "info.result"])
            except Unreachable:
                info = {}
                if time.monotonic() >= deadline:
                    raise
            state = info.get("info.state")
            if state == vim.TaskInfo.State.success:
                return info.get("info.result")
            if state == vim.TaskInfo.State.error:
                fault = info.get("info.error") or vmodl.fault.SystemError(reason="the task failed without a fault")
                raise translate(fault, self.where) from fault
            if time.monotonic() >= deadline:
                raise Busy(f"task {task._moId} still runs after {timeout:g} s", where=self.where, hint="see its host")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 2.0)

    async def _started_anyway(self, entity: Any, operation: str, began: Any) -> Any:
        """The task of this operation that the entity has started since `began`, if there is one."""
        recent = (await self.properties(entity, ["recentTask"])).get("recentTask") or []
        infos = await self.read(recent, vim.Task, ["info.name", "info.descriptionId", "info.queueTime"])
        for task in recent:
            info = infos.get(task._moId, {})
            names = (str(info.get("info.name", "")), str(info.get("info.descriptionId", "")).rpartition(".")[2])
            queued = info.get("info.queueTime")
            since = queued is not None and queued >= began
            if since and any(name.lower().startswith(operation.lower()) for name in names):
                return task
        return None

    async def _finished(self, work: Awaitable[T], within: float) -> T:
        try:
            return await finish(work, within=within)
        except TimeoutError as error:
            raise Unreachable(f"no answer within {within:g} s", where=self.where) from error

    async def _in_thread(self, fn: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, fn, *args)

    def _again(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        logins = self.logins
        try:
            return self._translated(fn, args)
        except SessionLost:
            self.login(unless_after=logins)
        except Unreachable as error:
            if isinstance(error.__cause__, vmodl.MethodFault):
                raise
        return self._translated_or_login(fn, args)

    def _once(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        logins = self.logins
        try:
            return self._translated(fn, args)
        except SessionLost:
            self.login(unless_after=logins)
        except Unreachable as error:
            if not isinstance(error.__cause__, NEVER_SENT):
                raise
        return self._translated(fn, args)

    def _translated_or_login(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        """After a broken connection the login may be lost too, as it is when vCenter was restarted."""
        logins = self.logins
        try:
            return self._translated(fn, args)
        except SessionLost:
            self.login(unless_after=logins)
        return self._translated(fn, args)

    def _translated(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            return fn(*args)
        except FOREIGN as error:
            raise translate(error, self.where) from error

    def login(self, *, unless_after: int) -> None:
        """Log in again unless somebody has since the `unless_after`-th login. Blocking; for threads of the session."""
        with self._login_lock:
            if self.logins > unless_after or self._closing.is_set():
                return
            since = time.monotonic() - self._last_login
            if self._refused is not None and since < REFUSAL_MEMORY_SECONDS:
                raise LoginRefused(self._refused.what, where=self.where, hint=self._refused.hint)
            if since < LOGIN_SPACING_SECONDS:
                time.sleep(LOGIN_SPACING_SECONDS - since)
            self._last_login = time.monotonic()
            try:
                self._translated(self._login, ())
            except LoginRefused as error:
                self._refused = error
                raise
            self._refused = None
            self.logins += 1

    def new_stub(self) -> Any:
        """A stub with connections of its own and no login yet."""
        return SoapStubAdapter(
            host=self.settings.host,
            port=self.settings.port,
            version=self._version,
            sslContext=self._tls,
            httpConnectionTimeout=self.settings.answer_seconds,
            connectionPoolTimeout=POOL_IDLE_SECONDS,
            poolSize=self.settings.threads,
        )

    def forget(self, line: Line) -> None:
        """The line is closed; nothing is left to do for it when the session ends."""
        if line in self._lines:
            self._lines.remove(line)

    def adopt(self, stub: Any) -> None:
        """Let a stub act under the present login."""
        stub.cookie = self._stub.cookie

    def _connect(self) -> None:
        settings = self.settings
        self._version = self._translated(
            negotiate_version, (settings.host, settings.port, self._tls, settings.answer_seconds)
        )
        self._stub = self.new_stub()
        self.login(unless_after=0)

    def _login(self) -> None:
        # A stub of its own: a login on a stub that still carries a cookie is refused while that session lives.
        stub = self.new_stub()
        try:
            content = vim.ServiceInstance("ServiceInstance", stub).RetrieveServiceContent()
            vcenter = str(content.about.instanceUuid or content.about.name)
            if self.vcenter and vcenter != self.vcenter:
                raise LoginRefused(
                    f"another vCenter answers here now ({vcenter}, it was {self.vcenter})",
                    where=self.where,
                    hint="check the address, or restart to accept it",
                )
            content.sessionManager.Login(self.settings.user, self.settings.password())
            self._stub.cookie = stub.cookie
        finally:
            stub.DropConnections()
        self.vcenter = vcenter
        if self.content is None:
            self.content = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveServiceContent()
        log.info("logged in", extra={"vcenter": self.settings.host, "logins": self.logins + 1})

    def now(self) -> datetime:
        """vCenter's own time. Blocking; use with `call`."""
        return vim.ServiceInstance("ServiceInstance", self._stub).CurrentTime()

    def _read(self, objects: list[Any], kind: Any, paths: list[str]) -> dict[str, dict[str, Any]]:
        return read_properties(self.content.propertyCollector, objects, kind, paths, self.where)

    def retrieve(self, specs: list[Any]) -> list[Any]:
        """All ObjectContents of a RetrievePropertiesEx, every page of it. Blocking; use with `call`."""
        return retrieve(self.content.propertyCollector, specs)

    def _keep_alive(self) -> None:
        while not self._closing.wait(self.settings.keep_alive_seconds):
            try:
                self._again(self.now, ())
            except ConnectorError as error:
                log.warning("keep-alive failed", extra={"vcenter": self.settings.host, "error": str(error)})

    def _close(self) -> None:
        self._closing.set()
        for line in list(self._lines):
            line.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._stub is None:
            return
        try:
            if self.content is not None:
                self.content.sessionManager.Logout()
        except FOREIGN as error:
            log.info("log-out not answered", extra={"vcenter": self.settings.host, "error": repr(error)})
        finally:
            self._stub.DropConnections()
            if self._keeper.is_alive():
                self._keeper.join(timeout=self.settings.answer_seconds)
