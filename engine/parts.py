"""Everything that a running engine consists of, put together by `engine.service` and shared by its loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from connectors.hypervisor import DatastoreSpace
from engine.announcing import Announcer
from engine.attempts import Means
from engine.cleaning import Cleaner
from engine.config import Config
from engine.crew import Crew
from engine.dispatch import Dispatcher
from engine.inbox import Inbox
from engine.jobqueue import JobQueue
from engine.jobs import RunId
from engine.maintenance import plan_run
from engine.outbox import Outbox
from engine.ports import Bus, Hypervisor
from engine.rehearsal_records import Rehearsals
from engine.repositories import Repositories
from engine.room import RoomKeeper
from engine.rulebook import Rulebook
from engine.showing import Showing
from engine.sources import Sources
from engine.state import State
from engine.tasks import TaskBoard
from engine.threads import Threads
from engine.world import World
from metrics.labels import VerifyState
from metrics.registry import Metrics
from policies.facts import PointId, RestorePoint, VmId
from policies.keeping import guarded
from policies.verification import VerificationStanding
from storage.repository import Repository


@dataclass(slots=True)
class Verified:
    """What the newest verification of the repository found.

    `at` is when one last found no damage and left nothing to read; every stored byte was read back or written at
    `since` or later. `left_bytes` did not fit into its window.
    """

    state: VerifyState = VerifyState.NEVER
    at: datetime | None = None
    damaged: int = 0
    since: datetime | None = None
    left_bytes: int = 0


@dataclass(slots=True)
class Parts:
    """See the module. `upkeep` has the newest result of each kind of maintenance, in a sentence."""

    config: Config
    version: str
    started_at: datetime
    now: Callable[[], datetime]
    threads: Threads
    state: State
    repository: Repository
    repositories: Repositories
    hypervisors: dict[str, Hypervisor]
    means: dict[str, Means]
    names: dict[str, str]
    """The configured name of each vCenter, by its instance UUID."""
    world: World
    rulebook: Rulebook
    inbox: Inbox
    dispatcher: Dispatcher
    queue: JobQueue
    crew: Crew
    sources: Sources
    tasks: TaskBoard
    metrics: Metrics
    mint_run: Callable[[], RunId]
    showing: Showing
    bus: Bus | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    upkeep: dict[str, str] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    verified_further: dict[str, Verified] = field(default_factory=dict)
    """The same of further repositories, by name."""
    alone: frozenset[str] = frozenset()
    """Our snapshots that had no run when the metrics were last made."""
    rebuilds: Counter[str] = field(default_factory=Counter)
    """How often the catalog was made again, by kind, as the metrics show it."""
    announcer: Announcer | None = None
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    """The targets of notices, by name."""
    wishes: tuple[VerificationStanding, ...] = ()
    """How often policies want restore points read back, and how that stood at `wishes_at`."""
    wishes_at: datetime | None = None
    wishes_of: str = ""
    """The hash of the policies whose wishes these are."""
    rehearsals: Rehearsals = field(default_factory=Rehearsals)
    retention_refused: str = ""
    copies_refused: dict[str, str] = field(default_factory=dict)
    """Why the newest run of retention in a second copy removed nothing, by the copy's name."""
    copies_barred: dict[str, frozenset[PointId]] = field(default_factory=dict)
    """What a second copy lacks and does not take, as it expired there, by the copy's name."""
    awaited: dict[PointId, str] = field(default_factory=dict)
    """Restore points that nothing keeps any more, and that second copies lack which would keep them: these wait."""
    copies_busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who has second copies open."""
    copies_reclaimed: dict[str, datetime] = field(default_factory=dict)
    """When reclaim last ran in a second copy, or was first thought of, by the copy's name."""
    room: RoomKeeper = field(default_factory=RoomKeeper)
    stores: dict[str, tuple[DatastoreSpace, ...]] = field(default_factory=dict)
    """How full the datastores of each vCenter were when they were last looked at."""
    cleaners: dict[str, Cleaner] = field(default_factory=dict)
    """The janitor of each vCenter."""
    unreachable: dict[str, str] = field(default_factory=dict)
    """Configured vCenters that were not reached yet, with why."""

    def still_going(
        self,
        vm: VmId,
        points: Sequence[RestorePoint],
        *,
        copy: str = "",
        repository: str | None = None,
        there: Mapping[str, Container[PointId]] | None = None,
    ) -> frozenset[PointId]:
        """Which of a VM's restore points expire by all that is known now; none while the clock is in doubt.

        With `repository` they are those of this one, which count together with those of the others as far as these are
        `there`. In a second copy nothing expires whose original is held or locked, as far as that is known here.
        """
        if self.sources.clock_doubt:
            return frozenset()
        policies, world = self.rulebook.in_force, self.world
        if repository is not None:
            here = {point.id for point in points}
            others = [p for p in world.points.get(vm, ()) if p.repository != repository and p.id not in here]
            points = [*points, *(p for p in others if there is None or p.id in there.get(p.repository, ()))]
        now = self.now()
        run = plan_run({vm: points}, world.vms, policies, now=now, left=world.left, copy=copy)
        going = frozenset(one.point for one in run.expire)
        return going - {p.id for p in world.points.get(vm, ()) if guarded(p, now)} if copy else going
