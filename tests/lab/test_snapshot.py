"""A snapshot of ours: what it holds, how consistent it is, and that it goes on every way out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from pyVmomi import SoapAdapter, vim

from connectors.errors import Busy, ConnectorError, Gone, Rejected, SnapshotFailed, Unreachable
from connectors.gates import creation
from connectors.hypervisor import Snapshot
from connectors.kept_vm import unpack
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.naming import snapshot_description
from policies.facts import Consistency, Quiescing, Vm
from tests.lab.connect import connected, until
from tests.lab.vcenter import MIB, Lab, Machine

Start = Callable[..., Lab]
T = TypeVar("T")
ONE_RETRY = Quiescing(retries=1, retry_wait=timedelta(milliseconds=10))
CRASH, FILESYSTEM, APPLICATION = Consistency.CRASH, Consistency.FILESYSTEM, Consistency.APPLICATION


async def vm_named(vcenter: VCenter, name: str) -> Vm:
    return next(vm for vm in await vcenter.inventory() if vm.name == name)


async def take(
    vcenter: VCenter,
    name: str = "web-01",
    *,
    want: Consistency = CRASH,
    fallback: Consistency = CRASH,
    track: bool = False,
    run: str = "run-1",
    quiescing: Quiescing = ONE_RETRY,
) -> Snapshot:
    """Take a snapshot, let it go again, and tell what it was."""
    vm = await vm_named(vcenter, name)
    async with vcenter.snapshot(
        vm, run=run, want=want, fallback=fallback, track=track, quiescing=quiescing
    ) as snapshot:
        return snapshot


def names(lab: Lab, vm: str = "web-01") -> tuple[str, ...]:
    return lab.vm(vm).snapshots


async def test_a_snapshot_tells_the_disks_of_its_own_configuration(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "db-03")
        async with vcenter.snapshot(vm, run="run-1", want=CRASH, fallback=CRASH, track=False) as snapshot:
            (held,) = (frozen for frozen in lab.frozen("db-03") if frozen.snapshot == snapshot.moref)
            assert held.name == snapshot.name == "backstay-e1-run-1"
            assert [(d.disk.key, d.disk.file_name, d.disk.uuid) for d in snapshot.disks] == [
                (d.key, d.file, d.uuid) for d in held.disks
            ]
            assert snapshot.disks[0].disk.file_name == vm.disks[0].file_name
            live = await vcenter.vm(vm.address)
            assert live.disks[0].file_name != vm.disks[0].file_name
            assert live.own_snapshots == ("backstay-e1-run-1",)
            assert live.snapshots == ()
        assert names(lab, "db-03") == ()


async def test_the_configuration_comes_back_typed_from_its_bytes(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter)
    config = SoapAdapter.Deserialize(
        unpack(snapshot.configuration).configuration.decode(), resultType=vim.vm.ConfigInfo
    )
    assert config.name == "web-01"
    assert isinstance(config.hardware.device[0], vim.vm.device.VirtualDevice)


async def test_disks_that_it_does_not_hold_are_listed_as_unprotected(fresh_lab: Start) -> None:
    lab = fresh_lab(
        vms=0, extra=[Machine(name="mixed", disks=(MIB, MIB), independent=(1,), raw_mappings=1, content=False)]
    )
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, "mixed")
    assert len(snapshot.disks) == 1
    assert len(snapshot.unprotected) == 2
    assert all(disk.unprotected for disk in snapshot.unprotected)


async def test_tracking_is_switched_on_before_the_first_snapshot(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    async with connected(lab) as vcenter:
        assert not (await vm_named(vcenter, "web-01")).tracking_enabled
        snapshot = await take(vcenter, track=True)
        assert snapshot.tracking_reason == ""
        assert all(disk.change_id for disk in snapshot.disks)
        assert (await vm_named(vcenter, "web-01")).tracking_enabled


async def test_tracking_is_not_switched_on_under_a_snapshot_and_the_reason_is_told(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.snapshot("web-01", "by hand")
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, track=True)
        assert "not switched on while the VM has snapshots" in snapshot.tracking_reason
        assert not (await vm_named(vcenter, "web-01")).tracking_enabled
    assert [len(lab.vm("web-01").snapshots)] == [1]


@pytest.mark.parametrize(
    ("machine", "want", "level", "says"),
    [
        (Machine(name="vm", content=False), FILESYSTEM, FILESYSTEM, ""),
        (Machine(name="vm", content=False, guest_id="ubuntu64Guest"), APPLICATION, FILESYSTEM, "only Windows guests"),
        (Machine(name="vm", content=False, tools=False), FILESYSTEM, CRASH, "Tools do not run"),
        (Machine(name="vm", content=False, power="off", tools=False), FILESYSTEM, FILESYSTEM, "powered off"),
        (Machine(name="vm", content=False), CRASH, CRASH, ""),
    ],
)
async def test_the_level_that_was_achieved_is_recorded_with_the_reason(
    fresh_lab: Start, machine: Machine, want: Consistency, level: Consistency, says: str
) -> None:
    lab = fresh_lab(vms=0, extra=[machine])
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, "vm", want=want)
    assert snapshot.consistency is level
    assert says in snapshot.consistency_reason
    assert bool(says) == bool(snapshot.consistency_reason)


async def test_a_guest_that_cannot_be_quiesced_falls_back_where_the_policy_allows_it(lab: Lab) -> None:
    lab.inject("CreateSnapshotEx_Task", "ApplicationQuiesceFault", times=2, in_task=True)
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, want=FILESYSTEM)
    assert snapshot.consistency is CRASH
    assert "filesystem level failed" in snapshot.consistency_reason
    assert names(lab) == ()


async def test_a_guest_that_cannot_be_quiesced_fails_where_the_policy_asks_for_it(lab: Lab) -> None:
    lab.inject("CreateSnapshotEx_Task", "ApplicationQuiesceFault", times=2, in_task=True)
    async with connected(lab) as vcenter:
        with pytest.raises(SnapshotFailed, match="at least the level filesystem"):
            await take(vcenter, want=FILESYSTEM, fallback=FILESYSTEM)
    assert names(lab) == ()


async def test_a_busy_writer_is_asked_once_more(lab: Lab) -> None:
    lab.inject("CreateSnapshotEx_Task", "ApplicationQuiesceFault", times=1, in_task=True)
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, want=FILESYSTEM, fallback=FILESYSTEM)
    assert snapshot.consistency is FILESYSTEM


async def test_a_vcenter_without_the_newer_call_gets_the_older_one(lab: Lab) -> None:
    lab.inject("CreateSnapshotEx_Task", "MethodNotFound", fields={"Receiver": {"Type": "VirtualMachine", "Value": "x"}})
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, want=FILESYSTEM)
    assert snapshot.consistency is FILESYSTEM
    assert names(lab) == ()


async def test_a_template_is_refused_with_a_sentence(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=0, extra=[Machine(name="golden", template=True, power="off", content=False)])
    async with connected(lab) as vcenter:
        with pytest.raises(Rejected, match="templates cannot be snapshotted"):
            await take(vcenter, "golden")


async def test_a_vm_that_went_away_is_gone(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "web-01")
        lab.power_off("web-01")
        lab.remove_vm("web-01")
        with pytest.raises(Gone):
            async with vcenter.snapshot(vm, run="r", want=CRASH, fallback=CRASH, track=False):
                pass


async def held(vcenter: VCenter, entered: asyncio.Event, run: str = "run-1") -> None:
    vm = await vm_named(vcenter, "web-01")
    async with vcenter.snapshot(vm, run=run, want=CRASH, fallback=CRASH, track=False):
        entered.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("delay_ms", [0, 20, 60, 150, 400])
async def test_a_cancellation_during_creation_leaves_no_snapshot(lab: Lab, delay_ms: int) -> None:
    lab.settings(snapshot_delay_ms=250)
    try:
        async with connected(lab) as vcenter:
            before = lab.calls().get("CreateSnapshotEx_Task", 0)
            work = asyncio.ensure_future(held(vcenter, asyncio.Event()))
            await until(lambda: lab.calls().get("CreateSnapshotEx_Task", 0) > before)
            await asyncio.sleep(delay_ms / 1000)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert names(lab) == ()
    finally:
        lab.settings(snapshot_delay_ms=0)


async def test_a_cancellation_while_another_creation_is_waited_for_makes_no_snapshot(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        made = lab.calls().get("CreateSnapshotEx_Task", 0)
        async with AsyncExitStack() as full:
            for n in range(vcenter.gates.limits.creations_per_vcenter):
                await full.enter_async_context(vcenter.gates.through(creation(), f"another {n}"))
            work = asyncio.ensure_future(held(vcenter, asyncio.Event()))
            await until(lambda: bool(vcenter.gates.waiting))
            work.cancel()
            async with asyncio.timeout(5):
                with pytest.raises(asyncio.CancelledError):
                    await work
            assert vcenter.gates.waiting == ()
        assert lab.calls().get("CreateSnapshotEx_Task", 0) == made
    assert names(lab) == ()


async def test_a_guest_is_not_asked_again_once_its_run_may_not_go_on(lab: Lab) -> None:
    asked: list[int] = []

    def about_to() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise ValueError("a blackout has begun")

    lab.inject("CreateSnapshotEx_Task", "ApplicationQuiesceFault", times=1, in_task=True)
    async with connected(lab) as vcenter:
        vm, made = await vm_named(vcenter, "web-01"), lab.calls().get("CreateSnapshotEx_Task", 0)
        with pytest.raises(ValueError, match="blackout"):
            async with vcenter.snapshot(
                vm, run="r", want=FILESYSTEM, fallback=CRASH, track=False, quiescing=ONE_RETRY, about_to=about_to
            ):
                raise AssertionError("it was made in a blackout")
        assert lab.calls()["CreateSnapshotEx_Task"] == made + 1
    assert names(lab) == ()


async def test_what_a_failed_try_left_goes_before_the_next_one(lab: Lab) -> None:
    tried: list[int] = []

    def about_to() -> None:
        """The first try leaves its snapshot, although it fails."""
        tried.append(1)
        if len(tried) == 1:
            mark = snapshot_description("e1", "r", datetime.now(UTC))
            vm = lab.machine("web-01")
            lab.finish(lambda: vm.CreateSnapshotEx_Task(name="backstay-e1-r", description=mark, memory=False))
            lab.inject("CreateSnapshotEx_Task", "ApplicationQuiesceFault", times=1, in_task=True)

    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "web-01")
        async with vcenter.snapshot(
            vm, run="r", want=FILESYSTEM, fallback=CRASH, track=False, quiescing=ONE_RETRY, about_to=about_to
        ) as snapshot:
            assert len(tried) == 2
            assert snapshot.consistency is FILESYSTEM
            assert len(names(lab)) == 1
    assert names(lab) == ()


async def test_cancellations_while_it_is_held_and_while_it_is_removed_leave_no_snapshot(lab: Lab) -> None:
    lab.settings(removal_delay_ms=200)
    try:
        async with connected(lab) as vcenter:
            entered = asyncio.Event()
            work = asyncio.ensure_future(held(vcenter, entered))
            await entered.wait()
            assert len(names(lab)) == 1
            before = lab.calls().get("RemoveSnapshot_Task", 0)
            work.cancel()
            await until(lambda: lab.calls().get("RemoveSnapshot_Task", 0) > before)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert names(lab) == ()
    finally:
        lab.settings(removal_delay_ms=0)


async def test_a_creation_whose_answer_was_lost_is_used_and_not_repeated(lab: Lab) -> None:
    lab.inject("CreateSnapshotEx_Task", drop=True)
    async with connected(lab) as vcenter:
        made = len(lab.frozen("web-01"))
        await take(vcenter)
    assert names(lab) == ()
    assert len(lab.frozen("web-01")) == made + 1


async def test_a_vcenter_that_restarts_during_the_creation_gets_one_snapshot_and_keeps_none(lab: Lab) -> None:
    lab.settings(snapshot_delay_ms=300)
    try:
        async with connected(lab) as vcenter, asyncio.TaskGroup() as group:
            made = len(lab.frozen("web-01"))
            before = lab.calls().get("CreateSnapshotEx_Task", 0)
            group.create_task(take(vcenter))
            await until(lambda: lab.calls().get("CreateSnapshotEx_Task", 0) > before)
            lab.restart(0.5)
        assert names(lab) == ()
        assert len(lab.frozen("web-01")) == made + 1
    finally:
        lab.settings(snapshot_delay_ms=0)


async def test_a_windows_guest_whose_writers_left_no_manifest_is_not_called_application_consistent(
    fresh_lab: Start,
) -> None:
    lab = fresh_lab(vms=0, extra=[Machine(name="win", content=False, guest_id="windows2019srv_64Guest")])
    async with connected(lab) as vcenter:
        snapshot = await take(vcenter, "win", want=APPLICATION)
        assert snapshot.consistency is FILESYSTEM
        assert "no manifest" in snapshot.consistency_reason
        with pytest.raises(SnapshotFailed, match="at least the level application"):
            await take(vcenter, "win", want=APPLICATION, fallback=APPLICATION)
    assert names(lab, "win") == ()


async def test_a_session_that_is_lost_while_a_snapshot_is_held_does_not_keep_it(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "web-01")
        async with vcenter.snapshot(vm, run="r", want=CRASH, fallback=CRASH, track=False):
            lab.kill_sessions()
    assert names(lab) == ()


async def test_a_vcenter_that_restarts_while_a_snapshot_is_held_does_not_keep_it(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "web-01")
        async with vcenter.snapshot(vm, run="r", want=CRASH, fallback=CRASH, track=False):
            lab.restart(0.3)
    assert names(lab) == ()


async def test_a_removal_that_is_refused_while_something_is_locked_is_tried_again(lab: Lab) -> None:
    lab.inject("RemoveSnapshot_Task", "FileLocked", times=2, in_task=True)
    async with connected(lab) as vcenter:
        await take(vcenter)
    assert names(lab) == ()


async def test_a_removal_without_an_answer_is_not_an_error(lab: Lab) -> None:
    lab.inject("RemoveSnapshot_Task", drop=True)
    async with connected(lab) as vcenter:
        await take(vcenter)
    assert names(lab) == ()


async def test_a_removal_that_never_works_is_an_error_that_names_the_cause(lab: Lab) -> None:
    lab.inject("RemoveSnapshot_Task", "FileLocked", times=0, in_task=True)
    try:
        async with connected(lab) as vcenter:
            with pytest.raises(ConnectorError, match="in use"):
                await take(vcenter, run="stuck")
            lab.heal()
            for leftover in await vcenter.leftovers(lambda run: False):
                await vcenter.remove(leftover)
    finally:
        lab.heal()
    assert names(lab) == ()


async def test_deltas_that_a_removal_left_are_consolidated(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False, settings={"leave_deltas": 1})
    async with connected(lab) as vcenter:
        await take(vcenter)
        assert not (await vm_named(vcenter, "web-01")).consolidation_needed
    assert lab.calls()["ConsolidateVMDisks_Task"] == 1


async def test_a_vm_that_needs_consolidation_gets_it_before_its_snapshot(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.need_consolidation("web-01")
    async with connected(lab) as vcenter:
        assert (await vm_named(vcenter, "web-01")).consolidation_needed
        await take(vcenter)
    assert lab.calls()["ConsolidateVMDisks_Task"] == 1


async def test_snapshots_of_others_stay_above_and_below_ours(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.snapshot("web-01", "below")
    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "web-01")
        async with vcenter.snapshot(vm, run="r", want=CRASH, fallback=CRASH, track=False):
            lab.snapshot("web-01", "above")
        after = await vcenter.vm(vm.address)
    assert [s.name for s in after.snapshots] == ["below", "above"]
    assert after.own_snapshots == ()


async def test_two_vms_are_held_at_the_same_time(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vms = [await vm_named(vcenter, name) for name in ("web-01", "app-02")]
        async with (
            vcenter.snapshot(vms[0], run="a", want=CRASH, fallback=CRASH, track=False) as one,
            vcenter.snapshot(vms[1], run="b", want=CRASH, fallback=CRASH, track=False) as two,
        ):
            assert one.moref != two.moref
    assert names(lab) == names(lab, "app-02") == ()


async def test_an_unreachable_vcenter_at_the_start_is_told(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = await vm_named(vcenter, "web-01")
        lab.outage(0.5)
        with pytest.raises(Unreachable):
            async with vcenter.snapshot(vm, run="r", want=CRASH, fallback=CRASH, track=False):
                pass
        await asyncio.sleep(0.6)
    assert names(lab) == ()


async def test_a_removal_that_overruns_every_deadline_is_told_as_one_that_may_be_tried_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def overrunning(
        create: Callable[[], Awaitable[T]], release: Callable[[T], Awaitable[None]], *, within: float
    ) -> AsyncIterator[T]:
        made = await create()
        yield made
        await release(made)
        raise TimeoutError("not done in time")

    monkeypatch.setattr("connectors.vsphere.making.acquired", overrunning)
    async with connected(lab) as vcenter:
        with pytest.raises(Busy, match="not made or removed"):
            await take(vcenter)
