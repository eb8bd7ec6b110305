"""Trial VMs of rehearsals in a vCenter: what they are, how they end, and whose they are."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.disk_files import FileReader
from connectors.errors import Gone, NotOurs
from connectors.hypervisor import TRIAL_PREFIX, CreatedVm, Identity, RestoreTarget
from connectors.vsphere import trials
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.trial_marks import KEY, NOTES
from engine.commands import Rehearse
from tests.lab.connect import until
from tests.lab.reaching import connected, snapshotted, transport_settings
from tests.lab.test_engine_end_to_end import POLICY, config_for
from tests.lab.test_provision import nics, told
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import engine_of

FreshLab = Callable[..., Lab]
RUN = "20261123T1200000a1b2c3d"
NAME = f"{TRIAL_PREFIX}web-01-{RUN}"


def target(**more: Any) -> RestoreTarget:
    usual: dict[str, Any] = {
        "identity": Identity.NEW, "connect": False, "cards": False, "point": "point-1", "run": RUN, "trial": True,
    }  # fmt: skip
    return RestoreTarget(**({"name": NAME} | usual | more))


@asynccontextmanager
async def reached(lab: Lab, root: Path) -> AsyncIterator[tuple[VCenter, bytes]]:
    """A connector, and the saved configuration of web-01."""
    async with connected(lab, transport_settings(lab, root)) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        yield vcenter, configuration


async def left_over(vcenter: VCenter, active: str = "") -> list[str]:
    return [one.name for one in await vcenter.leftovers(lambda run: run == active) if one.kind == trials.TRIAL_VM]


async def test_a_trial_vm_has_no_network_an_identity_of_its_own_is_in_no_inventory_and_goes_with_its_files(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    await asyncio.to_thread(
        lambda: lab.reconfigure("web-01", memoryAllocation=vim.ResourceAllocationInfo(reservation=512))
    )
    async with reached(lab, tmp_path) as (vcenter, configuration):
        async with vcenter.trial_vm(configuration, target()) as made:
            trial, original = await asyncio.to_thread(told, lab, NAME), await asyncio.to_thread(told, lab, "web-01")
            assert nics(trial) == []
            assert {trial.uuid, trial.instanceUuid}.isdisjoint({original.uuid, original.instanceUuid})
            assert trial.annotation.startswith(NOTES)
            options = {one.key: one.value for one in trial.extraConfig}
            assert RUN in options[KEY]
            assert options["uuid.action"] == "create"
            assert trial.memoryAllocation.reservation == 0
            disks = [d for d in trial.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]
            assert [getattr(d.backing, "thinProvisioned", None) for d in disks] == [True]
            assert [vm.name for vm in await vcenter.inventory()] == ["web-01"]
            with pytest.raises(Gone):
                await vcenter.vm(made.address)
            assert await left_over(vcenter, active=RUN) == []
            assert await left_over(vcenter) == [NAME]
            folder = lab.vm(NAME).disks[0].flat.parent
            assert folder.is_dir()
        assert [vm.name for vm in lab.vms()] == ["web-01"]
        assert not list(folder.glob("*.vmdk"))


async def test_a_guest_that_starts_shows_a_heartbeat_and_an_empty_disk_never_does(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    async with reached(lab, tmp_path) as (vcenter, configuration), vcenter.trial_vm(configuration, target()) as made:
        empty = await vcenter.heartbeat(made, 0.5)
        assert empty.why == "its VMware Tools did not start; vCenter does not see that it has any"
        assert lab.vm(NAME).power == "poweredOff"
        async with vcenter.write_disk(made, 0, transports=("nbd",), run=RUN) as opened:
            await opened.writer.write(0, memoryview(b"boot" * 1024))  # type: ignore[misc]
        lived = await vcenter.heartbeat(made, 20.0)
        assert lived.why == ""
        assert 0 < lived.seconds < 20
        assert lab.vm(NAME).power == "poweredOff"
    assert [vm.name for vm in lab.vms()] == ["web-01"]


async def test_a_cancelled_rehearsal_removes_what_is_on_and_the_janitor_what_a_dead_run_left(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    async with reached(lab, tmp_path) as (vcenter, configuration):

        async def endless() -> None:
            async with vcenter.trial_vm(configuration, target()) as made:
                await vcenter.heartbeat(made, 3600.0)

        task = asyncio.create_task(endless())
        await until(lambda: any(vm.name == NAME and vm.power == "poweredOn" for vm in lab.vms()))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert [vm.name for vm in lab.vms()] == ["web-01"]

        made = await vcenter.create_vm(configuration, target())
        await asyncio.to_thread(lambda: lab.power_on(NAME))
        [left] = [one for one in await vcenter.leftovers(lambda run: False) if one.kind == trials.TRIAL_VM]
        assert (left.run, left.vm) == (RUN, made.address)
        await vcenter.remove(left)
        await vcenter.remove(left)
        assert [vm.name for vm in lab.vms()] == ["web-01"]


Adopts = Callable[[Lab, CreatedVm], None]


def renamed(lab: Lab, made: CreatedVm) -> None:
    lab.rename(NAME, "mine")


def noted(lab: Lab, made: CreatedVm) -> None:
    lab.reconfigure(NAME, annotation="keep this one")


def snapshot_made(lab: Lab, made: CreatedVm) -> None:
    lab.snapshot(NAME, "before I look")


def disk_given(lab: Lab, made: CreatedVm) -> None:
    """A disk of web-01 on the trial VM: it would be deleted with it."""
    lab.power_off("web-01")
    file = lab.vm("web-01").disks[0].file
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="independent_persistent")
    mine = next(d for d in told(lab, NAME).hardware.device if isinstance(d, vim.vm.device.VirtualDisk))
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=mine.controllerKey, unitNumber=5, capacityInKB=mine.capacityInKB, backing=backing
    )
    add = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    lab.reconfigure(NAME, deviceChange=[add])


@pytest.mark.parametrize("adopt", [renamed, noted, snapshot_made, disk_given])
async def test_a_trial_vm_that_somebody_has_made_his_is_never_removed(
    fresh_lab: FreshLab, tmp_path: Path, adopt: Adopts
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=1 * MIB)
    async with reached(lab, tmp_path) as (vcenter, configuration):
        with pytest.raises(NotOurs, match="this trial VM stays"):
            async with vcenter.trial_vm(configuration, target()) as made:
                await asyncio.to_thread(adopt, lab, made)
        assert await left_over(vcenter) == []
        assert len(lab.vms()) == 2
        with FileReader(lab.vm("web-01").disks[0].flat) as reader:
            assert reader.capacity_bytes == 1 * MIB
        seen = {vm.name for vm in await vcenter.inventory()}
        assert seen == ({"web-01", "mine"} if adopt is renamed else {"web-01", NAME} if adopt is noted else {"web-01"})


async def test_another_engines_trial_vm_is_no_vm_and_not_ours(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=1 * MIB)
    async with (
        reached(lab, tmp_path) as (vcenter, configuration),
        vcenter.trial_vm(configuration, target()),
        connected(lab, transport_settings(lab, tmp_path), engine_id="engine-2") as other,
    ):
        assert [vm.name for vm in await other.inventory()] == ["web-01"]
        assert await left_over(other) == []
        with pytest.raises(NotOurs):
            await trials.remove_trial(other.session, lab.vm(NAME).moref)


REHEARSED = POLICY + '[policy.everything.rehearse]\nevery = "7d"\nheartbeat = true\n'


async def test_a_killed_engine_s_rehearsal_is_cleaned_up_and_done_again_and_damage_is_found(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=16 * MIB)
    await asyncio.to_thread(lab.write_random_grains, "web-01", 0, share=0.6, seed=3)
    root = tmp_path / "engine"
    config = config_for(lab, root, REHEARSED, more='rehearsals = "1s"')
    await asyncio.to_thread(killed_while_trying, lab, root)
    [left] = [vm for vm in lab.vms() if vm.name.startswith(TRIAL_PREFIX)]
    async with engine_of(config) as engine:
        await engine.until(lambda: left.moref not in {vm.moref for vm in lab.vms()}, seconds=30)
        await engine.until(lambda: any(one.passed for one in engine.parts.rehearsals.newest.values()), seconds=60)
        [point] = await engine.control.points("web-01")
        [row] = (await engine.control.point(point.id))["rehearsals"]
        assert (row["passed"], row["policy"]) == (True, "everything")
        assert row["compared_bytes"] > 8 * MIB
        assert row["heartbeat_seconds"] > 0
        assert [vm.name for vm in lab.vms()] == ["web-01"]
        assert not lab.vm("web-01").snapshots
        known = [row.traits.name for row in engine.parts.world.rows.values()]
        assert known == ["web-01"], "events of trial VMs make no VM"

        for pack in [path for path in (root / "repo" / "packs").rglob("*") if path.is_file()]:
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.write_bytes(data)
        task = await engine.control.submit(Rehearse("web-01"), "a test")
        result = await engine.finished(task)
        assert (result["passed"], result["exit_code"]) == (False, 4)
        [point] = await engine.control.points("web-01")
        assert point.damaged
        assert [vm.name for vm in lab.vms()] == ["web-01"]


def killed_while_trying(lab: Lab, root: Path) -> None:
    """Run the engine as a process, and kill it when it has begun to write a trial VM's disk."""
    import subprocess
    import time

    command = [sys.executable, "-m", "engine", "run", "--config", str(root / "backstay.toml")]
    with (root / "log").open("wb") as log, lab.nbd_fault(delay_ms=20):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while not any(writes_begun(vm.disks) for vm in lab.vms() if vm.name.startswith(TRIAL_PREFIX)):
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < deadline, (root / "log").read_text()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)


def writes_begun(disks: Any) -> bool:
    return any(disk.flat.with_name(disk.flat.name + ".writes").exists() for disk in disks)
