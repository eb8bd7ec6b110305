"""What the policies would do to a fleet over days and months: the engine's decisions under a virtual clock. Pure.

Decisions are those of `policies.evaluation`, starts those of `policies.admission`, and what a decision leads to is
what the engine makes of it (its draft, its queue, its workers), here without failures. The engine asks for every VM at
each tick of its clock; here a VM is asked again at the first tick from which on the answer can be another than
before: when it is due, or when something has happened to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from heapq import heappop, heappush

from policies.aftermath import CHANGING, changed_by
from policies.assumptions import Assumptions
from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Requeue, Retire, Skip
from policies.due import scheduled
from policies.evaluation import GIVES_WAY, evaluate, unsafe
from policies.express import ExpressLine
from policies.facts import Event, EventType, Facts, PointId, RestorePoint, Vm, VmHistory, VmId
from policies.gauges import DAY, QUALITY, Gauges, Made, Trace, better
from policies.needed import dropped, held_until
from policies.policyset import PolicySet
from policies.protection import Protection, destinations, due_of, protection
from policies.recorded import Recorded, telling
from policies.runs import Runs, at_rest, gave_way, heard_by
from policies.schedule import due_after
from policies.sealing import maker
from policies.units import stamp

_CLOCKS = frozenset({EventType.CLOCK, EventType.RECONCILED})
_NOTHING_KNOWN = VmHistory()
_make_event, _make_facts, _make_history = maker(Event), maker(Facts), maker(VmHistory)
_NO_POINT = PointId("")

KEYS_KEPT = 16
"""How many idempotency keys of a VM are remembered at least; older ones do not come again."""

Told = Callable[[datetime], None]
Ruled = Callable[[Event, Decision], None]


class Simulation:
    """One simulation, from the facts on. `run` it once.

    `told` hears of each new day, `ruled` of each decision but the skips of the clock. `arriving` are VMs that come
    into the inventory with their first event.
    """

    def __init__(
        self,
        policies: PolicySet,
        facts: Facts,
        assumed: Assumptions,
        until: datetime,
        *,
        arriving: Mapping[VmId, Vm] | None = None,
        told: Told = lambda at: None,
        ruled: Ruled | None = None,
    ) -> None:
        self.policies, self.assumed = policies, assumed
        self.start = self.now = facts.now
        self.until = until
        names = tuple(policy.name for policy in policies.policies)
        self.trace = Trace(facts.now, until, names, policies.guard.max_expire_share, initial=dict(facts.points))
        self._gauges = Gauges(self.trace, policies, facts.left)
        self.vms = dict(facts.vms)
        self.arriving = dict(arriving or {})
        self.history = at_rest(facts.history)
        self.fired = dict(facts.fired)
        self.newest = {vm: telling(points, facts.now) for vm, points in facts.points.items()}
        self.line = ExpressLine(assumed.limits.with_those_of(policies.policies, destinations(policies)), self.vms)
        self.runs = Runs(assumed, self._gauges)
        self._heard = heard_by(policies)
        chosen = (policy.selection for policy in policies.policies)
        terms = (term for one in chosen for term in (*one.all, *one.any, *one.none))
        self._looks_matter = any(term.property in CHANGING for term in terms)
        self._told, self._ruled = told, ruled
        self._asked: set[VmId] = set()
        self._decided_at: dict[VmId, datetime] = {}
        self._keys: dict[VmId, dict[str, str]] = {}
        self._effective: dict[VmId, Protection] = {}
        self._strictest = max((QUALITY[p.weakest_good] for p in policies.policies), default=0)
        self._goals: dict[int, tuple[Protection, timedelta | None]] = {}
        self._order: dict[VmId, int] = {}
        self._wakes: dict[VmId, int] = {}
        self._buckets: dict[int, set[VmId]] = {}
        self._ticks: list[int] = []
        self._ticked = -1
        self._tick_at = until
        self._known = Facts(self.now, self.vms, self.history, self.newest, self.fired)
        for vm in self.vms.values():
            self._arrived(vm)

    def run(self, events: Iterable[Recorded] = ()) -> Trace:
        """Until the end; `events` in the order of their time, those after the end are left out."""
        coming = iter(events)
        event = next(coming, None)
        until, tomorrow = self.until, self.start + DAY
        ends, ticks, line, waiting = self.runs.ends, self._ticks, self.line, self.line.entries
        while True:
            now = until
            if ticks and self._tick_at < now:
                now = self._tick_at
            if ends and ends[0][0] < now:
                now = ends[0][0]
            if event is not None and event.at < now:
                now = event.at
            if waiting:
                again = line.ask_again(self.now)
                if again is not None and again < now:
                    now = again
            if now >= until:
                break
            if now > self.now:
                self.now = now
                while now >= tomorrow:
                    tomorrow += DAY
                    self._told(now)
            while ends and ends[0][0] <= now:
                self._end()
            while event is not None and event.at <= now:
                self._happen(event.event)
                event = next(coming, None)
            if ticks and self._tick_at <= now:
                self._tick()
            if waiting:
                line.typical = self.runs.typical
                while (decision := line.start(now)) is not None:
                    self._begin(decision)
        return self._finished()

    @property
    def _facts(self) -> Facts:
        if self._known.now is not self.now:
            self._known = _make_facts(self.now, self.vms, self.history, self.newest, self.fired)
        return self._known

    # what happens

    def _happen(self, event: Event) -> None:
        if event.type in _CLOCKS:
            return
        self.trace.events += 1
        changed = False
        if event.vm is not None:
            before = self.vms.get(event.vm)
            if before is None and event.vm in self.arriving and event.type is not EventType.REMOVED:
                before = self.vms[event.vm] = self.arriving.pop(event.vm)
                self._arrived(before)
            if event.type is EventType.REMOVED:
                self._leave(event.vm)
            elif before is not None:
                after = changed_by(before, event)
                if after is not before:
                    self.vms[event.vm] = after
                    self.line.moved(event.vm)
                    changed = self._looks_matter and self._select(after)
        doubted = event.vm in self.vms and unsafe(self.vms[event.vm], event)
        if event.type in self._heard or doubted or self._ruled is not None:
            if event.vm is not None:
                self._under_way(event.vm)
            for decision in evaluate(self.policies, event, self._facts):
                changed = self._take(event, decision) or changed
        else:
            self.trace.decided["Skip"] += 1
        if changed and event.vm is not None:
            self._look(event.vm)

    def _arrived(self, vm: Vm) -> None:
        self._order[vm.id] = len(self._order)
        self.runs.know(vm, self.trace.initial.get(vm.id, ()))
        self.history.setdefault(vm.id, _NOTHING_KNOWN)
        self.trace.made[vm.id] = Made()
        self.trace.vms[vm.id] = vm
        self._gauges.count_missed(vm.id, (), None, self.now)
        self._select(vm)
        self._look(vm.id)

    def _leave(self, vm: VmId) -> None:
        if (left := self.vms.pop(vm, None)) is not None:
            self.line.moved(vm)
            self.trace.vms[vm], self.trace.left[vm] = left, self.now
            self.trace.selected[vm].append((self.now, ()))

    def _select(self, vm: Vm) -> bool:
        """Whether other policies select the VM than before."""
        policies = self.policies.retaining(vm)
        self._effective[vm.id] = protection(self.policies, vm)
        known = self.trace.selected.setdefault(vm.id, [])
        if known and known[-1][1] is policies:
            return False
        known.append((self.now, policies))
        return True

    # decisions, as the engine drafts what they lead to

    def _tick(self) -> None:
        number = heappop(self._ticks)
        self._ticked = number
        self._set_tick()
        wakes = self._wakes
        due = sorted([vm for vm in self._buckets.pop(number) if wakes.get(vm) == number], key=self._order.__getitem__)
        if not due:
            return
        now, facts, words = self.now, self._facts, self._ruled is not None
        event = _make_event(f"clock:{stamp(now)}.{now.microsecond:06}Z", EventType.CLOCK, now, "clock")
        decisions = [scheduled(self._effective[vm], self.vms[vm], event, facts, words=words) for vm in due]
        fresh: list[BackUp] = []
        for vm, decision in zip(due, decisions, strict=True):
            del wakes[vm]
            if isinstance(decision, BackUp) and decision.key not in self._keys.get(vm, ()):
                fresh.append(decision)
                self._said(event, decision)
            else:
                self._look(vm)
        # What has just been found due needs no second look where it starts at once.
        together = self.line.start_together(fresh) if fresh else []
        if together is None:
            for decision in fresh:
                self._back_up(decision)
            return
        for decision in together:
            self._remember_key(decision, decision)
            self.runs.begin(decision, self.vms[decision.vm], self._last(decision.vm), now)

    def _set_tick(self) -> None:
        if self._ticks:
            self._tick_at = self.start + self._ticks[0] * self.assumed.tick

    def _take(self, event: Event, decision: Decision) -> bool:
        """Whether it changes when the clock has something to say about the VM."""
        self._said(event, decision)
        match decision:
            case BackUp():
                return self._back_up(decision)
            case Skip():
                return False
            case DistrustTracking():
                self.runs.distrusted.add(decision.vm)
                self._fire(decision)
            case HoldPoints():
                self.trace.holds.setdefault(decision.vm, []).append((self.now, decision.reason))
                self._fire(decision)
            case Requeue():
                run = replace(self.runs.call_back(decision.vm).decision, not_before=self.now + GIVES_WAY)
                self.line.finished(decision.vm)
                joined, keys = self.line.again(run), self._keys[decision.vm]
                keys.update((key, run.key) for key, stands in keys.items() if stands == joined)
                self.history[decision.vm] = gave_way(self.history[decision.vm])
            case Retire():
                if (waiting := self.line.of(decision.vm)) is not None:
                    self._give_up(waiting)
        return True

    def _said(self, event: Event, decision: Decision) -> None:
        self.trace.decided[type(decision).__name__] += 1
        if self._ruled is not None:
            self._ruled(event, decision)

    def _back_up(self, decision: BackUp) -> bool:
        vm = decision.vm
        if decision.key in self._keys.get(vm, ()):
            return False
        run = self.line.join(decision)
        self._remember_key(decision, run)
        if run is decision:
            self._decided_at[vm] = self.now
        if decision.rule == "request":
            self._asked.add(vm)
        self._fire(decision)
        return True

    def _remember_key(self, decision: BackUp, run: BackUp) -> None:
        """Which run stands for the key of a decision."""
        keys = self._keys.setdefault(decision.vm, {})
        keys[decision.key] = run.key
        if len(keys) > 2 * KEYS_KEPT:
            for key in list(keys)[:KEYS_KEPT]:
                del keys[key]

    def _fire(self, decision: BackUp | HoldPoints | DistrustTracking) -> None:
        """The cooldown of a trigger begins."""
        if decision.rule.startswith("trigger"):
            self.fired[decision.policy, decision.rule, decision.vm] = self.now

    def _give_up(self, run: BackUp) -> None:
        """This run is not needed any more; a new decision of its keys is a new run."""
        vm = run.vm
        self.line.remove(run.key)
        self._asked.discard(vm)
        self._keys[vm] = {key: joined for key, joined in self._keys[vm].items() if joined != run.key}
        self._under_way(vm)

    def _under_way(self, vm: VmId) -> None:
        """Bring up to date whether a run waits or goes on. The clock is not asked about such a VM, events may be."""
        known = self.history.get(vm, _NOTHING_KNOWN)
        running, pending = vm in self.runs, self.line.of(vm) is not None
        if (known.running, known.pending) != (running, pending):
            host = self.runs.under_way[vm].host if running else ""
            self.history[vm] = replace(known, running=running, pending=pending, reading_on=host)

    def _look(self, vm_id: VmId, made: datetime | None = None) -> None:
        """Plan when the clock asks for this VM again; `made` is when its restore point was taken that is new."""
        self._wakes.pop(vm_id, None)
        vm = self.vms.get(vm_id)
        if vm is None or vm.refusal or vm_id in self.runs.under_way or self.line.of(vm_id) is not None:
            return
        effective = self._effective[vm_id]
        at = self._not_before(effective, made) if made is not None else None
        if at is None:
            found = due_of(effective, vm_id, self._facts)
            if found is None:
                return
            at = found[1].at
        at = at if at > self.now else self.now
        number = max(-((self.start - at) // self.assumed.tick), self._ticked + 1)
        self._wakes[vm_id] = number
        bucket = self._buckets.get(number)
        if bucket is None:
            self._buckets[number] = {vm_id}
            heappush(self._ticks, number)
            self._set_tick()
        else:
            bucket.add(vm_id)

    def _not_before(self, effective: Protection, made: datetime) -> datetime | None:
        """Before when nothing is due, told sooner than `due_of` does where goals alone decide; else None."""
        known = self._goals.get(id(effective))
        if known is None:
            known = self._goals[id(effective)] = effective, due_after([one.timing for one in effective.scheduling])
        return None if known[1] is None else made + known[1]

    # runs, as workers carry them out

    def _begin(self, decision: BackUp) -> None:
        """The run's turn has come; `line` counts it as running already."""
        vm_id, now = decision.vm, self.now
        vm = self.vms.get(vm_id)
        # What was decided at this very instant has been found due at this very instant.
        fresh = self._decided_at.get(vm_id) == now and decision.rule in ("rpo", "schedule")
        if vm is None or (not fresh and dropped(decision, vm, self.policies, self._facts, asked=vm_id in self._asked)):
            self._gauges.given_up(decision, now)
            self.line.finished(vm_id)
            self._give_up(decision)
            self._look(vm_id)
            return
        if later := held_until(decision, vm, self.policies, self._facts, asked=vm_id in self._asked):
            self.line.finished(vm_id)
            self.line.add(replace(decision, not_before=later))
            return
        self._asked.discard(vm_id)
        self.runs.begin(decision, vm, self._last(vm_id), now)

    def _end(self) -> None:
        run = self.runs.end(self.now)
        decision, began = run.decision, run.began
        vm_id = decision.vm
        self._count_missed(vm_id)
        self.line.finished(vm_id)
        quality = decision.consistency
        level = QUALITY[quality]
        known = self.newest.pop(vm_id, ())
        rest = [one for one in known if one.taken_at > began or better(one, level)] if known else []
        if level >= self._strictest:  # good for every policy: remembered as the engine remembers, which is found faster
            self.history[vm_id] = _make_history(last_success=began, last_good=began, last_attempt=began)
        else:
            rest.insert(0, RestorePoint(_NO_POINT, vm_id, "", began, True, quality))
            self.history[vm_id] = VmHistory(last_success=began, last_attempt=began)
        if rest:
            self.newest[vm_id] = tuple(rest)
        self._gauges.ended(decision, quality, began, self.now, run.read, run.stored)
        if self.line.of(vm_id) is None:
            self._look(vm_id, began)

    def _count_missed(self, vm_id: VmId) -> None:
        if vm_id in self.vms:
            self._gauges.count_missed(vm_id, self._effective[vm_id].scheduling, self._last(vm_id), self.now)

    def _last(self, vm_id: VmId) -> datetime | None:
        """When the newest restore point was taken that a run can build on."""
        good, points = self.history[vm_id].last_good, self.newest.get(vm_id)
        if not points:
            return good
        usable = [p.taken_at for p in points if better(p, -1) and p.taken_at <= self.now]
        return max(usable if good is None else [good, *usable], default=None)

    def _finished(self) -> Trace:
        self.now = self.until
        for vm in self.vms:
            self._count_missed(vm)
        self.trace.vms.update(self.vms)
        self._gauges.finish()
        return self.trace
