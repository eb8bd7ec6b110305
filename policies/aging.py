"""What retention makes of the restore points of a simulation, day after day, VM by VM. Pure.

Retention of one VM depends on nothing else, so it is looked at when all runs are known; several processes may share
the VMs. What is kept is decided by `policies.keeping`; what nothing keeps is marked, and expires when its grace is
over, as `policies.retention` plans it. Between two looks at which nothing new can be said, none is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from policies.assumptions import Assumptions
from policies.facts import PointId, RestorePoint, VmId
from policies.gauges import Trace
from policies.keeping import Row, choices, row_of, rows_of, unkept
from policies.leaving import left_with
from policies.policy import Policy
from policies.protection import combine
from policies.retention import longest_grace, plan_retention

Expired = Callable[[VmId, RestorePoint, datetime], None]


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is of one VM at an instant. `points` are told one by one only where that was asked for."""

    vm: VmId
    name: str
    policies: tuple[str, ...]
    count: int
    oldest: datetime | None
    newest: datetime | None
    points: tuple[tuple[RestorePoint, tuple[str, ...]], ...] = ()


@dataclass(slots=True)
class Aged:
    """Sums over VMs, by day of the simulation, and what stands at the instant that was asked about."""

    runs: list[int]
    read: list[int]
    stored: list[int]
    freed: list[int]
    expired: list[int]
    marked: list[int]
    initial_bytes: int = 0
    initial_points: int = 0
    final_points: int = 0
    standing: list[Standing] = field(default_factory=list)
    kept_by: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By policy and rule or guard, how many of the standing points it keeps."""

    @classmethod
    def of(cls, days: int) -> Aged:
        """Nothing yet."""
        size = days + 1
        return cls([0] * size, [0] * size, [0] * size, [0] * size, [0] * size, [0] * size)

    def add(self, other: Aged) -> None:
        """Those of other VMs."""
        for name in ("runs", "read", "stored", "freed", "expired", "marked"):
            mine = getattr(self, name)
            for day, number in enumerate(getattr(other, name)):
                mine[day] += number
        self.initial_bytes += other.initial_bytes
        self.initial_points += other.initial_points
        self.final_points += other.final_points
        self.standing += other.standing
        self.kept_by += other.kept_by


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted to be known of one instant."""

    at: datetime
    listed: frozenset[VmId] = frozenset()
    """The VMs whose restore points are told one by one, with the reasons."""


def age(
    trace: Trace,
    vms: Iterable[VmId],
    assumed: Assumptions,
    asked: Asked | None = None,
    expired: Expired = lambda vm, point, at: None,
) -> Aged:
    """Let the restore points of these VMs age to the end of the simulation; `expired` hears of each that goes."""
    aged = Aged.of(trace.days)
    for vm in vms:
        _Shelf(trace, vm, assumed, aged, expired).age(asked)
    return aged


class _Shelf:
    """The restore points of one VM, newest first."""

    def __init__(self, trace: Trace, vm: VmId, assumed: Assumptions, aged: Aged, expired: Expired) -> None:
        self.trace, self.vm, self.assumed, self.aged = trace, vm, assumed, aged
        self._expired = expired
        known = trace.initial.get(vm, ())
        self.rows = rows_of(replace(point, expiring_since=None) for point in known)
        since = {point.id: point.expiring_since for point in known if point.expiring_since is not None}
        self.marked: dict[Row, datetime] = {row: since[row.point.id] for row in self.rows if row.point.id in since}
        self.own: dict[Row, int] = {row: row.point.stored_bytes for row in self.rows[:-1]}
        self.coming = self._made(bool(known))
        self.next = next(self.coming, None)
        self.changes = list(trace.selected.get(vm, ()))
        self.policies: tuple[Policy, ...] = ()
        self.grace = timedelta()
        self.unselected = None if self.changes else trace.start
        self.holds = list(trace.holds.get(vm, ()))
        aged.initial_bytes += sum(point.stored_bytes for point in known)
        aged.initial_points += len(known)

    def _made(self, based: bool) -> Iterator[tuple[datetime, RestorePoint, int]]:
        """When each new one is there, and what is its own: the first of a VM is what all others build on."""
        made, trace = self.trace.made.get(self.vm), self.trace
        if made is None:
            return
        name = trace.vms[self.vm].name
        names = trace.policies
        selected = trace.selected.get(self.vm, [])
        lock, position = timedelta(), 0
        for taken, listed, quality, policy, read, stored in made.points():
            while position < len(selected) and selected[position][0] <= taken:
                lock = combine(selected[position][1]).lock
                position += 1
            point = RestorePoint(
                id=PointId(f"{taken:%Y%m%dT%H%M%S}"),
                vm=self.vm,
                vm_name=name,
                taken_at=taken,
                consistency=quality,
                policy=names[policy] if policy < len(names) else "",
                read_bytes=read,
                stored_bytes=stored,
                locked_until=taken + lock if lock else None,
            )
            yield listed, point, stored if based else 0
            based = True

    def age(self, asked: Asked | None) -> None:
        """Look after look, to the end."""
        trace, every = self.trace, self.assumed.retention_every
        number = 1
        while (now := trace.start + number * every) < trace.end:
            if asked is not None and now > asked.at:
                self._tell(asked)
                asked = None
            again = self._look(now)
            if again is None:
                break
            number = max(number + 1, -((trace.start - again) // every))
        if asked is not None:
            self._tell(asked)
        self._arrive(trace.end)
        self.aged.final_points += len(self.rows)

    def _arrive(self, now: datetime) -> None:
        """What was made, decided and held by this time."""
        while self.changes and self.changes[0][0] <= now:
            since, self.policies = self.changes.pop(0)
            self.unselected = None if self.policies else since
            self.grace = longest_grace(self.policies)
        aged, trace = self.aged, self.trace
        while self.next is not None and self.next[0] <= now:
            listed, point, own = self.next
            while self.holds and self.holds[0][0] < listed:
                self._hold(self.holds.pop(0)[1])
            row = row_of(point)
            position = 0
            while position < len(self.rows) and self.rows[position].taken_at > point.taken_at:
                position += 1
            self.rows.insert(position, row)
            self.own[row] = own
            day = trace.day(listed)
            aged.runs[day] += 1
            aged.read[day] += point.read_bytes
            aged.stored[day] += point.stored_bytes
            self.next = next(self.coming, None)
        while self.holds and self.holds[0][0] <= now:
            self._hold(self.holds.pop(0)[1])
        if self.unselected is not None:
            self._left_behind(self.unselected)

    def _left_behind(self, since: datetime) -> None:
        """No policy selects the VM from then on: what made its restore points says what becomes of them."""
        left = self.trace.left.get(self.vm)
        removed = left is not None and left <= since
        if removed or self.vm in self.trace.vms:
            points = [row.point for row in self.rows]
            self.policies = left_with(points, self.trace.by_name.get, removed=removed)
            self.grace = longest_grace(self.policies)

    def _hold(self, reason: str) -> None:
        held = [row_of(replace(row.point, holds=(*row.point.holds, reason))) for row in self.rows]
        for before, after in zip(self.rows, held, strict=True):
            self.own[after] = self.own.pop(before, 0)
            if before in self.marked:
                self.marked[after] = self.marked.pop(before)
        self.rows = held

    def _look(self, now: datetime) -> datetime | None:
        """One look of retention; returns from when on another may say something new, None for never."""
        self._arrive(now)
        rows, marked, grace = self.rows, self.marked, self.grace
        day = self.trace.day(now)
        going = unkept(rows, self.policies, now)
        if marked:
            left = {rows[position] for position in going}
            for row in [row for row in marked if row not in left]:
                del marked[row]
        for position in reversed(going):
            row = rows[position]
            since = marked.get(row)
            if (now if since is None else since) + grace <= now:
                marked.pop(row, None)
                self._expire(position, now)
            elif since is None:
                marked[row] = now
                self.aged.marked[day] += 1
        times = [at + grace for at in marked.values()]
        times += [row.point.locked_until for row in rows if row.point.locked_until and row.point.locked_until > now]
        if rows and rows[0].taken_at > now:
            times += [row.taken_at for row in rows if row.taken_at > now]
        if self.next is not None:
            times.append(self.next[0])
        times += [change[0] for change in (*self.changes[:1], *self.holds[:1])]
        return min(times, default=None)

    def _expire(self, position: int, now: datetime) -> None:
        """Of what is this point's own a part goes; the next newer one still needs the rest."""
        row = self.rows.pop(position)
        own = self.own.pop(row, 0)
        gone = int(own * self.assumed.overwritten_share) if position else own
        if position:
            newer = self.rows[position - 1]
            self.own[newer] = self.own.get(newer, 0) + own - gone
        day = self.trace.day(now)
        self.aged.freed[day] += gone
        self.aged.expired[day] += 1
        self._expired(self.vm, row.point, now)

    def _tell(self, asked: Asked) -> None:
        """What stands at the instant that was asked about."""
        self._arrive(asked.at)
        rows, vm = self.rows, self.trace.vms.get(self.vm)
        for policy, rule, chosen in choices(rows, self.policies, asked.at):
            self.aged.kept_by[policy.name if policy is not None else "", rule] += len(chosen)
        points: list[tuple[RestorePoint, tuple[str, ...]]] = []
        if self.vm in asked.listed:
            listed = {row.point.id: replace(row.point, expiring_since=self.marked.get(row)) for row in rows}
            plan = plan_retention(self.vm, listed.values(), self.policies, asked.at)
            points = [(listed[kept.point], kept.reasons) for kept in plan.keep]
            points += [(listed[one.point], (one.reason,)) for one in plan.expire]
        name = vm.name if vm is not None else rows[0].point.vm_name if rows else self.vm
        self.aged.standing.append(
            Standing(
                vm=self.vm,
                name=name,
                policies=tuple(policy.name for policy in self.policies),
                count=len(rows),
                oldest=rows[-1].taken_at if rows else None,
                newest=rows[0].taken_at if rows else None,
                points=tuple(points),
            )
        )
