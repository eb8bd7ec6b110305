"""What can be asked of a running engine, what it answers, and the protocol that the service fulfils for the API.

Plain values: a client knows them without loading the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from policies.facts import RestorePoint


@dataclass(frozen=True, slots=True)
class BackUpVm:
    """Back a VM up now, named by its name or id. With full, change tracking is not used."""

    vm: str
    reason: str = "from the command line"
    full: bool = False


@dataclass(frozen=True, slots=True)
class BackUpDisk:
    """Read a disk that is in no vCenter: a file, a block device or an NBD URI, as the engine's host sees it.

    `changed` are (offset, length) pairs since the last restore point of this name; None reads the whole disk.
    """

    source: str
    name: str
    changed: tuple[tuple[int, int], ...] | None = None
    repository: str = ""
    """The place of the one that it goes to; the engine's own without it."""


@dataclass(frozen=True, slots=True)
class RestoreToFile:
    """Write a disk of a restore point to a file or block device on the engine's host.

    An empty disk label stands for the only disk; with more than one, `target` is a directory that gets a file each.
    """

    point: str
    target: Path
    disk: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class RestoreToVm:
    """Make a new, powered-off VM from a restore point, or go on with one whose restore was interrupted.

    Empty fields take what the restore point remembers. `disk_datastores` are by the disks' labels; `identity`,
    `connect` and `storage_policies` are as in RestoreTarget. `transports` are the ways to write its disks by, in order:
    "hotadd", "nbd", or "import"; empty leaves that to the engine's configuration.
    """

    point: str
    name: str
    vcenter: str = ""
    folder: str = ""
    resource_pool: str = ""
    datastore: str = ""
    host: str = ""
    network_map: Mapping[str, str] = field(default_factory=dict)
    disk_datastores: Mapping[str, str] = field(default_factory=dict)
    identity: Literal["auto", "keep", "new"] = "auto"
    connect: bool | None = None
    storage_policies: Mapping[str, str] = field(default_factory=dict)
    transports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreInPlace:
    """Write a restore point over the VM that it is of. `yes` confirms that; see engine.overwrite for the others."""

    point: str
    yes: bool = False
    power_off: bool = False
    safety: bool = True
    keep_safety: bool = False
    discard: bool = False


@dataclass(frozen=True, slots=True)
class RestoreDisk:
    """Write one disk of a restore point into a VM, named by name or id: over its disk `over`, or as a further disk.

    `storage_policies` are for a further disk, as in RestoreTarget.
    """

    point: str
    vm: str
    disk: str = ""
    over: str = ""
    datastore: str = ""
    yes: bool = False
    power_off: bool = False
    safety: bool = True
    keep_safety: bool = False
    discard: bool = False
    storage_policies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verify:
    """Read restore points back and compare every hash; none named means all of the repository.

    `scope` is "full" or "incremental", where a reading counts for `reread_seconds`; it ends after `seconds`, and with
    `anew` it does not go on where an interrupted one ended.
    """

    points: tuple[str, ...] = ()
    scope: Literal["full", "incremental"] = "full"
    reread_seconds: float = 30 * 86400
    seconds: float | None = None
    anew: bool = False
    repository: str = ""
    """The place of the one that is meant; the engine's own without it."""


@dataclass(frozen=True, slots=True)
class Rehearse:
    """Restore a restore point into a trial VM, read that back, compare, and remove it.

    With `heartbeat` the trial VM is switched on, and its guest may take `heartbeat_seconds` to show that it lives;
    0 stands for what policies without a time give it. Empty fields take what the VM has.
    """

    point: str
    vcenter: str = ""
    heartbeat: bool = False
    heartbeat_seconds: float = 0.0
    datastore: str = ""
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Free what no restore point needs; with plan_only the result is what would be done.

    A shorter safety age than the engine's own is refused unless `yes`.
    """

    plan_only: bool = False
    min_age_seconds: float | None = None
    yes: bool = False
    repository: str = ""
    """As in `Verify`."""


Task = BackUpVm | BackUpDisk | RestoreToFile | RestoreToVm | RestoreInPlace | RestoreDisk | Verify | Rehearse | Reclaim
"""What takes long: submitted, then followed by its id."""


class TaskState(StrEnum):
    """Where a task stands; FAILED and DONE are final."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How a task is getting on. `exit_code` and `sentence` count when it is final, `result` when it is done.

    Of a task that failed `result` has what is so all the same, such as that a VM was switched off for it.
    """

    id: str
    kind: str
    state: TaskState
    note: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    exit_code: int = 0
    sentence: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (TaskState.DONE, TaskState.FAILED)


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one SQL statement may cost."""

    rows: int = 10_000
    seconds: float = 30.0
    memory_bytes: int = 512 * 2**20
    threads: int = 2


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """Columns with their SQL types, rows of JSON values, and whether there were more rows than the limit."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool


class Control(Protocol):
    """A running engine as its API sees it. Mappings hold values that `engine.plain.plain` understands.

    Every method may raise an error of our families; `who` is recorded with what an operator did.
    """

    async def health(self) -> Mapping[str, Any]:
        """{"ok": bool, "problems": [sentence, …]}."""
        ...

    async def status(self) -> Mapping[str, Any]:
        """The engine, its vCenters, coverage, queue, repository and what waits for a person, for `backstay status`."""
        ...

    async def points(self, vm: str | None) -> Sequence[RestorePoint]:
        """The restore points of a VM named by name or id, or all; oldest first."""
        ...

    async def point(self, reference: str) -> Mapping[str, Any]:
        """One restore point with its disks, unprotected disks, holds and marks."""
        ...

    async def hold(self, reference: str, reason: str, who: str) -> None:
        """Keep a restore point whatever retention says. Returns when that is durable."""
        ...

    async def release(self, reference: str, reason: str | None, who: str) -> None:
        """Open the hold with this reason, or all holds."""
        ...

    async def expire(self, reference: str, reason: str, who: str, *, last: bool = False, lost: bool = False) -> None:
        """Forget a restore point; Refused when it is held, locked, or, without `last`, the VM's last good one.

        One whose manifest is gone is refused without `lost`.
        """
        ...

    async def submit(self, task: Task, who: str) -> str:
        """Accept a task and give its id; raises at once what is wrong with the request itself."""
        ...

    async def task(self, id: str, wait_seconds: float) -> TaskReport:
        """How a task is getting on; waits up to wait_seconds for news. BadInput when there is no such task."""
        ...

    async def cancel(self, id: str, who: str) -> None:
        """End a task as soon as it has cleaned up."""
        ...

    async def explain(self, vm: str) -> Mapping[str, Any]:
        """Which policies select a VM, what each decides now and why, and what retention keeps; by name or id."""
        ...

    async def explain_point(self, reference: str) -> Mapping[str, Any]:
        """Why a restore point is kept, by which rules, until when, and how it came about."""
        ...

    async def try_notify(self, target: str) -> str:
        """Send a trial message to a target of notices, in one attempt; what it said."""
        ...

    async def plan_relink(self, old: str, new: str) -> Mapping[str, Any]:
        """What joining the histories of two VMs, by id or name, would do: {"old", "new", "retention", "text"}.

        BadInput for a VM that is unknown or ambiguous, Declined when the two must not be joined.
        """
        ...

    async def relink(self, old: str, new: str, who: str) -> Mapping[str, Any]:
        """Join them: the VM that stands in the inventory as `new` goes on as `old`. Returns when that is durable."""
        ...

    async def pending_policies(self) -> Mapping[str, Any]:
        """The policy change that waits: {"digest", "refused", "sentences", "text", "plan"}; empty when none does."""
        ...

    async def apply_policies(self, digest: str, who: str, *, override_guard: bool = False) -> Mapping[str, Any]:
        """Confirm the pending change of this digest; Refused when another one waits by now, or a guard refuses it."""
        ...

    async def apply_plan(self, plan: Mapping[str, Any], who: str, *, override_guard: bool = False) -> Mapping[str, Any]:
        """Confirm the pending change if a plan file fixes exactly this one: {"digest", "text", "done"}.

        Refused says what differs by now, or which guard refuses it. Not `done` when it is in force already.
        """
        ...

    async def sole_bytes(self, points: Sequence[str]) -> int:
        """The stored bytes that these restore points hold alone."""
        ...

    async def policy_facts(self) -> Iterator[bytes]:
        """What policies look at now, and the policies in force, as a document of `engine.statefile`, piece by piece.

        NotYet until every inventory was read. The pieces are made when they are asked for, in any thread.
        """
        ...

    def journal(self, since: datetime) -> AsyncIterator[bytes]:
        """The events that the engine handled since then, a line of `policies.recorded` each, page by page."""
        ...

    async def select(self, query: str, limits: QueryLimits) -> QueryAnswer:
        """One read-only SELECT, by `engine.sql.select`."""
        ...

    async def views(self) -> Mapping[str, Sequence[str]]:
        """The views that a SELECT may name, with their columns."""
        ...

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type, for a scraper that accepts this. Blocking; called in a thread."""
        ...
