"""What retention makes of the restore points of a simulation, day after day, VM by VM. Pure.

Retention of one VM depends on nothing else, so it is looked at when all runs are known; several processes may share
the VMs. What is kept is decided by `policies.keeping`; what nothing keeps is marked, and expires when its grace is
over, as `policies.retention` plans it. Between two looks at which nothing new can be said, none is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from policies.assumptions import Assumptions
from policies.facts import PointId, RestorePoint, VmId
from policies.gauges import Trace
from policies.keeping import WITHIN, Row, choices, row_of, rows_of, unkept
from policies.leaving import left_with
from policies.policy import Policy
from policies.protection import combine
from policies.retention import longest_grace, plan_retention
from policies.sealing import maker
from policies.units import stamp

_make_point = maker(RestorePoint)

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
    aging = Aging(trace, assumed, asked, expired)
    for vm in vms:
        aging.add(vm)
    return aging.finish()


class Aging:
    """Ages restore points while their simulation goes on: `advance` to when all before it is in the trace."""

    def __init__(
        self,
        trace: Trace,
        assumed: Assumptions,
        asked: Asked | None = None,
        expired: Expired = lambda vm, point, at: None,
    ) -> None:
        self._trace, self._assumed, self._asked, self._expired = trace, assumed, asked, expired
        self._aged = Aged.of(trace.days)
        self._shelves: dict[VmId, _Shelf] = {}

    def add(self, vm: VmId) -> None:
        """One VM more; nothing happens when it is known."""
        if vm not in self._shelves:
            self._shelves[vm] = _Shelf(self._trace, vm, self._assumed, self._aged, self._asked, self._expired)

    def advance(self, end: datetime) -> None:
        """Everything that retention does before this time."""
        for shelf in self._shelves.values():
            shelf.advance(end)

    def finish(self) -> Aged:
        """The rest, to the end of the simulation."""
        for shelf in self._shelves.values():
            shelf.advance(self._trace.end)
            shelf.finish()
        return self._aged


class _Shelf:
    """The restore points of one VM, newest first."""

    def __init__(
        self, trace: Trace, vm: VmId, assumed: Assumptions, aged: Aged, asked: Asked | None, expired: Expired
    ) -> None:
        self.trace, self.vm, self.assumed, self.aged, self.asked = trace, vm, assumed, aged, asked
        self._expired = expired
        known = trace.initial.get(vm, ())
        self.rows = rows_of(replace(point, expiring_since=None) for point in known)
        since = {point.id: point.expiring_since for point in known if point.expiring_since is not None}
        self.marked: dict[Row, datetime] = {row: since[row.point.id] for row in self.rows if row.point.id in since}
        self.own: dict[Row, int] = {row: row.point.stored_bytes for row in self.rows[:-1]}
        self.number = 1
        self.looked: datetime | None = None
        self.made = 0
        self.based = bool(known)
        self.next: tuple[datetime, RestorePoint, int] | None = None
        self.changed = self.held = self.locks = 0
        self.lock = timedelta()
        self.policies: tuple[Policy, ...] = ()
        self.grace = timedelta()
        self.unselected: datetime | None = None if vm in trace.selected else trace.start
        aged.initial_bytes += sum(point.stored_bytes for point in known)
        aged.initial_points += len(known)

    def _fetch(self) -> tuple[datetime, RestorePoint, int] | None:
        """When the next new one is there, and what is its own: the first of a VM is what all others build on."""
        made, trace = self.trace.made.get(self.vm), self.trace
        if made is None or self.made >= len(made):
            return None
        taken, listed, quality, policy, read, stored = made.point(self.made)
        self.made += 1
        selected = trace.selected.get(self.vm, [])
        while self.locks < len(selected) and selected[self.locks][0] <= taken:
            self.lock = combine(selected[self.locks][1]).lock
            self.locks += 1
        point = _make_point(
            id=PointId(stamp(taken)),
            vm=self.vm,
            vm_name=trace.vms[self.vm].name,
            taken_at=taken,
            consistency=quality,
            policy=trace.policies[policy] if policy < len(trace.policies) else "",
            read_bytes=read,
            stored_bytes=stored,
            locked_until=taken + self.lock if self.lock else None,
        )
        based, self.based = self.based, True
        return listed, point, stored if based else 0

    def advance(self, end: datetime) -> None:
        """Look after look before this time."""
        start, every = self.trace.start, self.assumed.retention_every
        if self.next is None:
            self.next = self._fetch()
        while (again := self._again()) is not None:
            number = max(self.number, -((start - again) // every))
            now = start + number * every
            if now >= end:
                return
            if self.asked is not None and now > self.asked.at:
                self._tell(self.asked)
            self._look(now)
            self.number = number + 1

    def finish(self) -> None:
        """The end of the simulation."""
        if self.asked is not None:
            self._tell(self.asked)
        self._arrive(self.trace.end)
        self.aged.final_points += len(self.rows)

    def _again(self) -> datetime | None:
        """From when on another look may say something new; None when nothing is known that could make it so."""
        looked = self.looked
        if looked is None:
            return self.trace.start
        grace = self.grace
        times = [at + grace for at in self.marked.values()]
        times += [
            row.point.locked_until for row in self.rows if row.point.locked_until and row.point.locked_until > looked
        ]
        if self.rows and self.rows[0].taken_at > looked:
            times += [row.taken_at for row in self.rows if row.taken_at > looked]
        if self.next is not None:
            times.append(self.next[0])
        times += [one[0] for one in self._changes()[self.changed : self.changed + 1]]
        times += [one[0] for one in self._holds()[self.held : self.held + 1]]
        return min(times, default=None)

    def _changes(self) -> Sequence[tuple[datetime, tuple[Policy, ...]]]:
        return self.trace.selected.get(self.vm, ())

    def _holds(self) -> Sequence[tuple[datetime, str]]:
        return self.trace.holds.get(self.vm, ())

    def _arrive(self, now: datetime) -> None:
        """What was made, decided and held by this time."""
        changes, holds = self._changes(), self._holds()
        while self.changed < len(changes) and changes[self.changed][0] <= now:
            since, self.policies = changes[self.changed]
            self.changed += 1
            self.unselected = None if self.policies else since
            self.grace = longest_grace(self.policies)
        aged, trace = self.aged, self.trace
        while self.next is not None and self.next[0] <= now:
            listed, point, own = self.next
            while self.held < len(holds) and holds[self.held][0] < listed:
                self._hold(holds[self.held][1])
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
            self.next = self._fetch()
        while self.held < len(holds) and holds[self.held][0] <= now:
            self._hold(holds[self.held][1])
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
        self.held += 1
        held = [row_of(replace(row.point, holds=(*row.point.holds, reason))) for row in self.rows]
        for before, after in zip(self.rows, held, strict=True):
            self.own[after] = self.own.pop(before, 0)
            if before in self.marked:
                self.marked[after] = self.marked.pop(before)
        self.rows = held

    def _look(self, now: datetime) -> None:
        """One look of retention."""
        self._arrive(now)
        self.looked = now
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
        self.asked = None
        self._arrive(asked.at)
        rows, vm = self.rows, self.trace.vms.get(self.vm)
        for policy, rule, chosen in choices(rows, self.policies, asked.at):
            by = rule if policy is None or rule not in (*dict(policy.retention.counts), WITHIN) else f"keep_{rule}"
            self.aged.kept_by[policy.name if policy is not None else "", by] += len(chosen)
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
