"""The line of a simulation: what is decided at one instant and finds every place free starts without waiting in it.

The answers are those of `policies.line`; the ways to them are shorter where nothing waits, which in a simulation is
nearly always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.admission import OLDEST_EVERY
from policies.decision import BackUp
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
        limits = self._limits
        number = len(decisions)
        if self._entries or limits.starts_per_minute or len(self._running) + number > limits.running:
            return None
        first = decisions[0]
        if number == 1:
            if any(slot.taken >= slot.limit for slot in self._slots.needs(first.vm, first.policy)):
                return None
            ordered = [first]
        else:
            if any(one.policy != first.policy or one.priority != first.priority for one in decisions):
                return None
            wanted: dict[Slot, int] = {}
            for one in decisions:
                for slot in self._slots.needs(one.vm, one.policy):
                    wanted[slot] = wanted.get(slot, 0) + 1
            if any(slot.taken + more > slot.limit for slot, more in wanted.items()):
                return None
            ordered = self._in_order(decisions)
        for one in ordered:
            self._starts += 1
            self._served[one.policy] = self._starts
            self._take(one.vm, one.policy)
        return ordered

    def _in_order(self, decisions: Sequence[BackUp]) -> list[BackUp]:
        """As `start` would take them one by one: all are of one policy, priority and readiness."""
        left = sorted(decisions, key=_urgency)
        turn = OLDEST_EVERY - self._starts % OLDEST_EVERY
        if turn > len(left):
            return left
        ordered: list[BackUp] = []
        while left:
            oldest = (self._starts + len(ordered) + 1) % OLDEST_EVERY == 0
            chosen = min(left, key=_longest_ready) if oldest else left[0]
            left.remove(chosen)
            ordered.append(chosen)
        return ordered


def _urgency(decision: BackUp) -> tuple[float, float, str]:
    deadline = float("inf") if decision.deadline is None else decision.deadline.timestamp()
    return deadline, decision.not_before.timestamp(), decision.key


def _longest_ready(decision: BackUp) -> tuple[float, str]:
    return decision.not_before.timestamp(), decision.key
