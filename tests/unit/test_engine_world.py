"""What the engine believes about VMs that come, go and take each other's places."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.jobs import JobId
from engine.world import World
from policies.facts import Address, PointId, RestorePoint, Vm, VmId

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HERE = Address("vc", "vm-1")
WEB = Vm(VmId("provisional"), HERE, "web", instance_uuid="i-1", bios_uuid="b-1")
DB = Vm(VmId("provisional"), HERE, "db", instance_uuid="i-2", bios_uuid="b-2")


def world() -> World:
    numbers = itertools.count(1)
    return World(mint=lambda: VmId(f"id-{next(numbers)}"))


def test_a_vm_whose_address_was_given_to_another_has_left() -> None:
    known = world()
    web = known.sight(WEB, NOW).vm.id
    sighting = known.sight(DB, NOW)
    assert sighting.vm.id != web
    assert set(known.vms) == {sighting.vm.id}
    assert sighting.displaced is not None
    assert (sighting.displaced.id, sighting.displaced.left_at) == (web, NOW)
    assert known.unexplained(web) == ["gone"]


def test_a_vm_that_was_displaced_is_known_again_where_it_appears() -> None:
    known = world()
    web = known.sight(WEB, NOW).vm.id
    db = known.sight(DB, NOW).vm.id
    again = known.sight(replace(WEB, address=Address("vc", "vm-9")), NOW)
    assert again.vm.id == web
    assert again.row is not None
    assert again.row.left_at is None
    assert set(known.vms) == {web, db}
    assert known.book.at(HERE) == db


def test_a_vm_that_moves_displaces_nobody() -> None:
    known = world()
    known.sight(WEB, NOW)
    moved = known.sight(replace(WEB, address=Address("other", "vm-7")), NOW)
    # As long as it still stands at the old address it is taken for a copy.
    assert moved.new
    assert moved.displaced is None


def test_keys_that_cannot_come_again_do_not_stay_in_memory() -> None:
    known = world()
    known.job_keys = {"old": JobId("job20260101"), "failed": JobId("job20260102"), "new": JobId("job20261122")}
    known.keep_keys({"failed": JobId("job20260102")}, JobId("job20261115"))
    assert set(known.job_keys) == {"failed", "new"}


def test_a_vm_that_left_long_ago_is_forgotten_unless_something_of_it_is_kept() -> None:
    known = world()
    long_ago = NOW - timedelta(days=60)
    web = known.sight(WEB, long_ago).vm.id
    db = known.sight(replace(DB, address=Address("vc", "vm-2")), long_ago).vm.id
    known.sight(replace(WEB, address=Address("vc", "vm-3"), instance_uuid="i-3", bios_uuid="b-3"), long_ago)
    known.set_points(db, [RestorePoint(PointId("p"), db, "db", long_ago)])
    known.leave(HERE, long_ago)
    known.leave(Address("vc", "vm-2"), long_ago)
    assert known.long_gone(NOW - timedelta(days=90)) == []
    assert known.long_gone(NOW - timedelta(days=30)) == [web]
    known.forget([web])
    assert web not in known.rows
    assert known.book.at(HERE) is None
    assert known.sight(WEB, NOW).new
