"""Which two VM ids may become one, and what the world knows afterwards; taken back when it could not be written."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.failures import BadInput, Declined, NotYet
from engine.histories import check, join, who_is_meant
from engine.jobs import Job, JobId, JobKind, JobState
from engine.records import RunRow
from engine.world import MISSED, World
from policies.facts import Address, Disk, PointId, RestorePoint, Vm, VmId

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD, NEW = VmId("vm-old"), VmId("vm-new")


def seen(moref: str, number: int, name: str = "web") -> Vm:
    disk = Disk(2000, "Hard disk 1", 1 << 20, f"d-{number}", "ds", "f", "persistent")
    return Vm(VmId("provisional"), Address("vc", moref), name, f"i-{number}", f"b-{number}", disks=(disk,))


def point(vm: VmId, hours: int, *, expiring: bool = False) -> RestorePoint:
    taken = NOW - timedelta(hours=hours)
    return RestorePoint(PointId(f"p{hours}"), vm, "web", taken, expiring_since=NOW if expiring else None)


def job(state: JobState = JobState.PENDING, vm: VmId = NEW) -> Job:
    return Job(JobId("j1"), "k1", JobKind.BACKUP, vm, "gold", "rpo", "due", NOW, NOW, state=state)


def world_of_two() -> World:
    """`web` left as OLD and came back as NEW."""
    ids = iter([OLD, NEW])
    world = World(mint=lambda: next(ids), vcenters=1)
    world.complete["vc"] = NOW
    world.sight(seen("vm-1", 1), NOW)
    world.leave(Address("vc", "vm-1"), NOW)
    world.count_missed(OLD, 7)
    world.sight(seen("vm-2", 2), NOW + timedelta(hours=1))
    world.account_all(NEW)
    world.set_points(OLD, [point(OLD, 30, expiring=True), point(OLD, 20)])
    world.set_points(NEW, [point(NEW, 1)])
    world.set_run(RunRow(NEW, last_failure="no way to the disk", consecutive_failures=2))
    world.fired[("gold", "trigger[0]", NEW)] = NOW
    world.fired[("gold", "trigger[0]", OLD)] = NOW - timedelta(hours=2)
    world.alerts[NEW] = "may be a copy"
    return world


def test_the_vm_that_stands_there_goes_on_under_the_older_history() -> None:
    world = world_of_two()
    world.set_job(job())
    check(world, OLD, NEW)
    done = join(world, OLD, NEW, NOW)
    assert list(world.vms) == [OLD] and world.vms[OLD].address == Address("vc", "vm-2")
    assert [(p.id, p.vm, p.expiring_since) for p in world.points[OLD]] == [
        (id, OLD, None) for id in ("p30", "p20", "p1")
    ]
    history = world.history[OLD]
    assert history.last_success == point(NEW, 1).taken_at and history.pending
    assert (history.consecutive_failures, history.last_failure) == (2, "no way to the disk")
    assert world.fired == {("gold", "trigger[0]", OLD): NOW} == done.fired
    assert not world.alerts and NEW not in world.points and NEW not in world.rows
    assert done.row.left_at is None and done.row.first_seen == point(OLD, 30).taken_at
    assert [one.vm for one in done.jobs] == [OLD]


def test_afterwards_the_inventory_shows_the_older_id_and_no_event_is_missing() -> None:
    world = world_of_two()
    join(world, OLD, NEW, NOW)
    sighting = world.sight(seen("vm-2", 2), NOW)
    assert (sighting.vm.id, sighting.new, sighting.alert) == (OLD, False, "")
    assert world.book.at(Address("vc", "vm-1")) is None
    assert world.unexplained(OLD) == []
    # Registered again with the uuids of the one that came back: found by them, under the older id.
    world.leave(Address("vc", "vm-2"), NOW)
    assert world.sight(seen("vm-3", 2), NOW).vm.id == OLD


def test_numbers_of_events_found_by_comparing_are_never_given_twice() -> None:
    world = world_of_two()
    assert join(world, OLD, NEW, NOW).row.accounted[MISSED] == "7"


def test_what_was_given_up_when_the_vm_left_is_asked_for_again() -> None:
    world = world_of_two()
    world.set_job(replace(job(), key="gold:rpo:vm-new:20260301T000000Z"))
    world.job_keys = {f"gold:rpo:{vm}:20260301T000000Z": JobId(id) for vm, id in ((OLD, "j0"), (NEW, "j1"))}
    join(world, OLD, NEW, NOW)
    assert list(world.job_keys.values()) == [JobId("j1")]


def test_a_join_that_was_not_written_is_taken_back_whole() -> None:
    world = world_of_two()
    world.set_job(job())
    world.job_keys["gold:rpo:vm-old:20260301T000000Z"] = JobId("j0")

    def tables() -> dict[str, Any]:
        names = ("vms", "rows", "runs", "history", "points", "fired", "jobs", "job_keys", "alerts")
        return {name: deepcopy(getattr(world, name)) for name in names}

    before = tables()
    join(world, OLD, NEW, NOW).undo()
    assert tables() == before
    assert world.book.at(Address("vc", "vm-2")) == NEW and world.book.at(Address("vc", "vm-1")) == OLD


def _both_stand(world: World) -> None:
    world.sight(seen("vm-1", 1), NOW)


def _only_the_old_one_stands(world: World) -> None:
    _both_stand(world)
    world.leave(Address("vc", "vm-2"), NOW)


def _none_stands(world: World) -> None:
    world.leave(Address("vc", "vm-2"), NOW)


def _it_is_being_backed_up(world: World) -> None:
    world.set_job(job(JobState.RUNNING))


def _nobody_knows_the_inventory(world: World) -> None:
    world.complete.clear()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_both_stand, Declined, "both stand in the inventory, so they are two VMs"),
        (_only_the_old_one_stands, Declined, "backstay vm relink vm-new vm-old"),
        (_none_stands, Declined, "nothing would go on"),
        (_it_is_being_backed_up, NotYet, "under way"),
        (_nobody_knows_the_inventory, NotYet, "still being read"),
    ],
)
def test_what_must_not_be_joined_is_refused_with_the_reason(
    change: Callable[[World], None], error: type[BadInput], said: str
) -> None:
    world = world_of_two()
    change(world)
    with pytest.raises(error, match=said):
        check(world, OLD, NEW)


def test_a_vm_is_not_joined_with_itself_nor_with_one_that_nobody_knows() -> None:
    world = world_of_two()
    with pytest.raises(Declined, match="one VM already"):
        check(world, NEW, NEW)
    for pair in (("nobody", NEW), (OLD, "nobody")):
        with pytest.raises(BadInput, match="no VM is known as nobody") as caught:
            who_is_meant(world, *pair)
        assert caught.value.exit_code == 2


def test_a_name_that_both_carry_is_the_gone_one_first_and_the_present_one_last() -> None:
    world = world_of_two()
    assert who_is_meant(world, "web", "web") == (OLD, NEW)
    assert who_is_meant(world, OLD, NEW) == (OLD, NEW)


def test_a_name_that_several_gone_vms_carry_asks_for_an_id() -> None:
    world = world_of_two()
    world.rows[VmId("vm-older")] = replace(world.rows[OLD], id=VmId("vm-older"))
    with pytest.raises(BadInput, match=r"2 VMs are called web: vm-old \(.*; vm-older \(web, not in the inventory, no"):
        who_is_meant(world, "web", "web")
