"""What a rule may say. Every decision carries a sentence that an operator understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from policies.facts import Consistency, PointId, VmId


@dataclass(frozen=True, slots=True)
class BackUp:
    """Back one VM up, not before `not_before` and preferably by `deadline`.

    `rule` names the part of the policy that decided ("schedule", "rpo", "trigger[0]", "request").
    `key` is the idempotency key: policy, VM and the coalesced event; two decisions of one key are one run.
    `policy_commit` is the commit of the policy's file, where it is known; the event is what led to the decision.
    """

    key: str
    vm: VmId
    policy: str
    rule: str
    reason: str
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


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing is to be done for this VM under this policy, and why."""

    vm: VmId | None
    policy: str
    rule: str
    reason: str
    event_key: str = ""


@dataclass(frozen=True, slots=True)
class DistrustTracking:
    """The change tracking of this VM's disks may lie after this event: the next run reads in full.

    `policy` and `rule` are empty unless a trigger asks for it. With `reset` it is believed again only after it was
    reset with no snapshot present.
    """

    vm: VmId
    reason: str
    event_key: str = ""
    policy: str = ""
    rule: str = ""
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Retire:
    """The VM left the inventory: stop its jobs, keep its restore points."""

    vm: VmId
    reason: str
    event_key: str = ""


@dataclass(frozen=True, slots=True)
class HoldPoints:
    """Hold all restore points of this VM against retention.

    `policy` and `rule` are empty unless a trigger asks for it.
    """

    vm: VmId
    reason: str
    event_key: str = ""
    policy: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The VM moved while it is read: its run gives way, leaving nothing, and the same job waits again."""

    vm: VmId
    policy: str
    rule: str
    reason: str
    event_key: str = ""


Decision = BackUp | Skip | DistrustTracking | Retire | HoldPoints | Requeue


@dataclass(frozen=True, slots=True)
class Kept:
    """A restore point that stays, with each rule or guard that keeps it."""

    point: PointId
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expire:
    """A restore point that no rule and no guard keeps."""

    point: PointId
    reason: str


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What retention says about one VM's restore points. A value: print it, refuse it, or carry it out.

    `mark` are kept points whose grace begins now, to be marked as expiring; `unmark` are marked points that a rule
    or guard keeps again. `leaving` counts the points on their way out, those in their grace included, of a VM that
    left the inventory or that no policy selects any more; 0 for any other.
    """

    vm: VmId
    keep: Sequence[Kept]
    expire: tuple[Expire, ...]
    mark: tuple[Expire, ...] = ()
    unmark: tuple[PointId, ...] = ()
    leaving: int = 0
