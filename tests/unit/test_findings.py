"""What a doctor makes of what it found, and what it ends with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from connectors.diagnosis import Diagnosis, Gap, NbdTools, ProxyReport
from connectors.hypervisor import Fallback
from engine import findings
from engine.doctoring import unreachable
from engine.failures import Exit
from engine.findings import Certificate, Finding, exit_of
from policies.facts import Address, Disk, ForeignSnapshot, Vm, VmId

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
FOUND = Diagnosis("vCenter 8", "VirtualCenter", 0.0, (), (), None, ())
DISK = Disk(2000, "Hard disk 1", 1 << 20, "u", "ds1", "[ds1] a/a.vmdk", "persistent")
VM = Vm(VmId("a"), Address("vc", "vm-1"), "a", disks=(DISK,))


def levels(*found: Finding) -> list[str]:
    """How they stand."""
    return [one.level for one in found]


def test_the_worst_finding_decides_the_exit_code() -> None:
    ok, note, problem = (Finding("", "x", level, "") for level in ("ok", "note", "problem"))
    assert exit_of([ok, note]) == Exit.DONE
    assert exit_of([ok, problem, note]) == Exit.PARTIAL
    assert exit_of([problem, Finding("", "x", "unreachable", "")]) == Exit.UNREACHABLE


@pytest.mark.parametrize(
    ("until", "level", "says"),
    [
        (timedelta(days=400), "ok", "400 days left"),
        (timedelta(days=29), "note", "29 days left"),
        (timedelta(days=-1), "problem", "has expired"),
    ],
)
def test_a_certificate_is_told_before_it_ends(until: timedelta, level: str, says: str) -> None:
    found = findings.certificate("main", Certificate("AA", "CN=ca", NOW - timedelta(days=900), NOW + until), NOW)
    assert (found.level, says in found.said) == (level, True)


def test_a_certificate_of_tomorrow_is_a_problem() -> None:
    shown = Certificate("AA", "CN=ca", NOW + timedelta(days=1), NOW + timedelta(days=9))
    assert "not valid yet" in findings.certificate("main", shown, NOW).said


@pytest.mark.parametrize(("skew", "level"), [(2.0, "ok"), (-45.0, "note"), (700.0, "problem"), (-700.0, "problem")])
def test_clocks_that_differ_are_told(skew: float, level: str) -> None:
    assert findings.clock("main", skew).level == level


def test_a_single_host_is_no_vcenter() -> None:
    assert findings.product("main", replace(FOUND, api_type="HostAgent"), "u").level == "note"


def test_privileges_of_a_transport_that_is_not_configured_are_not_asked_for() -> None:
    gap = Gap("VirtualMachine.Provisioning.GetVmFiles", "vms", ("a", "b"), 5)
    told = replace(FOUND, gaps=(gap,))
    (found,) = findings.privileges("main", told, ("hotadd", "nbd"), "u")
    assert found.level == "problem" and "GetVmFiles lacks on a, b" in found.said
    assert levels(*findings.privileges("main", told, ("hotadd",), "u")) == ["ok"]


def test_many_objects_are_counted_and_some_are_named() -> None:
    gap = Gap("Datastore.Browse", "datastores", tuple("abcdefg"), 9)
    (found,) = findings.privileges("main", replace(FOUND, gaps=(gap,)), (), "u")
    assert "lacks on a, b, c and 4 more" in found.said


def test_change_tracking_that_waits_for_a_snapshot_is_told() -> None:
    old = ForeignSnapshot("before", NOW)
    vms = [replace(VM, tracking_enabled=True), replace(VM, name="b", snapshots=(old,)), VM]
    found = findings.tracking("main", vms)
    assert found.said == "on for 1 of 3 VMs, 1 gets it at the first backup, 1 not while they have snapshots (b)"
    assert "read in full" in findings.tracking("main", [replace(VM, tracking_supported=False)]).said
    assert "refused" in findings.machines("main", [VM]).said
    assert findings.machines("main", [replace(VM, refusal="it is a template")]).level == "note"


class Way:
    """A way to a disk as a forecast tells it."""

    def __init__(self, transport: str, fallbacks: tuple[Fallback, ...] = ()) -> None:
        self.transport = transport
        self.fallbacks = fallbacks


def test_disks_that_nothing_reaches_are_a_problem_for_each_reason() -> None:
    none = Way("", (Fallback("nbd", "nbdkit is not installed"),))
    (found,) = findings.disks("main", [VM], {("vm-1", 2000): none})
    assert found.level == "problem" and "nbdkit is not installed" in found.said
    (found,) = findings.disks("main", [VM], {("vm-1", 2000): Way("nbd")})
    found_by_export, note = findings.disks("main", [VM], {("vm-1", 2000): Way("export")})
    assert (found_by_export.said, note.level) == ("1 disk by export", "note")
    assert (
        note.said == "by export no disk is written into a VM that is there: a restore makes a new VM or goes to files"
    )
    assert (found.level, found.said) == ("ok", "1 disk by nbd")


def test_hot_add_is_told_with_its_places_and_what_it_does_not_reach() -> None:
    report = ProxyReport("", "proxy", "eval", ("ParaVirtualSCSIController",), 14, 1, ("far",), None, "cluster-1")
    found = list(findings.hot_add("main", report))
    assert levels(*found) == ["ok", "note", "note", "note"]
    assert "14 free places on ParaVirtualSCSIController, 1 disk attached now" in found[0].said
    assert "disk.EnableUUID = TRUE" in found[1].do and "far" in found[3].said
    assert "DRS of cluster-1 may move proxy" in found[2].said and "automation level Manual" in found[2].do
    (found_none,) = findings.hot_add("main", ProxyReport("this engine does not run in a VM of this vCenter"))
    assert found_none.level == "note" and "not here" in found_none.said


def test_tools_for_nbd_that_are_missing_say_where_to_get_them() -> None:
    assert findings.nbd(NbdTools("", nbdkit="nbdkit 1.44", library="VDDK 8")).level == "ok"
    assert findings.nbd(NbdTools("no VDDK", "get it")).do == "get it"


async def test_hosts_that_do_not_answer_are_told_by_name() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        found = await unreachable(["127.0.0.1", "no such host"], port)
    assert list(found) == ["no such host"]
    told = findings.hosts("main", 2, found)
    assert told.level == "problem" and "1 of 2 hosts do not answer on TCP 902" in told.said
    assert findings.hosts("main", 2, {}).level == "ok"


def test_a_directory_without_room_is_a_problem() -> None:
    assert levels(findings.space("state", "/x", 10, 5), findings.space("state", "/x", 4, 5)) == ["ok", "problem"]
