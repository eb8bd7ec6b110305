"""Runs a simulation on this machine's processors: the runs in this process, restore points' ages in two."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.connection import Connection

from policies.aging import Aged, Asked, age
from policies.assumptions import Assumptions
from policies.facts import Facts, Vm, VmId
from policies.gauges import Trace
from policies.policyset import PolicySet
from policies.recorded import Recorded
from policies.simulated import Simulated
from policies.simulation import Simulation

MANY_POINTS = 20_000
"""From so many restore points on a second process is worth its start."""


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
) -> Simulated:
    """The runs, then what retention makes of what they leave; `told` hears of each day of the first."""
    with _fewer_collections():
        trace = Simulation(policies, facts, assumed, until, arriving=arriving, told=told).run(events)
        return Simulated(trace, aged(trace, assumed, asked), assumed, asked, source)


def aged(trace: Trace, assumed: Assumptions, asked: Asked | None = None) -> Aged:
    """As `policies.aging.age` over all VMs, in as many processes as are of use. Blocking; forks."""
    vms = list(dict.fromkeys([*trace.initial, *trace.made]))
    points = sum(map(len, trace.initial.values())) + sum(map(len, trace.made.values()))
    if points < MANY_POINTS or (os.cpu_count() or 1) < 2:
        return age(trace, vms, assumed, asked)
    # A fork shares the trace, which would take long to send. Nothing of ours runs in other threads here.
    forked = multiprocessing.get_context("fork")
    receiving, sending = forked.Pipe(duplex=False)
    half = len(vms) // 2
    other = forked.Process(target=_age_there, args=(sending, trace, vms[half:], assumed, asked), daemon=True)
    other.start()
    sending.close()
    found = age(trace, vms[:half], assumed, asked)
    try:
        found.add(receiving.recv())
    except EOFError:  # it was killed: its part is done here
        found.add(age(trace, vms[half:], assumed, asked))
    finally:
        receiving.close()
        other.join()
    return found


def _age_there(sending: Connection, trace: Trace, vms: list[VmId], assumed: Assumptions, asked: Asked | None) -> None:
    sending.send(age(trace, vms, assumed, asked))
    sending.close()


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
