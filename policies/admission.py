"""Which pending backups start now, in which order, and when a failed one is tried again. Pure: values in and out.

The engine and the simulation both ask here, so that what is simulated is what happens. `admit` is the definition: it
looks at everything at each call. `policies.line` gives the same answers for thousands of pending backups, one start
at a time, and is what a running engine and the simulation use.

Backups start in this order, as far as their places are free:

1. What is ready: its time has come, and its VM has no backup running.
2. Of priorities that keep their goals (see `policies.overload`): the earliest deadline, in steps of five minutes;
   within a step the highest priority. In an overload all lower priorities come after these, the highest first.
3. Among backups of one step and priority the policies take turns: the one whose last start is the longest ago.
4. Within a policy: earliest deadline, longest ready, key.

Each sixteenth start goes to what has been ready the longest, whatever its deadline and priority. So a backup that
may start at each of these turns has started after at most 16 times as many starts as were ready before it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from policies.decision import BackUp
from policies.facts import CONSISTENCY_ORDER, Vm, VmId
from policies.limits import REPOSITORY, Limits, Place, places_of, taken
from policies.overload import LATE, TYPICAL_RUN, Cell, Load, judge, step_at, step_of
from policies.units import span

_NEVER = datetime.max.replace(tzinfo=UTC)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)

OLDEST_EVERY = 16
"""One start in so many goes to what has been ready the longest: no priority starves another."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What order and pace remember of earlier starts: their number, the number of each policy's last one, and the
    time up to which the starts so far have used the pace up."""

    starts: int = 0
    served: Mapping[str, int] = field(default_factory=dict)
    paced: datetime = _LONG_AGO

    @property
    def for_the_oldest(self) -> bool:
        """Whether the next start is for what has been ready the longest."""
        return (self.starts + 1) % OLDEST_EVERY == 0

    def after(self, decision: BackUp, now: datetime, limits: Limits) -> Turns:
        """The same after one more start."""
        number = self.starts + 1
        return Turns(number, {**self.served, decision.policy: number}, paced_after(self.paced, now, limits))


def paced_after(paced: datetime, now: datetime, limits: Limits) -> datetime:
    """Up to when the pace is used up after a start."""
    return max(paced, now) + limits.between_starts


def pace_lets(paced: datetime, now: datetime, limits: Limits) -> datetime:
    """From when on the pace lets the next backup start; `now` when it does already."""
    ahead = paced - now - limits.burst
    # More than a minute ahead can only be a clock that was set back.
    return now + ahead if limits.starts_per_minute and timedelta() < ahead <= timedelta(minutes=1) else now


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending backup that does not start now, and why."""

    decision: BackUp
    reason: str


@dataclass(frozen=True, slots=True)
class Admission:
    """What starts now, in this order; what waits, in the order it would start; when to ask again for time's sake.

    `load` is what was ready before anything started, `turns` what the next call needs to know.
    """

    start: tuple[BackUp, ...]
    waiting: tuple[Waiting, ...]
    ask_again: datetime | None
    load: Load
    turns: Turns


def admit(
    pending: Iterable[BackUp],
    running: Mapping[VmId, str],
    vms: Mapping[VmId, Vm],
    limits: Limits,
    now: datetime,
    turns: Turns | None = None,
    *,
    typical: timedelta = TYPICAL_RUN,
    others: Mapping[str, int] | None = None,
) -> Admission:
    """Fill the free places with the most urgent backups that are ready. One VM is backed up once at a time.

    `running` has the policy of each running backup by its VM, `others` is how much other work uses each
    repository by its name, which leaves backups one place there.
    A VM that `vms` does not know is on no host and no datastore.
    """
    turns = turns or Turns()
    waits = {decision.key: decision for decision in pending}
    used = Counter(
        place for vm, policy in running.items() for place in places_of(vm, vms.get(vm), policy, limits)
    )  # fmt: skip
    if limits.per_repository is not None:
        for name, number in (others or {}).items():
            used[Place(REPOSITORY, name)] += min(number, limits.per_repository - 1)
    free = limits.running - len(running)
    started: list[BackUp] = []
    first: Load | None = None
    while True:
        ready = [decision for decision in waits.values() if decision.not_before <= now]
        load = judge(_cells(ready, now), limits.at_once, now, typical)
        first = first or load
        again = pace_lets(turns.paced, now, limits)
        startable = [
            decision
            for decision in ready
            if free > 0 and again <= now and _full(decision, used, vms, limits) is None
        ]  # fmt: skip
        if not startable:
            break
        order = longest_ready if turns.for_the_oldest else order_of(load.cut, turns.served, now)
        chosen = min(startable, key=order)
        del waits[chosen.key]
        started.append(chosen)
        free -= 1
        used.update(places_of(chosen.vm, vms.get(chosen.vm), chosen.policy, limits))
        turns = turns.after(chosen, now, limits)
    in_order = sorted(waits.values(), key=order_of(load.cut, turns.served, now))
    waiting = []
    for decision in in_order:
        full = _full(decision, used, vms, limits)
        said = taken(full, used[full]) if full is not None else ""
        only_vm = full is not None and full.kind == "vm"
        waiting.append(
            Waiting(decision, why_waits(decision, said, free if not only_vm else 1, again, limits, load, now))
        )
    later = [decision.not_before for decision in in_order if decision.not_before > now]
    if ready and free > 0 and again > now:
        later.append(again)
    return Admission(tuple(started), tuple(waiting), min(later, default=None), first, turns)


def _cells(ready: Iterable[BackUp], now: datetime) -> Mapping[Cell, int]:
    return Counter((decision.priority, current_step(step_of(decision.deadline), now)) for decision in ready)


def current_step(step: int, now: datetime) -> int:
    """The step in which a backup counts now."""
    return LATE if step <= step_at(now) else step


def cell_rank(priority: int, step: int, cut: int | None) -> tuple[int, int, int]:
    """The order of priorities and steps: by step down to the cut, by priority below it."""
    return (0, step, -priority) if cut is None or priority >= cut else (1, -priority, step)


def order_of(cut: int | None, served: Mapping[str, int], now: datetime) -> Callable[[BackUp], tuple[object, ...]]:
    """The order of starting, of what is ready before what is not; see the module."""

    def order(decision: BackUp) -> tuple[object, ...]:
        step = current_step(step_of(decision.deadline), now)
        return (
            decision.not_before > now,
            cell_rank(decision.priority, step, cut),
            served.get(decision.policy, 0),
            decision.policy,
            *urgency(decision),
        )

    return order


def urgency(decision: BackUp) -> tuple[datetime, datetime, str]:
    """The order among backups of one policy, priority and step: earliest deadline, longest ready, key."""
    return (decision.deadline or _NEVER, decision.not_before, decision.key)


def longest_ready(decision: BackUp) -> tuple[datetime, str]:
    """The order of each sixteenth start."""
    return (decision.not_before, decision.key)


def _full(decision: BackUp, used: Counter[Place], vms: Mapping[VmId, Vm], limits: Limits) -> Place | None:
    """The first place that the backup needs and that is not free."""
    wanted = places_of(decision.vm, vms.get(decision.vm), decision.policy, limits)
    return next((place for place in wanted if used[place] >= (limits.of(place) or 0)), None)


def why_waits(
    decision: BackUp, occupied: str, free: int, again: datetime, limits: Limits, load: Load, now: datetime
) -> str:
    """Why a backup does not start now. `occupied` tells which of its own places is taken, `free` how many are free in
    all, `again` from when on the pace lets another start; empty when nothing keeps it."""
    if decision.not_before > now:
        return f"starts in {span(decision.not_before - now)}"
    if free <= 0:
        return load.waits(decision.priority) or f"all {limits.running} places are taken"
    if occupied or again <= now:
        return occupied
    return f"starts in {span(again - now)}: at most {limits.starts_per_minute} start a minute"


@dataclass(frozen=True, slots=True)
class Coalesced:
    """The pending backups after one more decision, and which of them stands for it.

    `joined` is None when the decision is a run of its own.
    """

    pending: tuple[BackUp, ...]
    stands_for: BackUp
    joined: BackUp | None


def coalesce(pending: Sequence[BackUp], decision: BackUp) -> Coalesced:
    """Add a decision to the pending ones, of which none has started.

    One VM needs one run: a decision for a VM that has a pending one joins it. The joined run keeps its key, starts
    no later than either asks, takes the earlier deadline, the higher priority and the stricter consistency.
    Events that come while a trigger settles thereby lead to one run.
    """
    same = next((one for one in pending if one.key == decision.key), None)
    if same is not None:
        return Coalesced(tuple(pending), same, same)
    first = next((one for one in pending if one.vm == decision.vm), None)
    if first is None:
        return Coalesced((*pending, decision), decision, None)
    merged = merge(first, decision)
    return Coalesced(tuple(merged if one is first else one for one in pending), merged, first)


def merge(first: BackUp, second: BackUp) -> BackUp:
    """The one run that two decisions about a VM come to, of which the first was there before; see `coalesce`."""
    return replace(
        first,
        not_before=min(first.not_before, second.not_before),
        deadline=min((at for at in (first.deadline, second.deadline) if at is not None), default=None),
        priority=max(first.priority, second.priority),
        consistency=max(first.consistency, second.consistency, key=CONSISTENCY_ORDER.index),
        fallback=max(first.fallback, second.fallback, key=CONSISTENCY_ORDER.index),
    )


FIRST_RETRY = timedelta(minutes=1)
LONGEST_RETRY = timedelta(hours=1)
JITTER_SHARE = 0.25
"""Retries spread by up to a quarter of their wait, so that what failed together does not try again together."""


def retry_at(failed_at: datetime, attempt: int, key: str, seed: str) -> datetime:
    """When to try again after the attempt-th failure (from 1): a minute, doubled each time, at most an hour.

    The jitter is a function of seed, key and attempt: the same arguments give the same time.
    """
    doublings = min(max(attempt, 1) - 1, 16)
    wait = min(FIRST_RETRY * (1 << doublings), LONGEST_RETRY)
    digest = hashlib.blake2b(f"{seed}\0{key}\0{attempt}".encode(), digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    return failed_at + wait * (1 + JITTER_SHARE * fraction)
