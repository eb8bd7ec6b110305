"""A host that failed unseen is told by when its VMs were started, and by how they stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.starts import kept_with_point, unseen_stop
from policies.facts import Address, Consistency, PointId, PowerState, Vm, VmId
from storage.repository import PointDetail, PointHead

TAKEN = datetime(2026, 11, 20, 12, tzinfo=UTC)
BEFORE = Vm(VmId("v"), Address("vc", "vm-1"), "db", power=PowerState.ON, boot_time=TAKEN - timedelta(days=9))
NOT_SEEN = "nothing told that it had been switched off before"


def at(minutes: float) -> datetime:
    return TAKEN + timedelta(minutes=minutes)


def point(vm: Vm = BEFORE) -> PointDetail:
    head = PointHead(VmId("v"), "db", TAKEN, {}, Consistency.CRASH, attributes=kept_with_point(vm))
    return PointDetail(PointId("p"), head, TAKEN, (), (), (), None, None, None, "", False)


def running(minutes: float) -> Vm:
    return replace(BEFORE, boot_time=at(minutes))


HALTED = replace(BEFORE, power=PowerState.OFF, boot_time=None, clean_power_off=False)
STOPPED = replace(HALTED, clean_power_off=True)
UNKNOWN = replace(BEFORE, boot_time=None)
AT_REST = point(STOPPED)


@pytest.mark.parametrize(
    ("now", "latest", "told", "says"),
    [
        (BEFORE, point(), [], ""),
        (running(60), point(), [], NOT_SEEN),
        (running(60), None, [], ""),
        (running(60), point(), [(at(55), False), (at(60), True)], ""),
        (running(60), point(), [(at(60), True)], NOT_SEEN),
        (running(90), point(), [(at(55), False), (at(60), True)], NOT_SEEN),
        (running(90), point(), [(at(55), False), (at(60), True), (at(80), False)], ""),
        (running(60), AT_REST, [(at(60), True)], ""),
        (running(90), AT_REST, [(at(60), True)], NOT_SEEN),
        (running(60), point(UNKNOWN), [], NOT_SEEN),
        (running(-60), point(UNKNOWN), [], ""),
        (UNKNOWN, point(), [], ""),
        (replace(BEFORE, boot_time=TAKEN - timedelta(days=9, seconds=-20)), point(), [], ""),
        (replace(running(60), power=PowerState.SUSPENDED), point(), [], NOT_SEEN),
        (HALTED, point(), [], "not switched off in an orderly way"),
        (HALTED, point(HALTED), [], ""),
        (HALTED, AT_REST, [], "not switched off in an orderly way"),
        (HALTED, point(HALTED), [(at(60), True)], "not switched off in an orderly way"),
        (STOPPED, point(), [], ""),
    ],
    ids=[
        "runs on", "started", "no restore point", "switched off and on", "switched on, never off",
        "started once more", "switched off once more", "started from rest", "started from rest once more",
        "start not known before", "start not known before, and older", "start not known now", "clocks apart",
        "started and suspended", "lost its power", "was off so before", "was off, but not so",
        "ran and lost its power", "switched off",
    ],
)  # fmt: skip
def test_a_start_without_a_stop_before_it_is_a_doubt(
    now: Vm, latest: PointDetail | None, told: list[tuple[datetime, bool]], says: str
) -> None:
    found = unseen_stop(now, latest, told)
    assert bool(found) == bool(says)
    assert says in found
