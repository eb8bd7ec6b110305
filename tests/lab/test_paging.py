"""However few objects vCenter puts into one answer: no VM, no leftover and no lack of a privilege is overlooked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing

import pytest

from connectors.vsphere.hypervisor import VCenter
from policies.facts import Address, Consistency
from tests.lab.connect import connected
from tests.lab.vcenter import MIB, Lab, start_lab

VMS = 7


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("paging"), vms=VMS, content=False, disk_bytes=MIB) as running:
        yield running


@pytest.fixture(params=[1, 3])
def paged(many: Lab, request: pytest.FixtureRequest) -> Lab:
    """A lab that puts so few objects into an answer that each read takes several."""
    many.settings(page_objects=request.param)
    return many


@pytest.fixture
async def vcenter(paged: Lab) -> AsyncIterator[VCenter]:
    async with connected(paged) as found:
        yield found


async def test_each_vm_is_in_the_inventory_however_its_answers_are_paged(paged: Lab, vcenter: VCenter) -> None:
    told = list(await vcenter.inventory())
    assert {vm.address.moref for vm in told} == {vm.moref for vm in paged.vms()}
    paged.settings(page_objects=0)
    at_once = list(await vcenter.inventory())
    assert sorted(told, key=lambda vm: vm.name) == sorted(at_once, key=lambda vm: vm.name)
    assert all(vm.folder and vm.host and vm.datastores for vm in told)


async def test_the_first_update_of_a_watch_is_complete_however_it_is_cut(paged: Lab, vcenter: VCenter) -> None:
    everything = {vm.address for vm in await vcenter.inventory()}
    async with aclosing(vcenter.watch()) as updates:
        first = await anext(updates)
        assert first.complete
        assert {vm.address for vm in first.present} == everything
        paged.kill_sessions()
        again = await anext(updates)
        assert again.complete
        assert again.left == ()
        assert {vm.address for vm in again.present} == everything


async def test_what_is_done_to_many_vms_at_once_is_told_of_each_however_it_is_cut(paged: Lab, vcenter: VCenter) -> None:
    paged.set_attribute("web-01", "owner", "nobody")  # so that there is such an attribute
    async with aclosing(vcenter.watch()) as updates:
        await anext(updates)
        wanted = {vm.moref for vm in paged.vms()}
        stamp = f"stamped {vcenter.session.settings.engine_id} {paged.settings()['page_objects']}"
        for moref in wanted:
            paged.set_attribute(moref, "owner", stamp)
        stamped: set[str] = set()
        while stamped != wanted:
            told = await anext(updates)
            stamped |= {vm.address.moref for vm in told.present if vm.attributes.get("owner") == stamp}


async def test_leftovers_of_every_vm_are_found_however_answers_are_paged(paged: Lab, vcenter: VCenter) -> None:
    vms = list(await vcenter.inventory())
    crash = Consistency.CRASH
    async with AsyncExitStack() as held:
        for number, vm in enumerate(vms):
            await held.enter_async_context(
                vcenter.snapshot(vm, run=f"run-{number}", want=crash, fallback=crash, track=False)
            )
        found = await vcenter.leftovers(lambda _: False)
    assert {one.vm for one in found} == {Address(vcenter.vcenter, vm.moref) for vm in paged.vms()}


async def test_doctor_asks_for_every_object_however_answers_are_paged(paged: Lab, vcenter: VCenter) -> None:
    privilege = "VirtualMachine.State.CreateSnapshot"
    paged.surroundings(user=paged.user, denied=[privilege])
    try:
        found = await vcenter.diagnose()
    finally:
        paged.surroundings(user=paged.user, denied=[])
    (gap,) = (one for one in found.gaps if one.privilege == privilege)
    assert set(gap.names) == {vm.name for vm in paged.vms()}
    assert len(found.hosts) == 3
    spaces = await vcenter.space()
    assert {space.name for space in spaces} == {"fast-1", "bulk-1"}
