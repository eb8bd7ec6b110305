"""What a trace has gained since it was last asked, for another process that follows a simulation. Pure."""

from __future__ import annotations

from array import array
from datetime import datetime
from typing import NamedTuple

from policies.facts import Vm, VmId
from policies.gauges import Made, Trace


class Gained(NamedTuple):
    """Parts of a trace up to `at`, small to send: policies by their names, runs as numbers."""

    at: datetime
    made: list[tuple[VmId, array[float]]]
    selected: list[tuple[VmId, list[tuple[datetime, tuple[str, ...]]]]]
    holds: list[tuple[VmId, list[tuple[datetime, str]]]]
    left: dict[VmId, datetime]
    vms: list[Vm]


class Increments:
    """Tells piece by piece what `learn` puts together again. What the trace holds at first is known."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._made = {vm: len(made.numbers) for vm, made in trace.made.items()}
        self._selected = {vm: len(selected) for vm, selected in trace.selected.items()}
        self._holds = {vm: len(holds) for vm, holds in trace.holds.items()}
        self._left = dict(trace.left)

    def take(self, at: datetime) -> Gained:
        """Everything new."""
        trace = self._trace
        vms = [vm for id, vm in trace.vms.items() if id not in self._made]
        made = []
        for vm, one in trace.made.items():
            known = self._made.get(vm, 0)
            if len(one.numbers) > known or vm not in self._made:
                made.append((vm, one.numbers[known:]))
                self._made[vm] = len(one.numbers)
        selected = []
        for vm, changes in trace.selected.items():
            known = self._selected.get(vm, 0)
            if len(changes) > known:
                selected.append(
                    (vm, [(since, tuple(one.name for one in several)) for since, several in changes[known:]])
                )
                self._selected[vm] = len(changes)
        holds = []
        for vm, several in trace.holds.items():
            known = self._holds.get(vm, 0)
            if len(several) > known:
                holds.append((vm, several[known:]))
                self._holds[vm] = len(several)
        left = {vm: since for vm, since in trace.left.items() if self._left.get(vm) != since}
        self._left.update(left)
        return Gained(at, made, selected, holds, left, vms)


def learn(trace: Trace, gained: Gained) -> None:
    """Put it into a trace that knows everything before."""
    trace.vms.update((vm.id, vm) for vm in gained.vms)
    for vm, numbers in gained.made:
        trace.made.setdefault(vm, Made()).numbers.extend(numbers)
    for vm, changes in gained.selected:
        known = trace.selected.setdefault(vm, [])
        known.extend((since, tuple(trace.by_name[name] for name in names)) for since, names in changes)
    for vm, several in gained.holds:
        trace.holds.setdefault(vm, []).extend(several)
    trace.left.update(gained.left)
