"""A restore whose engine is killed in the middle goes on where it was, and looks twice where it cannot know."""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from connectors.errors import ConnectorError, NoTransport, Rejected
from connectors.hypervisor import RestoreTarget
from connectors.vsphere.overwriting import _make_safety, safety_prefix
from connectors.vsphere.power_lock import POWER_ON
from connectors.vsphere.restore_marks import KEY
from engine.failures import Declined
from engine.overwrite import BESIDE, IN_PLACE
from engine.restore_journal import Journal, Restoring, unfinished
from policies.facts import Address
from tests.lab.reaching import snapshotted
from tests.lab.restoring import kept_point
from tests.lab.restoring_run import STRIDE_BYTES, connect, restore
from tests.lab.test_provision import told
from tests.lab.vcenter import MIB, Lab

FreshLab = Callable[..., Lab]
DISK_BYTES = 16 * MIB


def facts_for(lab: Lab, root: Path) -> dict[str, Any]:
    (root / "state").mkdir()
    return {
        **lab.facts(), "repository": str(root / "repo"), "state_dir": str(root / "state"), "name": "back-again",
        "run": "r1",
    }  # fmt: skip


def killed_after(facts: dict[str, Any], root: Path, pieces: int = 40) -> None:
    """Run the restore in a process of its own and kill it when so many pieces are written."""
    record = root / "facts.json"
    record.write_text(json.dumps(facts))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.restoring_run", str(record)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(pieces):
        assert process.stdout.readline().strip().isdigit()
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    assert process.wait(10) == -signal.SIGKILL


def dead_after(facts: dict[str, Any], root: Path, tasks: int) -> None:
    """Run the restore in a process that dies when vCenter has carried out so many tasks for it."""
    record = root / "facts.json"
    record.write_text(json.dumps({**facts, "die_after": tasks}))
    command = [sys.executable, "-m", "tests.lab.restoring_run", str(record)]
    died = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    assert died.returncode == -signal.SIGKILL


async def ready(fresh_lab: FreshLab, root: Path) -> tuple[Lab, dict[str, Any]]:
    """A lab with a VM full of data, and its restore point."""
    lab = fresh_lab(vms=1, disk_bytes=DISK_BYTES)
    await asyncio.to_thread(lab.write_random_grains, "web-01", 0, share=0.7, seed=3)
    await asyncio.to_thread(lambda: lab.reconfigure("web-01", annotation="the books"))
    facts = facts_for(lab, root)
    vcenter = await connect(facts)
    try:
        facts["point"] = await kept_point(vcenter, lab, "web-01", root / "repo")
    finally:
        await vcenter.aclose()
    return lab, facts


def written(lab: Lab, name: str) -> list[tuple[int, int]]:
    """What was written to the VM's first disk, as the server noted it, in order."""
    log = lab.vm(name).disks[0].flat
    lines = log.with_name(log.name + ".writes").read_text().splitlines()
    return [(int(offset), int(length)) for offset, length in (line.split() for line in lines)]


async def test_a_killed_restore_goes_on_where_it_was_and_ends_with_the_same_bytes(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab, facts = await ready(fresh_lab, tmp_path)
    with lab.nbd_fault(delay_ms=1):
        await asyncio.to_thread(killed_after, facts, tmp_path)
    half = lab.vm("back-again")
    config = told(lab, "back-again")
    assert config.annotation.startswith("HALF RESTORED by Backstay from")
    assert [o.key for o in config.extraConfig if o.key == KEY]
    [left] = unfinished(Path(facts["state_dir"]))
    assert (left.name, left.point, left.target) == ("back-again", facts["point"], half.moref)
    assert lab.disabled_methods("back-again") == {POWER_ON: "backstay.engine-1"}
    before = written(lab, "back-again")

    done = await restore({**facts, "run": "r2"})
    again = written(lab, "back-again")[len(before) :]
    [disk] = done.disks
    assert done.vm.resumed
    assert disk.resumed_at >= 4 * STRIDE_BYTES
    assert min(offset for offset, _ in again) >= disk.resumed_at
    assert disk.written_bytes == sum(length for _, length in again)
    whole = lab.vm("back-again")
    assert whole.moref == half.moref
    assert filecmp.cmp(lab.frozen("web-01")[-1].disks[0].image, whole.disks[0].flat, shallow=False)
    assert told(lab, "back-again").annotation == "the books"
    assert lab.disabled_methods("back-again") == {}
    await asyncio.to_thread(lab.power_on, "back-again")
    assert unfinished(Path(facts["state_dir"])) == []


async def test_a_restore_in_place_that_is_killed_can_be_undone_or_go_on_and_no_janitor_takes_its_snapshot(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab, facts = await ready(fresh_lab, tmp_path)
    image = lab.frozen("web-01")[0].disks[0].image
    await asyncio.to_thread(lab.write_random_grains, "web-01", 0, share=0.5, seed=4)
    await asyncio.to_thread(lab.power_off, "web-01")
    over = facts | {"over": lab.vm("web-01").moref}
    with lab.nbd_fault(delay_ms=1):
        await asyncio.to_thread(killed_after, over, tmp_path, 8)
    half = lab.vm("web-01")
    assert len(half.snapshots) == 1
    # A disk that was added beside would have it taken for whole, and take its snapshot for safety away.
    with pytest.raises(Declined, match=r"half restored from .* \(in place\), and this restore would leave it so"):
        await restore({**facts, "run": "r2", "beside": half.moref})
    assert lab.vm("web-01").snapshots == half.snapshots
    with pytest.raises(vim.fault.MethodDisabled):
        await asyncio.to_thread(lab.power_on, "web-01")
    assert told(lab, "web-01").annotation.startswith("HALF RESTORED by Backstay from")
    before = written(lab, "web-01")
    vcenter = await connect(facts)
    try:
        assert await vcenter.leftovers(lambda run: False) == []
        assert await vcenter.half_restored(Address(vcenter.vcenter, half.moref))
    finally:
        await vcenter.aclose()
    done = await restore({**over, "run": "r2"})
    assert done.vm.resumed
    [disk] = done.disks
    assert disk.resumed_at >= 4 * STRIDE_BYTES
    assert min(offset for offset, _ in written(lab, "web-01")[len(before) :]) >= disk.resumed_at
    whole = lab.vm("web-01")
    assert (whole.snapshots, lab.disabled_methods("web-01")) == ((), {})
    assert filecmp.cmp(image, whole.disks[0].flat, shallow=False)
    assert told(lab, "web-01").annotation == "the books"
    assert not [o for o in told(lab, "web-01").extraConfig if o.key == KEY]


def switch_on_at_its_host(lab: Lab, name: str) -> None:
    """Past vCenter, where our switch counts for nothing."""
    lab.disable_methods(name, "backstay.engine-1", POWER_ON, on=True)
    lab.power_on(name)


async def switched_on(lab: Lab, facts: dict[str, Any]) -> str:
    await asyncio.to_thread(switch_on_at_its_host, lab, "back-again")
    await asyncio.to_thread(lab.write_as_guest, "back-again", 0, MIB, b"written by the guest")
    await asyncio.to_thread(lab.write_as_guest, "back-again", 0, DISK_BYTES - MIB, b"where nothing is restored")
    await asyncio.to_thread(lab.power_off, "back-again")
    return "the VM was changed since the restore was interrupted"


async def state_lost(lab: Lab, facts: dict[str, Any]) -> str:
    for file in (Path(facts["state_dir"]) / "restores").iterdir():
        file.unlink()
    return "how far the interrupted restore came is not known any more"


@pytest.mark.parametrize("happened", [switched_on, state_lost], ids=["switched-on", "state-lost"])
async def test_what_happened_meanwhile_makes_a_resumed_restore_compare_everything(
    fresh_lab: FreshLab, tmp_path: Path, happened: Callable[[Lab, dict[str, Any]], Any]
) -> None:
    lab, facts = await ready(fresh_lab, tmp_path)
    with lab.nbd_fault(delay_ms=1):
        await asyncio.to_thread(killed_after, facts, tmp_path)
    why = await happened(lab, facts)
    done = await restore(facts)
    assert [disk.compared for disk in done.disks] == [why]
    image = lab.frozen("web-01")[-1].disks[0].image
    assert filecmp.cmp(image, lab.vm("back-again").disks[0].flat, shallow=False)


async def test_a_half_restored_vm_that_was_switched_on_is_left_alone(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)
    vcenter = await connect(facts_for(lab, tmp_path))
    try:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        target = RestoreTarget("back-again", point="p1", run="r1")
        await vcenter.create_vm(configuration, target)
        await asyncio.to_thread(switch_on_at_its_host, lab, "back-again")
        before = lab.calls()
        with pytest.raises(Rejected, match="is half restored and is not powered off"):
            await vcenter.create_vm(configuration, target)
        await asyncio.to_thread(lab.power_off, "back-again")
        await asyncio.to_thread(lab.snapshot, "back-again")
        with pytest.raises(Rejected, match="is half restored and has snapshots"):
            await vcenter.create_vm(configuration, target)
        assert lab.calls().get("ReconfigVM_Task") == before.get("ReconfigVM_Task")
    finally:
        await vcenter.aclose()


async def test_the_snapshot_for_safety_of_a_dead_run_is_used_and_one_that_was_kept_is_not(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab, facts = await ready(fresh_lab, tmp_path)
    await asyncio.to_thread(lab.write_as_guest, "web-01", 0, MIB, b"written since")
    await asyncio.to_thread(lab.power_off, "web-01")
    over = facts | {"over": lab.vm("web-01").moref}
    # A VM whose disks turn out to be out of reach is as it was: nothing was written.
    with pytest.raises(NoTransport):
        await restore({**over, "vddk_plugin": "/nonexistent"})
    assert (lab.vm("web-01").snapshots, lab.disabled_methods("web-01")) == ((), {})
    assert (unfinished(Path(facts["state_dir"])), told(lab, "web-01").annotation) == ([], "the books")
    vcenter = await connect(facts)
    point, web = facts["point"], Address(vcenter.vcenter, over["over"])
    try:
        # The run dies after it made its snapshot and before it marks the VM.
        Journal(Path(facts["state_dir"]), Restoring(IN_PLACE, point, web.vcenter, web.moref, "web-01")).intend("r0")
        managed = vcenter.session.managed(vim.VirtualMachine, web.moref)
        await _make_safety(vcenter.session, managed, f"{safety_prefix('engine-1')}r0", point, "r0")
        assert not await vcenter.half_restored(web)
        done = await restore(over)
        assert done.vm.safety.endswith("-r0")
        assert lab.vm("web-01").snapshots == ()
        assert filecmp.cmp(lab.frozen("web-01")[0].disks[0].image, lab.vm("web-01").disks[0].flat, shallow=False)
        assert unfinished(Path(facts["state_dir"])) == []
        # One that a finished restore has left holds what somebody wants back.
        await _make_safety(vcenter.session, managed, f"{safety_prefix('engine-1')}r1", point, "r1")
        with pytest.raises(Rejected, match="it has snapshots, above which nothing may be written"):
            await restore({**over, "run": "r2"})
        assert len(lab.vm("web-01").snapshots) == 1
        assert unfinished(Path(facts["state_dir"])) == []
    finally:
        await vcenter.aclose()


@pytest.mark.parametrize("tasks", [3, 5], ids=["safety-made", "safety-removed"])
async def test_killed_between_the_steps_of_a_restore_in_place_the_same_command_leaves_nothing(
    fresh_lab: FreshLab, tmp_path: Path, tasks: int
) -> None:
    lab, facts = await ready(fresh_lab, tmp_path)
    await asyncio.to_thread(lab.write_as_guest, "web-01", 0, MIB, b"written since")
    await asyncio.to_thread(lab.power_off, "web-01")
    over = facts | {"over": lab.vm("web-01").moref}
    await asyncio.to_thread(dead_after, over, tmp_path, tasks)
    # Looked at first, the snapshot for that is removed, then the one for safety made, the VM marked, that removed.
    assert len(lab.vm("web-01").snapshots) == (1 if tasks == 3 else 0)
    await restore({**over, "run": "r2"})
    vm = lab.vm("web-01")
    assert vm.snapshots == ()
    assert filecmp.cmp(lab.frozen("web-01")[0].disks[0].image, vm.disks[0].flat, shallow=False)
    assert not [o for o in told(lab, "web-01").extraConfig if o.key == KEY]
    assert unfinished(Path(facts["state_dir"])) == []


async def test_a_disk_that_was_added_just_before_the_engine_died_is_gone_on_with_and_no_second_one_is_added(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab, facts = await ready(fresh_lab, tmp_path)
    await asyncio.to_thread(lab.power_off, "web-01")
    beside = facts | {"beside": lab.vm("web-01").moref}
    with pytest.raises(ConnectorError):
        await restore({**beside, "datastore": "nowhere"})
    assert (lab.disabled_methods("web-01"), unfinished(Path(facts["state_dir"]))) == ({}, [])
    assert told(lab, "web-01").annotation == "the books"
    # The VM is marked, then gets its disk; nothing is noted of that disk but what the same call wrote into the mark.
    await asyncio.to_thread(dead_after, beside, tmp_path, 2)
    _, added = lab.vm("web-01").disks
    [left] = unfinished(Path(facts["state_dir"]))
    assert left.kind == BESIDE
    done = await restore({**beside, "run": "r2"})
    _, second = lab.vm("web-01").disks
    assert (second.uuid, done.vm.resumed) == (added.uuid, True)
    assert done.warnings == (f"{second.label} was added to web-01",)
    assert filecmp.cmp(lab.frozen("web-01")[0].disks[0].image, second.flat, shallow=False)
    assert not [o for o in told(lab, "web-01").extraConfig if o.key == KEY]
