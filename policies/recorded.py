"""Recorded events: as lines of JSON and back, and the fleet as it was before they happened. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from policies.errors import PolicyError, Problem
from policies.facts import (
    CONSISTENCY_ORDER,
    Address,
    Event,
    EventType,
    Facts,
    RestorePoint,
    Vm,
    VmHistory,
    VmId,
    instant_text,
)
from policies.shapes import YEARS

_FIRST_SIGHT = frozenset({EventType.CREATED, EventType.CLONED, EventType.REGISTERED})
_QUALITY = {level: number for number, level in enumerate(CONSISTENCY_ORDER)}
_SWEEPS = frozenset({EventType.CLOCK, EventType.RECONCILED})


class Recorded(NamedTuple):
    """An event and when the engine handled it."""

    at: datetime
    event: Event


def recorded_as_json(recorded: Recorded) -> dict[str, Any]:
    """One line of a journal."""
    event = recorded.event
    told: dict[str, Any] = {
        "handled_at": instant_text(recorded.at),
        "key": event.key,
        "type": event.type.value,
        "at": instant_text(event.at),
        "source": event.source,
        "vm": event.vm,
        "vm_name": event.vm_name,
        "vcenter": event.address.vcenter if event.address else "",
        "moref": event.address.moref if event.address else "",
        "cause": event.cause,
        "from_host": event.from_host,
        "to_host": event.to_host,
        "user": event.user,
        "detail": dict(event.detail),
    }
    return {name: value for name, value in told.items() if value or name == "vm"}


def recorded_from_json(lines: Iterable[str], name: str) -> tuple[Recorded, ...]:
    """The events of a journal, one JSON object a line, in the order in which they were handled; PolicyError."""
    found: list[Recorded] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(recorded_event(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            what = f"is no recorded event ({why})"
            raise PolicyError([Problem(name, number, 1, what, "write what backstay policy journal prints")]) from None
    return tuple(sorted(found, key=lambda one: one.at))


def recorded_event(told: Mapping[str, Any]) -> Recorded:
    """From the values of `recorded_as_json`."""
    at = _instant(told["at"])
    address = Address(told["vcenter"], told["moref"]) if told.get("vcenter") and told.get("moref") else None
    event = Event(
        key=str(told["key"]),
        type=EventType(told["type"]),
        at=at,
        source=str(told.get("source", "")),
        vm=VmId(told["vm"]) if told.get("vm") else None,
        vm_name=str(told.get("vm_name", "")),
        address=address,
        cause=str(told.get("cause", "")),
        from_host=str(told.get("from_host", "")),
        to_host=str(told.get("to_host", "")),
        user=str(told.get("user", "")),
        detail={str(key): str(value) for key, value in told.get("detail", {}).items()},
    )
    return Recorded(_instant(told["handled_at"]) if "handled_at" in told else at, event)


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    if not YEARS[0] <= at.year < YEARS[1]:
        raise ValueError(f"{text} is not of the years {YEARS[0]} to {YEARS[1] - 1}")
    return at.astimezone(UTC)


def rewound(facts: Facts, events: Sequence[Recorded], start: datetime) -> tuple[Facts, dict[VmId, Vm]]:
    """The facts as they were at `start`, before these events, as far as the events tell; and the VMs that came later.

    A host, a name and datastores are those that the first event which tells of them left behind. Restore points are
    those of today that are older: what has expired since is not known any more.
    """
    vms = dict(facts.vms)
    arriving: dict[VmId, Vm] = {}
    told: set[tuple[VmId, str]] = set()
    for event in (one.event for one in events if one.event.vm is not None and one.event.type not in _SWEEPS):
        assert event.vm is not None
        vm = vms.get(event.vm)
        if vm is None:
            continue
        if event.type in _FIRST_SIGHT and (event.vm, "seen") not in told:
            arriving[event.vm] = vm
        told.add((event.vm, "seen"))
        before: dict[str, Any] = {}
        if event.from_host:
            before["host"] = event.from_host
        if event.type is EventType.RENAMED and event.detail.get("old_name"):
            before["name"] = event.detail["old_name"]
        left, reached = event.detail.get("from_datastore"), event.detail.get("to_datastore")
        if left and reached and left != reached:
            before["datastores"] = tuple(dict.fromkeys(left if name == reached else name for name in vm.datastores))
        fresh = {name: value for name, value in before.items() if (event.vm, name) not in told}
        told |= {(event.vm, name) for name in before}
        if fresh:
            vms[event.vm] = replace(vm, **fresh)
    arriving = {vm: vms.pop(vm) for vm in arriving}
    points = {
        vm: kept
        for vm, several in facts.points.items()
        if (kept := tuple(replace(one, expiring_since=None) for one in several if one.taken_at < start))
    }
    history = {vm: _remembered(points.get(vm, ())) for vm in vms}
    fired = {key: at for key, at in facts.fired.items() if at < start}
    return Facts(start, vms, history, points, fired), arriving


def _remembered(points: Sequence[RestorePoint]) -> VmHistory:
    newest = max((one.taken_at for one in points if one.complete), default=None)
    return VmHistory(last_success=newest, last_attempt=newest)


def telling(points: Iterable[RestorePoint], now: datetime) -> tuple[RestorePoint, ...]:
    """Those that a decision looks at: the newest of each consistency that no newer one equals; one at least.

    What a wrong clock dated into the future is looked at when that time has come.
    """
    known = sorted(points, key=lambda point: point.taken_at, reverse=True)
    found: list[RestorePoint] = []
    ahead = [point for point in known if point.taken_at > now]
    for point in known[len(ahead) :]:
        better = not found or _QUALITY[point.consistency] > _QUALITY[found[-1].consistency]
        if better and point.complete and not point.damaged:
            found.append(point)
    return tuple([*ahead, *found] or known[:1])
