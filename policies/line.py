"""The pending backups in line, for thousands of them: the answers of `policies.admission.admit`, one start at a time.

Used by the engine's queue and by the simulation:

    line = Line(limits, vms)            # vms may change meanwhile: tell `moved` which
    line.join(decision)                 # as `coalesce`: a decision for a VM that is in line joins its run
    while (run := line.start(now)):     # takes its places; None when nothing can start now
        ...
    line.finished(run.vm)               # gives them back
    line.ask_again(now)                 # when time alone lets something start; None for never

A start costs some microseconds, however many wait: backups lie in heaps by priority, deadline and policy, and one
that was found without a free place is parked with that place until it is free. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from heapq import heappop, heappush

from policies.admission import (
    OLDEST_EVERY,
    Turns,
    Waiting,
    merge,
    order_of,
    pace_lets,
    paced_after,
    why_waits,
)
from policies.decision import BackUp
from policies.facts import Vm, VmId
from policies.heaps import Entry, Heaps, Rank, Slot, Slots
from policies.limits import REPOSITORY, Limits, Place, taken
from policies.overload import STEP_SECONDS, TYPICAL_RUN, Cell, Load, Scales, judge, seconds_of

FEW_PARKED = 8
"""So many parked backups go back to the others when their place is free; more stay together, as candidates."""


class Line:
    """See the module. Not for several threads."""

    def __init__(
        self,
        limits: Limits,
        vms: Mapping[VmId, Vm],
        *,
        typical: timedelta = TYPICAL_RUN,
        turns: Turns | None = None,
    ) -> None:
        turns = turns or Turns()
        self._limits, self._vms, self._typical = limits, vms, typical
        self._starts, self._served, self._paced = turns.starts, dict(turns.served), turns.paced
        self._entries: dict[str, Entry] = {}
        self._of: dict[VmId, list[Entry]] = {}
        self._running: dict[VmId, tuple[str, tuple[Slot, ...]]] = {}
        self._others: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        """Nothing is ready yet, and no place is taken."""
        self._slots = Slots(self._limits, self._vms)
        self._future: list[tuple[float, str, Entry]] = []
        self._free = Heaps()
        self._parked: dict[Slot, Heaps] = {}
        self._open: dict[Slot, Heaps] = {}
        self._scales = Scales()
        self._at = float("-inf")

    # what is in line

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def pending(self) -> list[BackUp]:
        """All that are in line, in no order."""
        return [entry.decision for entry in self._entries.values()]

    def of(self, vm: VmId) -> BackUp | None:
        """The first that came of this VM's pending backups."""
        found = self._of.get(vm)
        return found[0].decision if found else None

    def advance(self, now: datetime) -> None:
        """It is this late. Before many are added that are ready, it spares them the way over what is not."""
        self._advance(now)

    def join(self, decision: BackUp) -> BackUp:
        """Take a decision in, as `coalesce` does: returns the run that stands for it."""
        same = self._entries.get(decision.key)
        if same is not None:
            return same.decision
        first = self.of(decision.vm)
        stands = decision if first is None else merge(first, decision)
        self.add(stands)
        return stands

    def add(self, decision: BackUp) -> None:
        """One more run; it takes the place in line of one of the same key."""
        self.remove(decision.key)
        entry = Entry(decision)
        self._entries[decision.key] = entry
        self._of.setdefault(decision.vm, []).append(entry)
        self._place(entry)

    def again(self, decision: BackUp) -> str:
        """A run that had started waits again, joined by the one of its VM that came meanwhile; the key of that one."""
        other = self.of(decision.vm)
        if other is not None:
            self.remove(other.key)
        self.add(decision if other is None else merge(decision, other))
        return "" if other is None else other.key

    def remove(self, key: str) -> None:
        """This run is not wanted any more; nothing happens when it is not in line."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        mine = self._of[entry.decision.vm]
        mine.remove(entry)
        if not mine:
            del self._of[entry.decision.vm]
        entry.gone = True
        if entry.heaps is not None:
            self._scales.count(self._cell(entry), -1)
            self._leave(entry)

    # what runs

    def start(self, now: datetime) -> BackUp | None:
        """The next backup that may start now; it runs from now on, until `finished`."""
        self._advance(now)
        if not self._scales.cells or len(self._running) >= self._limits.running:
            return None
        if self._limits.starts_per_minute and pace_lets(self._paced, now, self._limits) > now:
            return None
        oldest = (self._starts + 1) % OLDEST_EVERY == 0
        cut = None if oldest or len(self._entries) == 1 else self._scales.cut(self._limits.at_once, now, self._typical)
        while True:
            entry = self._first(oldest, cut)
            if entry is None:
                return None
            if self._vms.get(entry.decision.vm) is not entry.seen:
                self._replace(entry)
                continue
            full = next((slot for slot in entry.slots if slot.taken >= slot.limit), None)
            if full is None:
                break
            self._park(entry, full)
        decision = entry.decision
        self.remove(decision.key)
        self._starts += 1
        self._served[decision.policy] = self._starts
        self._paced = paced_after(self._paced, now, self._limits)
        self.began(decision.vm, decision.policy)
        return decision

    def began(self, vm: VmId, policy: str) -> None:
        """A backup of this VM runs, started by whomever."""
        self._take(vm, policy)

    def finished(self, vm: VmId) -> None:
        """The backup of this VM ended, however."""
        running = self._running.pop(vm, None)
        if running is not None:
            self._give(running[1])

    @property
    def running(self) -> dict[VmId, str]:
        """The policy of each running backup, by its VM."""
        return {vm: policy for vm, (policy, _) in self._running.items()}

    @property
    def turns(self) -> Turns:
        """What order and pace remember of the starts so far."""
        return Turns(self._starts, dict(self._served), self._paced)

    # what changes

    @property
    def limits(self) -> Limits:
        """The limits that hold."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        if limits != self._limits:
            self._limits = limits
            self._again()

    def use_repository(self, others: int, name: str = "") -> None:
        """So much other work uses the repository of this name now; it leaves backups one place."""
        slot = self._slots.of(Place(REPOSITORY, name))
        if slot is not None:
            slot.taken += min(others, slot.limit - 1) - min(self._others.get(name, 0), slot.limit - 1)
            self._opened(slot)
        self._others[name] = others

    @property
    def typical(self) -> timedelta:
        """How long a backup runs, for judging the load."""
        return self._typical

    @typical.setter
    def typical(self, typical: timedelta) -> None:
        if seconds_of(typical) != seconds_of(self._typical):
            self._typical = typical
            self._scales.forget()

    def moved(self, vm: VmId) -> None:
        """The VM is another value in `vms` by now, or not there any more."""
        for entry in self._of.get(vm, ()):
            if entry.heaps is not None and self._vms.get(vm) is not entry.seen:
                self._replace(entry)
        running = self._running.get(vm)
        if running is not None and self._slots.needs(vm, running[0]) != running[1]:
            self.finished(vm)
            self._take(vm, running[0])

    # when, and why not

    def ask_again(self, now: datetime) -> datetime | None:
        """When time alone lets something start that cannot start now; None for never."""
        self._advance(now)
        self._skip_gone()
        times = [self._future[0][2].decision.not_before] if self._future else []
        again = pace_lets(self._paced, now, self._limits)
        if again > now and self._scales.cells and len(self._running) < self._limits.running:
            times.append(again)
        return min(times, default=None)

    def load(self, now: datetime) -> Load:
        """What is ready, and whether its goals can be kept."""
        self._advance(now)
        return judge(self._scales.cells, self._limits.at_once, now, self._typical)

    def waiting(self, now: datetime) -> tuple[Waiting, ...]:
        """Everything in line in the order of starting, and why it waits."""
        load = self.load(now)
        again = pace_lets(self._paced, now, self._limits)
        free = self._limits.running - len(self._running)
        found = []
        for decision in sorted(self.pending, key=order_of(load.cut, self._served, now)):
            needs = self._slots.needs(decision.vm, decision.policy)
            full = next((slot for slot in needs if slot.taken >= slot.limit), None)
            said = taken(full.place, full.taken) if full is not None else ""
            left = 1 if full is not None and full.place.kind == "vm" else free
            found.append(Waiting(decision, why_waits(decision, said, left, again, self._limits, load, now)))
        return tuple(found)

    # how it is done

    def _advance(self, now: datetime) -> None:
        """What became ready, and what became late, by this time."""
        at = now.timestamp()
        if at < self._at:
            self._again()  # a clock was set back
        self._at = at
        step = int(at // STEP_SECONDS)
        if self._scales.step(step):
            for heaps in (self._free, *self._parked.values()):
                heaps.became_late(step, self._served)
        while self._future and self._future[0][0] <= at:
            entry = heappop(self._future)[2]
            if not entry.gone and entry.heaps is None:
                self._put(entry)

    def _place(self, entry: Entry) -> None:
        if entry.not_before <= self._at:
            self._put(entry)
        else:
            self._slots.needs(
                entry.decision.vm, entry.decision.policy
            )  # so that thousands can become ready at one time
            heappush(self._future, (entry.not_before, entry.decision.key, entry))

    def _skip_gone(self) -> None:
        while self._future and self._future[0][2].gone:
            heappop(self._future)

    def _put(self, entry: Entry) -> None:
        """It is ready."""
        decision = entry.decision
        entry.seen = self._vms.get(decision.vm)
        entry.slots = self._slots.needs(decision.vm, decision.policy)
        self._scales.count(self._cell(entry), 1)
        self._free.push(entry, self._cell(entry)[1], self._served)

    def _cell(self, entry: Entry) -> Cell:
        return self._scales.cell(entry.decision.priority, entry.step)

    def _leave(self, entry: Entry) -> None:
        heaps = entry.heaps
        entry.heaps = None
        if heaps is None:
            return
        heaps.alive -= 1
        if heaps.slot is not None and not heaps.alive:
            del self._parked[heaps.slot]
            self._open.pop(heaps.slot, None)

    def _first(self, oldest: bool, cut: int | None) -> Entry | None:
        """The first of all that are not parked at a place that is taken."""
        best: tuple[Rank, Entry] | None = None
        for heaps in (self._free, *self._open.values()):
            found = heaps.longest_ready() if oldest else heaps.head(cut, self._served)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best[1] if best is not None else None

    def _replace(self, entry: Entry) -> None:
        """Its VM looks otherwise than before."""
        decision = entry.decision
        before = entry.slots
        entry.seen = self._vms.get(decision.vm)
        entry.slots = self._slots.needs(decision.vm, decision.policy)
        if entry.slots != before:
            self._leave(entry)
            self._free.push(entry, self._cell(entry)[1], self._served)

    def _park(self, entry: Entry, slot: Slot) -> None:
        self._leave(entry)
        heaps = self._parked.get(slot)
        if heaps is None:
            heaps = self._parked[slot] = Heaps(slot)
        heaps.push(entry, self._cell(entry)[1], self._served)

    def _take(self, vm: VmId, policy: str) -> None:
        slots = self._slots.needs(vm, policy)
        self._running[vm] = (policy, slots)
        for slot in slots:
            slot.taken += 1
            if slot.taken >= slot.limit:
                self._open.pop(slot, None)

    def _give(self, slots: tuple[Slot, ...]) -> None:
        for slot in slots:
            slot.taken -= 1
            self._opened(slot)

    def _opened(self, slot: Slot) -> None:
        """Fewer of this place, or more, are taken than before."""
        heaps = self._parked.get(slot)
        if heaps is None:
            return
        if slot.taken >= slot.limit:
            self._open.pop(slot, None)
        elif heaps.alive > FEW_PARKED:
            self._open[slot] = heaps
        else:
            for entry in list(heaps.entries()):
                self._leave(entry)
                self._free.push(entry, self._cell(entry)[1], self._served)

    def _again(self) -> None:
        """Build it anew from what is in line and what runs."""
        running, self._running = self.running, {}
        others, self._others = self._others, {}
        self._begin()
        for vm, policy in running.items():
            self._take(vm, policy)
        for name, number in others.items():
            self.use_repository(number, name)
        for entry in self._entries.values():
            entry.heaps = None
            self._place(entry)
