"""A simulation that takes no short cut: what the fast one is compared with, decision by decision.

Every VM is evaluated at every tick with all its restore points, every admission looks at everything, every run of
retention plans for every VM in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from policies.admission import Turns, admit, coalesce
from policies.aftermath import changed_by
from policies.assumptions import Assumptions, rate_of
from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Retire, Skip
from policies.evaluation import evaluate
from policies.facts import Event, EventType, Facts, PointId, RestorePoint, Vm, VmHistory, VmId
from policies.limits import Limits
from policies.needed import dropped, held_until
from policies.overload import TYPICAL_RUN
from policies.policyset import PolicySet
from policies.protection import destinations, protection
from policies.recorded import Recorded
from policies.retention import plan_retention
from policies.runs import RUNS_REMEMBERED

Line = tuple[str, ...]


def line_of(event: Event, decision: Decision) -> Line:
    """A decision as it is compared."""
    told = [event.key, type(decision).__name__, str(decision.vm)]
    match decision:
        case BackUp():
            deadline = decision.deadline.isoformat() if decision.deadline else ""
            told += [decision.policy, decision.rule, decision.not_before.isoformat(), decision.key, deadline]
        case Skip():
            told += [decision.policy, decision.rule]
    return tuple(told)


def digest(lines: Iterable[Sequence[str]]) -> str:
    """32 hexadecimal digits of a sequence."""
    found = hashlib.blake2b(digest_size=16)
    for line in lines:
        found.update(("\t".join(line) + "\n").encode())
    return found.hexdigest()


@dataclass
class Naive:
    """One simulation; after `run`, `decided` has every decision but the skips of the clock, `expired` what went."""

    policies: PolicySet
    facts: Facts
    assumed: Assumptions
    until: datetime
    arriving: dict[VmId, Vm] = field(default_factory=dict)
    decided: list[Line] = field(default_factory=list)
    expired: list[Line] = field(default_factory=list)
    starts: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        facts = self.facts
        self.now = facts.now
        self.vms, self.history, self.fired = dict(facts.vms), dict(facts.history), dict(facts.fired)
        self.points = {vm: list(points) for vm, points in facts.points.items()}
        self.rates = {vm.id: rate_of(vm, facts.points.get(vm.id, ()), self.assumed) for vm in self._all()}
        self.pending: tuple[BackUp, ...] = ()
        self.asked: set[VmId] = set()
        self.keys: dict[str, str] = {}
        self.running: dict[VmId, tuple[datetime, int, BackUp, datetime, int, timedelta]] = {}
        self.distrusted: set[VmId] = set()
        self.turns, self.typical, self.begun = Turns(), TYPICAL_RUN, 0

    def _all(self) -> list[Vm]:
        return [*self.vms.values(), *self.arriving.values()]

    def _facts(self) -> Facts:
        for vm in self.vms:
            known = self.history.get(vm, VmHistory())
            pending = any(one.vm == vm for one in self.pending)
            self.history[vm] = replace(known, running=vm in self.running, pending=pending)
        points = {vm: tuple(points) for vm, points in self.points.items()}
        return Facts(self.now, self.vms, self.history, points, self.fired)

    def run(self, events: Iterable[Recorded] = ()) -> None:
        """To the end."""
        start, assumed = self.facts.now, self.assumed
        coming = list(events)
        tick, look = start, start + assumed.retention_every
        again: datetime | None = None
        while True:
            times = [tick, look, *(one[0] for one in self.running.values())]
            times += [coming[0].at] if coming else []
            times += [again] if again is not None else []
            now = min(times)
            if now >= self.until:
                return
            self.now = max(now, self.now)
            for vm in sorted((one for one in self.running if self.running[one][0] <= now), key=self._ending):
                self._end(vm)
            while coming and coming[0].at <= now:
                self._happen(coming.pop(0).event)
            if tick <= now:
                self._tick()
                tick += assumed.tick
            again = self._admit()
            if look <= now:
                self._retain()
                look += assumed.retention_every

    def _ending(self, vm: VmId) -> tuple[datetime, int]:
        return self.running[vm][:2]

    def _tick(self) -> None:
        event = Event(f"clock:{self.now:%Y%m%dT%H%M%S.%fZ}", EventType.CLOCK, self.now, "clock")
        decisions = evaluate(self.policies, event, self._facts())
        for decision in [one for one in decisions if isinstance(one, BackUp) and one.key not in self.keys]:
            self._take(event, decision)

    def _happen(self, event: Event) -> None:
        if event.type in (EventType.CLOCK, EventType.RECONCILED):
            return
        if event.vm is not None:
            if event.vm in self.arriving and event.type is not EventType.REMOVED:
                self.vms[event.vm] = self.arriving.pop(event.vm)
            if event.type is EventType.REMOVED:
                self.vms.pop(event.vm, None)
            elif event.vm in self.vms:
                self.vms[event.vm] = changed_by(self.vms[event.vm], event)
        for decision in evaluate(self.policies, event, self._facts()):
            self._take(event, decision)

    def _take(self, event: Event, decision: Decision) -> None:
        self.decided.append(line_of(event, decision))
        match decision:
            case BackUp():
                self._back_up(decision)
            case DistrustTracking():
                self.distrusted.add(decision.vm)
                self._fire(decision)
            case HoldPoints():
                held = self.points.get(decision.vm, [])
                self.points[decision.vm] = [replace(p, holds=(*p.holds, decision.reason)) for p in held]
                self._fire(decision)
            case Retire():
                for run in [one for one in self.pending if one.vm == decision.vm]:
                    self._give_up(run)

    def _fire(self, decision: BackUp | HoldPoints | DistrustTracking) -> None:
        if decision.rule.startswith("trigger"):
            self.fired[decision.policy, decision.rule, decision.vm] = self.now

    def _back_up(self, decision: BackUp) -> None:
        if decision.key in self.keys:
            return
        coalesced = coalesce(self.pending, decision)
        self.pending = coalesced.pending
        self.keys[decision.key] = coalesced.stands_for.key
        if decision.rule == "request":
            self.asked.add(decision.vm)
        self._fire(decision)

    def _give_up(self, run: BackUp) -> None:
        self.pending = tuple(one for one in self.pending if one.key != run.key)
        self.asked.discard(run.vm)
        self.keys = {key: joined for key, joined in self.keys.items() if joined != run.key}

    def _admit(self) -> datetime | None:
        limits: Limits = self.assumed.limits.with_those_of(self.policies.policies, destinations(self.policies))
        while True:
            running = {vm: one[2].policy for vm, one in self.running.items()}
            found = admit(self.pending, running, self.vms, limits, self.now, self.turns, typical=self.typical)
            if not found.start:
                return found.ask_again
            self.turns = self.turns.after(found.start[0], self.now, limits)
            self._begin(found.start[0])

    def _begin(self, run: BackUp) -> None:
        vm = self.vms.get(run.vm)
        if vm is None or dropped(run, vm, self.policies, self._facts(), asked=run.vm in self.asked):
            self._give_up(run)
            return
        if later := held_until(run, vm, self.policies, self._facts(), asked=run.vm in self.asked):
            held = replace(run, not_before=later)
            self.pending = tuple(held if one.key == run.key else one for one in self.pending)
            return
        self.starts.append((run.key, self.now.isoformat()))
        self.pending = tuple(one for one in self.pending if one.key != run.key)
        self.asked.discard(run.vm)
        rate = self.rates[run.vm]
        points = self.points.get(run.vm)
        usable = (p.taken_at for p in points or () if p.complete and not p.damaged and p.taken_at <= self.now)
        last = max(usable, default=None)
        read = rate.read_after(last, self.now)
        stored = int(read * rate.stored_share)
        if run.vm in self.distrusted:
            self.distrusted.discard(run.vm)
            read = rate.full_bytes
        ends = self.now + self.assumed.run_overhead + timedelta(seconds=read / self.assumed.bytes_per_second)
        self.begun += 1
        lock = protection(self.policies, vm).lock
        self.running[run.vm] = ends, self.begun, run, self.now, stored, lock

    def _end(self, vm: VmId) -> None:
        _, _, run, began, stored, lock = self.running.pop(vm)
        self.typical += (self.now - began - self.typical) / RUNS_REMEMBERED
        point = RestorePoint(
            PointId(f"{began:%Y%m%dT%H%M%S}"), vm, "", began, consistency=run.consistency, stored_bytes=stored,
            locked_until=began + lock if lock else None,
        )  # fmt: skip
        self.points.setdefault(vm, []).append(point)
        self.history[vm] = VmHistory(last_success=began, last_attempt=began)

    def _retain(self) -> None:
        for vm, points in self.points.items():
            plan = plan_retention(vm, points, self.policies.retaining(self.vms.get(vm)), self.now)
            gone = {one.point for one in plan.expire}
            marked, again = {one.point for one in plan.mark}, set(plan.unmark)
            self.expired += [(vm, p.taken_at.isoformat(), self.now.isoformat()) for p in points if p.id in gone]
            self.points[vm] = [
                replace(p, expiring_since=self.now if p.id in marked else None if p.id in again else p.expiring_since)
                for p in points
                if p.id not in gone
            ]
