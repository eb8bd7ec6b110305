"""A VM that moves from one vCenter to another goes on with its history, and its next run reads it in full."""

from __future__ import annotations

import asyncio
import filecmp
import shutil
from collections.abc import Callable
from pathlib import Path

from pyVmomi import vim

from policies.facts import Address
from tests.lab.test_engine_end_to_end import config_for
from tests.lab.test_overwriting import ON_REQUEST, backed_up, known
from tests.lab.test_restore_elsewhere import also
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import engine_of

SIZE = 4 * MIB


def move(home: Lab, other: Lab, name: str) -> str:
    """Move a VM with its identity and its bytes; its moref there. The one at home leaves as with vMotion, then."""
    was = home._act(lambda _: home.machine(name).config)
    device = vim.vm.device
    backing = device.VirtualDisk.FlatVer2BackingInfo(
        fileName=f"[fast-1] {name}/{name}.vmdk", diskMode="persistent", thinProvisioned=True
    )
    disk = device.VirtualDisk(
        key=-10, controllerKey=-1, unitNumber=0, capacityInKB=SIZE // 1024, capacityInBytes=SIZE, backing=backing
    )
    controller = device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    spec = vim.vm.ConfigSpec(
        name=name, guestId="debian10_64Guest", numCPUs=1, memoryMB=512, uuid=was.uuid, instanceUuid=was.instanceUuid,
        files=vim.vm.FileInfo(vmPathName="[fast-1]"), changeTrackingEnabled=True,
        deviceChange=[
            device.VirtualDeviceSpec(operation="add", device=controller),
            device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk),
        ],
    )  # fmt: skip
    flat = home.vm(name).disks[0].flat
    kept = home.root / "moving"
    shutil.copy(flat, kept)
    home.post_event("VmEmigratingEvent", name)
    home.remove_vm(name)
    folder = other._act(lambda si: other._datacenter(si).vmFolder)
    pool = other._act(lambda si: other._clusters(si)[0].resourcePool)
    made = other.finish(lambda: folder.CreateVM_Task(config=spec, pool=pool))
    shutil.copyfile(kept, other.vm(name).disks[0].flat)
    return str(made._moId)


async def test_a_vm_that_moves_between_vcenters_keeps_its_history(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    home = fresh_lab(vms=1, disks_per_vm=1, tracking=True, disk_bytes=SIZE)
    other = fresh_lab(vms=0, disk_bytes=SIZE)
    config = config_for(home, tmp_path / "engine", ON_REQUEST, more=also(other))
    (home.root / f"lab-{other.port}.json").write_text((other.root / "lab.json").read_text())
    async with engine_of(config) as engine:
        world = engine.parts.world
        await known(engine, "web-01")
        await engine.until(lambda: world.inventory_known)
        first = await backed_up(engine, "web-01")
        moref = await asyncio.to_thread(move, home, other, "web-01")
        [vm] = world.named("web-01")
        await engine.until(lambda: vm in world.vms and world.vms[vm].address == Address(other.instance_uuid, moref))
        again = await backed_up(engine, "web-01")
        assert (again["vm_id"], world.named("web-01")) == (first["vm_id"], [vm])
        assert str(again["disks"][0]["changes"]).startswith("whole")
        assert filecmp.cmp(other.frozen("web-01")[0].disks[0].image, home.frozen("web-01")[0].disks[0].image, False)
        assert [point.vm for point in await engine.control.points("web-01")] == [vm, vm]
        assert not world.alerts
