"""What a run is given: the job with its VM, the means to carry it out, and a tally for who looks on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic

from connectors.errors import TrackingUnusable
from connectors.hypervisor import Stuns
from engine.jobs import Job, RunId, Sampled
from engine.leases import Leases
from engine.ports import Hypervisor
from engine.room import RoomKeeper
from engine.threads import Threads
from policies.facts import USUAL_QUIESCING, Disk, Quiescing, Vm
from policies.policy import OnCbtInvalid, OnMigrate
from storage.repository import PointDetail, Repository

KEPT_IN_PLACE = "kept in its place"
"""The placement of a run whose VM nobody could move."""

DEFAULT_TRANSPORTS = ("hotadd", "nbd", "export", "https")


@dataclass(slots=True)
class Tally:
    """How far a run is, in bytes per disk label; read by the status while the run goes on.

    `stuns` tell how long the guest stood still, by "creation" and "removal" of the snapshot, where that is known.
    """

    stage: str = "snapshot"
    planned: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stuns: dict[str, Stuns] = field(default_factory=dict)
    leases: Leases = field(default_factory=Leases)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lap(self, step: str, began: float) -> float:
        """A step that began at this time of `monotonic` is over; the time now. From the event loop."""
        now = monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - began
        return now

    def advance(self, label: str, done: int) -> None:
        """So many more bytes of the plan are done; from any thread."""
        with self.lock:
            self.done[label] = self.done.get(label, 0) + done


class CalledBack(Exception):
    """The run ends without a restore point, through no fault: its VM moved. `distrust` is set when storage moved."""

    def __init__(self, reason: str, *, distrust: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.distrust = distrust


class NotNow(Exception):
    """Through no fault the run has made nothing, and its job waits: `until` then, or for a moment."""

    def __init__(self, reason: str, until: datetime | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.until = until


class KeptByOther(NotNow):
    """Another product keeps the VM in its place, and this run waits until it does not."""


class TrackingLied(TrackingUnusable):
    """What change tracking calls unchanged has changed, and the policies want no run without it: distrusted."""

    def __init__(self, what: str, *, where: str, hint: str, sampled: Sampled) -> None:
        super().__init__(what, where=where, hint=hint)
        self.sampled = sampled


@dataclass(slots=True)
class Recall:
    """How a run is told from outside to give way. It does so only while it still reads. From the event loop."""

    reason: str = ""
    _called: asyncio.Event = field(default_factory=asyncio.Event)

    def call(self, reason: str) -> None:
        """Give way, and why."""
        self.reason = reason
        self._called.set()

    async def heard(self) -> None:
        """Raise CalledBack once it is called."""
        await self._called.wait()
        raise CalledBack(self.reason)


@dataclass(frozen=True, slots=True)
class Means:
    """What a run works with. Memory of reading is `disks_per_vm * lanes` pieces of 1 MiB."""

    hypervisor: Hypervisor
    repository: Repository
    threads: Threads
    engine: str
    transports: tuple[str, ...] = DEFAULT_TRANSPORTS
    disks_per_vm: int = 2
    lanes: int = 4
    copy_threads: int = 0
    room: RoomKeeper = field(default_factory=RoomKeeper)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a backup job. `distrust` is why change tracking may lie, empty when nothing is known against it.

    `on_cbt_invalid` is what it does then, and where change tracking gives no answer. Nobody can expire the restore
    point for as long as `lock` says. `left_out` tells why the policies want a disk left out, "" when they do not.
    `recall` has it give way while it reads, `was_read` hears when it has read everything. Where it `gives_way` no
    more, a move of storage that it does not survive is a failure. `sample` is how many blocks of each disk are read
    again although change tracking calls them unchanged, None for the usual; `quiescing` how patiently its guest is
    asked to hold still. `waits_for_place`: it does not go on where another product keeps its VM in its place.
    `about_to` raises NotNow where its snapshot may not be made at this moment. `to_reset` is why change tracking is to
    be reset, empty where nothing since the last restore point asks for it; that one, as it began, is `before`. Unless
    it `resets` it, tracking stays as it is, whatever that restore point says.
    """

    job: Job
    vm: Vm
    run: RunId
    distrust: str = ""
    tally: Tally = field(default_factory=Tally)
    lock: timedelta = timedelta()
    left_out: Callable[[Disk], str] = lambda disk: ""
    on_cbt_invalid: OnCbtInvalid = OnCbtInvalid.FULL
    recall: Recall = field(default_factory=Recall)
    was_read: Callable[[], None] = lambda: None
    gives_way: bool = True
    on_migrate: OnMigrate = OnMigrate.FINISH
    placement: str = ""
    waits_for_place: bool = True
    about_to: Callable[[], None] = lambda: None
    sample: int | None = 0
    quiescing: Quiescing = USUAL_QUIESCING
    to_reset: str = ""
    resets: bool = True
    before: PointDetail | None = None
