"""The line of a simulation: what is decided at one instant and finds every place free starts without waiting in it.

The answers are those of `policies.line`; the ways to them are shorter where nothing waits, which in a simulation is
nearly always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.admission import OLDEST_EVERY, longest_ready, urgency
from policies.decision import BackUp
from policies.facts import VmId
from policies.heaps import Slot
from policies.line import Line


class ExpressLine(Line):
    """See the module."""

    @property
    def entries(self) -> Mapping[str, object]:
        """What is in line, by its key: the same value for ever, as it is at each moment."""
        return self._entries

    def start_together(self, decisions: Sequence[BackUp]) -> list[BackUp] | None:
        """All of these that became ready at this instant, in the order in which they start; they run from now on.

        None, and nothing has happened, where they have to get in line: something waits, a place is taken or starts
        are paced, or where the order among them is the line's to say.
        """
        limits, running = self._limits, self._running
        number = len(decisions)
        if self._entries or limits.starts_per_minute or len(running) + number > limits.running:
            return None
        policy, priority = decisions[0].policy, decisions[0].priority
        needs = self._slots.needs
        wanted: list[tuple[VmId, tuple[Slot, ...]]] = []
        for one in decisions:
            if one.policy != policy or one.priority != priority:
                return None
            wanted.append((one.vm, needs(one.vm, policy)))
        if not _taken(wanted):
            return None
        for vm, slots in wanted:
            running[vm] = (policy, slots)
        ordered = self._in_order(decisions) if number > 1 else [*decisions]
        self._starts += number
        self._served[policy] = self._starts
        return ordered

    def _in_order(self, decisions: Sequence[BackUp]) -> list[BackUp]:
        """As `start` would take them one by one: all are of one policy, priority and readiness."""
        left = sorted(decisions, key=urgency)
        turn = OLDEST_EVERY - self._starts % OLDEST_EVERY
        if turn > len(left):
            return left
        ordered: list[BackUp] = []
        while left:
            oldest = (self._starts + len(ordered) + 1) % OLDEST_EVERY == 0
            chosen = min(left, key=longest_ready) if oldest else left[0]
            left.remove(chosen)
            ordered.append(chosen)
        return ordered


def _taken(wanted: Sequence[tuple[VmId, tuple[Slot, ...]]]) -> bool:
    """Take all of these places where there are enough; else none."""
    enough = True
    for _, slots in wanted:
        for slot in slots:
            slot.taken += 1
            enough = enough and slot.taken <= slot.limit
    if not enough:
        for _, slots in wanted:
            for slot in slots:
                slot.taken -= 1
    return enough
