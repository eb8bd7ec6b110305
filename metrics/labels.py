"""The fixed values of labels, and the states that the engine shows as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

OTHER = "other"
"""What any value outside a fixed set is counted as."""

EVENT_TYPES = (
    "vm.powered_on",
    "vm.powered_off",
    "vm.suspended",
    "vm.migrated",
    "vm.relocated",
    "vm.created",
    "vm.cloned",
    "vm.removed",
    "vm.reconfigured",
    "vm.renamed",
    "vm.registered",
    "vm.retagged",
    "clock",
    "inventory.reconciled",
    "backup.requested",
    "hold.requested",
    OTHER,
)
EVENT_SOURCES = ("vcenter", "nats", "api", "clock", "reconcile", OTHER)
GAP_SOURCES = ("vcenter", OTHER)
"""A durable consumer of NATS has no gaps."""

RUN_RESULTS = ("done", "partial", "failed", "requeued", OTHER)
OPERATION_RESULTS = ("done", "failed", "cancelled", OTHER)
NOTICE_RESULTS = ("sent", "retried", "failed", OTHER)
STAGES = ("queued", "snapshot", "changes", "open", "read", "close", "release", "commit", OTHER)
"""In the order of a run. "read" ends when what was read is hashed, compressed and written."""

OPERATIONS = ("restore", "expire", "reclaim", "verify", "copy", OTHER)
TRANSPORTS = ("hotadd", "nbd", "export", "https", OTHER)
FULL_READ_REASONS = (
    "first",
    "no_base",
    "distrusted",
    "tracking_off",
    "tracking_unsupported",
    "tracking_reset",
    "tracking_damaged",
    "unknown_change_id",
    "query_failed",
    "disk_changed",
    "reverted",
    "relocated",
    "known_defect",
    "sample_differed",
    "exported",
    OTHER,
)
DISTRUST_REASONS = (
    "relocated",
    "reconfigured",
    "registered",
    "damaged_base",
    "asked",
    "state_lost",
    "relinked",
    "differed",
    "sample_differed",
    "restored",
    "reverted",
    "reloaded",
    "upgraded",
    "powered_off",
    "host_failed",
    OTHER,
)
SAMPLE_RESULTS = ("agreed", "differed")
PLACEMENTS = ("kept", "not_kept")
TRACKING_CHECKS = ("agreed", "differed", "impossible", OTHER)
CONSISTENCIES = ("crash", "filesystem", "application", OTHER)
REBUILD_REASONS = ("missing", "damaged", "behind", "old_schema", OTHER)
PEERS = ("vcenter", "nats", OTHER)
DENIALS = ("not_ours", "malformed", "too_large", "not_allowed", "given_up", OTHER)


class VerifyState(StrEnum):
    """The result of the newest verification of a repository, or that one runs now."""

    NEVER = "never"
    RUNNING = "running"
    OK = "ok"
    DAMAGED = "damaged"
    FAILED = "failed"


class Durability(StrEnum):
    """Whether the NATS server writes to disk before it acknowledges."""

    DURABLE = "durable"
    NOT_DURABLE = "not_durable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """One repository at one instant. `repository` is its configured name; `last_verified` is None for never.

    `free_bytes` is None when the store cannot tell.
    """

    repository: str
    stored_bytes: int
    logical_bytes: int
    free_bytes: int | None
    chunks: int
    packs: int
    points: int
    held_points: int = 0
    damaged_points: int = 0
    damaged_objects: int = 0
    last_verified: datetime | None = None
    verify: VerifyState = VerifyState.NEVER
    read_back_since: datetime | None = None
    verify_left_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """The snapshots of one vCenter at one instant; an oldest is None when there is none of that kind."""

    vcenter: str
    orphans: int = 0
    oldest_orphan: datetime | None = None
    foreign: int = 0
    oldest_foreign: datetime | None = None
    unprotected_disks: int = 0
    left_out_disks: int = 0
    need_consolidation: int = 0
    own: int = 0
    oldest_own: datetime | None = None
    old_foreign: int = 0
    deepest_chain: int = 0
    full_datastores: int = 0
    least_free_share: float | None = None


class CoverageState(StrEnum):
    """What the policies make of a VM."""

    PROTECTED = "protected"
    UNPROTECTED = "unprotected"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True)
class VmCoverage:
    """One VM that the engine knows. Times are aware, UTC.

    `policy` is the one that decides the schedule, empty when none does. `last_success` is None for never;
    `known_since` is what the RPO is measured from until the first restore point. `rpo_seconds` is None where no
    policy promises one. `rehearsed` is when a rehearsal last passed, as a timestamp, 0 for never; None where nobody
    wants any.
    """

    vcenter: str
    vm_id: str
    vm: str
    state: CoverageState
    known_since: datetime
    last_success: datetime | None = None
    policy: str = ""
    rpo_seconds: float | None = None
    consecutive_failures: int = 0
    unprotected_disks: int = 0
    moref: str = ""
    rehearsed: float | None = None
    rehearsal_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SeriesDoc:
    """One metric as the reference names it; `labels` maps each label to its fixed values, () where they are open."""

    name: str
    kind: str
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
