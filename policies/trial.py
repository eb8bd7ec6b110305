"""One test of policies, carried out with a clock of its own: the decisions, the backups, what is there at its end.

It decides as the engine does: an event changes the VM, is evaluated and may lead to a backup, what is due by the
clock comes by itself, and decisions for one VM are joined. Every backup succeeds with the consistency it asks for.
Limits do not count: a test has no other load. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from policies.admission import coalesce, merge
from policies.aftermath import changed_by
from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Requeue, Retire, Skip
from policies.evaluation import GIVES_WAY, evaluate
from policies.facts import Event, EventType, Facts, PointId, RestorePoint, Vm, VmHistory, VmId
from policies.fixtures import NOTHING, Case, Happening, changed
from policies.needed import dropped, held_until
from policies.policyset import PolicySet
from policies.protection import due_of, protection
from policies.units import span

MOST_STEPS = 10_000
"""A test that goes on for longer was hardly meant: a year of hourly backups is within it."""

MOST_RECENT = 50
"""Of the restore points that a test makes of a VM so many, the newest, are looked at while it goes on."""


@dataclass(frozen=True, slots=True)
class Said:
    """One decision, and when: from the beginning of the test, and by its clock."""

    at: timedelta
    clock: datetime
    decision: Decision


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup: the decision that it stands for after others joined it, and when it starts."""

    decision: BackUp
    starts: timedelta


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a test. `facts` is the world at its end, with VMs that were removed as they last were.

    `unfinished` is true when the test was too long to be carried out.
    """

    case: Case
    said: tuple[Said, ...]
    backups: tuple[Backup, ...]
    facts: Facts
    unfinished: bool = False

    def about(self, vm: VmId) -> tuple[Said, ...]:
        """The decisions about one VM."""
        return tuple(one for one in self.said if one.decision.vm == vm)

    def backups_of(self, vm: VmId) -> tuple[Backup, ...]:
        """The backups of one VM, the first to start first."""
        return tuple(sorted((one for one in self.backups if one.decision.vm == vm), key=lambda one: one.starts))


def try_out(case: Case, policies: PolicySet) -> Trial:
    """Carry a test out."""
    return _Clockwork(case, policies).run()


@dataclass(slots=True)
class _Clockwork:
    case: Case
    policies: PolicySet
    elapsed: timedelta = NOTHING
    offset: timedelta = NOTHING
    """How far the clock is from what has passed: it may jump."""
    vms: dict[VmId, Vm] = field(default_factory=dict)
    gone: dict[VmId, Vm] = field(default_factory=dict)
    history: dict[VmId, VmHistory] = field(default_factory=dict)
    points: dict[VmId, tuple[RestorePoint, ...]] = field(default_factory=dict)
    fired: dict[tuple[str, str, VmId], datetime] = field(default_factory=dict)
    left: dict[VmId, datetime] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    pending: tuple[BackUp, ...] = ()
    running: dict[VmId, tuple[timedelta, BackUp]] = field(default_factory=dict)
    backups: list[Backup] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    made: dict[VmId, list[RestorePoint]] = field(default_factory=dict)
    held: list[tuple[VmId, datetime, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        facts = self.case.facts
        self.vms = {id: vm for id, vm in facts.vms.items() if id not in self.case.late}
        self.history, self.points, self.fired = dict(facts.history), dict(facts.points), dict(facts.fired)
        self.left = dict(facts.left)

    @property
    def now(self) -> datetime:
        return self.case.facts.now + self.elapsed + self.offset

    def facts(self) -> Facts:
        return Facts(self.now, self.vms, self.history, self.points, self.fired, self.left)

    def run(self) -> Trial:
        happenings = list(self.case.happenings)
        unfinished = False
        if self.case.runs:
            for _ in range(MOST_STEPS):
                self._step(happenings)
                following = self._next(happenings)
                if following is None:
                    break
                self.elapsed = following
            else:
                unfinished = True
            self._drain()
        world = replace(self.facts(), vms={**self.gone, **self.vms}, points=self._all_points())
        return Trial(self.case, tuple(self.said), tuple(self.backups), world, unfinished)

    def _all_points(self) -> dict[VmId, tuple[RestorePoint, ...]]:
        points = dict(self.case.facts.points)
        for vm, made in self.made.items():
            points[vm] = (*points.get(vm, ()), *made)
        for vm, at, reason in self.held:
            points[vm] = tuple(
                replace(one, holds=(*one.holds, reason)) if one.taken_at <= at else one for one in points.get(vm, ())
            )
        return points

    def _step(self, happenings: list[Happening]) -> None:
        """Everything that is to be done at this instant."""
        self._finish()
        while happenings and happenings[0].at <= self.elapsed:
            self._happen(happenings.pop(0))
        self._tick()
        self._start()

    def _next(self, happenings: list[Happening]) -> timedelta | None:
        """When something is to be done next; None when the test is over."""
        now = self.now
        times = [one.at for one in happenings[:1]]
        times += [ends for ends, _ in self.running.values()]
        times += [self.elapsed + (one.not_before - now) for one in self.pending]
        facts = self.facts()
        for vm in self._watched():
            found = due_of(protection(self.policies, vm), vm.id, facts)
            if found is not None:
                times.append(self.elapsed + (found[1].at - now))
        return min((at for at in times if self.elapsed < at <= self.case.lasts), default=None)

    def _watched(self) -> list[Vm]:
        return [self.vms[vm] for vm in self.case.expected if vm in self.vms]

    def _drain(self) -> None:
        """Backups that were decided in time and start later."""
        for decision in self.pending:
            self.backups.append(Backup(decision, self.elapsed + (decision.not_before - self.now)))
        self.elapsed = max(self.elapsed, self.case.lasts)
        self._finish()

    def _happen(self, one: Happening) -> None:
        if one.clock is not None:
            self.offset += one.clock - self.now
            return
        if one.vm is None or one.type is None:
            return
        vm = self.vms.get(one.vm) or self.gone.get(one.vm) or self.case.facts.vms[one.vm]
        table = one.table
        detail = dict(table.detail or {})
        if table.set is not None and table.set.disks is not None:
            detail.setdefault("disks", "changed")
        moves = one.type in (EventType.MIGRATED, EventType.RELOCATED)
        event = Event(
            key=f"event-{len(self.said)}",
            type=one.type,
            at=self.now,
            source="test",
            vm=vm.id,
            vm_name=vm.name,
            cause=table.cause or "",
            from_host=table.from_host or (vm.host if moves else ""),
            to_host=table.to_host or "",
            user=table.user or "",
            detail=detail,
        )
        after = changed(changed_by(vm, event), table.set)
        if one.type is EventType.REMOVED:
            self.vms.pop(vm.id, None)
            self.gone[vm.id] = after
            self.left[vm.id] = self.now
        else:
            self.left.pop(vm.id, None)
            self.vms[vm.id] = after
        self._evaluate(event, self.facts())

    def _tick(self) -> None:
        """What is due by the clock, of the VMs that the test looks at."""
        watched = {vm.id: vm for vm in self._watched()}
        if watched:
            event = Event(key=f"clock-{self.elapsed}", type=EventType.CLOCK, at=self.now, source="clock")
            self._evaluate(event, replace(self.facts(), vms=watched))

    def _evaluate(self, event: Event, facts: Facts) -> None:
        for decision in evaluate(self.policies, event, facts):
            self._take(decision, by_clock=event.type is EventType.CLOCK)

    def _take(self, decision: Decision, *, by_clock: bool) -> None:
        match decision:
            case Skip() if by_clock:
                return  # the clock says so at every step; what it would say is told by `protection`
            case BackUp():
                if decision.key in self.keys:
                    return
                self.keys.add(decision.key)
                self.pending = coalesce(self.pending, decision).pending
                self.history[decision.vm] = replace(self._known(decision.vm), pending=True)
            case Retire():
                self.pending = tuple(one for one in self.pending if one.vm != decision.vm)
                self.history[decision.vm] = replace(self._known(decision.vm), pending=False)
            case HoldPoints():
                self.held.append((decision.vm, self.now, decision.reason))
            case Requeue():
                self._call_back(decision.vm)
            case Skip() | DistrustTracking():
                pass
        match decision:
            case BackUp() | HoldPoints() | DistrustTracking() if decision.rule.startswith("trigger"):
                self.fired[(decision.policy, decision.rule, decision.vm)] = self.now
        self.said.append(Said(self.elapsed, self.now, decision))

    def _known(self, vm: VmId) -> VmHistory:
        return self.history.get(vm, VmHistory())

    def _call_back(self, vm: VmId) -> None:
        """The run ends without a restore point, and waits again."""
        _, run = self.running.pop(vm)
        last = max(at for at, backup in enumerate(self.backups) if backup.decision is run)
        del self.backups[last]
        run = replace(run, not_before=self.now + GIVES_WAY)
        other = next((one for one in self.pending if one.vm == vm), None)
        self.pending = tuple(one for one in self.pending if one is not other)
        self.pending = (*self.pending, run if other is None else merge(run, other))
        times = self.history[vm].called_back + 1
        self.history[vm] = replace(self._known(vm), pending=True, running=False, reading_on="", called_back=times)

    def _start(self) -> None:
        for decision in self.pending:
            if decision.not_before > self.now or decision.vm in self.running:
                continue
            self.pending = tuple(one for one in self.pending if one is not decision)
            vm = self.vms.get(decision.vm)
            asked = decision.rule == "request"
            given_up = dropped(decision, vm, self.policies, self.facts(), asked=asked) if vm else "the VM is gone"
            if given_up:
                self.history[decision.vm] = replace(self._known(decision.vm), pending=False)
                skip = Skip(decision.vm, decision.policy, decision.rule, f"given up: {given_up}", decision.event_key)
                self.said.append(Said(self.elapsed, self.now, skip))
                continue
            later = held_until(decision, vm, self.policies, self.facts(), asked=asked) if vm else None
            if later is not None:
                self.pending = (*self.pending, replace(decision, not_before=later))
                continue
            self.backups.append(Backup(decision, self.elapsed))
            self.running[decision.vm] = (self.elapsed + self.case.backup_takes, decision)
            host = vm.host if vm is not None else ""
            self.history[decision.vm] = replace(
                self._known(decision.vm), pending=False, running=True, last_attempt=self.now, reading_on=host
            )
        if self.case.backup_takes == NOTHING:
            self._finish()

    def _finish(self) -> None:
        for vm, (ends, decision) in list(self.running.items()):
            if ends > self.elapsed:
                continue
            del self.running[vm]
            taken = self.now - self.case.backup_takes
            made = self.made.setdefault(vm, [])
            made.append(self._point(decision, taken, len(made) + 1))
            self.points[vm] = (*self.case.facts.points.get(vm, ()), *made[-MOST_RECENT:])
            self.history[vm] = replace(self._known(vm), running=False, last_success=taken, reading_on="", called_back=0)

    def _point(self, decision: BackUp, taken: datetime, number: int) -> RestorePoint:
        vm = self.vms.get(decision.vm) or self.gone[decision.vm]
        lock = protection(self.policies, vm).lock
        return RestorePoint(
            id=PointId(f"{vm.name}-backup-{number}"),
            vm=vm.id,
            vm_name=vm.name,
            taken_at=taken,
            consistency=decision.consistency,
            locked_until=taken + lock if lock else None,
            policy=decision.policy,
            rule=decision.rule,
            reason=decision.reason,
        )


def story(said: Iterable[Said]) -> tuple[str, ...]:
    """Decisions as sentences, each with its time from the beginning of the test."""
    return tuple(f"at {span(one.at)}: {_verb(one.decision)}: {one.decision.reason}" for one in said)


def _verb(decision: Decision) -> str:
    match decision:
        case BackUp():
            return f"backup by {decision.policy or 'request'}, {decision.rule}"
        case Skip():
            return "no backup"
        case DistrustTracking():
            return "full read"
        case Retire():
            return "retired"
        case HoldPoints():
            return "hold"
        case Requeue():
            return "run gives way"
