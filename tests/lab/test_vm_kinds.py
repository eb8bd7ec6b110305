"""Each row of docs/vm-kinds.md: a VM of that kind in the lab, what happens to it, and what is told."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from connectors.errors import ConnectorError, Rejected, SnapshotFailed
from connectors.hypervisor import Snapshot
from connectors.vsphere.hypervisor import VCenter
from policies.facts import Consistency, Vm
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


@dataclass(frozen=True)
class Outcome:
    """What came of a VM: as it was seen before, what its snapshot was or why there was none, as it was afterwards."""

    before: Vm
    snapshot: Snapshot | None
    error: ConnectorError | None
    after: Vm


@pytest.fixture(scope="module")
def outcomes(kinds: Lab) -> Mapping[str, Outcome]:
    return asyncio.run(each_tried(kinds))


async def each_tried(lab: Lab) -> Mapping[str, Outcome]:
    found: dict[str, Outcome] = {}
    async with connected(lab) as vcenter:
        for before in await vcenter.inventory():
            snapshot, error = await taken(vcenter, before)
            found[before.name] = Outcome(before, snapshot, error, await vcenter.vm(before.address))
    return found


async def taken(vcenter: VCenter, vm: Vm) -> tuple[Snapshot | None, ConnectorError | None]:
    try:
        async with vcenter.snapshot(
            vm, run="run-1", want=Consistency.APPLICATION, fallback=Consistency.CRASH, track=False
        ) as snapshot:
            return snapshot, None
    except ConnectorError as error:
        return None, error


def test_the_table_has_every_kind_and_nothing_else() -> None:
    assert sorted(row.name for row in ROWS) == sorted(each.name for each in MACHINES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_a_kind_of_vm_is_handled_or_refused_as_the_table_says(outcomes: Mapping[str, Outcome], row: Row) -> None:
    found = outcomes[row.name]
    if row.outcome in ("refused", "fails"):
        assert isinstance(found.error, Rejected if row.outcome == "refused" else SnapshotFailed)
        assert row.told in str(found.error)
        assert row.told in found.before.refusal or row.outcome == "fails"
    else:
        assert found.before.refusal == ""
        assert found.snapshot is not None and found.snapshot.disks
        assert found.snapshot.consistency.value == row.level
        left = [disk.unprotected for disk in found.snapshot.unprotected]
        assert [disk.unprotected for disk in found.before.disks if disk.unprotected] == left
        assert bool(left) == (row.outcome == "in part")
        assert row.told in (left or [found.snapshot.consistency_reason, ""])
    assert found.after.own_snapshots == ()
    assert found.after.snapshots == found.before.snapshots
    assert not found.after.consolidation_needed


def test_a_vm_in_a_vapp_is_in_the_folder_of_its_vapp(outcomes: Mapping[str, Outcome]) -> None:
    vm = outcomes["in-vapp"].before
    assert (vm.folder, vm.datacenter != "") == ("/prod/shop", True)


def test_the_vm_that_is_consolidated_first_needed_it(outcomes: Mapping[str, Outcome]) -> None:
    assert {name for name, found in outcomes.items() if found.before.consolidation_needed} == {"unmerged"}
