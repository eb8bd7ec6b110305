"""How long a guest stood still is read out of the VM's own log, and a log that cannot be read costs a run nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyVmomi import vim

from connectors.hypervisor import Stuns
from connectors.vsphere import host_files, stun
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.stun import StunClock
from policies.facts import Address, Consistency
from tests.lab.connect import connected, vcenter_settings
from tests.lab.test_session_cuts import Backups, backups_of
from tests.lab.vcenter import MIB, Lab, Machine, start_lab

GET = "GET /folder"
TICKET = "AcquireGenericServiceTicket"
CREATION, REMOVAL = Stuns((0.188,)), Stuns((0.042,))
LINE = b"2026-11-23T12:00:00.000Z| vmx| I005: nothing that matters here\n"


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    off = Machine(name="off", content=False, disks=(MIB,), power="off")
    with start_lab(
        tmp_path_factory.mktemp("stuns"), vms=2, disks_per_vm=1, disk_bytes=MIB, content=False, tracking=True,
        extra=[off], serve_files=True, settings={"stun_ms": 188, "removal_stun_ms": 42},
    ) as lab:  # fmt: skip
        yield lab


@pytest.fixture
def lab(houses: Lab) -> Iterator[Lab]:
    yield houses
    houses.heal()
    houses.settings(stun_ms=188, removal_stun_ms=42, logs_locked=False, ticket_thumbprint="")
    houses.surroundings(user=houses.user, denied=[])


@pytest.fixture
async def vcenter(lab: Lab) -> AsyncIterator[VCenter]:
    async with connected(lab) as each:
        yield each


@pytest.fixture
async def backups(lab: Lab, tmp_path: Path) -> AsyncIterator[Backups]:
    async with backups_of(lab, tmp_path) as each:
        yield each


@pytest.fixture
def locked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose vCenter finds the log locked, and in which the VM's own host is reached."""
    lab.settings(logs_locked=True)
    monkeypatch.setattr(host_files, "PORT", lab.hosts_port)
    return lab


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


# What only the VM's own host can open


def at_host(lab: Lab, host: str) -> int:
    """How many requests have come to a host."""
    return lab.calls().get(f"GET /folder at {host}", 0)


async def test_a_log_that_its_own_host_alone_can_open_is_read_there_with_a_ticket_for_each_request(
    locked: Lab, vcenter: VCenter
) -> None:
    host, calls = locked.vm("web-01").host, locked.calls()
    asked, before = calls.get(GET, 0), at_host(locked, host)
    clock = await begun(vcenter, locked)
    snapshot = await by_hand(locked)
    assert await clock.look() == CREATION
    assert await clock.look() == Stuns()
    await asyncio.to_thread(locked.remove_snapshot, snapshot)
    assert await clock.look() == REMOVAL
    now = locked.calls()
    assert now[GET] == asked + 1  # vCenter is asked once
    assert at_host(locked, host) - before == now[TICKET] - calls.get(TICKET, 0) == 6


async def test_a_restore_point_has_the_stuns_that_its_own_host_told(locked: Lab, backups: Backups) -> None:
    done = await backups.next()
    assert {when: told["longest_seconds"] for when, told in done.stuns.items()} == {"creation": 0.188, "removal": 0.042}


async def test_after_a_vmotion_the_new_host_is_asked(locked: Lab, vcenter: VCenter) -> None:
    old = locked.vm("web-01").host
    clock = await begun(vcenter, locked)
    new = await asyncio.to_thread(locked.drs_move, "web-01")
    before = at_host(locked, old), at_host(locked, new)
    assert await clock.look() == CREATION
    assert (at_host(locked, old), at_host(locked, new)) == (before[0], before[1] + 2)


async def test_a_host_that_shows_another_certificate_is_sent_nothing(
    locked: Lab, vcenter: VCenter, backups: Backups, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "connectors.vsphere.stun")
    locked.settings(ticket_thumbprint=locked.thumbprint)  # of vCenter, by the same authority
    before = at_host(locked, locked.vm("web-01").host)
    clock = await clock_of(vcenter, locked)
    assert [await clock.look(), await clock.look()] == [None, None]
    assert "shows another certificate than vCenter tells of" in str([vars(each) for each in caplog.records])
    await whole_without_stuns(backups)
    assert at_host(locked, locked.vm("web-01").host) == before


async def test_with_vcenters_certificate_pinned_the_host_is_verified_by_its_thumbprint_alone(locked: Lab) -> None:
    settings = vcenter_settings(locked)
    pinned = replace(settings, session=replace(settings.session, ca_file=locked.root / "server.pem"))
    vcenter = await VCenter.connect(pinned)
    host = locked.vm("web-01").host
    try:
        for told in ("", "none"):  # the ticket's, and where it has none the one that vCenter tells of the host
            locked.settings(ticket_thumbprint=told)
            clock = await begun(vcenter, locked)
            assert await clock.look() == Stuns()
        before = at_host(locked, host)
        locked.settings(ticket_thumbprint=locked.thumbprint)
        clock = await clock_of(vcenter, locked)
        assert await clock.look() is None
        assert await clock.look() is None
        assert at_host(locked, host) == before
    finally:
        await vcenter.aclose()


async def test_a_host_that_is_out_of_reach_costs_the_run_nothing(
    locked: Lab, vcenter: VCenter, backups: Backups, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "connectors.vsphere.stun")
    clock = await begun(vcenter, locked)
    with socket.socket() as nobody:
        nobody.bind((locked.vm("web-01").host, 0))
        monkeypatch.setattr(host_files, "PORT", nobody.getsockname()[1])
        assert await clock.look() is None
        assert "the engine needs TCP 443 to the ESXi hosts" in str([vars(each) for each in caplog.records])
        await whole_without_stuns(backups)
    monkeypatch.setattr(host_files, "PORT", locked.hosts_port)
    assert await clock.look() is None
    assert await clock.look() == Stuns()


async def test_a_host_that_does_not_answer_holds_nobody_up(
    locked: Lab, vcenter: VCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stun, "LOOK_SECONDS", 0.5)
    locked.inject(f"GET /folder at {locked.vm('web-01').host}", delay_seconds=5)
    clock = await clock_of(vcenter, locked)
    began = time.monotonic()
    assert await clock.look() is None
    assert time.monotonic() - began < 4
    before = locked.calls()[TICKET]
    assert await clock.look() is None
    assert locked.calls()[TICKET] == before


@pytest.mark.parametrize(("fault", "tickets"), [("NoPermission", 1), ("NotSupported", 3)])
async def test_a_vcenter_that_gives_no_ticket_costs_the_run_nothing(
    locked: Lab, vcenter: VCenter, backups: Backups, fault: str, tickets: int
) -> None:
    locked.inject(TICKET, fault, times=0)
    before = locked.calls().get(TICKET, 0)
    clock = await clock_of(vcenter, locked)
    assert [await clock.look() for _ in range(3)] == [None, None, None]
    assert locked.calls()[TICKET] == before + tickets
    await whole_without_stuns(backups)


async def test_no_ticket_is_ever_in_a_log_or_an_error(
    locked: Lab, vcenter: VCenter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    given: list[str] = []
    choose = host_files._thumbprint
    wrong = ""

    def noting(ticket: Any, of_host: str) -> str:
        given.append(ticket.id)
        return wrong or choose(ticket, of_host)

    monkeypatch.setattr(host_files, "_thumbprint", noting)
    at = f"GET /folder at {locked.vm('web-01').host}"
    clock = await begun(vcenter, locked)
    for fault, drop in (("FileLocked", False), ("", True)):
        assert await clock.look() == Stuns()
        locked.inject(at, fault, drop=drop)
        assert await clock.look() is None
        assert await clock.look() is None
    wrong = "A" * 40
    assert await (await clock_of(vcenter, locked)).look() is None
    assert len(given) == len(set(given)) >= 6
    told = "\n".join(f"{vars(each)} {each.getMessage()} {each.exc_text}" for each in caplog.records)
    assert "shows another certificate" in told
    assert "start_tls" in told  # httpcore's own were among them
    assert not [ticket for ticket in given if ticket in told]


async def test_a_host_of_the_lab_takes_a_ticket_once_for_its_own_address_and_opens_no_log_of_another_host(
    locked: Lab, vcenter: VCenter
) -> None:
    vm = locked.vm("web-01")
    path = f"/folder/web-01/vmware.log?dcPath=ha-datacenter&dsName={vm.datastore}"
    own = f"https://{vm.host}:{locked.hosts_port}{path}"
    other = own.replace(vm.host, "127.0.0.2" if vm.host != "127.0.0.2" else "127.0.0.3")
    manager = vcenter.session.content.sessionManager
    trusted = ssl.create_default_context(cafile=str(locked.ca_file))

    async def ask(url: str, *, granted: str = "", method: str = "httpGet", times: int = 1) -> list[int]:
        spec = vim.SessionManager.HttpServiceRequestSpec(method=method, url=granted or url)
        ticket = await vcenter.session.call(manager.AcquireGenericServiceTicket, spec)
        cookie = {"Cookie": f"vmware_cgi_ticket={ticket.id}"}
        async with httpx.AsyncClient(verify=trusted, headers=cookie, trust_env=False) as client:
            return [(await client.get(url)).status_code for _ in range(times)]

    assert await ask(own, times=2) == [200, 401]
    assert await ask(own, granted=other) == [401]
    assert await ask(own, granted=own.replace("vmware.log", "web-01.vmx")) == [401]
    assert await ask(own, method="httpPut") == [401]
    assert await ask(other) == [500]


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
    before = lab.calls()
    clock = await clock_of(vcenter, lab)
    assert [await clock.look() for _ in range(3)] == [None, None, None]
    assert lab.calls()[GET] == before.get(GET, 0) + 1
    assert lab.calls().get(TICKET, 0) == before.get(TICKET, 0)
    await whole_without_stuns(backups)


async def test_a_log_that_is_not_there_is_asked_of_no_host(locked: Lab, vcenter: VCenter) -> None:
    locked.settings(logs_locked=False)
    log, before = locked.log_of("web-01"), locked.calls().get(TICKET, 0)
    clock = await clock_of(vcenter, locked)
    away = log.rename(log.with_name("away.log"))
    assert await clock.look() is None
    assert locked.calls().get(TICKET, 0) == before
    away.rename(log)
    assert await clock.look() is None
    assert await clock.look() == Stuns()


@pytest.mark.parametrize("fault", ["cut-off", "locked"])
async def test_a_log_that_breaks_off_or_is_locked_costs_what_it_would_have_told_alone(
    lab: Lab, vcenter: VCenter, backups: Backups, fault: str
) -> None:
    # Another host than the VM's finds its log locked, and the VM's own is out of reach at its port.
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
