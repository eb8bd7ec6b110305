"""Which pending backups start now, in which order, and when a failed one is tried again. Pure: values in and out.

The engine and the simulation both ask here, so that what is simulated is what happens.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from policies.decision import BackUp
from policies.facts import CONSISTENCY_ORDER, Vm, VmId
from policies.units import span

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many backups run at once: in all, with their VM on one host, with a disk on one datastore.

    Each running backup holds a snapshot open, and its removal stuns the VM and loads the datastore.
    """

    running: int = 8
    per_host: int = 4
    per_datastore: int = 4


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending backup that does not start now, and why."""

    decision: BackUp
    reason: str


@dataclass(frozen=True, slots=True)
class Admission:
    """What starts now, in this order; what waits, in the order it would start; when to ask again for time's sake."""

    start: tuple[BackUp, ...]
    waiting: tuple[Waiting, ...]
    ask_again: datetime | None


def urgency(decision: BackUp) -> tuple[datetime, int, datetime, str]:
    """The order of starting: earliest deadline, then highest priority, then longest ready, then key."""
    return (decision.deadline or _NEVER, -decision.priority, decision.not_before, decision.key)


def admit(
    pending: Iterable[BackUp], running: Iterable[VmId], vms: Mapping[VmId, Vm], limits: Limits, now: datetime
) -> Admission:
    """Fill the free places with the most urgent backups that are ready. One VM is backed up once at a time.

    A VM that `vms` does not know takes a place of `limits.running` only.
    """
    busy = set(running)
    hosts: Counter[str] = Counter()
    datastores: Counter[str] = Counter()
    for vm in busy:
        _take(vms.get(vm), hosts, datastores)
    places = limits.running - len(busy)
    start: list[BackUp] = []
    waiting: list[Waiting] = []
    for decision in sorted(pending, key=urgency):
        reason = _hindrance(decision, busy, places, vms.get(decision.vm), hosts, datastores, limits, now)
        if reason:
            waiting.append(Waiting(decision, reason))
            continue
        start.append(decision)
        places -= 1
        busy.add(decision.vm)
        _take(vms.get(decision.vm), hosts, datastores)
    later = [one.decision.not_before for one in waiting if one.decision.not_before > now]
    return Admission(tuple(start), tuple(waiting), min(later, default=None))


def _take(vm: Vm | None, hosts: Counter[str], datastores: Counter[str]) -> None:
    if vm is not None:
        hosts[vm.host] += 1
        datastores.update(vm.datastores)


def _hindrance(
    decision: BackUp,
    busy: set[VmId],
    places: int,
    vm: Vm | None,
    hosts: Counter[str],
    datastores: Counter[str],
    limits: Limits,
    now: datetime,
) -> str:
    if decision.not_before > now:
        return f"starts in {span(decision.not_before - now)}"
    if decision.vm in busy:
        return "a backup of this VM is running"
    if places <= 0:
        return f"all {limits.running} places are taken"
    if vm is None:
        return ""
    if vm.host and hosts[vm.host] >= limits.per_host:
        return f"{hosts[vm.host]} backups run on host {vm.host}"
    full = next((name for name in vm.datastores if datastores[name] >= limits.per_datastore), None)
    return f"{datastores[full]} backups run on datastore {full}" if full else ""


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
    earlier = min(first.not_before, decision.not_before)
    merged = replace(
        first,
        not_before=earlier,
        deadline=min((at for at in (first.deadline, decision.deadline) if at is not None), default=None),
        priority=max(first.priority, decision.priority),
        consistency=max(first.consistency, decision.consistency, key=CONSISTENCY_ORDER.index),
        fallback=max(first.fallback, decision.fallback, key=CONSISTENCY_ORDER.index),
    )
    return Coalesced(tuple(merged if one is first else one for one in pending), merged, first)


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
