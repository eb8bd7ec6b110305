"""What the inventory shows and no event told. Each such difference becomes an event, once, after a grace.

The grace runs from when the difference was noticed and until the event source has said since that it has nothing
more to tell, so that an event on its way is not made twice. Pure: time is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from engine.world import World, look_of
from policies.facts import Event, EventType, PowerState, VmId

_POWER = {
    PowerState.ON: EventType.POWERED_ON,
    PowerState.OFF: EventType.POWERED_OFF,
    PowerState.SUSPENDED: EventType.SUSPENDED,
}


@dataclass(slots=True)
class Suspicions:
    """Since when each VM differs from what events have explained, and when each event source last had no more."""

    noticed: dict[VmId, datetime] = field(default_factory=dict)
    quiet: dict[str, datetime] = field(default_factory=dict)

    def look(self, world: World, vms: Iterable[VmId], now: datetime) -> None:
        """Compare these VMs."""
        for vm in vms:
            if world.unexplained(vm):
                self.noticed.setdefault(vm, now)
            else:
                self.noticed.pop(vm, None)

    def caught_up(self, vcenter: str, now: datetime) -> None:
        """This vCenter had no more events to tell at this time."""
        self.quiet[vcenter] = now


def missed_events(world: World, suspicions: Suspicions, now: datetime, grace: timedelta) -> list[Event]:
    """The events that should have come and did not. Their VMs are no longer suspected."""
    found: list[Event] = []
    for vm, since in list(suspicions.noticed.items()):
        parts = world.unexplained(vm)
        row = world.rows.get(vm)
        if not parts or row is None or row.traits.address is None:
            del suspicions.noticed[vm]
            continue
        quiet = suspicions.quiet.get(row.traits.address.vcenter)
        if quiet is None or now - since < grace or quiet < since + grace:
            continue
        del suspicions.noticed[vm]
        found.extend(_events(world, vm, parts, now))
    return found


def _retagged(before: list[str], after: list[str]) -> str:
    """Such as "added backup=gold, removed backup=none"."""
    changes = (
        ("added", [tag for tag in after if tag not in before]),
        ("removed", [tag for tag in before if tag not in after]),
    )
    return ", ".join(f"{verb} {', '.join(tags)}" for verb, tags in changes if tags)


def _events(world: World, vm: VmId, parts: list[str], now: datetime) -> list[Event]:
    row = world.rows[vm]
    assert row.traits.address is not None
    seen = world.vms.get(vm)
    before = row.accounted
    number = int(before.get("missed", "0"))

    def event(kind: EventType, tags: str = "", **more: str) -> Event:
        nonlocal number
        number += 1
        detail = {"found_by": "reconcile"}
        if tags:
            detail["tags"] = tags
        if kind is EventType.RECONFIGURED:
            detail["disks"] = "the inventory shows other disks than before"
        return Event(
            key=f"reconcile:{vm}:{number}:{kind.value}",
            type=kind,
            at=now,
            source="reconcile",
            vm=vm,
            vm_name=row.traits.name,
            address=row.traits.address,
            detail=detail,
            **more,
        )

    made: list[Event] = []
    if parts == ["gone"] or seen is None:
        made.append(event(EventType.REMOVED))
    elif parts == ["new"]:
        made.append(event(EventType.CREATED))
    else:
        look = look_of(seen)
        if "datastores" in parts:
            made.append(event(EventType.RELOCATED, from_host=before["host"], to_host=look["host"]))
        elif "host" in parts:
            made.append(event(EventType.MIGRATED, from_host=before["host"], to_host=look["host"]))
        if "disks" in parts:
            made.append(event(EventType.RECONFIGURED))
        if "name" in parts:
            made.append(event(EventType.RENAMED))
        if "power" in parts:
            made.append(event(_POWER[seen.power]))
        if "tags" in parts:
            made.append(event(EventType.RETAGGED, tags=_retagged(json.loads(before["tags"]), sorted(seen.tags))))
    world.count_missed(vm, number)
    return made
