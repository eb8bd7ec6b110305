"""A job and what became of it: frozen values, no behaviour beyond naming.

A job is one piece of work that a decision or an operator asked for. It lives in the state until it is settled;
every attempt at it is a run with its own id, which also names the snapshot and marks the hot-added disks.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NewType

from policies.decision import BackUp
from policies.facts import Consistency, PointId, VmId

JobId = NewType("JobId", str)
"""The id of a job, unique in one engine's state."""

RunId = NewType("RunId", str)
"""The id of one attempt at a job; snapshots and hot-added disks of the attempt carry it."""


_MINTED = "%Y%m%dT%H%M%S"


def mint(prefix: str, now: Callable[[], datetime]) -> Callable[[], str]:
    """Ids that sort by time and are never given twice."""
    return lambda: f"{prefix}{now().astimezone(UTC):{_MINTED}}{secrets.token_hex(4)}"


def minted_at(run: str) -> datetime | None:
    """When the id of a run was made; None for what is none."""
    try:
        return datetime.strptime(run[:15], _MINTED).replace(tzinfo=UTC)
    except ValueError:
        return None


class JobKind(StrEnum):
    """What a job does."""

    BACKUP = "backup"
    HOLD = "hold"


class JobState(StrEnum):
    """Where a job stands. Only PENDING and RUNNING are open."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ABANDONED = "abandoned"
    QUARANTINED = "quarantined"


OPEN_STATES = frozenset({JobState.PENDING, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for one VM, with the part of the decision that its run needs.

    `key` is the idempotency key of the decision: two decisions of one key are one job. `manual` jobs were asked
    for by a person or a message and are not re-evaluated before they run.
    """

    id: JobId
    key: str
    kind: JobKind
    vm: VmId
    policy: str
    rule: str
    reason: str
    created_at: datetime
    not_before: datetime
    deadline: datetime | None = None
    priority: int = 0
    consistency: Consistency = Consistency.CRASH
    fallback: Consistency = Consistency.CRASH
    transports: tuple[str, ...] = ()
    policy_hash: str = ""
    event_key: str = ""
    event_type: str = ""
    event_at: datetime | None = None
    policy_commit: str = ""
    manual: bool = False
    state: JobState = JobState.PENDING
    attempts: int = 0
    last_error: str = ""
    run: RunId | None = None


def asked_for(decision: BackUp) -> bool:
    """Whether a person or a message asked for this run."""
    return decision.rule == "request"


def job_from(decision: BackUp, *, job: JobId, now: datetime) -> Job:
    """The pending job that a decision to back a VM up asks for."""
    return Job(
        id=job,
        key=decision.key,
        kind=JobKind.BACKUP,
        vm=decision.vm,
        policy=decision.policy,
        rule=decision.rule,
        reason=decision.reason,
        created_at=now,
        not_before=decision.not_before,
        deadline=decision.deadline,
        priority=decision.priority,
        consistency=decision.consistency,
        fallback=decision.fallback,
        transports=decision.transports,
        policy_hash=decision.policy_hash,
        event_key=decision.event_key,
        event_type=decision.event_type,
        event_at=decision.event_at,
        policy_commit=decision.policy_commit,
        manual=asked_for(decision),
    )


def decision_of(job: Job) -> BackUp:
    """The decision that a backup job stands for, for admission."""
    return BackUp(
        key=job.key,
        vm=job.vm,
        policy=job.policy,
        rule=job.rule,
        reason=job.reason,
        not_before=job.not_before,
        deadline=job.deadline,
        priority=job.priority,
        consistency=job.consistency,
        fallback=job.fallback,
        transports=job.transports,
        policy_hash=job.policy_hash,
        event_key=job.event_key,
        event_type=job.event_type,
        event_at=job.event_at,
        policy_commit=job.policy_commit,
    )


LIED = "sample_differed"
"""The kind of doubt where blocks had changed that change tracking called unchanged, and nothing had told of why."""


@dataclass(frozen=True, slots=True)
class Check:
    """What came of holding change tracking against the disk: "agreed", "differed" or "impossible", and a sentence."""

    result: str
    sentence: str
    untold_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """So many blocks that change tracking calls unchanged were read again, so many differ, and why not more of them."""

    blocks: int = 0
    differ: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DiskOutcome:
    """How one disk of a run was read.

    `changes` is "incremental" or "whole: why"; `whole` the kind of why, for counting, empty for an incremental.
    `check` tells where change tracking was held against all that was read, `sampled` against a sample.
    """

    label: str
    capacity_bytes: int
    read_bytes: int
    new_bytes: int
    stored_bytes: int
    transport: str
    fallbacks: tuple[str, ...]
    changes: str
    whole: str = ""
    dedup_bytes: int = 0
    zero_bytes: int = 0
    check: Check | None = None
    sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The run reached its commit: the restore point exists. `warnings` are what it left for the janitor to do.

    `remarks` are what people should know although nothing is lacking.

    `unprotected` are the disks that are not in it, and why; of those `left_out` because policies say so. `placement`
    tells, where the policies want the VM kept in its place, whether it was. `stuns` are the figures of how long the
    guest stood still, by "creation" and "removal" of the snapshot, where that is known.
    """

    point: PointId
    vm: VmId
    taken_at: datetime
    consistency: Consistency
    disks: tuple[DiskOutcome, ...]
    unprotected: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    moved: str = ""
    relocated: str = ""
    placement: str = ""
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    stuns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def lacking(self) -> bool:
        """Whether a disk is not in it that should be."""
        return len(self.unprotected) > len(self.left_out)

    @property
    def partial(self) -> bool:
        """Whether it lacks a disk, or something is left for the janitor."""
        return self.lacking or bool(self.warnings)

    @property
    def checks(self) -> tuple[Check, ...]:
        """What came of holding change tracking against its disks, where that was done."""
        return tuple(d.check for d in self.disks if d.check is not None)

    @property
    def doubts(self) -> Iterator[tuple[str, str]]:
        """What it found against change tracking, for the next run: the kind of it, and a sentence."""
        if self.relocated:
            yield "relocated", f"it was moved to other storage while it was backed up ({self.relocated})"
        for disk in self.disks:
            if disk.sampled is not None and disk.sampled.differ:
                yield LIED, disk.changes.removeprefix("whole: ")
            elif disk.check is not None and disk.check.result == "differed":
                yield "differed", disk.check.sentence

    @property
    def read_bytes(self) -> int:
        """Bytes that were read from the disks."""
        return sum(d.read_bytes for d in self.disks)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the run added to the repository's packs."""
        return sum(d.stored_bytes for d in self.disks)


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended without a restore point. `error` is a sentence; `retry_at` is when it is tried again, if ever."""

    error: str
    kind: str
    exit_code: int
    retry_at: datetime | None = None
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The job was given up before or without a failure: no longer due, the VM left, or the engine stopped.

    `requeue` means that it waits again, `called_back` that it does so because its VM moved while it was read.
    """

    reason: str
    requeue: bool = False
    called_back: bool = False


Outcome = Done | Failed | Abandoned
