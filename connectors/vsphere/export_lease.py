"""Leases under which vCenter exports disks and imports VMs: got, kept alive, shared by a VM's disks, and given back.

While a lease is held, vCenter lets nobody start, move or delete the VM, nor remove its snapshots. A lease whose holder
is dead ends by itself, when nobody has told of progress for its timeout (five minutes where vCenter is left as it is).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pyVmomi import vim

from connectors.cleanup import finish
from connectors.errors import Busy, ConnectorError, Gone, TransportFailed, Unreachable
from connectors.vsphere.faults import translate
from connectors.vsphere.session import Session

log = logging.getLogger(__name__)

READY_SECONDS = 120.0
"""How long vCenter may take until a lease is ready."""

SHORTEST_SILENCE_SECONDS, LONGEST_SILENCE_SECONDS = 0.2, 30.0
"""vCenter is told of progress at least so often, and four times within the lease's timeout."""


class Lease:
    """A lease that is held. `trouble` says why it is no good any more, once it is not."""

    def __init__(self, session: Session, managed: Any) -> None:
        self.trouble = ""
        self.urls: tuple[Any, ...] = ()
        """One HttpNfcLease.DeviceUrl for each disk, and for what else belongs to the VM."""
        self.vm: Any = None
        """The VM that is exported, or that an import has made."""
        self._session = session
        self._managed = managed
        self._timeout = 300.0
        self._keeper: asyncio.Task[None] | None = None
        self._read_bytes = self._total_bytes = 0

    def advance(self, read_bytes: int) -> None:
        """So many bytes more were read; vCenter shows it as progress of its task. From any thread."""
        self._read_bytes += read_bytes

    async def begin(
        self, *, does: str = "export", within: float = READY_SECONDS, unwanted: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until the lease is ready, and keep it alive from then on. Raises TransportFailed.

        Busy, before it is ready, once it is `unwanted`.
        """
        deadline, pause = monotonic() + within, 0.05
        while (told := await self._told()).get("state") != vim.HttpNfcLease.State.ready:
            if told.get("state") == vim.HttpNfcLease.State.error:
                error = told.get("error")
                why = translate(error, self._session.where).what if error is not None else "without a reason"
                raise TransportFailed(f"vCenter does not {does} the VM: {why}")
            if unwanted():
                raise Busy("the lease was given up before it was ready")
            if monotonic() > deadline:
                raise TransportFailed(f"the lease was not ready within {within:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
        info = told["info"]
        self.urls, self.vm = tuple(info.deviceUrl or ()), info.entity
        self._timeout = float(info.leaseTimeout)
        self._total_bytes = int(info.totalDiskCapacityInKB) << 10
        self._keeper = asyncio.ensure_future(self._keep())  # noqa: TID251 - `end` stops it, on every way out

    async def end(self, *, failed: bool) -> None:
        """Give the lease back. What vCenter says to it is not raised: left alone, the lease ends by itself."""
        await self._rest()
        lease = self._managed
        how = lease.HttpNfcLeaseAbort if failed or self.trouble else lease.HttpNfcLeaseComplete
        try:
            await self._session.call(how, mutating=True)
        except ConnectorError as error:
            log.warning("lease not given back", extra={"lease": lease._moId, "why": str(error)})

    async def over(self, within: float) -> bool:
        """Whether vCenter says within so many seconds that a lease which was given back has ended."""
        deadline, pause = monotonic() + within, 0.05
        while True:
            try:
                state = (await self._told()).get("state")
            except Gone:
                return True
            except ConnectorError:
                state = None
            if state in (vim.HttpNfcLease.State.error, vim.HttpNfcLease.State.done):
                return True
            if monotonic() > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def complete(self) -> None:
        """All is sent: the VM is whole. Raises what vCenter says to it."""
        await self._rest()
        if self.trouble:
            raise TransportFailed(self.trouble)
        await self._session.call(self._managed.HttpNfcLeaseComplete, mutating=True)

    async def _rest(self) -> None:
        """Tell of progress no more."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def _told(self) -> dict[str, Any]:
        return await self._session.properties(self._managed, ["state", "error", "info"])

    async def _keep(self) -> None:
        """Tell vCenter of progress until this is cancelled or the lease is lost."""
        heard = monotonic()
        while not self.trouble:
            await asyncio.sleep(max(SHORTEST_SILENCE_SECONDS, min(self._timeout / 4, LONGEST_SILENCE_SECONDS)))
            percent = min(99, 100 * self._read_bytes // max(1, self._total_bytes))
            try:
                await self._session.call(self._managed.HttpNfcLeaseProgress, percent)
                heard = monotonic()
            except Unreachable as error:
                if monotonic() - heard > self._timeout:
                    self.trouble = f"vCenter was not told of progress in time: {error}"
            except ConnectorError as error:
                self.trouble = f"vCenter has ended the lease: {error}"


@dataclass(slots=True)
class _Shared:
    """The lease of one snapshot, and how many of its disks hold it or wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    failed: bool = False
    lease: Lease | None = None


class Leases:
    """The leases under which this engine exports in one vCenter, one for each snapshot, or VM that is off."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._by_object: dict[str, _Shared] = {}

    @asynccontextmanager
    async def hold(self, exported: Any) -> AsyncIterator[Lease]:
        """The lease of a snapshot, or of a VM that is off, ready, until the block ends; the last one out gives it back.

        Raises a ConnectorError. A cancellation while the lease is asked for waits for it, and gives it back.
        """
        shared = self._by_object.setdefault(exported._moId, _Shared())
        shared.users += 1
        failed = True
        within = READY_SECONDS + 4 * self._session.settings.answer_seconds
        try:
            lease = await finish(self._enter(exported, shared), within=within)
            yield lease
            failed = False
        finally:
            shared.users -= 1
            shared.failed = shared.failed or failed
            await finish(self._leave(exported._moId, shared), within=within)

    async def _enter(self, exported: Any, shared: _Shared) -> Lease:
        async with shared.lock:
            if shared.lease is not None and shared.lease.trouble:
                await self._end(shared)
            if shared.lease is None:
                how = exported.ExportVm if isinstance(exported, vim.VirtualMachine) else exported.ExportSnapshot
                managed = await self._session.call(how, mutating=True)
                shared.failed, shared.lease = False, Lease(self._session, managed)
                try:
                    await shared.lease.begin()
                except ConnectorError as error:
                    shared.lease.trouble = str(error)
                    raise
            return shared.lease

    async def _leave(self, moref: str, shared: _Shared) -> None:
        async with shared.lock:
            if shared.users:
                return
            await self._end(shared)
            self._by_object.pop(moref, None)

    async def _end(self, shared: _Shared) -> None:
        lease, shared.lease = shared.lease, None
        if lease is not None:
            await lease.end(failed=shared.failed)
