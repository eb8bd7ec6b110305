"""What a snapshot is asked for and what it is called: tries, times, memory, and the traps that would make it a lie."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from pyVmomi import SoapAdapter, vim

from connectors.errors import SnapshotFailed
from connectors.hypervisor import Snapshot
from connectors.kept_vm import unpack
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.making import SnapshotSettings
from connectors.vsphere.vmfacts import disk_facts
from policies.facts import Address, Consistency, PowerState, Quiescing, Vm
from tests.lab.connect import QUICK_SNAPSHOTS, connected, until, vcenter_settings
from tests.lab.vcenter import MIB, Lab, Machine, start_lab

CRASH, FILESYSTEM, APPLICATION = Consistency.CRASH, Consistency.FILESYSTEM, Consistency.APPLICATION
TWO_RETRIES = Quiescing(retries=2, retry_wait=timedelta(milliseconds=10), timeout=timedelta(minutes=7))
CREATE = "CreateSnapshotEx_Task"

MACHINES = (
    Machine(name="linux", content=False, disks=(MIB,)),
    Machine(name="sql", content=False, disks=(MIB,), guest_id="windows2019srv_64Guest", vss_writers=True),
    Machine(
        name="files",
        content=False,
        disks=(MIB,),
        guest_id="windows2019srv_64Guest",
        vss_writers=True,
        bare_manifest=True,
    ),
    Machine(name="no-tools", content=False, disks=(MIB,), tools=False),
    Machine(name="mixed", content=False, disks=(MIB, MIB), independent=(1,), raw_mappings=1),
    Machine(name="suspended", content=False, disks=(MIB,), power="suspended"),
    Machine(name="off", content=False, disks=(MIB,), power="off"),
)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("guests"), vms=0, extra=MACHINES) as lab:
        yield lab


@pytest.fixture
async def vcenter(guests: Lab) -> AsyncIterator[VCenter]:
    async with connected(guests) as each:
        yield each
    guests.heal()
    guests.settings(snapshot_delay_ms=0)


async def named(vcenter: VCenter, lab: Lab, name: str) -> Vm:
    return await vcenter.vm(Address(vcenter.vcenter, lab.vm(name).moref))


async def take(
    vcenter: VCenter,
    lab: Lab,
    name: str,
    want: Consistency = CRASH,
    fallback: Consistency = CRASH,
    quiescing: Quiescing = TWO_RETRIES,
    run: str = "run-1",
) -> Snapshot:
    vm = await named(vcenter, lab, name)
    async with vcenter.snapshot(
        vm, run=run, want=want, fallback=fallback, track=False, quiescing=quiescing
    ) as snapshot:
        return snapshot


def created(lab: Lab) -> int:
    return lab.calls().get(CREATE, 0)


# Tries


@pytest.mark.parametrize("fault", ["ApplicationQuiesceFault", "FilesystemQuiesceFault"])
async def test_a_guest_that_was_busy_is_asked_again_and_each_try_is_told(
    guests: Lab, vcenter: VCenter, fault: str
) -> None:
    guests.inject(CREATE, fault, times=2, in_task=True)
    before = created(guests)
    snapshot = await take(vcenter, guests, "linux", FILESYSTEM, FILESYSTEM)
    assert snapshot.consistency is FILESYSTEM
    assert created(guests) == before + 3
    for attempt in (1, 2):
        assert f"the filesystem level failed (try {attempt} of 3): {fault}" in snapshot.consistency_reason
    assert guests.vm("linux").snapshots == ()


async def test_each_level_has_its_own_tries_before_the_next_weaker_one(guests: Lab, vcenter: VCenter) -> None:
    guests.inject(CREATE, "ApplicationQuiesceFault", times=4, in_task=True)
    before = created(guests)
    snapshot = await take(vcenter, guests, "sql", APPLICATION)
    assert snapshot.consistency is FILESYSTEM
    assert created(guests) == before + 5
    reason = snapshot.consistency_reason
    assert "the application level failed (try 3 of 3)" in reason
    assert "the filesystem level failed (try 1 of 3)" in reason
    assert "(try 2 of 3): ApplicationQuiesceFault: injected by the lab; the application level failed" in reason


async def test_without_retries_the_weaker_level_comes_at_once(guests: Lab, vcenter: VCenter) -> None:
    guests.inject(CREATE, "FilesystemQuiesceFault", times=1, in_task=True)
    before = created(guests)
    snapshot = await take(vcenter, guests, "linux", FILESYSTEM, quiescing=replace(TWO_RETRIES, retries=0))
    assert (snapshot.consistency, created(guests)) == (CRASH, before + 2)


async def test_what_is_no_matter_of_quiescing_is_not_tried_again(guests: Lab, vcenter: VCenter) -> None:
    guests.inject(CREATE, "TooManySnapshotLevels", times=1, in_task=True)
    before = created(guests)
    with pytest.raises(SnapshotFailed):
        await take(vcenter, guests, "linux", FILESYSTEM)
    assert created(guests) == before + 1


async def test_tools_that_went_away_are_not_waited_for(guests: Lab, vcenter: VCenter) -> None:
    guests.inject(CREATE, "ToolsUnavailable", times=1, in_task=True)
    before = created(guests)
    snapshot = await take(vcenter, guests, "linux", FILESYSTEM)
    assert (snapshot.consistency, created(guests)) == (CRASH, before + 2)


async def test_a_run_that_is_cancelled_between_two_tries_ends_at_once_and_leaves_nothing(
    guests: Lab, vcenter: VCenter
) -> None:
    guests.inject(CREATE, "ApplicationQuiesceFault", times=1, in_task=True)
    before = created(guests)
    patient = replace(TWO_RETRIES, retry_wait=timedelta(minutes=10))
    work = asyncio.ensure_future(take(vcenter, guests, "linux", FILESYSTEM, quiescing=patient))
    await until(lambda: created(guests) > before)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - began < 10
    assert created(guests) == before + 1
    assert guests.vm("linux").snapshots == ()


# Times


async def test_the_guest_has_as_long_as_the_policy_says(guests: Lab, vcenter: VCenter) -> None:
    for name, want in (("linux", FILESYSTEM), ("sql", APPLICATION)):
        await take(vcenter, guests, name, want, quiescing=Quiescing(timeout=timedelta(minutes=37)))
        assert guests.frozen(name)[-1].quiesce_minutes == 37


async def test_a_snapshot_that_takes_longer_than_expected_is_waited_for_told_and_made_once(guests: Lab) -> None:
    settings = vcenter_settings(guests)
    slow = replace(settings, snapshots=replace(QUICK_SNAPSHOTS, slow_seconds=0.1))
    guests.settings(snapshot_delay_ms=700)
    vcenter = await VCenter.connect(slow)
    try:
        before = created(guests)
        snapshot = await take(vcenter, guests, "linux")
    finally:
        guests.settings(snapshot_delay_ms=0)
        await vcenter.aclose()
    assert created(guests) == before + 1
    assert snapshot.made_in_seconds >= 0.6
    assert re.fullmatch(r"making the snapshot took \d+ s, and the guest stood still for a part of it", snapshot.slow)


async def test_a_snapshot_made_in_good_time_is_not_warned_of(guests: Lab, vcenter: VCenter) -> None:
    snapshot = await take(vcenter, guests, "linux")
    assert 0 < snapshot.made_in_seconds < 60
    assert snapshot.slow == ""


def test_a_creation_is_waited_for_longer_than_a_guest_can_be_given() -> None:
    assert SnapshotSettings().create_seconds > timedelta(minutes=240).total_seconds()


# Memory


@pytest.mark.parametrize("name", [machine.name for machine in MACHINES])
@pytest.mark.parametrize("older", [False, True], ids=["CreateSnapshotEx", "CreateSnapshot"])
async def test_no_snapshot_holds_memory(guests: Lab, vcenter: VCenter, name: str, older: bool) -> None:
    if older:
        guests.inject(CREATE, "MethodNotFound", fields={"Receiver": {"Type": "VirtualMachine", "Value": "x"}})
    await take(vcenter, guests, name, APPLICATION)
    assert not guests.frozen(name)[-1].memory


async def test_the_lab_tells_a_snapshot_with_memory_from_one_without(guests: Lab) -> None:
    made = guests.finish(
        lambda: guests.machine("linux").CreateSnapshotEx_Task(name="by hand", description="", memory=True)
    )
    assert guests.frozen("linux")[-1].memory
    guests.remove_snapshot(made._moId)


# The traps and rules of docs, by their number


async def test_trap_3_what_is_read_is_the_file_of_the_snapshot_s_configuration_not_the_live_one(
    guests: Lab, vcenter: VCenter
) -> None:
    vm = await named(vcenter, guests, "linux")
    async with vcenter.snapshot(vm, run="run-3", want=CRASH, fallback=CRASH, track=False) as snapshot:
        live = await vcenter.vm(vm.address)
        held = guests.frozen("linux")[-1]
        assert [one.disk.file_name for one in snapshot.disks] == [disk.file for disk in held.disks]
        assert {one.disk.file_name for one in snapshot.disks}.isdisjoint(disk.file_name for disk in live.disks)
        text = unpack(snapshot.configuration).configuration.decode()
        kept = SoapAdapter.Deserialize(text, resultType=vim.vm.ConfigInfo)
        files = [disk.file_name for disk in disk_facts(kept.hardware.device)]
        assert files == [disk.file for disk in held.disks]


@pytest.mark.parametrize(
    ("name", "level", "why"),
    [
        ("no-tools", CRASH, "VMware Tools do not run in the guest"),
        ("linux", FILESYSTEM, "only Windows guests have an application level without scripts"),
        ("sql", APPLICATION, ""),
        ("files", FILESYSTEM, "no VSS writer of the guest took part: its manifest names none"),
        ("suspended", CRASH, "it is suspended, and its memory is not part of the snapshot"),
        ("off", APPLICATION, "it is powered off, so nothing is being written"),
    ],
)
async def test_rule_7_the_level_is_the_one_that_was_achieved(
    guests: Lab, vcenter: VCenter, name: str, level: Consistency, why: str
) -> None:
    snapshot = await take(vcenter, guests, name, APPLICATION)
    assert (snapshot.consistency, snapshot.consistency_reason) == (level, why)


async def test_a_manifest_that_cannot_be_read_is_told_and_counts_by_being_there(guests: Lab, vcenter: VCenter) -> None:
    guests.inject("GET /folder", "SystemError")
    snapshot = await take(vcenter, guests, "files", APPLICATION)
    assert snapshot.consistency is APPLICATION
    assert "the manifest of its VSS writers says was not read" in snapshot.consistency_reason


async def test_trap_10_tools_that_end_after_the_vm_was_looked_at_make_the_snapshot_a_crash_consistent_one(
    guests: Lab, vcenter: VCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = replace(await named(vcenter, guests, "no-tools"), tools_running=True, reach=APPLICATION, reach_why="")

    async def as_it_was(moref: str) -> Vm:
        return vm

    monkeypatch.setattr(vcenter._inventory, "one", as_it_was)
    async with vcenter.snapshot(vm, run="run-10", want=APPLICATION, fallback=CRASH, track=False) as snapshot:
        assert not guests.frozen("no-tools")[-1].quiesced
        assert snapshot.consistency is CRASH
        assert snapshot.consistency_reason == "vSphere did not quiesce the guest, though it was asked to"
    with pytest.raises(SnapshotFailed, match="at least the level filesystem: vSphere did not quiesce"):
        async with vcenter.snapshot(vm, run="run-11", want=APPLICATION, fallback=FILESYSTEM, track=False):
            pass
    assert guests.vm("no-tools").snapshots == ()


async def test_trap_10_a_vm_that_was_powered_on_meanwhile_is_not_called_consistent(
    guests: Lab, vcenter: VCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await named(vcenter, guests, "linux")
    vm = replace(seen, power=PowerState.OFF, tools_running=False, reach=APPLICATION, reach_why="it is powered off")

    async def as_it_was(moref: str) -> Vm:
        return vm

    monkeypatch.setattr(vcenter._inventory, "one", as_it_was)
    async with vcenter.snapshot(vm, run="run-12", want=APPLICATION, fallback=CRASH, track=False) as snapshot:
        assert snapshot.consistency is CRASH
        assert snapshot.consistency_reason.endswith("it may have been powered on before the snapshot was made")
    with pytest.raises(SnapshotFailed, match="may have been powered on"):
        async with vcenter.snapshot(vm, run="run-13", want=APPLICATION, fallback=FILESYSTEM, track=False):
            pass
    assert guests.vm("linux").snapshots == ()


async def test_trap_11_disks_outside_of_snapshots_are_told_one_by_one(guests: Lab, vcenter: VCenter) -> None:
    snapshot = await take(vcenter, guests, "mixed")
    assert len(snapshot.disks) == 1
    assert [disk.unprotected for disk in snapshot.unprotected] == [
        "its mode is independent_persistent: a snapshot does not hold independent disks",
        "it is a raw device mapping in physical mode, which a snapshot does not hold",
    ]
    vm = await named(vcenter, guests, "mixed")
    assert {one.disk.key for one in snapshot.disks} | {d.key for d in snapshot.unprotected} == {d.key for d in vm.disks}
