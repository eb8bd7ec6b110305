"""Heaps of backups that wait for a place, in the order of `policies.admission`. Parts of `policies.line`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace

from policies.admission import cell_rank
from policies.decision import BackUp
from policies.facts import Vm, VmId
from policies.limits import Limits, Place, places_of
from policies.overload import LATE, Cell, step_of


class Slot:
    """A place, how many of it there are and how many are taken."""

    __slots__ = ("limit", "place", "taken")

    def __init__(self, place: Place, limit: int) -> None:
        self.place, self.limit, self.taken = place, limit, 0


class Slots:
    """Every limited place there is, and which of them a backup of a VM takes."""

    def __init__(self, limits: Limits, vms: Mapping[VmId, Vm]) -> None:
        self._limits, self._vms = limits, vms
        self._sent = limits.destination_of is not None and limits.per_repository is not None
        self._slots: dict[Place, Slot] = {}
        self._known: dict[tuple[VmId, str], tuple[Vm | None, tuple[Slot, ...]]] = {}

    def needs(self, vm: VmId, policy: str) -> tuple[Slot, ...]:
        """What a backup of the VM, as it is now, takes under this policy."""
        seen = self._vms.get(vm)
        known = self._known.get((vm, policy))
        if known is None or known[0] is not seen:
            if known is not None and not self._sent and _at_the_same_places(known[0], seen):
                slots = known[1]
            else:
                slots = tuple([slot for place in places_of(vm, seen, policy, self._limits) if (slot := self.of(place))])
            known = self._known[vm, policy] = seen, slots
        return known[1]

    def of(self, place: Place) -> Slot | None:
        """The place; None where it has no limit."""
        slot = self._slots.get(place)
        if slot is None and (limit := self._limits.of(place)) is not None:
            slot = self._slots[place] = Slot(place, limit)
        return slot


def _at_the_same_places(before: Vm | None, after: Vm | None) -> bool:
    return (
        before is not None
        and after is not None
        and before.host == after.host
        and before.datastores == after.datastores
        and before.address == after.address
    )


class Entry:
    """A backup in line. `heaps` is where it lies, None while its time has not come and when it is out of line."""

    __slots__ = ("deadline", "decision", "gone", "heaps", "not_before", "seen", "slots", "step")

    def __init__(self, decision: BackUp) -> None:
        self.decision = decision
        self.not_before = decision.not_before.timestamp()
        self.step = step_of(decision.deadline)
        self.deadline = float("inf") if decision.deadline is None else decision.deadline.timestamp()
        self.heaps: Heaps | None = None
        self.gone = False
        self.seen: Vm | None = None
        self.slots: tuple[Slot, ...] = ()

    def __lt__(self, other: object) -> bool:
        """Asked only where everything before it is equal: both are the same run."""
        return False


Rank = tuple[object, ...]


class _InTurn:
    """The policies of one cell: a heap each, and the order in which it is their turn. A turn only ever moves back."""

    __slots__ = ("order", "policies")

    def __init__(self) -> None:
        self.policies: dict[str, list[tuple[float, float, str, Entry]]] = {}
        self.order: list[tuple[int, str]] = []


class Heaps:
    """Backups that may start, in order. What left lies in the heaps until it comes up."""

    __slots__ = ("alive", "best", "cells", "cut", "oldest", "slot")

    def __init__(self, slot: Slot | None = None) -> None:
        self.slot = slot
        self.alive = 0
        self.cells: dict[Cell, _InTurn] = {}
        self.oldest: list[tuple[float, str, Entry]] = []
        self.best: Cell | None = None
        self.cut: int | None = None

    def push(self, entry: Entry, step: int, served: Mapping[str, int]) -> None:
        """One more; `step` is the one it counts in now."""
        decision = entry.decision
        cell = (decision.priority, step)
        turns = self.cells.get(cell)
        if turns is None:
            turns = self.cells[cell] = _InTurn()
            self.best = None
        heap = turns.policies.get(decision.policy)
        if heap is None:
            heap = turns.policies[decision.policy] = []
            heappush(turns.order, (served.get(decision.policy, 0), decision.policy))
        heappush(heap, (entry.deadline, entry.not_before, decision.key, entry))
        heappush(self.oldest, (entry.not_before, decision.key, entry))
        entry.heaps = self
        self.alive += 1
        if len(self.oldest) > 64 + 2 * self.alive:
            self.oldest = [one for one in self.oldest if one[2].heaps is self]
            heapify(self.oldest)

    def head(self, cut: int | None, served: Mapping[str, int]) -> tuple[Rank, Entry] | None:
        """The first in order, with what its order is compared by."""
        while self.cells:
            if self.best is None or cut != self.cut:
                self.best = min(self.cells, key=lambda cell: cell_rank(cell[0], cell[1], cut))
                self.cut = cut
            turns = self.cells[self.best]
            while turns.order:
                last, policy = turns.order[0]
                heap = turns.policies[policy]
                while heap and heap[0][3].heaps is not self:
                    heappop(heap)
                if not heap:
                    heappop(turns.order)
                    del turns.policies[policy]
                elif served.get(policy, 0) != last:
                    heapreplace(turns.order, (served.get(policy, 0), policy))
                else:
                    first = heap[0]
                    return (cell_rank(self.best[0], self.best[1], cut), last, policy, *first[:3]), first[3]
            del self.cells[self.best]
            self.best = None
        return None

    def longest_ready(self) -> tuple[Rank, Entry] | None:
        """The first by the time since it is ready."""
        while self.oldest and self.oldest[0][2].heaps is not self:
            heappop(self.oldest)
        return (self.oldest[0][:2], self.oldest[0][2]) if self.oldest else None

    def became_late(self, step_now: int, served: Mapping[str, int]) -> None:
        """What was due in steps up to this one is late now."""
        for cell in [cell for cell in self.cells if LATE < cell[1] <= step_now]:
            passed = self.cells.pop(cell)
            late = self.cells.setdefault((cell[0], LATE), _InTurn())
            for policy, heap in passed.policies.items():
                there = late.policies.get(policy)
                if there is None:
                    late.policies[policy] = heap
                    heappush(late.order, (served.get(policy, 0), policy))
                else:
                    for one in heap:
                        if one[3].heaps is self:
                            heappush(there, one)
            self.best = None

    def entries(self) -> Iterator[Entry]:
        """All that lie here."""
        return (one[2] for one in dict.fromkeys(self.oldest) if one[2].heaps is self)
