"""A VM that is half restored is not switched on by anybody, and no VM is kept off by a restore that is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from connectors.errors import Busy, NotOurs, Rejected
from connectors.hypervisor import RestoreTarget
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.method_switches import LockSettings
from connectors.vsphere.overwriting import says_half_restored
from connectors.vsphere.power_lock import POWER_ON
from connectors.vsphere.transport_settings import TransportSettings
from policies.facts import Address
from tests.lab.connect import vcenter_settings
from tests.lab.reaching import MIB, snapshotted
from tests.lab.vcenter import Lab, start_lab

QUICK = LockSettings(first_pause=0.02, longest_pause=0.1, tries=4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("power"), vms=3, content=False, disk_bytes=4 << 20) as running:
        yield running


@asynccontextmanager
async def connected(lab: Lab, engine_id: str = "e1") -> AsyncIterator[VCenter]:
    vcenter = await VCenter.connect(replace(vcenter_settings(lab, engine_id=engine_id), locks=QUICK))
    try:
        yield vcenter
    finally:
        await vcenter.aclose()


def off(lab: Lab, name: str, engine_id: str = "e1") -> bool:
    """Whether the engine's switch keeps the VM off, and nothing else is switched off."""
    return lab.disabled_methods(name) == {POWER_ON: f"backstay.{engine_id}"}


async def test_a_new_vm_and_one_that_is_written_over_are_kept_off_until_they_are_whole(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        made = await vcenter.create_vm(configuration, RestoreTarget("new", point="p1", run="r1"))
        assert off(lab, "new")
        with pytest.raises(vim.fault.MethodDisabled):
            await asyncio.to_thread(lab.power_on, "new")
        # A janitor of whichever run sees a mark, and leaves it.
        assert await vcenter.leftovers(lambda run: False) == []
        [marked] = await vcenter.marked_vms([])
        assert (marked.address, marked.name, marked.point, marked.engine) == (made.address, "new", "p1", "e1")
        await vcenter.finish_vm(made)
        assert await vcenter.marked_vms([made.address.moref]) == []
        await asyncio.to_thread(lab.power_on, "new")

        await asyncio.to_thread(lab.power_off, "new")
        taken = await vcenter.take_over(made.address, [made.disks[0].key], point="p1", run="r2", safety=True)
        assert (off(lab, "new"), taken.warnings) == (True, ())
        # A person may take the warning out of the notes: the mark is the option.
        await asyncio.to_thread(lambda: lab.reconfigure("new", annotation="mine"))
        assert await vcenter.marked_vms([]) == []
        assert [one.safety for one in await vcenter.marked_vms([made.address.moref])] == [taken.safety]
        await vcenter.hand_back(taken, keep_safety=False)
        assert lab.disabled_methods("new") == {}

        trial = RestoreTarget("backstay-rehearsal-1", point="p1", run="r3", trial=True)
        async with vcenter.trial_vm(configuration, trial) as tried:
            await vcenter.heartbeat(tried, 0.1)


async def test_a_vm_that_is_reverted_or_made_whole_by_hand_is_let_on_by_the_janitor_of_whichever_start(
    lab: Lab,
) -> None:
    async with connected(lab) as vcenter:
        async with snapshotted(vcenter, lab, "web-01") as snapshot:
            configuration = snapshot.configuration
        made = await vcenter.create_vm(configuration, RestoreTarget("given-up", point="p1", run="r1"))
    unmark = vim.option.OptionValue(key="backstay.restoring", value="")
    await asyncio.to_thread(lambda: lab.reconfigure("given-up", extraConfig=[unmark]))
    await asyncio.to_thread(lab.power_off, "app-02")
    lab.disable_methods("app-02", "com.example.other", POWER_ON)
    async with connected(lab) as vcenter:
        other, ours = sorted(await vcenter.leftovers(lambda run: False), key=lambda left: left.vm_name)
        assert [left.kind for left in (other, ours)] == ["power-on lock"] * 2
        with pytest.raises(NotOurs):
            await vcenter.remove(other)
        await vcenter.remove(ours)
        await vcenter.remove(ours)
        assert await vcenter.leftovers(lambda run: False) == []
        assert lab.disabled_methods("app-02") == {POWER_ON: "com.example.other"}
        assert lab.disabled_methods("given-up") == {}

        # What another product keeps off, a restore only tells of.
        app = Address(vcenter.vcenter, lab.moref("app-02"))
        taken = await vcenter.take_over(app, [], point="p1", run="r2", safety=False)
        [told] = taken.warnings
        assert told.startswith("it can be switched on before it is whole: another product, com.example.other")
        await vcenter.hand_back(taken, keep_safety=False)
        assert lab.disabled_methods("app-02") == {POWER_ON: "com.example.other"}

        # What a lost engine keeps off becomes ours with its half-restored VM.
        async with connected(lab, "lost") as lost:
            await lost.take_over(made.address, [], point="p1", run="r3", safety=False)
        assert off(lab, "given-up", "lost")
        taken = await vcenter.take_over(made.address, [], point="p1", run="r4", safety=False)
        assert (off(lab, "given-up"), taken.other, taken.warnings) == (True, True, ())
        await vcenter.hand_back(taken, keep_safety=False)
        assert lab.disabled_methods("given-up") == {}

        # Who was taken over from does not call whole what another has begun to write.
        async with connected(lab, "second") as second:
            mine = await vcenter.take_over(made.address, [], point="p1", run="r6", safety=False)
            theirs = await second.take_over(made.address, [], point="p2", run="r7", safety=False)
            for late in (vcenter.hand_back(mine, keep_safety=False), vcenter.finish_vm(mine)):
                with pytest.raises(NotOurs, match="the engine second has taken it over"):
                    await late
            assert (await vcenter.half_restored(made.address), off(lab, "given-up", "second")) == (True, True)
            await second.hand_back(theirs, keep_safety=False)
        with pytest.raises(Rejected, match="its disk 2099 is not there any more"):
            await vcenter.take_over(made.address, [2099], point="p1", run="r8", safety=True)
        assert (await vcenter.half_restored(made.address), lab.vm("given-up").snapshots) == (False, ())

        # And is let on by whoever looks, when a person takes the mark away and the lost engine never comes back.
        async with connected(lab, "lost") as lost:
            await lost.take_over(made.address, [], point="p1", run="r5", safety=False)
        await asyncio.to_thread(lambda: lab.reconfigure("given-up", extraConfig=[unmark]))
    async with connected(lab) as vcenter:
        for left in await vcenter.leftovers(lambda run: False):
            with suppress(NotOurs):
                await vcenter.remove(left)
        assert lab.disabled_methods("given-up") == {}
        assert lab.disabled_methods("app-02") == {POWER_ON: "com.example.other"}


def test_a_vm_whose_configuration_is_not_shown_is_not_taken_for_whole() -> None:
    assert not says_half_restored({"name": "web", "config.changeVersion": "1"})
    with pytest.raises(Busy):
        says_half_restored({"name": "web"})


async def test_the_proxy_is_known_as_the_engine_s_own(lab: Lab) -> None:
    settings = vcenter_settings(lab, transports=TransportSettings(order=("nbd",), proxy="db-03"))
    vcenter = await VCenter.connect(settings)
    try:
        vms = {vm.name: await vcenter.is_own(vm.address) for vm in await vcenter.inventory()}
    finally:
        await vcenter.aclose()
    assert [name for name, own in vms.items() if own] == ["db-03"]


async def test_an_account_that_may_not_keep_it_off_restores_all_the_same_and_what_fails_is_taken_back_later(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)
    await asyncio.to_thread(lab.power_off, "web-01")
    async with connected(lab) as vcenter:
        web = Address(vcenter.vcenter, lab.moref("web-01"))
        lab.surroundings(user=lab.user, denied=["Global.DisableMethods", "Global.EnableMethods"])
        taken = await vcenter.take_over(web, [], point="p1", run="r1", safety=False)
        [told] = taken.warnings
        assert told.startswith("it can be switched on before it is whole: the account lacks")
        assert told.endswith("it takes Global.DisableMethods and Global.EnableMethods on the vCenter's root")
        await vcenter.hand_back(taken, keep_safety=False)
        assert await vcenter.leftovers(lambda run: False) == []
        # Who may switch it off and not on again would keep it off for good.
        lab.surroundings(user=lab.user, denied=["Global.EnableMethods"])
        taken = await vcenter.take_over(web, [], point="p1", run="r1", safety=False)
        assert "the account lacks the privilege Global.EnableMethods, so it could not be let go" in taken.warnings[0]
        await vcenter.hand_back(taken, keep_safety=False)
        assert lab.disabled_methods("web-01") == {}
        lab.surroundings(user=lab.user, denied=[])
        taken = await vcenter.take_over(web, [], point="p1", run="r2", safety=False)
        lab.inject("EnableMethods", fault="HostCommunication", times=QUICK.tries)
        await vcenter.hand_back(taken, keep_safety=False)
        assert off(lab, "web-01")
        [left] = await vcenter.leftovers(lambda run: False)
        await vcenter.remove(left)
        assert lab.disabled_methods("web-01") == {}
