"""What SIGKILL left behind is found and removed; what belongs to anybody else is not touched."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.transport_settings import TransportSettings
from policies.facts import Consistency
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
