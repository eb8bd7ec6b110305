"""What is measured while a simulation runs: places taken, goals missed, windows that were too short. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from struct import Struct

from policies.decision import BackUp
from policies.facts import CONSISTENCY_ORDER, Consistency, RestorePoint, Vm, VmId
from policies.hours import open_at
from policies.policy import Policy
from policies.policyset import PolicySet

DAY = timedelta(days=1)
QUALITY = {level: number for number, level in enumerate(CONSISTENCY_ORDER)}

_COLUMNS = 6
_packed = Struct(f"{_COLUMNS}d").pack  # as an array holds them; adding them one by one takes twice as long
_NEVER = datetime.min.replace(tzinfo=UTC)
_NO_POLICY = 1 << 20

ALL = ("", "")
"""The place of all backups, in `Trace.peaks`."""


@dataclass(slots=True)
class Made:
    """The restore points that the runs of one VM made, oldest first, six numbers a point.

    Of each point: when the run began and when it ended, in seconds since 1970, the position of its consistency in
    `CONSISTENCY_ORDER` and of its policy in `Trace.policies`, and how many bytes were read and stored.
    """

    numbers: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.numbers) // _COLUMNS

    @property
    def read(self) -> list[int]:
        """How many bytes each run read."""
        return [int(read) for read in self.numbers[4::_COLUMNS]]

    def take(self, other: Made, number: int, *, stored: int) -> None:
        """Add a point of another one, for which so much was stored."""
        first = number * _COLUMNS
        self.numbers.extend(other.numbers[first : first + _COLUMNS])
        self.numbers[-1] = stored

    def point(self, number: int) -> tuple[datetime, datetime, Consistency, int, int, int]:
        """When it was taken and when it was there, its consistency, its policy's number, what was read and stored."""
        first = number * _COLUMNS
        taken, listed, quality, policy, read, stored = self.numbers[first : first + _COLUMNS]
        return (
            datetime.fromtimestamp(taken, UTC),
            datetime.fromtimestamp(listed, UTC),
            CONSISTENCY_ORDER[int(quality)],
            int(policy),
            int(read),
            int(stored),
        )


@dataclass(slots=True, eq=False)
class Peak:
    """The most backups at once in one place, when first, and how many run there now."""

    number: int = 0
    at: datetime = _NEVER
    running: int = 0


Places = tuple[Peak, ...]
"""Where one run counts."""


@dataclass(frozen=True, slots=True)
class Overflow:
    """A run that was due in a window and did not start before it closed; `started_at` is None if it never did."""

    vm: VmId
    policy: str
    closed_at: datetime
    started_at: datetime | None = None

    def by(self, end: datetime) -> timedelta:
        """How long after the closing it started, or waits at the end."""
        return (self.started_at or end) - self.closed_at


@dataclass(slots=True)
class Trace:
    """What a simulation from `start` to `end` noted. Days are counted from `start`."""

    start: datetime
    end: datetime
    policies: tuple[str, ...]
    max_expire_share: float = 1.0
    vms: dict[VmId, Vm] = field(default_factory=dict)
    """As they were at the end, those included that left."""
    initial: dict[VmId, tuple[RestorePoint, ...]] = field(default_factory=dict)
    made: dict[VmId, Made] = field(default_factory=dict)
    selected: dict[VmId, list[tuple[datetime, tuple[Policy, ...]]]] = field(default_factory=dict)
    """From when on which policies' retention counts, oldest first; none where no policy selects the VM."""
    left: dict[VmId, datetime] = field(default_factory=dict)
    """When each VM left the inventory that did."""
    by_name: Mapping[str, Policy] = field(default_factory=dict)
    """The policies, which say what becomes of what they made of VMs that they select no more."""
    holds: dict[VmId, list[tuple[datetime, str]]] = field(default_factory=dict)
    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By policy and rule."""
    decided: Counter[str] = field(default_factory=Counter)
    """Decisions by what they say; a skip of the clock is not counted."""
    events: int = 0
    given_up: int = 0
    longest_wait: timedelta = timedelta()
    peaks: dict[tuple[str, str], Peak] = field(default_factory=dict)
    missed: Counter[tuple[str, VmId]] = field(default_factory=Counter)
    """Seconds during which a VM's newest good restore point was older than the policy's goal."""
    overflows: list[Overflow] = field(default_factory=list)

    def day(self, at: datetime) -> int:
        """The day of the simulation that an instant lies in."""
        return (at - self.start) // DAY

    @property
    def days(self) -> int:
        """How many days it has, the last one perhaps in part."""
        return max(1, -((self.start - self.end) // DAY))


class Gauges:
    """Notes into a trace what runs and waits come to."""

    def __init__(self, trace: Trace, policies: PolicySet, left: Mapping[VmId, datetime]) -> None:
        self.trace, self._policies = trace, policies
        trace.left.update(left)
        trace.by_name = {policy.name: policy for policy in policies.policies}
        self._numbers = {name: number for number, name in enumerate(trace.policies)}
        self._closed: dict[VmId, Overflow] = {}
        self._counted: dict[VmId, datetime] = {}
        self._stores: dict[tuple[str, ...], Places] = {}

    def places_of(self, vm: Vm) -> Places:
        """Where a run of this VM counts."""
        stores = self._stores.get(vm.datastores)
        if stores is None:
            stores = tuple(self._peak(("datastore", name)) for name in dict.fromkeys(vm.datastores))
            self._stores[vm.datastores] = stores
        if not vm.host:
            return (self._peak(ALL), *stores)
        return (self._peak(ALL), self._peak(("host", vm.host)), *stores)

    def _peak(self, name: tuple[str, str]) -> Peak:
        known = self.trace.peaks.get(name)
        if known is None:
            known = self.trace.peaks[name] = Peak()
        return known

    def began(self, decision: BackUp, places: Places, now: datetime) -> None:
        """A run takes these places."""
        for place in places:
            number = place.running = place.running + 1
            if number > place.number:
                place.number, place.at = number, now
        waited = now - decision.not_before
        if waited > self.trace.longest_wait:
            self.trace.longest_wait = waited
        begun = self._overflowed(decision, now) if waited else None
        begun = self._closed.pop(decision.vm, begun) if self._closed else begun
        if begun is not None:
            self.trace.overflows.append(replace(begun, started_at=now))

    def given_up(self, decision: BackUp, now: datetime) -> None:
        """A run whose turn came too late."""
        self.trace.given_up += 1
        begun = self._overflowed(decision, now)
        if begun is not None:
            self._closed.setdefault(decision.vm, begun)

    def _overflowed(self, decision: BackUp, now: datetime) -> Overflow | None:
        policy = self._policies.policy(decision.policy)
        if policy is None or not policy.timing.windows:
            return None
        segment = open_at(policy.timing.hours, decision.not_before)
        if segment is None or segment[1] > now:
            return None
        return Overflow(decision.vm, policy.name, segment[1])

    def ended(
        self, decision: BackUp, quality: Consistency, began: datetime, now: datetime, read: int, stored: int
    ) -> None:
        """A restore point was made."""
        number = self._numbers.get(decision.policy, _NO_POLICY)
        self.trace.made[decision.vm].numbers.frombytes(
            _packed(began.timestamp(), now.timestamp(), QUALITY[quality], number, read, stored)
        )
        self.trace.runs[decision.policy, decision.rule] += 1

    def freed(self, places: Places) -> None:
        """A run gives its places back."""
        for place in places:
            place.running -= 1

    def count_missed(self, vm: VmId, scheduling: tuple[Policy, ...], newest: datetime | None, now: datetime) -> None:
        """Count for how long the goals of the VM's policies were missed since this was asked last."""
        counted = self._counted.get(vm)
        for policy in scheduling:
            goal = policy.timing.rpo
            if goal is None or counted is None:
                continue
            since = counted if newest is None else max(counted, newest + goal)
            if since < now:
                self.trace.missed[policy.name, vm] += round((now - since).total_seconds())
        self._counted[vm] = now

    def finish(self) -> None:
        """What still waits at the end."""
        self.trace.overflows.extend(self._closed.values())


def better(point: RestorePoint, level: int) -> bool:
    """Whether a restore point is whole and of a higher consistency than the level of this number."""
    return point.complete and not point.damaged and QUALITY[point.consistency] > level
