"""What SIGKILL left behind is found and removed; what belongs to anybody else is not touched."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyVmomi import vim

from connectors.errors import Unconsolidated
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.transport_settings import TransportSettings
from policies.facts import Address, Consistency
from tests.lab.connect import connected
from tests.lab.vcenter import Lab

Start = Callable[..., Lab]


async def killed_in_the_middle(
    lab: Lab, tmp_path: Path, vm: str, run: str, *, engine: str = "e1", proxy: str = ""
) -> None:
    """Let another process hold a snapshot of the VM, and its first disk on the proxy if there is one; then kill it."""
    facts = tmp_path / f"{run}.json"
    told = lab.facts()
    facts.touch(mode=0o600)
    facts.write_text(
        json.dumps(
            {k: told[k] for k in ("host", "port", "user", "password", "ca_file")}
            | {"engine": engine, "proxy": proxy, "device_folder": str(lab.device_folder)}
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.lab.crashing_run", str(facts), vm, run,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert (await process.stdout.readline()).decode().strip() == f"backstay-{engine}-{run}"
    process.send_signal(signal.SIGKILL)
    await process.wait()


async def names(vcenter: VCenter, vm: str) -> tuple[set[str], set[str]]:
    """The names of our own and of foreign snapshots of the VM."""
    facts = next(each for each in await vcenter.inventory() if each.name == vm)
    return set(facts.own_snapshots), {s.name for s in facts.snapshots}


async def test_what_sigkill_left_is_removed_and_nothing_else(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, content=False)
    lab.snapshot("web-01", "before the upgrade")
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead-1")
    await killed_in_the_middle(lab, tmp_path, "web-01", "theirs", engine="e2")
    await killed_in_the_middle(lab, tmp_path, "app-02", "busy")
    lab.snapshot("web-01", "backstay-e1-made-by-hand")
    async with connected(lab) as vcenter:
        found = await vcenter.leftovers(lambda run: run == "busy")
        assert [(x.kind, x.vm_name, x.name, x.run) for x in found] == [
            ("snapshot", "web-01", "backstay-e1-dead-1", "dead-1")
        ]
        assert found[0].created_at is not None
        for leftover in found:
            await vcenter.remove(leftover)
            await vcenter.remove(leftover)
        assert await vcenter.leftovers(lambda run: run == "busy") == []
        assert await names(vcenter, "web-01") == (
            set(),
            {"before the upgrade", "backstay-e2-theirs", "backstay-e1-made-by-hand"},
        )
        assert await names(vcenter, "app-02") == ({"backstay-e1-busy"}, set())


async def test_a_disk_that_is_still_attached_goes_before_its_snapshot(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, content=False)
    own = [disk.file for disk in lab.vm("app-02").disks]
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead-1", proxy="app-02")
    assert len(lab.vm("app-02").disks) == len(own) + 1
    transports = TransportSettings(order=("hotadd",), proxy="app-02", device_folder=lab.device_folder)
    async with connected(lab, transports=transports) as vcenter:
        found = await vcenter.leftovers(lambda run: False)
        assert [x.kind for x in found] == ["attached disk", "snapshot"]
        await vcenter.remove(found[1])
        assert await vcenter.leftovers(lambda run: False) == []
        await vcenter.remove(found[0])
    assert [disk.file for disk in lab.vm("app-02").disks] == own
    assert lab.vm("web-01").snapshots == ()
    assert lab.flat("web-01").exists()


async def test_a_disk_on_a_proxy_that_is_off_is_detached_although_its_snapshot_is_gone_and_hot_add_is_not_used_any_more(
    fresh_lab: Start, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, content=False)
    own = [disk.file for disk in lab.vm("app-02").disks]
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead-1", proxy="app-02")
    lab.power_off("app-02")
    lab.power_off("web-01")
    lab.remove_vm("web-01")
    async with connected(lab, transports=TransportSettings(order=("nbd",))) as vcenter:
        assert await vcenter.leftovers(lambda run: False) == []
        proxy = Address(vcenter.vcenter, lab.moref("app-02"))
        (leftover,) = await vcenter.leftovers(lambda run: False, [proxy, Address(vcenter.vcenter, "vm-999999")])
        assert (leftover.kind, leftover.vm, leftover.run) == ("attached disk", proxy, "dead-1")
        await vcenter.remove(leftover)
        assert await vcenter.leftovers(lambda run: False, [proxy]) == []
    assert [disk.file for disk in lab.vm("app-02").disks] == own


async def test_a_detached_disk_keeps_its_file_and_no_call_of_ours_asks_for_less(
    fresh_lab: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 9: fileOperation "destroy" would delete the customer's disk, and the lab does so."""
    lab = fresh_lab(vms=3, content=False)
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead-1", proxy="app-02")
    asked: list[object] = []
    spec = vim.vm.ConfigSpec

    def noted(**fields: object) -> object:
        asked.extend(getattr(change, "fileOperation", None) for change in fields.get("deviceChange") or ())  # type: ignore[attr-defined]
        return spec(**fields)

    monkeypatch.setattr("connectors.vsphere.hotadd.vim.vm.ConfigSpec", noted)
    transports = TransportSettings(order=("hotadd",), proxy="app-02", device_folder=lab.device_folder)
    async with connected(lab, transports=transports) as vcenter:
        for leftover in await vcenter.leftovers(lambda run: False):
            await vcenter.remove(leftover)
        assert asked == [None]
    assert lab.flat("web-01").exists()
    assert lab.vm("web-01").disks[0].flat.stat().st_size > 0


async def test_two_engines_on_one_vcenter_leave_each_other_s_snapshots_alone(fresh_lab: Start, tmp_path: Path) -> None:
    """Trap 16: each janitor takes its own dead runs' snapshots, and nothing of the other's, dead or alive."""
    lab = fresh_lab(vms=2, content=False)
    crash = Consistency.CRASH
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead", engine="e1")
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead", engine="e2")
    async with connected(lab, engine_id="e1") as one, connected(lab, engine_id="e2") as two:
        vm = next(each for each in await two.inventory() if each.name == "app-02")
        async with two.snapshot(vm, run="alive", want=crash, fallback=crash, track=False):
            for leftover in await one.leftovers(lambda run: False):
                await one.remove(leftover)
            (theirs,) = await two.leftovers(lambda run: run == "alive")
            assert (await one.leftovers(lambda run: False), theirs.name) == ([], "backstay-e2-dead")
            await one.remove(theirs)
            assert await names(two, "web-01") == ({"backstay-e2-dead"}, set())
            assert await names(two, "app-02") == ({"backstay-e2-alive"}, set())
            await two.remove(theirs)
        assert lab.vm("web-01").snapshots == lab.vm("app-02").snapshots == ()


async def test_no_more_snapshots_are_removed_at_once_on_a_datastore_than_its_gate_lets_through(
    fresh_lab: Start, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=5, content=False, datastores=("only-one",), settings={"removal_delay_ms": 100})
    crash, most = Consistency.CRASH, 0
    async with connected(lab) as vcenter:
        vms = [vm for vm in await vcenter.inventory()]

        async def run(number: int) -> None:
            async with vcenter.snapshot(vms[number], run=f"r{number}", want=crash, fallback=crash, track=False):
                pass

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(vcenter.gates.held))
                seen = [one for one in vcenter.gates.held if one.what.startswith("remove")]
                assert len(seen) <= 2
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            looking = group.create_task(watch())
            await asyncio.wait([group.create_task(run(number)) for number in range(5)])
            looking.cancel()
    assert most >= 2
    assert all(not vm.snapshots for vm in lab.vms())


async def test_a_removal_that_leaves_deltas_says_so_and_they_can_be_merged_later(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False, settings={"leave_deltas": 1})
    crash = Consistency.CRASH
    async with connected(lab) as vcenter:
        (vm,) = await vcenter.inventory()
        lab.inject("ConsolidateVMDisks_Task", "FileLocked", times=3, in_task=True)
        with pytest.raises(Unconsolidated, match="could not be consolidated"):
            async with vcenter.snapshot(vm, run="r1", want=crash, fallback=crash, track=False):
                pass
        assert (await vcenter.vm(vm.address)).consolidation_needed
        assert lab.vm(vm.name).snapshots == ()
        await vcenter.consolidate(vm.address)
        assert not (await vcenter.vm(vm.address)).consolidation_needed
        await vcenter.consolidate(Address(vcenter.vcenter, vm.address.moref))


async def test_free_space_is_asked_anew_for_a_vm_and_shown_as_vcenter_knows_it_for_all(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False, datastores=("ssd", "bulk"))
    async with connected(lab) as vcenter:
        (vm,) = await vcenter.inventory()
        (home,) = vm.datastores
        lab.room(home, free=1 << 30)
        assert {space.free_bytes for space in await vcenter.space()} == {1 << 39}
        (space,) = await vcenter.space(vm.address)
        assert (space.name, space.capacity_bytes, space.free_bytes) == (home, 1 << 40, 1 << 30)
        assert {space.name: space.free_bytes for space in await vcenter.space()}[home] == 1 << 30


async def test_runs_on_one_datastore_do_not_each_have_it_looked_at_anew(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vms = await vcenter.inventory()
        before = lab.calls().get("RefreshDatastore", 0)
        for _ in range(2):
            await asyncio.gather(*(vcenter.space(vm.address) for vm in vms))
        datastores = {name for vm in vms for name in vm.datastores}
        assert lab.calls()["RefreshDatastore"] - before == len(datastores) < len(vms)


async def test_left_overs_of_one_vm_are_looked_for_on_that_vm_alone(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=2, content=False)
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead-1")
    async with connected(lab) as vcenter:
        dead = next(vm for vm in await vcenter.inventory() if vm.own_snapshots)
        (other,) = [vm for vm in await vcenter.inventory() if not vm.own_snapshots]
        views = lab.calls()["CreateContainerView"]
        assert [left.run for left in await vcenter.leftovers(lambda run: False, of=dead.address)] == ["dead-1"]
        assert await vcenter.leftovers(lambda run: False, of=other.address) == []
        assert lab.calls()["CreateContainerView"] == views


async def test_a_leftover_of_a_vm_that_is_gone_is_no_error(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, content=False)
    await killed_in_the_middle(lab, tmp_path, "web-01", "dead-1")
    async with connected(lab) as vcenter:
        (leftover,) = await vcenter.leftovers(lambda run: False)
        lab.power_off("web-01")
        lab.remove_vm("web-01")
        await vcenter.remove(leftover)
        assert await vcenter.leftovers(lambda run: False) == []


async def test_a_run_that_is_under_way_has_no_leftovers(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        vm = next(each for each in await vcenter.inventory() if each.name == "web-01")
        crash = Consistency.CRASH
        async with vcenter.snapshot(vm, run="now", want=crash, fallback=crash, track=False):
            assert await vcenter.leftovers(lambda run: run == "now") == []
            assert len(await vcenter.leftovers(lambda run: False)) == 1
        assert await vcenter.leftovers(lambda run: False) == []
