"""What no event told becomes an event once: after a grace, and only when the event source had nothing more to tell."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.reconcile import Suspicions, missed_events
from engine.world import World
from policies.facts import Address, Disk, EventType, PowerState, Vm, VmId

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GRACE = timedelta(seconds=30)
HERE = Address("vc", "vm-1")
DISK = Disk(2000, "Hard disk 1", 1 << 30, "6000C29-1", "ds-1", "[ds-1] web/web.vmdk", "persistent")
SEEN = Vm(
    VmId("provisional"), HERE, "web", instance_uuid="i-1", host="esx-1", datastores=("ds-1",), power=PowerState.ON,
    disks=(DISK,),
)  # fmt: skip
WEB = VmId("web-id")


def world(*, accounted: bool = True) -> World:
    known = World(mint=lambda: WEB)
    known.sight(SEEN, NOW)
    if accounted:
        known.account_all(WEB)
    return known


def found(known: World, *, told_at: timedelta = GRACE, after: timedelta = GRACE) -> list[tuple[EventType, str]]:
    """What is made of a difference noticed now, asked later; the source says `told_at` that it has no more."""
    suspicions = Suspicions()
    suspicions.look(known, [WEB], NOW)
    suspicions.caught_up("vc", NOW + told_at)
    return [(event.type, event.key) for event in missed_events(known, suspicions, NOW + after, GRACE)]


def test_a_vm_as_events_explained_it_raises_no_suspicion() -> None:
    assert found(world()) == []


def test_a_difference_waits_for_the_grace_and_for_a_quiet_source() -> None:
    known = world()
    known.sight(replace(SEEN, power=PowerState.OFF), NOW)
    assert found(known, after=GRACE / 2) == []
    assert found(known, told_at=timedelta(seconds=1)) == []
    assert found(known) == [(EventType.POWERED_OFF, "reconcile:web-id:1:vm.powered_off")]


def test_each_difference_has_its_event() -> None:
    known = world()
    grown = replace(DISK, capacity_bytes=2 << 30)
    known.sight(replace(SEEN, name="web2", host="esx-2", disks=(grown,), power=PowerState.SUSPENDED), NOW)
    assert [kind for kind, _ in found(known)] == [
        EventType.MIGRATED,
        EventType.RECONFIGURED,
        EventType.RENAMED,
        EventType.SUSPENDED,
    ]
    moved = world()
    moved.sight(replace(SEEN, host="esx-2", datastores=("ds-2",)), NOW)
    assert [kind for kind, _ in found(moved)] == [EventType.RELOCATED]


def test_other_tags_have_an_event_that_names_them() -> None:
    known = World(mint=lambda: WEB)
    known.sight(replace(SEEN, tags=frozenset({"backup=none", "env=prod"})), NOW)
    known.account_all(WEB)
    known.sight(replace(SEEN, tags=frozenset({"backup=gold", "env=prod"})), NOW)
    suspicions = Suspicions()
    suspicions.look(known, [WEB], NOW)
    suspicions.caught_up("vc", NOW + GRACE)
    (event,) = missed_events(known, suspicions, NOW + GRACE, GRACE)
    assert (event.type, event.detail["tags"]) == (EventType.RETAGGED, "added backup=gold, removed backup=none")
    known.account(WEB, ["tags"])
    assert found(known) == []


def test_what_an_older_engine_did_not_look_at_is_no_difference() -> None:
    known = world()
    row = known.rows[WEB]
    known.rows[WEB] = replace(row, accounted={k: v for k, v in row.accounted.items() if k != "tags"})
    known.sight(replace(SEEN, tags=frozenset({"env=prod"})), NOW)
    assert found(known) == []
    known.sight(replace(SEEN, tags=frozenset()), NOW)
    assert [kind for kind, _ in found(known)] == [EventType.RETAGGED]


def test_a_vm_that_came_or_left_untold_has_its_event() -> None:
    assert [kind for kind, _ in found(world(accounted=False))] == [EventType.CREATED]
    known = world()
    known.leave(HERE, NOW)
    assert [kind for kind, _ in found(known)] == [EventType.REMOVED]
    known.account_gone(WEB)
    assert found(known) == []


def test_the_same_difference_at_another_time_is_another_event() -> None:
    known = world()
    keys = []
    for power in (PowerState.OFF, PowerState.ON, PowerState.OFF):
        known.sight(replace(SEEN, power=power), NOW)
        keys += [key for _, key in found(known)]
        known.account(WEB, ["power"])
    assert len(set(keys)) == len(keys) == 3


def test_an_event_in_time_takes_the_suspicion_away() -> None:
    known = world()
    suspicions = Suspicions()
    known.sight(replace(SEEN, power=PowerState.OFF), NOW)
    suspicions.look(known, [WEB], NOW)
    known.account(WEB, ["power"])
    suspicions.caught_up("vc", NOW + GRACE)
    assert missed_events(known, suspicions, NOW + GRACE, GRACE) == []
    assert suspicions.noticed == {}
