"""Work that no event asks for: the janitor's sweep, retention, reclaim and verify.

What removes is first a value: retention plans every VM, a guard looks at all plans together, then they are carried
out. The janitor removes only what carries this engine's mark and belongs to no run that is alive.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from connectors.errors import ConnectorError, NotOurs
from connectors.hypervisor import Leftover
from engine.copying import stop_if
from engine.ports import Hypervisor
from engine.repositories import Repositories
from engine.threads import Threads, interruptible, settled
from engine.world import World
from policies.decision import Expire, RetentionPlan
from policies.facts import Address, PointId, RestorePoint, Vm, VmId
from policies.policyset import PolicySet
from policies.retention import mass_expiry, plan_retention
from policies.units import counted, span
from storage.errors import Refused
from storage.reclaim import ReclaimOutcome, ReclaimPlan, SafetyAges, carry_out, plan_reclaim
from storage.repository import Repository
from storage.verify import Bounds, VerifyReport, verify

log = logging.getLogger("engine.maintenance")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a janitor's pass found and took away; `stuck` pairs what stays with why.

    `unmerged` tells by run why the VM of a snapshot that is gone still needs consolidation.
    """

    removed: tuple[Leftover, ...] = ()
    stuck: tuple[tuple[Leftover, str], ...] = ()
    unmerged: Mapping[str, str] = field(default_factory=dict)


async def sweep(
    hypervisor: Hypervisor,
    is_active: Callable[[str], bool],
    wanted: Callable[[Leftover], bool] = lambda one: True,
    held: Collection[Address] = (),
    of: Address | None = None,
) -> Sweep:
    """Remove what dead runs left, of one VM or of all. Disks first: a snapshot under an attached disk stays.

    Snapshots go side by side, as many as the vCenter's gates let: one that takes hours keeps no other. `held` are VMs
    to which disks were to be attached.
    """
    found = [one for one in await hypervisor.leftovers(is_active, held, of=of) if wanted(one)]
    removed: list[Leftover] = []
    stuck: list[tuple[Leftover, str]] = []

    async def take_away(leftover: Leftover) -> None:
        try:
            await hypervisor.remove(leftover)
        except NotOurs as error:
            log.debug("no left-over of ours", extra={"vm": leftover.vm_name, "what": leftover.kind, "why": str(error)})
        except ConnectorError as error:
            stuck.append((leftover, str(error)))
            log.warning("left-over stays", extra={"vm": leftover.vm_name, "what": leftover.name, "why": str(error)})
        else:
            removed.append(leftover)
            log.info("left-over removed", extra={"vm": leftover.vm_name, "what": leftover.name, "run": leftover.run})

    async def take_away_of(vm: Address) -> None:
        for leftover in [one for one in found if one.kind == "snapshot" and one.vm == vm]:
            await take_away(leftover)

    for leftover in [one for one in found if one.kind != "snapshot"]:
        await take_away(leftover)
    async with asyncio.TaskGroup() as group:
        for vm in dict.fromkeys(one.vm for one in found if one.kind == "snapshot"):
            group.create_task(take_away_of(vm))
    return Sweep(tuple(removed), tuple(stuck))


@dataclass(frozen=True, slots=True)
class RetentionRun:
    """What one run of retention would do, or, where `refusal` says why, must not do."""

    plans: tuple[RetentionPlan, ...]
    refusal: str = ""

    @property
    def expire(self) -> tuple[Expire, ...]:
        """Every restore point that goes."""
        return tuple(one for plan in self.plans for one in plan.expire)

    @property
    def mark(self) -> tuple[Expire, ...]:
        """Every restore point that will go when its grace is over."""
        return tuple(one for plan in self.plans for one in plan.mark)


def part_of(run: RetentionRun, points: Container[PointId]) -> RetentionRun:
    """What of a run is about these restore points."""
    plans = tuple(
        replace(
            plan,
            expire=tuple(one for one in plan.expire if one.point in points),
            mark=tuple(one for one in plan.mark if one.point in points),
            unmark=tuple(point for point in plan.unmark if point in points),
        )
        for plan in run.plans
    )
    return RetentionRun(plans, run.refusal)


def plan_run(
    points: Mapping[VmId, Sequence[RestorePoint]],
    vms: Mapping[VmId, Vm],
    policies: PolicySet,
    *,
    now: datetime,
    max_expire: int | None = None,
    left: Container[VmId] = (),
    look: Callable[[], None] = lambda: None,
    copy: str = "",
    gone: int = 0,
) -> RetentionRun:
    """Plan retention for every VM and hold the sum against the guards; `left` are VMs known to be gone. Pure.

    `copy` is the second copy that the points are in, and `gone` how many expired there in the last
    `guard.add_up_over` of VMs that left or are not selected. `look` is called before each VM; what it
    raises ends the plan.
    """
    plans = []
    for vm, listed in points.items():
        look()
        retaining = policies.retaining(vms.get(vm), listed, removed=vm in left, copy=copy)
        plans.append(plan_retention(vm, listed, retaining, now))
    refusal = mass_expiry(plans, policies.guard.max_expire_share, gone, policies.guard.add_up_over)
    going = sum(len(plan.expire) for plan in plans)
    if refusal:
        refusal += "; look at the policies, then raise the guard or expire some by hand"
    elif max_expire is not None and going > max_expire:
        asked = counted(going, "restore point")
        refusal = f"{asked} would expire in one run, more than maintenance.max_expire ({max_expire}) allows"
    return RetentionRun(tuple(plans), refusal)


async def plan_apart(
    points: Mapping[VmId, Sequence[RestorePoint]],
    world: World,
    policies: PolicySet,
    threads: Threads,
    *,
    now: datetime,
    max_expire: int | None,
    copy: str = "",
    gone: int = 0,
) -> RetentionRun:
    """`plan_run` in its thread, for the VMs as they are now. A cancellation ends it between two VMs."""
    stop = threading.Event()
    vms, left = dict(world.vms), dict(world.left)

    def work() -> RetentionRun:
        look = partial(stop_if, stop)
        return plan_run(
            points, vms, policies, now=now, max_expire=max_expire, left=left, look=look, copy=copy, gone=gone
        )

    return await interruptible(threads.planning, stop, work)


def check_last_good(repositories: Repositories, home: Repository, point: PointId) -> None:
    """Refused when this is the last complete and undamaged restore point of its VM, wherever they are. Blocking."""
    vm = home.detail(point).head.vm
    itself = next((p for p in home.points(vm) if p.id == point), None)
    if itself and itself.complete and not itself.damaged and not repositories.good_beside(point, vm):
        raise Refused(
            f"restore point {point} is the last good one of its VM", hint="make a newer one first: backstay backup VM"
        )


@dataclass(frozen=True, slots=True)
class Retained:
    """What a run of retention did."""

    expired: tuple[Expire, ...]
    marked: tuple[Expire, ...]
    refused: tuple[str, ...] = ()


StillGoing = Callable[[VmId, Sequence[RestorePoint]], Container[PointId]]
"""Which of a VM's restore points go, planned with all else as it is at this moment."""


async def carry_out_run(
    run: RetentionRun, repository: Repository, threads: Threads, still_going: StillGoing, *, now: datetime
) -> Retained:
    """Mark, unmark and expire as planned. A refused run still unmarks: what adds protection needs no leave.

    Others work meanwhile, so before a restore point goes its VM is planned again, with the points as they are then:
    only what both plans say is carried out.
    """
    pool = threads.repository
    for plan in run.plans:
        for point in plan.unmark:
            await settled(pool, repository.unmark, point, "kept again", now)
    if run.refusal:
        log.error("retention refused", extra={"why": run.refusal})
        return Retained((), (), (run.refusal,))
    for one in (*run.mark, *(run.expire if repository.append_only else ())):
        await settled(pool, repository.mark_expiring, one.point, one.reason, now)
    if repository.append_only:  # its owner expires what is marked
        return Retained((), run.mark)
    expired: list[Expire] = []
    refused: list[str] = []
    for vm, one in [(plan.vm, one) for plan in run.plans for one in plan.expire]:
        if one.point not in still_going(vm, await settled(pool, repository.points, vm)):
            log.info("restore point stays", extra={"point": one.point, "why": "the plan does not hold any more"})
            continue
        try:
            await settled(pool, partial(repository.expire, by_retention=True), one.point, one.reason, now)
        except Refused as error:
            refused.append(str(error))
        else:
            expired.append(one)
            log.info("restore point expired", extra={"point": one.point, "why": one.reason})
    return Retained(tuple(expired), run.mark, tuple(refused))


def safety(asked: timedelta | None, usual: timedelta, *, agreed: bool) -> SafetyAges:
    """The safety age that is asked for, or the usual one; Refused when it is shorter and nobody agreed."""
    if asked is not None and asked < usual and not agreed:
        raise Refused(
            f"a safety age of {span(asked)} is shorter than {span(usual)}",
            hint="look with --plan, then say --yes; backups under way elsewhere and restores of what expired may fail",
        )
    return SafetyAges(min_age=usual if asked is None else asked)


async def reclaim_plan(repository: Repository, ages: SafetyAges, threads: Threads, *, now: datetime) -> ReclaimPlan:
    """What could be condemned and freed."""
    return await settled(threads.long, plan_reclaim, repository, now, ages)


async def reclaim(
    repository: Repository,
    plan: ReclaimPlan,
    threads: Threads,
    *,
    now: datetime,
    go_on: Callable[[], bool] = lambda: True,
) -> ReclaimOutcome:
    """Condemn and free it; live data is written again for as long as `go_on`, which a thread asks, says so."""
    return await settled(threads.long, carry_out, repository, plan, now, go_on)


async def verify_points(
    repository: Repository,
    threads: Threads,
    *,
    now: datetime,
    points: Sequence[PointId] | None = None,
    bounds: Bounds | None = None,
    planned: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Read back and compare; marks what is damaged. A cancellation ends it between two reads."""
    stop = threading.Event()

    def told(done: int) -> None:
        stop_if(stop)
        if progress is not None:
            progress(done)

    def work() -> VerifyReport:
        return verify(repository, points=points, now=now, bounds=bounds, planned=planned, progress=told)

    return await interruptible(threads.long, stop, work)
