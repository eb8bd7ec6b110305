"""A VM that is kept in its place stays there, and no VM is left there by a run that is over or dead."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from connectors.errors import Busy, NotOurs, Unreachable
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.method_switches import LockSettings
from policies.facts import Consistency, Vm
from tests.lab.connect import until, vcenter_settings
from tests.lab.vcenter import MOVES, Lab, start_lab

QUICK = LockSettings(first_pause=0.02, longest_pause=0.1, tries=4)
OURS = dict.fromkeys(MOVES, "backstay.e1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("locks"), vms=4, content=False, disk_bytes=4 << 20) as running:
        yield running


@asynccontextmanager
async def connected(
    lab: Lab, *, user: str = "", engine_id: str = "e1", locks: LockSettings = QUICK
) -> AsyncIterator[VCenter]:
    settings = vcenter_settings(lab, engine_id=engine_id)
    session = replace(settings.session, user=user or settings.session.user)
    vcenter = await VCenter.connect(replace(settings, session=session, locks=locks))
    try:
        yield vcenter
    finally:
        await vcenter.aclose()


async def named(vcenter: VCenter, name: str) -> Vm:
    return next(vm for vm in await vcenter.inventory() if vm.name == name)


async def test_a_vm_that_is_kept_in_its_place_cannot_be_moved_by_anybody(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        async with vcenter.kept_in_place(await named(vcenter, "web-01"), run="r1") as why:
            assert why == ""
            assert lab.disabled_methods("web-01") == OURS
            for move in (lab.migrate, lab.drs_move):
                with pytest.raises((vim.fault.MethodDisabled, RuntimeError)):
                    await asyncio.to_thread(move, "web-01")
            with pytest.raises(vim.fault.MethodDisabled) as refused:
                await asyncio.to_thread(lab.relocate, "web-01", "bulk-1")
            assert refused.value.source == "backstay.e1"
            assert await vcenter.leftovers(lambda run: run == "r1") == []
            await asyncio.to_thread(lab.migrate, "app-02")
        assert lab.disabled_methods("web-01") == {}
        await asyncio.to_thread(lab.migrate, "web-01")


async def test_an_account_without_the_privileges_is_told_which_and_goes_on(lab: Lab) -> None:
    async with (
        connected(lab, user=lab.viewer) as vcenter,
        vcenter.kept_in_place(await named(vcenter, "web-01"), run="r1") as why,
    ):
        assert "not licensed" in why
        assert "Global.DisableMethods and Global.EnableMethods on the vCenter's root" in why
        assert lab.disabled_methods("web-01") == {}


async def test_another_product_s_switch_is_told_at_once_and_never_touched(lab: Lab) -> None:
    lab.disable_methods("web-01", "com.example.other")
    async with connected(lab) as vcenter:
        vm = await named(vcenter, "web-01")
        with pytest.raises(Busy, match=r"com\.example\.other, keeps the VM in its place"):
            async with vcenter.kept_in_place(vm, run="r1"):
                raise AssertionError("it is not ours to keep")
        assert lab.disabled_methods("web-01") == dict.fromkeys(MOVES, "com.example.other")
        assert await vcenter.leftovers(lambda run: run == "r1") == []
        (found,) = await vcenter.leftovers(lambda run: False)
        with pytest.raises(NotOurs):
            await vcenter.remove(found)
        assert await vcenter.leftovers(lambda run: False) == []
        assert lab.disabled_methods("web-01") == dict.fromkeys(MOVES, "com.example.other")
        lab.disable_methods("web-01", "com.example.other", on=True)
        async with vcenter.kept_in_place(vm, run="r2") as why:
            assert (why, lab.disabled_methods("web-01")) == ("", OURS)
    assert lab.disabled_methods("web-01") == {}


async def test_a_lost_answer_a_lost_login_and_a_cancellation_leave_no_vm_in_its_place(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = await named(vcenter, "web-01")
        for method in ("DisableMethods", "EnableMethods"):
            lab.inject(method, drop=True)
        async with vcenter.kept_in_place(vm, run="r1") as why:
            assert (why, lab.disabled_methods("web-01")) == ("", OURS)
            lab.kill_sessions()
        assert lab.disabled_methods("web-01") == {}

        async def keep() -> None:
            async with vcenter.kept_in_place(vm, run="r2"):
                raise AssertionError("it was cancelled before")

        asked = lab.calls()["DisableMethods"]
        lab.inject("DisableMethods", delay_seconds=0.3)
        task = asyncio.create_task(keep())
        await until(lambda: lab.calls()["DisableMethods"] > asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lab.disabled_methods("web-01") == {}


async def test_what_could_not_be_given_back_is_a_leftover_until_it_is(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = await named(vcenter, "web-01")
        lab.inject("EnableMethods", drop=False, fault="HostCommunication", times=QUICK.tries)
        with pytest.raises(Unreachable):
            async with vcenter.kept_in_place(vm, run="r1"):
                pass
        assert lab.disabled_methods("web-01") == OURS
        assert await vcenter.leftovers(lambda run: run == "r1") == []
        (left,) = await vcenter.leftovers(lambda run: False)
        assert (left.kind, left.vm_name, left.run) == ("migration lock", "web-01", "r1")
        await vcenter.remove(left)
        await vcenter.remove(left)
        assert lab.disabled_methods("web-01") == {}
        assert await vcenter.leftovers(lambda run: False) == []


async def test_a_switch_whose_answers_are_all_lost_is_a_leftover_and_a_refused_method_costs_only_itself(
    lab: Lab,
) -> None:
    async with connected(lab) as vcenter:
        vm = await named(vcenter, "web-01")
        lab.inject("DisableMethods", drop=True, times=QUICK.takes)
        with pytest.raises(Unreachable):
            async with vcenter.kept_in_place(vm, run="r1"):
                raise AssertionError("nobody knows whether it is kept")
        assert lab.disabled_methods("web-01") == OURS
        (left,) = await vcenter.leftovers(lambda run: False)
        await vcenter.remove(left)
        assert lab.disabled_methods("web-01") == {}
        lab.inject("DisableMethods", fault="InvalidArgument")
        async with vcenter.kept_in_place(vm, run="r2") as why:
            assert (why, lab.disabled_methods("web-01")) == ("", {"RelocateVM_Task": "backstay.e1"})
        assert lab.disabled_methods("web-01") == {}


async def killed(lab: Lab, tmp_path: Path, vm: str, instant: str, engine: str = "e1") -> None:
    """Let another process keep the VM in its place, and die at this instant of its run."""
    told = lab.facts()
    facts = tmp_path / f"{vm}.json"
    facts.touch(mode=0o600)
    reach = {k: told[k] for k in ("host", "port", "user", "password", "ca_file")}
    facts.write_text(json.dumps(reach | {"engine": engine, "keep": instant}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.lab.crashing_run", str(facts), vm, f"dead-{instant}",
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    await process.wait()


async def test_a_new_engine_that_remembers_nothing_lets_go_every_vm_of_a_dead_one_and_no_other(
    lab: Lab, tmp_path: Path
) -> None:
    vms = {"before": "web-01", "with": "app-02", "after": "db-03"}
    async with asyncio.TaskGroup() as group:
        for instant, vm in vms.items():
            group.create_task(killed(lab, tmp_path, vm, instant))
    other = next(vm.name for vm in lab.vms() if vm.name not in vms.values())
    lab.disable_methods(other, "backstay.e2")
    for vm in vms.values():
        assert lab.disabled_methods(vm) == OURS
    assert [len(lab.vm(vm).snapshots) for vm in vms.values()] == [0, 1, 0]
    async with connected(lab) as vcenter:
        crash = Consistency.CRASH
        found = await vcenter.leftovers(lambda run: False)
        assert [one.kind for one in found] == ["migration lock"] * 4 + ["snapshot"]
        for one in found:
            if one.vm_name == other:
                with pytest.raises(NotOurs):
                    await vcenter.remove(one)
            else:
                await vcenter.remove(one)
        assert await vcenter.leftovers(lambda run: False) == []
        for vm in vms.values():
            assert (lab.disabled_methods(vm), lab.vm(vm).snapshots) == ({}, ())
            await asyncio.to_thread(lab.migrate, vm)
        assert lab.disabled_methods(other) == dict.fromkeys(MOVES, "backstay.e2")
        busy = await named(vcenter, "web-01")
        async with (
            vcenter.kept_in_place(busy, run="now"),
            vcenter.snapshot(busy, run="now", want=crash, fallback=crash, track=False),
        ):
            async with connected(lab, engine_id="e2") as theirs:
                for one in await theirs.leftovers(lambda run: False):
                    if one.vm_name == other:
                        await theirs.remove(one)
                    else:
                        with pytest.raises(NotOurs):
                            await theirs.remove(one)
            assert lab.disabled_methods("web-01") == OURS
        assert lab.disabled_methods(other) == {}
