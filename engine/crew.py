"""What all workers share, and who is told how a job ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import ParamSpec

from connectors.errors import ConnectorError, Gone
from connectors.hypervisor import Leftover, MarkedVm
from engine.attempts import Attempt, Means
from engine.cleaning import Merging, OwnRuns
from engine.failures import BadInput
from engine.jobqueue import JobQueue
from engine.jobs import Abandoned, Job, JobId, Outcome, RunId
from engine.maintenance import Sweep, sweep
from engine.ports import Hypervisor
from engine.repositories import Repositories
from engine.restore_journal import Journal, Restoring, unfinished
from engine.state import State
from engine.threads import Threads, settled
from engine.world import World
from metrics.registry import Metrics
from policies.decision import Requeue
from policies.facts import Address, RestorePoint, Vm, VmId
from policies.policyset import PolicySet
from storage.errors import StorageError

P = ParamSpec("P")

log = logging.getLogger("engine.crew")


@dataclass(slots=True)
class Crew:
    """What the workers share. `means` gives what a run needs for a vCenter.

    `began` is told of every run whose snapshot is about to be made, `ended` of every job that was taken and how that
    ended; both must be quick. `set_aside` are VMs whose last run ended with an error that trying again cannot mend.
    `kept_since` tells since when another product is known to keep the VM of a job in its place.
    """

    queue: JobQueue
    world: World
    state: State
    repositories: Repositories
    threads: Threads
    means: Mapping[str, Means]
    policies: Callable[[], PolicySet]
    metrics: Metrics
    now: Callable[[], datetime]
    mint_run: Callable[[], RunId]
    engine: str
    began: Callable[[Attempt], None] = lambda attempt: None
    ended: Callable[[Job, Outcome], None] = lambda job, outcome: None
    active: dict[RunId, Attempt] = field(default_factory=dict)
    set_aside: set[VmId] = field(default_factory=set)
    merging: Merging = field(default_factory=Merging)
    kept_since: dict[JobId, datetime] = field(default_factory=dict)
    runs: OwnRuns = field(default_factory=lambda: OwnRuns(datetime.max.replace(tzinfo=UTC)))
    _others: set[RunId] = field(default_factory=set)
    _restoring: dict[tuple[str, str], str] = field(default_factory=dict)
    _unfinished: tuple[Restoring, ...] = ()
    _marked: dict[str, tuple[MarkedVm, ...]] = field(default_factory=dict)
    _state_dir: Path | None = None
    _listing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _followers: dict[JobId, asyncio.Future[Outcome]] = field(default_factory=dict)
    _stands_for: dict[JobId, JobId] = field(default_factory=dict)

    def is_restoring(self, vm: Vm) -> bool:
        """Whether disks of the VM, or of one with its name, are being written, or are half written."""
        if any((one.vcenter, one.moref) == (vm.address.vcenter, vm.address.moref) for one in self._unfinished):
            return True
        return self._being_restored(vm.address.vcenter, vm.name, vm.address.moref)

    def _being_restored(self, vcenter: str, name: str, moref: str) -> bool:
        """By its name, since a VM that is made has no other at first, or by its moRef: names change."""
        names = [(one, by) for (center, one), by in self._restoring.items() if center == vcenter]
        return any(one == name or (moref and by == moref) for one, by in names)

    def remember_unfinished(self, state_dir: Path) -> None:
        """Learn which VMs are half restored from the journals of restores. Blocking."""
        self._state_dir = state_dir
        self._unfinished = tuple(unfinished(state_dir))

    async def carries_mark(self, vm: Vm, hypervisor: Hypervisor) -> bool:
        """Whether the VM itself says that it is half restored, whatever is known here of it.

        One that does not any more was reverted, or made whole by hand: it waits for nothing.
        """
        address = vm.address
        if await hypervisor.half_restored(address):
            return True
        self._unmark(address.vcenter, address.moref)
        await self._close(
            [one for one in self.half_restored if (one.vcenter, one.moref) == (address.vcenter, address.moref)]
        )
        return False

    async def look_at_marks(self, vcenter: str) -> None:
        """Learn which VMs of a vCenter say themselves that they are half restored.

        What the state tells of others is closed: they were made whole just before an engine died, were reverted or
        deleted. Where a run was only about to begin, it stays: nothing else knows its snapshot for safety.
        """
        left = [one for one in self.half_restored if one.vcenter == vcenter]
        hypervisor = self.means[vcenter].hypervisor
        found = await hypervisor.marked_vms([one.moref for one in left])
        self._marked[vcenter] = tuple(found)
        marked = {one.address.moref for one in found}
        over = [one for one in left if one.moref not in marked]
        await self._close([one for one in over if not await _may_carry(hypervisor, one)], begun=True)

    def _unmark(self, vcenter: str, moref: str, name: str = "") -> None:
        seen = self._marked.get(vcenter, ())
        self._marked[vcenter] = tuple(one for one in seen if one.address.moref != moref and one.name != name)

    async def _close(self, over: Sequence[Restoring], *, begun: bool = False) -> None:
        """End the journals of restores that nobody goes on with; with `begun` only of those that have written."""
        if not over or self._state_dir is None:
            return
        for one in over:
            journal = Journal(self._state_dir, one)
            told = await settled(self.threads.long, journal.read) if begun else None
            if (told is None or not told.wanted_by) and one in self.half_restored:
                log.info("a restore is over, or was given up", extra={"vm": one.name, "point": one.point})
                await settled(self.threads.long, journal.finish)
        await settled(self.threads.long, self.remember_unfinished, self._state_dir)

    @property
    def only_marked(self) -> list[MarkedVm]:
        """VMs that say themselves that they are half restored, while nothing else here tells of a restore of them."""
        known = {Address(one.vcenter, one.moref) for one in self._unfinished}
        return [
            one
            for found in self._marked.values()
            for one in found
            if one.address not in known and not self._being_restored(one.address.vcenter, one.name, one.address.moref)
        ]

    def waits_for_restore(self, address: Address) -> bool:
        """Whether the VM is half restored, as far as known, and nobody is at work on it."""
        waits = {Address(one.vcenter, one.moref) for one in self.half_restored}
        return address in waits or any(one.address == address for one in self.only_marked)

    @property
    def half_restored(self) -> list[Restoring]:
        """The restores that were interrupted and wait for being asked for again."""
        return [one for one in self._unfinished if (one.vcenter, one.name) not in self._restoring]

    def is_active(self, run: str) -> bool:
        """Whether a snapshot or disk of this run is in use."""
        return run in self.active or run in self._others

    def follow(self, job: JobId) -> asyncio.Future[Outcome]:
        """Resolved with how the next run of this job ends."""
        job = self._stands_for.get(job, job)
        return self._followers.setdefault(job, asyncio.get_running_loop().create_future())

    def joined(self, job: JobId, other: JobId) -> None:
        """The other job stands for this one from now on: who waits for this one hears how that one ends."""
        self._stands_for.update({was: other for was, now in self._stands_for.items() if now == job})
        self._stands_for[job] = other
        waiting = self._followers.pop(job, None)
        if waiting is not None:
            self.follow(other).add_done_callback(partial(_hand_on, waiting))

    @contextmanager
    def alive(self, run: RunId) -> Iterator[None]:
        """What carries this run's mark is in use meanwhile, though it is no job's."""
        self._others.add(run)
        try:
            yield
        finally:
            self._others.discard(run)

    @contextmanager
    def restoring(self, vcenter: str, name: str, moref: str = "") -> Iterator[None]:
        """This VM is not backed up meanwhile: its disks are being written. BadInput when they are already."""
        if self._being_restored(vcenter, name, moref):
            raise BadInput(f"{name} is being restored already", hint="wait for that to end")
        self._restoring[vcenter, name] = moref
        try:
            yield
        finally:
            self._restoring.pop((vcenter, name), None)
            self._unmark(vcenter, moref, name)  # whether it is whole now, the next look tells

    def given_up(self, job: Job) -> None:
        """An event gave the job up before it ran: tell who waits for it."""
        self.tell(job, Abandoned(job.last_error))

    def tell(self, job: Job, outcome: Outcome) -> None:
        """Tell who waits for this job how its run ended."""
        if not (isinstance(outcome, Abandoned) and outcome.requeue):
            self._stands_for = {was: now for was, now in self._stands_for.items() if now != job.id}
        follower = self._followers.pop(job.id, None)
        if follower is not None and not follower.done():
            follower.set_result(outcome)
        self.ended(job, outcome)

    def call_back(self, decision: Requeue) -> None:
        """Have the run of this VM give way, unless it has read everything by now."""
        for attempt in [one for one in self.active.values() if one.vm.id == decision.vm]:
            attempt.recall.call(decision.reason)

    async def sweep(self, vcenter: str, vm: Address | None = None) -> Sweep:
        """One janitor's pass over a vCenter, or over one VM of it; closes intents of which nothing is left."""
        hypervisor = self.means[vcenter].hypervisor
        intents = [i for i in await settled(self.threads.state, self.state.intents) if i.address.vcenter == vcenter]
        held = {i.address for i in intents if i.kind == "attached disk"}
        known = {i.run for i in intents}

        def ours(left: Leftover) -> bool:
            return left.run in known or not self.runs.another(left.run)

        swept = await sweep(hypervisor, self.is_active, ours, held, vm)
        left = {leftover.run for leftover, _ in swept.stuck}
        unmovable = {leftover.vm for leftover, _ in swept.stuck if not leftover.run}
        gone = {leftover.run for leftover in swept.removed}
        over = [
            i
            for i in intents
            if i.run not in left
            and i.address not in unmovable
            and not self.is_active(i.run)
            and (vm is None or i.run in gone)
        ]
        # What a snapshot left to merge stays open, so that it is known as ours after a restart too.
        snapshots = [i for i in over if i.kind == "snapshot"]
        unmerged = await self.merging.merge(hypervisor, snapshots, self.now())
        done = [i.run for i in over if i.run not in unmerged]
        if done:
            await settled(self.threads.state, self.state.resolve_intents, done)
        return replace(swept, unmerged=unmerged)

    async def remember(self, write: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write to the state; when that fails too (a full disk), go on: at worst the job runs again after a start."""
        try:
            await settled(self.threads.state, write, *args, **kwargs)
        except StorageError as error:
            log.error("not written to the state", extra={"why": str(error)})

    async def list_points(self, vm: VmId) -> None:
        """Read the restore points of a VM from the repository again."""
        async with self._listing:
            points = partial(self.repositories.points, vm, known=dict(self.world.points))
            self.world.set_points(vm, await settled(self.threads.repository, points))

    async def list_all_points(self) -> None:
        """Read every restore point from the repository again."""
        async with self._listing:
            by_vm: dict[VmId, list[RestorePoint]] = {vm: [] for vm in self.world.points}
            listing = partial(self.repositories.listing, known=dict(self.world.points))
            points, answered = await settled(self.threads.repository, listing)
            for point in points:
                by_vm.setdefault(point.vm, []).append(point)
            for vm, listed in by_vm.items():
                self.world.set_points(vm, listed)
            self.world.unseen_repositories -= answered

    def name(self, vm: VmId) -> str:
        """What people call the VM."""
        row = self.world.rows.get(vm)
        return row.traits.name if row is not None else vm


async def _may_carry(hypervisor: Hypervisor, one: Restoring) -> bool:
    """Whether the VM of a restore carries its mark, or cannot be asked now."""
    try:
        return await hypervisor.half_restored(Address(one.vcenter, one.moref))
    except Gone:
        return False
    except ConnectorError:
        return True


def _hand_on(waiting: asyncio.Future[Outcome], ended: asyncio.Future[Outcome]) -> None:
    if not (waiting.done() or ended.cancelled()):
        waiting.set_result(ended.result())
