"""Each row of docs/vm-kinds.md: a VM of that kind in the lab, what happens to it, and what is told."""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from connectors.errors import Rejected, SnapshotFailed
from connectors.hypervisor import Snapshot
from connectors.vsphere.hypervisor import VCenter
from policies.facts import Address, Consistency, Vm
from tests.lab.connect import connected
from tests.lab.vcenter import MIB, Lab, Machine, start_lab

PAGE = Path(__file__).parents[2] / "docs" / "vm-kinds.md"
WINDOWS = "windows2019srvNext_64Guest"
DISK = (MIB,)

MACHINES = (
    Machine(name="off", power="off"),
    Machine(name="no-tools", tools=False),
    Machine(name="sql", guest_id=WINDOWS, vss_writers=True),
    Machine(name="silent", guest_id=WINDOWS),
    Machine(name="suspended", power="suspended"),
    Machine(name="with-memory", power="suspended", suspend_memory=True),
    Machine(name="template", power="off", template=True),
    Machine(name="linked", linked=True),
    Machine(name="encrypted", guest_id=WINDOWS, encrypted=True),
    Machine(name="vtpm", guest_id=WINDOWS, vtpm=True),
    Machine(name="in-vapp", vapp="shop", folder="prod/shop"),
    Machine(name="mapped", virtual_mappings=1),
    Machine(name="raw", raw_mappings=1),
    Machine(name="mixed", disks=(MIB, MIB), independent=(1,)),
    Machine(name="outside", independent=(0,)),
    Machine(name="bare", disks=()),
    Machine(name="shared-disk", multi_writer=(0,)),
    Machine(name="shared-beside", disks=(MIB, MIB), multi_writer=(1,), independent=(1,)),
    Machine(name="shared-bus", shared_bus=True),
    Machine(name="tolerant", fault_tolerance=True),
    Machine(name="passthrough", passthrough=True),
    Machine(name="passthrough-off", power="off", passthrough=True),
    Machine(name="disconnected", connection="disconnected"),
    Machine(name="orphaned", connection="orphaned"),
    Machine(name="inaccessible", connection="inaccessible"),
    Machine(name="invalid", connection="invalid"),
    Machine(name="asking", question="The VM was moved or copied"),
    Machine(name="deep"),
    Machine(name="visited"),
    Machine(name="unmerged"),
)


@dataclass(frozen=True)
class Row:
    kind: str
    name: str
    outcome: str
    level: str
    told: str


def rows() -> Iterator[Row]:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 5 and cells[1].startswith("`"):
            yield Row(cells[0], cells[1].strip("`"), *cells[2:])


ROWS = tuple(rows())


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    small = [replace(each, content=False, disks=DISK * len(each.disks)) for each in MACHINES]
    with start_lab(tmp_path_factory.mktemp("kinds"), vms=0, extra=small) as lab:
        for number in range(20):
            lab.snapshot("deep", f"level {number}")
        lab.snapshot("visited")
        lab.need_consolidation("unmerged")
        yield lab


@pytest.fixture
async def vcenter(kinds: Lab) -> AsyncIterator[VCenter]:
    async with connected(kinds) as each:
        yield each


async def named(vcenter: VCenter, lab: Lab, name: str) -> Vm:
    return await vcenter.vm(Address(vcenter.vcenter, lab.vm(name).moref))


async def take(vcenter: VCenter, vm: Vm) -> Snapshot:
    async with vcenter.snapshot(
        vm, run="run-1", want=Consistency.APPLICATION, fallback=Consistency.CRASH, track=False
    ) as snapshot:
        return snapshot


def test_the_table_has_every_kind_and_nothing_else() -> None:
    assert sorted(row.name for row in ROWS) == sorted(each.name for each in MACHINES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
async def test_a_kind_of_vm_is_handled_or_refused_as_the_table_says(kinds: Lab, vcenter: VCenter, row: Row) -> None:
    before = kinds.vm(row.name).snapshots
    vm = await named(vcenter, kinds, row.name)
    if row.outcome in ("refused", "fails"):
        if row.outcome == "refused":
            assert row.told in vm.refusal
        with pytest.raises(Rejected if row.outcome == "refused" else SnapshotFailed, match=re.escape(row.told)):
            await take(vcenter, vm)
    else:
        assert vm.refusal == ""
        snapshot = await take(vcenter, vm)
        assert snapshot.disks
        assert snapshot.consistency.value == row.level
        left = [disk.unprotected for disk in snapshot.unprotected]
        assert [d.unprotected for d in vm.disks if d.unprotected] == left
        assert bool(left) == (row.outcome == "in part")
        assert row.told in [snapshot.consistency_reason, *left, ""] if not left else row.told in left
    assert kinds.vm(row.name).snapshots == before
    assert not (await named(vcenter, kinds, row.name)).consolidation_needed


async def test_a_vm_in_a_vapp_is_in_the_folder_of_its_vapp(kinds: Lab, vcenter: VCenter) -> None:
    vm = await named(vcenter, kinds, "in-vapp")
    assert (vm.folder, vm.datacenter != "") == ("/prod/shop", True)
