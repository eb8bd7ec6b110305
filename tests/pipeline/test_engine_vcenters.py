"""Several vCenters in one engine: VMs keep their history through moves between them and through a rebuilt one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from engine import sections
from engine.commands import BackUpVm
from engine.config import Config
from engine.ports import Hypervisor
from engine.service import Opener
from policies.facts import Address, EventType, Vm, VmId
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, engine_of, running

OTHER = """
[vcenter.other]
host = "elsewhere.invalid"
user = "backup"
password = "file:password"
"""


def two(tmp_path: Path) -> tuple[HypervisorInMemory, HypervisorInMemory]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return HypervisorInMemory(tmp_path / "a", "vc-a"), HypervisorInMemory(tmp_path / "b", "vc-b")


def opener(here: HypervisorInMemory, there: HypervisorInMemory) -> Opener:
    async def opened(name: str, vcenter: sections.VCenter, config: Config) -> Hypervisor:
        return here if name == "lab" else there

    return opened


def arrives(vm: Vm, here: HypervisorInMemory, there: HypervisorInMemory, moref: str = "vm-900") -> Vm:
    """The VM stands in the other vCenter, too: with its UUIDs, and with all that is new where it is registered."""
    guest = here.guests[vm.address]
    moved = replace(guest.vm, address=Address(there.vcenter, moref), host="esx-b", datastores=("ds-b",))
    there.guests[moved.address] = replace(guest, vm=moved)
    there.tell_watchers()
    return moved


async def backed_up(engine: Running, name: str = "web") -> str:
    done = await engine.finished(await engine.control.submit(BackUpVm(name), "test"))
    assert done["state"] == "done", done
    shown = await engine.control.point((await engine.control.points(name))[-1].id)
    return str(shown["disks"][0]["changes"])


def where(engine: Running, vm: VmId) -> Address | None:
    seen = engine.parts.world.vms.get(vm)
    return seen.address if seen is not None else None


async def test_a_vm_that_moves_to_another_vcenter_keeps_its_id_and_its_history(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    web = here.add("web")
    stranger = there.add("other")
    there.set(stranger, instance_uuid="another", bios_uuid="another")
    async with engine_of(configure(tmp_path, EVERYTHING, more=OTHER), opener(here, there)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and engine.points_of("other") == 1)
        [vm] = engine.parts.world.named("web")
        moved = arrives(web, here, there)
        here.remove_vm(web)
        here.post(web, EventType.REMOVED)
        await engine.until(lambda: where(engine, vm) == moved.address)
        assert engine.parts.world.named("web") == [vm]
        assert not engine.parts.world.alerts
        there.guests[moved.address].tracking = "52 0e"  # storage that moves begins tracking anew
        assert (await backed_up(engine)).startswith("whole")
        assert {point.vm for point in await engine.control.points("web")} == {vm}
        assert engine.parts.world.rows[vm].left_at is None
        there.write(moved, 0, b"x" * 4096)
        assert (await backed_up(engine)).startswith("incremental")


async def test_a_vm_that_stands_in_both_gets_an_id_of_its_own_until_its_histories_are_joined(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    web = here.add("web")
    async with engine_of(configure(tmp_path, EVERYTHING, more=OTHER), opener(here, there)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [old] = engine.parts.world.named("web")
        arrives(web, here, there)
        await engine.until(lambda: len(engine.parts.world.vms) == 2)
        [new] = [vm for vm in engine.parts.world.vms if vm != old]
        assert "may be a copy" in engine.parts.world.alerts[new]
        here.remove_vm(web)
        await engine.until(lambda: old not in engine.parts.world.vms)
        await engine.until(lambda: not engine.parts.world.jobs and not engine.parts.crew.active)
        await engine.control.relink(old, new, "a person")
        assert list(engine.parts.world.vms) == [old]
        assert (await backed_up(engine)).startswith("whole")


async def test_the_history_follows_a_vm_that_both_showed_for_a_while_once_the_first_one_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.emigrants.EVERY", timedelta(milliseconds=50))
    here, there = two(tmp_path)
    web, copied = here.add("web"), here.add("copied")
    for vm, uuid in ((web, "1"), (copied, "2")):
        here.set(vm, instance_uuid=f"instance-{uuid}", bios_uuid=f"bios-{uuid}")
    async with engine_of(configure(tmp_path, EVERYTHING, more=OTHER), opener(here, there)) as engine:
        world = engine.parts.world
        await engine.until(lambda: engine.points_of("web") == 1 and engine.points_of("copied") == 1)
        [old] = world.named("web")
        here.post(web, EventType.RECONFIGURED, cause="emigrating")
        moved = arrives(web, here, there)
        arrives(copied, here, there, "vm-901")
        await engine.until(lambda: len(world.vms) == 4)
        here.remove_vm(web)
        await engine.until(lambda: where(engine, old) == moved.address, seconds=30)
        assert world.named("web") == [old]
        assert len(world.named("copied")) == 2, "what stands in both stays two VMs"
        await engine.until_written("SELECT 1 FROM audit WHERE who = 'backstay' HAVING list(action) = ['relink']")
        assert (await backed_up(engine)).startswith("whole")
        assert {point.vm for point in await engine.control.points("web")} == {old}


async def test_one_name_and_one_address_in_two_vcenters_are_two_vms(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    web, other = here.add("web"), there.add("web")
    there.set(other, instance_uuid="another", bios_uuid="another")
    assert web.address.moref == other.address.moref
    async with engine_of(configure(tmp_path, EVERYTHING, more=OTHER), opener(here, there)) as engine:
        await engine.until(lambda: len(engine.parts.world.points) == 2)
        assert len(engine.parts.world.named("web")) == 2


async def test_a_vcenter_that_was_rebuilt_knows_its_vms_by_their_uuids(tmp_path: Path) -> None:
    before, after = two(tmp_path)
    web = before.add("web")
    before.add("gone")
    config = configure(tmp_path)
    async with running(tmp_path, before, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and engine.points_of("gone") == 1)
        [vm], [gone] = engine.parts.world.named("web"), engine.parts.world.named("gone")
    moved = arrives(web, before, after, moref="vm-7")
    async with running(tmp_path, after, config) as engine:
        await engine.until(lambda: where(engine, vm) == moved.address)
        assert engine.parts.world.named("web") == [vm] and not engine.parts.world.alerts
        await backed_up(engine)
        assert {point.vm for point in await engine.control.points("web")} == {vm}
        # What did not come back is known still, with what is kept of it.
        assert gone not in engine.parts.world.vms and engine.points_of("gone") == 1
