"""The inventory: every VM with its facts, and what changes, whatever happens to the session."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

import pytest

from connectors.errors import Gone, Unreachable
from connectors.hypervisor import InventoryUpdate
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.tags import TagReader
from policies.facts import Address, PowerState, Vm
from tests.lab.connect import connected
from tests.lab.vcenter import MIB, Lab, Machine

Start = Callable[..., Lab]


def by_name(vms: "list[Vm] | tuple[Vm, ...]", name: str) -> Vm:
    return next(vm for vm in vms if vm.name == name)


async def test_every_vm_is_told_with_its_places_disks_and_identity(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vms = list(await vcenter.inventory())
        known = {vm.moref: vm for vm in lab.vms()}
        assert {vm.address for vm in vms} == {Address(lab.instance_uuid, m) for m in known}
        for vm in vms:
            truth = known[vm.address.moref]
            assert (vm.name, vm.instance_uuid, vm.host) == (truth.name, truth.instance_uuid, truth.host)
            assert [(d.key, d.capacity_bytes, d.uuid) for d in vm.disks] == [
                (d.key, d.capacity_bytes, d.uuid) for d in truth.disks if not d.attached
            ]
            assert vm.datastores == (truth.datastore,)
        web = by_name(vms, "web-01")
        assert (web.folder, web.cluster, web.resource_pool, web.datacenter) == ("/prod/web", "DC0_C0", "gold", "DC0")
        assert (web.power, web.tools_running, web.refusal) == (PowerState.ON, True, "")


async def test_one_vm_read_again_equals_the_one_of_the_whole_inventory(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        for vm in await vcenter.inventory():
            assert await vcenter.vm(vm.address) == vm


async def test_a_vm_that_is_not_there_is_gone(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        with pytest.raises(Gone):
            await vcenter.vm(Address(vcenter.vcenter, "vm-99999"))


async def test_what_cannot_be_protected_says_why(fresh_lab: Start) -> None:
    lab = fresh_lab(
        vms=1,
        content=False,
        extra=[
            Machine(name="mixed", disks=(MIB, MIB), independent=(1,), raw_mappings=1, content=False),
            Machine(name="golden", template=True, power="off", content=False),
        ],
    )
    lab.tag("mixed", "tier", "gold")
    lab.set_attribute("mixed", "owner", "alice")
    lab.snapshot("mixed", "before the upgrade")
    async with connected(lab) as vcenter:
        vms = list(await vcenter.inventory())
        mixed, golden = by_name(vms, "mixed"), by_name(vms, "golden")
        assert [bool(d.unprotected) for d in mixed.disks] == [False, True, True]
        assert mixed.refusal == ""
        assert mixed.tags == {"tier=gold"}
        assert mixed.attributes == {"owner": "alice"}
        assert [s.name for s in mixed.snapshots] == ["before the upgrade"]
        assert "template" in golden.refusal


async def test_a_thousand_vms_are_read_in_seconds(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1000, disk_bytes=MIB, content=False)
    async with connected(lab) as vcenter:
        began = time.monotonic()
        vms = await vcenter.inventory()
        took = time.monotonic() - began
        assert len(vms) == 1000
        assert all(vm.disks for vm in vms)
        assert took < 30


class Watch:
    """What the watch has told so far, as a map that its updates are applied to."""

    def __init__(self, updates: AsyncIterator[InventoryUpdate]) -> None:
        self._updates = updates
        self.vms: dict[Address, Vm] = {}
        self.left: list[Address] = []
        self.completes = 0

    async def until(self, holds: Callable[["Watch"], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds(self):
                update = await anext(self._updates)
                self.vms |= {vm.address: vm for vm in update.present}
                for address in update.left:
                    self.vms.pop(address, None)
                self.left.extend(update.left)
                self.completes += update.complete

    def named(self, name: str) -> Vm | None:
        return next((vm for vm in self.vms.values() if vm.name == name), None)


async def test_the_watch_tells_what_changes(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=4, content=False)
    async with connected(lab) as vcenter, aclosing(vcenter.watch()) as updates:
        watch = Watch(updates)
        await watch.until(lambda w: w.completes == 1)
        assert len(watch.vms) == 4

        lab.power_off("web-01")
        await watch.until(lambda w: (vm := w.named("web-01")) is not None and vm.power is PowerState.OFF)

        target = lab.migrate("app-02")
        await watch.until(lambda w: (vm := w.named("app-02")) is not None and vm.host == target)

        lab.create_vm("fresh-1")
        await watch.until(lambda w: w.named("fresh-1") is not None)

        lab.rename("fresh-1", "fresh-2")
        await watch.until(lambda w: w.named("fresh-2") is not None)

        lab.snapshot("fresh-2", "by hand")
        await watch.until(lambda w: bool((vm := w.named("fresh-2")) and vm.snapshots))

        lab.add_disk("fresh-2", MIB)
        await watch.until(lambda w: (vm := w.named("fresh-2")) is not None and len(vm.disks) == 2)

        lab.tag("app-02", "tier", "gold")
        await watch.until(lambda w: (vm := w.named("app-02")) is not None and vm.tags == {"tier=gold"})

        moref = lab.moref("fresh-2")
        lab.remove_vm("fresh-2")
        await watch.until(lambda w: w.left == [Address(lab.instance_uuid, moref)])
        await assert_equals_inventory(watch, vcenter)


async def assert_equals_inventory(watch: Watch, vcenter: VCenter) -> None:
    now = {vm.address: vm for vm in await vcenter.inventory()}
    await watch.until(lambda w: w.vms == now)


async def test_a_custom_attribute_that_is_made_while_somebody_watches_is_told(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    async with connected(lab) as vcenter, aclosing(vcenter.watch()) as updates:
        watch = Watch(updates)
        await watch.until(lambda w: w.completes == 1)
        lab.set_attribute("web-01", "backup-owner", "alice")
        await watch.until(lambda w: (vm := w.named("web-01")) is not None and bool(vm.attributes))
        await assert_equals_inventory(watch, vcenter)


async def test_what_happened_while_the_session_was_lost_is_told_afterwards(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=3, content=False)
    async with connected(lab) as vcenter, aclosing(vcenter.watch()) as updates:
        watch = Watch(updates)
        await watch.until(lambda w: w.completes == 1)
        doomed = lab.moref("db-03")
        lab.outage(0.5)
        lab.kill_sessions()
        await asyncio.sleep(0.6)
        lab.remove_vm("db-03")
        lab.create_vm("late-1")
        await watch.until(lambda w: w.completes == 2)
        await watch.until(lambda w: w.named("late-1") is not None)
        assert watch.left == [Address(lab.instance_uuid, doomed)]
        await assert_equals_inventory(watch, vcenter)


class Flaky(TagReader):
    """Tags whose service goes away."""

    away = False

    async def tags(self, morefs: Sequence[str]) -> dict[str, frozenset[str]]:
        if self.away:
            raise Unreachable("the REST API does not answer")
        return await super().tags(morefs)


async def test_tags_outlive_their_service_but_are_never_taken_for_none(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.tag("web-01", "tier", "gold")
    async with connected(lab) as vcenter:
        flaky = Flaky(vcenter.session.settings, vcenter.session.tls)
        inventory = Inventory(vcenter.session, flaky)
        flaky.away = True
        with pytest.raises(Unreachable):
            await inventory.all()
        flaky.away = False
        assert [vm.tags for vm in (await inventory.all()).values()] == [{"tier=gold"}]
        flaky.away = True
        assert [vm.tags for vm in (await inventory.all()).values()] == [{"tier=gold"}]
        await flaky.aclose()


async def test_leaving_the_watch_ends_its_wait_at_once(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        async with aclosing(vcenter.watch()) as updates:
            await anext(updates)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await anext(updates)
                    await anext(updates)
        began = time.monotonic()
    assert time.monotonic() - began < 5
