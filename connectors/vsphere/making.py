"""The creation of one snapshot, from the best level that is wanted down to the weakest that is accepted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any

from pyVmomi import vim, vmodl

from connectors.cleanup import acquired, finish
from connectors.errors import Busy, ConnectorError, Gone, SnapshotFailed, Unreachable
from connectors.gates import creation
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.naming import TreeNode, snapshot_description
from connectors.vsphere.quiesce import Step, achieved, at_least, ladder
from connectors.vsphere.removal import RemovalSettings, read_tree, remove_snapshot
from connectors.vsphere.session import Session
from connectors.vsphere.vss_manifest import only_file_systems, read_manifest
from policies.facts import USUAL_QUIESCING, Consistency, PowerState, Quiescing, Vm

log = logging.getLogger(__name__)

_BUSY_GUEST = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault)
_NOT_QUIESCED = (*_BUSY_GUEST, vim.fault.ToolsUnavailable)


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """How snapshots are made.

    `create_seconds` is longer than the longest time that a guest may be given to hold still: what vCenter has started
    is waited for. A snapshot that comes later still carries the mark of its run, and the janitor removes it. A
    creation that takes longer than `slow_seconds` is warned of, as the guest stands still for a part of it.
    """

    create_seconds: float = 5 * 3600.0
    slow_seconds: float = 60.0
    busy_seconds: float = 900.0
    removal: RemovalSettings = field(default_factory=RemovalSettings)


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot, what it has achieved and why not more, and how long vCenter took to make it."""

    node: TreeNode
    consistency: Consistency
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Making:
    """The snapshot to be: of which VM, under which name, and with how much patience."""

    session: Session
    managed: Any
    vm: Vm
    name: str
    run: str
    settings: SnapshotSettings
    quiescing: Quiescing = USUAL_QUIESCING
    about_to: Callable[[], None] = lambda: None

    async def climb(self, held: AsyncExitStack, want: Consistency, fallback: Consistency) -> Made:
        """Make it and leave it to `held` to remove it; SnapshotFailed when not even the fall-back is reached.

        A level at which the guest could not be quiesced is tried again as the policy says; a wait for that may be
        cancelled, as there is no snapshot then. Each try that failed is part of the reason.
        """
        way = ladder(self.vm, want, fallback, timeout=self.quiescing.timeout)
        told = [way.reason] if way.reason else []
        tries = 1 + self.quiescing.retries
        for step in way.steps:
            for attempt in range(1, tries + 1):
                try:
                    node, seconds = await self._hold(held, step)
                except ConnectorError as error:
                    if not isinstance(error.__cause__, _NOT_QUIESCED):
                        raise
                    await finish(self._clear(), within=self._within)
                    again = isinstance(error.__cause__, _BUSY_GUEST) and attempt < tries
                    number = f" (try {attempt} of {tries})" if tries > 1 else ""
                    told.append(f"the {step.best.value} level failed{number}: {error.what}")
                    log.info("guest not quiesced", extra={"vm": self.vm.name, "run": self.run, "why": told[-1]})
                    if not again:
                        break
                    await asyncio.sleep(self.quiescing.retry_wait.total_seconds())
                    continue
                level, why = achieved(step, await self._as_it_was(), node)
                if level is Consistency.APPLICATION and node.manifest:
                    level, why = await self._by_manifest(node.manifest)
                told += [why] if why else []
                if not at_least(level, fallback):
                    raise self._failed(fallback, told)
                return Made(node, level, "; ".join(told), seconds)
        raise self._failed(fallback, told)

    async def _as_it_was(self) -> Vm:
        """The VM while it was snapshotted: one that was off counts as running where it may have been started since."""
        if self.vm.power is not PowerState.OFF:
            return self.vm
        state = (await self.session.properties(self.managed, ["runtime.powerState"])).get("runtime.powerState")
        return self.vm if str(state) == "poweredOff" else replace(self.vm, power=PowerState.ON)

    async def _by_manifest(self, path: str) -> tuple[Consistency, str]:
        """What the manifest of the guest's VSS says was reached; that there is one counts where it cannot be read."""
        try:
            if only_file_systems(await read_manifest(self.session, self.managed, path)):
                return Consistency.FILESYSTEM, "no VSS writer of the guest took part: its manifest names none"
        except (ConnectorError, ValueError) as error:
            return Consistency.APPLICATION, f"what the manifest of its VSS writers says was not read: {error}"
        return Consistency.APPLICATION, ""

    def _failed(self, fallback: Consistency, told: list[str]) -> SnapshotFailed:
        return SnapshotFailed(
            f"no snapshot of at least the level {fallback.value}: {'; '.join(told) or 'none was possible'}",
            where=self.vm.name,
            hint="mend the guest's quiescing, or allow a lower fall-back in the policy",
        )

    @property
    def _within(self) -> float:
        making = 2 * self.settings.create_seconds
        return max(making, self.settings.removal.seconds) + 10 * self.session.settings.answer_seconds

    async def _hold(self, held: AsyncExitStack, step: Step) -> tuple[TreeNode, float]:
        """Make it and leave it to `held`. Who waits for a place, or for another's task, may be cancelled: nothing is
        made then."""
        try:
            return await self._entered(held, step)
        except ConnectorError as error:
            running = getattr(error.__cause__, "task", None)
            if not isinstance(error.__cause__, vim.fault.TaskInProgress) or running is None:
                raise
        await self._waited(running)
        return await self._entered(held, step)

    async def _entered(self, held: AsyncExitStack, step: Step) -> tuple[TreeNode, float]:
        async def release(_: tuple[TreeNode, float]) -> None:
            await remove_snapshot(self.session, self.managed, self.name, self.settings.removal)

        async with self.session.settings.gates.through(creation(), f"make {self.name}"):
            self.about_to()
            return await held.enter_async_context(acquired(lambda: self._started(step), release, within=self._within))

    async def _clear(self) -> None:
        """A creation that failed should leave nothing; where it has, the next one would be a duplicate."""
        if await self._find_patiently() is not None:
            await remove_snapshot(self.session, self.managed, self.name, self.settings.removal)

    async def _started(self, step: Step) -> tuple[TreeNode, float]:
        began = time.monotonic()
        try:
            seconds = await self._created(step)
        except (Unreachable, Gone, Busy):
            # Whether the snapshot was made is not known. Its name is of this run alone, so the tree tells.
            node = await self._find_patiently()
            if node is None:
                raise
            return node, time.monotonic() - began
        node = await self._find()
        if node is None:
            raise SnapshotFailed("the snapshot vanished as soon as it was made", where=self.vm.name)
        return node, seconds

    async def _created(self, step: Step) -> float:
        """Have vCenter make it, however long that takes: a second one is never asked for meanwhile. The seconds."""
        started = (await self.session.call(self.session.now)).astimezone(UTC)
        description = snapshot_description(self.session.settings.engine_id, self.run, started)

        async def create(start: Callable[[], Any]) -> float:
            began = time.monotonic()
            slow = asyncio.get_running_loop().call_later(self.settings.slow_seconds, self._tell_slow)
            try:
                await self.session.task(
                    start, timeout=self.settings.create_seconds, entity=self.managed, operation="CreateSnapshot"
                )
            finally:
                slow.cancel()
            return time.monotonic() - began

        try:
            return await create(lambda: self.managed.CreateSnapshotEx_Task(self.name, description, False, step.spec))
        except ConnectorError as error:
            if not isinstance(error.__cause__, vmodl.fault.MethodNotFound):
                raise
            quiesce = step.spec is not None
            return await create(lambda: self.managed.CreateSnapshot_Task(self.name, description, False, quiesce))

    def _tell_slow(self) -> None:
        log.warning(
            "snapshot takes long, still waiting for it",
            extra={"vm": self.vm.name, "run": self.run, "after_seconds": self.settings.slow_seconds},
        )

    async def _find_patiently(self) -> TreeNode | None:
        """As _find, but a vCenter that is away for a moment is waited for."""
        backoff = Backoff()
        deadline = time.monotonic() + 2 * self.session.settings.answer_seconds
        while True:
            try:
                return await self._find()
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
                await backoff.sleep()

    async def _find(self) -> TreeNode | None:
        nodes = await read_tree(self.session, self.managed)
        return next((n for n in nodes if n.name == self.name and n.mark is not None), None)

    async def _waited(self, task: Any) -> None:
        """Wait for somebody else's task on the VM; how it ends does not matter here."""
        try:
            await self.session.wait(self.session.managed(vim.Task, task._moId), timeout=self.settings.busy_seconds)
        except Busy:
            raise
        except ConnectorError as error:
            log.info("the other task failed", extra={"vm": self.vm.name, "error": str(error)})
