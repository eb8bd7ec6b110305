"""How long a guest stood still is read out of the VM's own log, and a log that cannot be read costs a run nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.hypervisor import Stuns
from connectors.vsphere import stun
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.stun import StunClock
from policies.facts import Address, Consistency
from tests.lab.connect import connected
from tests.lab.test_session_cuts import Backups, backups_of
from tests.lab.vcenter import MIB, Lab, Machine, start_lab

GET = "GET /folder"
CREATION, REMOVAL = Stuns((0.188,)), Stuns((0.042,))
LINE = b"2026-11-23T12:00:00.000Z| vmx| I005: nothing that matters here\n"


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    off = Machine(name="off", content=False, disks=(MIB,), power="off")
    with start_lab(
        tmp_path_factory.mktemp("stuns"), vms=2, disks_per_vm=1, disk_bytes=MIB, content=False, tracking=True,
        extra=[off], settings={"stun_ms": 188, "removal_stun_ms": 42},
    ) as lab:  # fmt: skip
        yield lab


@pytest.fixture
def lab(houses: Lab) -> Iterator[Lab]:
    yield houses
    houses.heal()
    houses.settings(stun_ms=188, removal_stun_ms=42)
    houses.surroundings(user=houses.user, denied=[])


@pytest.fixture
async def vcenter(lab: Lab) -> AsyncIterator[VCenter]:
    async with connected(lab) as each:
        yield each


@pytest.fixture
async def backups(lab: Lab, tmp_path: Path) -> AsyncIterator[Backups]:
    async with backups_of(lab, tmp_path) as each:
        yield each


async def clock_of(vcenter: VCenter, lab: Lab, name: str = "web-01") -> StunClock:
    return vcenter.stun_clock(await vcenter.vm(Address(vcenter.vcenter, lab.moref(name))))


async def begun(vcenter: VCenter, lab: Lab) -> StunClock:
    """A clock at which somebody has looked once."""
    clock = await clock_of(vcenter, lab)
    assert await clock.look() is None
    return clock


def write(lab: Lab, data: bytes) -> None:
    with lab.log_of("web-01").open("ab") as log:
        log.write(data)


async def by_hand(lab: Lab) -> str:
    return await asyncio.to_thread(lab.snapshot, "web-01")


# What is told


async def test_making_a_snapshot_and_removing_it_each_tell_their_own_stun(lab: Lab, vcenter: VCenter) -> None:
    clock = await clock_of(vcenter, lab)
    vm = await vcenter.vm(Address(vcenter.vcenter, lab.moref("web-01")))
    assert await clock.look() is None
    crash = Consistency.CRASH
    async with vcenter.snapshot(vm, run="run-1", want=crash, fallback=crash, track=True):
        assert await clock.look() == CREATION
        assert await clock.look() == Stuns()
    assert await clock.look() == REMOVAL
    assert await clock.look() == Stuns()


async def test_a_restore_point_keeps_the_stuns_of_its_snapshot_and_none_of_a_move_between(
    lab: Lab, backups: Backups
) -> None:
    vm = await backups.vcenter.vm(Address(backups.vcenter.vcenter, lab.moref("web-01")))

    def move() -> None:
        lab.drs_move("web-01")

    done = await replace(backups, was_read=move).next()
    assert done.moved
    assert done.moved.startswith(vm.host)
    head = backups.repository.detail(done.point).head
    creation, removal = (json.loads(head.attributes[name]) for name in ("stun_creation", "stun_removal"))
    assert creation == {"count": 1, "longest_seconds": 0.188, "total_seconds": 0.188}
    assert removal == {"count": 1, "longest_seconds": 0.042, "total_seconds": 0.042}
    assert done.stuns == {"creation": creation, "removal": removal}
    assert done.remarks == ()


async def test_a_guest_that_stood_still_for_long_is_remarked_on(lab: Lab, backups: Backups) -> None:
    lab.settings(stun_ms=7300, removal_stun_ms=61_000)
    done = await backups.next()
    assert done.remarks == (
        "the guest stood still for 7.3 s when its snapshot was made, which is long for clusters",
        "the guest stood still for 61.0 s when its snapshot was removed, which is long for clusters",
    )
    assert not done.partial


async def test_a_new_log_is_read_from_its_start_whether_it_is_shorter_or_longer_than_the_one_before(
    lab: Lab, vcenter: VCenter
) -> None:
    for more in (b"", LINE * 2000):
        clock = await begun(vcenter, lab)
        await asyncio.to_thread(lab.drs_move, "web-01")
        write(lab, more)
        assert await clock.look() == CREATION
        snapshot = await by_hand(lab)
        assert await clock.look() == CREATION
        await asyncio.to_thread(lab.remove_snapshot, snapshot)
        assert await clock.look() == REMOVAL


async def test_the_log_is_found_where_a_move_of_storage_has_taken_it(lab: Lab, vcenter: VCenter) -> None:
    clock = await begun(vcenter, lab)
    there = lab.vm("web-01").datastore
    await asyncio.to_thread(lab.relocate, "web-01", "bulk-1" if there == "fast-1" else "fast-1")
    assert await clock.look() == CREATION
    snapshot = await by_hand(lab)
    assert await clock.look() == CREATION
    await asyncio.to_thread(lab.remove_snapshot, snapshot)


async def test_a_line_that_is_not_whole_yet_waits_for_its_end(lab: Lab, vcenter: VCenter) -> None:
    clock = await begun(vcenter, lab)
    write(lab, LINE + b"2026-11-23T12:00:00.000Z| vcpu-0| I005: Checkpoint_Unstun: vm stopped for 12")
    assert await clock.look() == Stuns()
    write(lab, b"34567 us\n")
    assert await clock.look() == Stuns((1.234567,))


async def test_of_a_log_that_grew_by_much_the_end_is_read(
    lab: Lab, vcenter: VCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stun, "MOST_BYTES", 4096)
    clock = await begun(vcenter, lab)
    early = b"2026-11-23T12:00:00.000Z| vcpu-0| I005: Checkpoint_Unstun: vm stopped for 99 us\n"
    write(lab, early + LINE * 500)
    snapshot = await by_hand(lab)
    assert await clock.look() == CREATION
    await asyncio.to_thread(lab.remove_snapshot, snapshot)
    assert await clock.look() == REMOVAL


async def test_a_session_that_was_lost_is_made_again_for_the_log(lab: Lab, vcenter: VCenter) -> None:
    clock = await begun(vcenter, lab)
    snapshot = await by_hand(lab)
    lab.kill_sessions()
    assert await clock.look() == CREATION
    await asyncio.to_thread(lab.remove_snapshot, snapshot)


# Where it cannot be told


async def test_of_a_vm_that_is_off_nothing_is_asked(lab: Lab, vcenter: VCenter) -> None:
    clock = await clock_of(vcenter, lab, "off")
    lab.record_calls(lab.user)
    before = lab.calls().get(GET, 0)
    assert [await clock.look() for _ in range(3)] == [None, None, None]
    assert (lab.recorded_calls(), lab.calls().get(GET, 0)) == ([], before)


async def test_without_the_privilege_it_is_asked_once_and_the_run_is_as_ever(
    lab: Lab, vcenter: VCenter, backups: Backups
) -> None:
    lab.surroundings(user=lab.user, denied=["Datastore.FileManagement"])
    before = lab.calls().get(GET, 0)
    clock = await clock_of(vcenter, lab)
    assert [await clock.look() for _ in range(3)] == [None, None, None]
    assert lab.calls()[GET] == before + 1
    await whole_without_stuns(backups)


@pytest.mark.parametrize("fault", ["cut-off", "locked"])
async def test_a_log_that_breaks_off_or_is_locked_costs_what_it_would_have_told_alone(
    lab: Lab, vcenter: VCenter, backups: Backups, fault: str
) -> None:
    # A host that does not run the VM finds its log locked; vCenter may ask any host.
    clock = await begun(vcenter, lab)
    write(lab, LINE * 50)
    lab.inject(GET, drop=True, times=0) if fault == "cut-off" else lab.inject(GET, "FileLocked", times=0)
    assert await clock.look() is None
    lab.heal()
    assert await clock.look() is None
    snapshot = await by_hand(lab)
    assert await clock.look() == CREATION
    await asyncio.to_thread(lab.remove_snapshot, snapshot)
    lab.inject(GET, "FileLocked", times=0)
    await whole_without_stuns(backups)


async def test_a_log_that_does_not_come_holds_nobody_up(
    lab: Lab, vcenter: VCenter, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stun, "LOOK_SECONDS", 0.3)
    clock = await begun(vcenter, lab)
    lab.inject(GET, delay_seconds=5, times=1)
    began, before = time.monotonic(), lab.calls()[GET]
    assert await clock.look() is None
    assert time.monotonic() - began < 4
    assert await clock.look() is None
    assert lab.calls()[GET] == before + 1
    lab.inject(GET, delay_seconds=5, times=1)
    await whole_without_stuns(backups)


async def whole_without_stuns(backups: Backups) -> None:
    """A run that tells of no stun is lacking in nothing else."""
    done = await backups.next()
    assert (done.stuns, done.remarks, done.warnings, done.partial) == ({}, (), (), False)
    assert backups.content(done) == backups.lab.frozen("web-01")[-1].disks[0].image.read_bytes()
    attributes = backups.repository.detail(done.point).head.attributes
    assert not {name for name in attributes if name.startswith("stun")}


def test_a_look_takes_no_longer_than_a_few_seconds() -> None:
    assert stun.LOOK_SECONDS <= 5
