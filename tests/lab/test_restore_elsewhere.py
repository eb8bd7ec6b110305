"""A VM restored into another vCenter, and a lost one in its own: whose identity it gets, and what its history is."""

from __future__ import annotations

import asyncio
import filecmp
from collections.abc import Callable
from pathlib import Path

from engine.commands import BackUpVm, RestoreToVm
from tests.lab.test_engine_end_to_end import config_for
from tests.lab.test_overwriting import ON_REQUEST, backed_up, known
from tests.lab.test_provision import nics, told
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of

FreshLab = Callable[..., Lab]


def also(lab: Lab) -> str:
    """The configuration of one more vCenter."""
    return f"""
[vcenter.other]
host = "{lab.host}"
port = {lab.port}
user = "{lab.user}"
password = "file:password"
ca_file = "{lab.ca_file}"
"""


async def restored(engine: Running, task: RestoreToVm) -> dict[str, object]:
    report = await engine.finished(await engine.control.submit(task, "test"))
    assert report["state"] == "done", report
    return report


async def test_a_vm_goes_to_another_vcenter_and_a_lost_one_takes_its_identity_along(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    home, other = fresh_lab(vms=1, tracking=True, disk_bytes=4 * MIB), fresh_lab(vms=0, disk_bytes=4 * MIB)
    config = config_for(home, tmp_path / "engine", ON_REQUEST, more=also(other))
    (home.root / f"lab-{other.port}.json").write_text((other.root / "lab.json").read_text())
    old = told(home, "web-01")
    async with engine_of(config) as engine:
        await known(engine, "web-01")
        first = await backed_up(engine, "web-01")
        image = home.frozen("web-01")[0].disks[0].image
        target = RestoreToVm(first["id"], "web-dr", vcenter="other", datastore="fast-1")
        await engine.until(lambda: len(engine.parts.hypervisors) == 2)
        with_original = await restored(engine, target)
        assert with_original["vcenter"] == "other"
        assert with_original["power"] == "off"
        assert with_original["place"]["datastores"] == ["fast-1"]  # type: ignore[index]
        assert "the original, web-01, is still in lab" in str(with_original["identity"])
        assert filecmp.cmp(image, other.vm("web-dr").disks[0].flat, shallow=False)
        assert told(other, "web-dr").instanceUuid != old.instanceUuid
        await asyncio.to_thread(home.remove_vm, "web-01")
        await engine.until(lambda: not any(vm.name == "web-01" for vm in engine.parts.world.vms.values()))
        lost = await restored(engine, RestoreToVm(first["id"], "web-01", vcenter="other"))
        assert "of the original" in str(lost["identity"])
        new = told(other, "web-01")
        assert (new.instanceUuid, new.uuid) == (old.instanceUuid, old.uuid)
        assert nics(new)[0].macAddress == nics(old)[0].macAddress
        assert filecmp.cmp(image, other.vm("web-01").disks[0].flat, shallow=False)


async def test_a_lost_vm_that_was_restored_goes_on_with_its_history_and_is_read_in_full(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=4 * MIB)
    async with engine_of(config_for(lab, tmp_path / "engine", ON_REQUEST)) as engine:
        await known(engine, "web-01")
        first = await backed_up(engine, "web-01")
        await asyncio.to_thread(lab.remove_vm, "web-01")
        await engine.until(lambda: not engine.parts.world.vms)
        await restored(engine, RestoreToVm(first["id"], "web-01"))
        await engine.until(lambda: engine.parts.world.vms)
        again = await engine.finished(await engine.control.submit(BackUpVm("web-01"), "test"))
        assert again["state"] == "done", again
        assert again["vm_id"] == first["vm_id"]
        assert str(again["disks"][0]["changes"]).startswith("whole: ")  # type: ignore[index]
        assert filecmp.cmp(lab.frozen("web-01")[-1].disks[0].image, lab.frozen("web-01")[0].disks[0].image, False)
