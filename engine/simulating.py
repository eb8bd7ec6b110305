"""Runs a simulation on this machine's processors: runs in this process, restore points' ages in a second beside it."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.connection import Connection

from policies.aging import Aged, Aging, Asked, age
from policies.assumptions import Assumptions
from policies.facts import Facts, Vm, VmId
from policies.gauges import DAY, Trace
from policies.increments import Gained, Increments, learn
from policies.mirrored import copies_named, mirror
from policies.policyset import PolicySet
from policies.recorded import Recorded
from policies.simulated import Copied, Simulated
from policies.simulation import Simulation

MANY_VMS = 300
"""From so many VMs on a second process is worth its start."""


def simulate(
    policies: PolicySet,
    facts: Facts,
    assumed: Assumptions,
    until: datetime,
    events: Iterable[Recorded] = (),
    *,
    arriving: Mapping[VmId, Vm] | None = None,
    asked: Asked | None = None,
    told: Callable[[datetime], None] = lambda at: None,
    source: str = "",
    processes: int | None = None,
) -> Simulated:
    """Runs and what retention makes of them; `told` hears of each day. Blocking; forks, so call it without threads."""
    beside: Beside | None = None

    def day(at: datetime) -> None:
        if beside is not None:
            beside.tell(at)
        told(at)

    with _fewer_collections():
        simulation = Simulation(policies, facts, assumed, until, arriving=arriving, told=day)
        if (processes or os.cpu_count() or 1) > 1 and (processes or len(facts.vms) >= MANY_VMS):
            beside = Beside(simulation.trace, assumed, asked)
        try:
            trace = simulation.run(events)
            aged = beside.finish() if beside is not None else None
        finally:
            if beside is not None:
                beside.close()
        if aged is None:
            aged = age(trace, _all(trace), assumed, asked)
        copies = tuple(_copied(trace, name, facts, assumed, asked, told) for name in copies_named(policies))
        return Simulated(trace, aged, assumed, asked, source, copies)


def _copied(
    trace: Trace,
    name: str,
    facts: Facts,
    assumed: Assumptions,
    asked: Asked | None,
    told: Callable[[datetime], None],
) -> Copied:
    """A second copy, when all runs are known."""
    mirrored = mirror(trace, name, None if name in facts.unseen_copies else facts.points_in(name))
    aging = Aging(mirrored.trace, assumed, asked)
    for vm in _all(mirrored.trace):
        aging.add(vm)
    for day in range(1, trace.days):
        aging.advance(trace.start + day * DAY)
        told(trace.start + day * DAY)
    return Copied(mirrored, aging.finish())


def _all(trace: Trace) -> list[VmId]:
    return list(dict.fromkeys([*trace.initial, *trace.made]))


class Beside:
    """A process that ages the restore points of a simulation while it goes on. `close` it, whatever happens."""

    def __init__(self, trace: Trace, assumed: Assumptions, asked: Asked | None) -> None:
        self._trace, self._increments = trace, Increments(trace)
        # A fork knows the policies and restore points that would take long to send. Nothing runs in other threads.
        forked = multiprocessing.get_context("fork")
        self._ours, theirs = forked.Pipe()
        self._process = forked.Process(target=_age_there, args=(theirs, self._ours, trace, assumed, asked), daemon=True)
        self._process.start()
        theirs.close()
        self._lost = False

    def tell(self, at: datetime) -> None:
        """Everything before this time is in the trace."""
        if not self._lost:
            try:
                self._ours.send(self._increments.take(at))
            except OSError:  # it was killed: its work is done at the end
                self._lost = True

    def finish(self) -> Aged | None:
        """The result; None when the process was lost."""
        self.tell(self._trace.end)
        try:
            if not self._lost:
                self._ours.send(None)
                found = self._ours.recv()
                return found if isinstance(found, Aged) else None
        except (OSError, EOFError):
            return None
        return None

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join(timeout=1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _age_there(theirs: Connection, ours: Connection, trace: Trace, assumed: Assumptions, asked: Asked | None) -> None:
    ours.close()
    aging = Aging(trace, assumed, asked)
    for vm in _all(trace):
        aging.add(vm)
    try:
        while (gained := theirs.recv()) is not None:
            _follow(aging, trace, gained)
        theirs.send(aging.finish())
    except (EOFError, OSError, KeyboardInterrupt):  # nobody waits for it any more
        return


def _follow(aging: Aging, trace: Trace, gained: Gained) -> None:
    learn(trace, gained)
    for vm, _ in gained.made:
        aging.add(vm)
    aging.advance(gained.at)


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """The collector would look at millions of values that live to the end again and again."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 50, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
