"""A new VM where nothing writes single disks: imported as a whole, by the order of ways, or not there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import WriteFailed
from engine.commands import BackUpVm, Rehearse, RestoreToVm
from engine.failures import Exit
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, running

NO_PROXY, NO_VDDK, NO_RIGHT = "there is no proxy", "there is no VDDK", "the account lacks VApp.Import"


@asynccontextmanager
async def backed_up(tmp_path: Path, order: str = 'hotadd", "nbd", "export', disks: int = 3) -> AsyncIterator[Any]:
    """An engine, its vCenter, and a restore point of a VM with data in places."""
    vcenter = HypervisorInMemory(tmp_path)
    vm = vcenter.add("web", disks=disks, data=os.urandom(MIB))
    for disk in range(disks):
        vcenter.write(vm, 2 * MIB + 512 * disk, os.urandom(70_000), disk)
    config = configure(tmp_path, EVERYTHING, more=f'[transport]\norder = ["{order}"]')
    async with running(tmp_path, vcenter, config) as engine:
        await engine.until(lambda: engine.parts.world.named("web"))
        point = str((await engine.finished(await engine.control.submit(BackUpVm("web"), "test")))["id"])
        yield engine, vcenter, vm, point


async def restored(engine: Running, point: str, *transports: str) -> dict[str, Any]:
    told = await engine.finished(await engine.control.submit(RestoreToVm(point, "copy", transports=transports), "test"))
    return dict(told)


def same(vcenter: HypervisorInMemory, moref: str, disks: int = 3) -> bool:
    files = [guest.files for address, guest in vcenter.guests.items() if address.moref in (moref, "vm-1")]
    pairs = zip(*(sorted(each.items()) for each in files), strict=True)
    return all(left.read_bytes() == right.read_bytes() for (_, left), (_, right) in pairs)


async def test_a_vm_and_a_trial_vm_are_imported_where_neither_hot_add_nor_nbd_can_work_and_each_reason_is_told(
    tmp_path: Path,
) -> None:
    async with backed_up(tmp_path) as (engine, vcenter, _, point):
        vcenter.cannot_write = {"hotadd": NO_PROXY, "nbd": NO_VDDK}
        told = await restored(engine, point)
        assert [disk["transport"] for disk in told["disks"]] == ["import"] * 3
        assert [disk["fallbacks"] for disk in told["disks"]] == [[["hotadd", NO_PROXY], ["nbd", NO_VDDK]]] * 3
        assert (told["resumable"], told["written_bytes"] > 0) == (False, True)
        assert same(vcenter, told["moref"])
        assert "discard copy" not in vcenter.log, "nothing was made to find out"
        assert not vcenter.half_restored_vms
        told = await engine.finished(await engine.control.submit(Rehearse(point), "test"))
        assert (told["state"], told["passed"], told["exit_code"]) == ("done", True, 0)
        assert [disk["transport"] for disk in told["disks"]] == ["import"] * 3, "and read back"
        assert [disk["fallbacks"] for disk in told["disks"]] == [[["hotadd", NO_PROXY], ["nbd", NO_VDDK]]] * 3
        assert sorted(guest.vm.name for guest in vcenter.guests.values()) == ["copy", "web"]


async def test_a_vm_whose_disks_open_for_nobody_is_taken_away_and_imported_or_every_reason_told(tmp_path: Path) -> None:
    async with backed_up(tmp_path) as (engine, vcenter, _, point):
        vcenter.cannot_write = {"hotadd": NO_PROXY, "nbd": NO_VDDK, "import": NO_RIGHT}
        told = await restored(engine, point)
        reasons = f"no transport works: hotadd: {NO_PROXY}; nbd: {NO_VDDK}; import: {NO_RIGHT}"
        assert (told["state"], reasons in str(told)) == ("failed", True)
        assert [guest.vm.name for guest in vcenter.guests.values()] == ["web"]
        vcenter.cannot_write = {"hotadd": NO_PROXY}
        vcenter.cannot_open = {"hotadd": NO_PROXY, "nbd": "no route to esx-1:902"}
        told = await restored(engine, point)
        assert told["disks"][0]["fallbacks"] == [["hotadd", NO_PROXY], ["nbd", "no route to esx-1:902"]]
        assert (told["disks"][0]["transport"], same(vcenter, told["moref"])) == ("import", True)
        assert vcenter.log.index("discard copy") < vcenter.log.index("import complete")
        assert len([guest for guest in vcenter.guests.values() if guest.vm.name == "copy"]) == 1


async def test_the_order_and_a_wish_decide_which_way_is_tried_first(tmp_path: Path) -> None:
    async with backed_up(tmp_path, 'export", "nbd') as (engine, vcenter, _, point):
        vcenter.cannot_write = {"import": NO_RIGHT}
        told = await restored(engine, point)
        assert [told["disks"][0][key] for key in ("transport", "fallbacks")] == ["nbd", [["import", NO_RIGHT]]]
        assert told["resumable"]
        vcenter.cannot_write = {}
        assert (await restored(engine, point, "import"))["disks"][0]["transport"] == "import"
        assert (await restored(engine, point, "nbd"))["disks"][0]["transport"] == "nbd"
        refused = await restored(engine, point, "https")
        assert (refused["exit"], "disks are not written by https" in str(refused)) == (int(Exit.USAGE), True)


@pytest.mark.parametrize("how", ["broken", "cancelled"])
async def test_an_import_that_is_cut_off_leaves_no_vm_and_begins_again(tmp_path: Path, how: str) -> None:
    async with backed_up(tmp_path, "export") as (engine, vcenter, _, point):
        came, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def cut(offset: int) -> None:
            if how == "broken":
                raise WriteFailed("host esx-1 broke the import off")
            loop.call_soon_threadsafe(came.set)
            go_on.wait(10)

        vcenter.on_import = cut
        task = await engine.control.submit(RestoreToVm(point, "copy"), "test")
        if how == "cancelled":
            await came.wait()
            await engine.control.cancel(task, "test")
            go_on.set()
        told = await engine.finished(task)
        assert told["state"] == "failed"
        assert how == "cancelled" or "what is left of it is removed, and the same command begins again" in str(told)
        assert [guest.vm.name for guest in vcenter.guests.values()] == ["web"]
        assert vcenter.log[-1] == "import aborted"
        vcenter.on_import = lambda offset: None
        again = await restored(engine, point)
        assert (again["resumed"], same(vcenter, again["moref"])) == (False, True)
