"""Each row of the tables in docs/consistency.md is what Backstay foresees for such a guest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from pyVmomi import vim

from connectors.vsphere.consistency import Machine, expected, free_scsi_places, guest_of
from connectors.vsphere.quiesce import ladder
from policies.facts import CONSISTENCY_ORDER, Address, Consistency, PowerState, Vm, VmId

PAGE = Path(__file__).parents[2] / "docs" / "consistency.md"

GOOD = Machine(
    guest_id="",
    tools_version=12_352,
    controllers=("scsi", "scsi"),
    free_scsi_places=13,
    disk_uuids=True,
    encrypted=False,
)
"""Everything that the application level needs."""

STATES: Mapping[str, Callable[[Machine], Machine]] = {
    "running": lambda machine: machine,
    "powered off": lambda machine: replace(machine, power=PowerState.OFF, tools_running=False),
    "suspended": lambda machine: replace(machine, power=PowerState.SUSPENDED, tools_running=False),
    "without Tools": lambda machine: replace(machine, tools_running=False),
    "an IDE disk": lambda machine: replace(machine, controllers=("ide", "scsi")),
    "a SATA disk": lambda machine: replace(machine, controllers=("scsi", "sata")),
    "an NVMe disk": lambda machine: replace(machine, controllers=("nvme", "scsi")),
    "one free SCSI place for two disks": lambda machine: replace(machine, free_scsi_places=1),
    "disk.EnableUUID off": lambda machine: replace(machine, disk_uuids=False),
    "encrypted": lambda machine: replace(machine, encrypted=True),
    "Tools 10.0.12": lambda machine: replace(machine, tools_version=10_252),
    "Tools 10.1.0": lambda machine: replace(machine, tools_version=10_272),
    "vCenter tells no more": lambda machine: replace(machine, free_scsi_places=None, disk_uuids=None, tools_version=0),
}


@dataclass(frozen=True)
class Row:
    """One row: the guest, vSphere's ids for it, its state, the level that is foreseen and why it is not more."""

    guest: str
    ids: tuple[str, ...]
    state: str
    level: Consistency
    why: str


def rows() -> Iterator[Row]:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 6 and cells[2] != "state" and not set(cells[0]) <= {"-", " "}:
            ids = tuple(re.findall(r"`([^`]+)`", cells[1]))
            yield Row(cells[0], ids, cells[2], Consistency(cells[4]), cells[5])


ROWS = tuple(rows())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.guest}, {row.state}")
def test_a_row_of_the_table_is_what_is_foreseen(row: Row) -> None:
    assert row.ids
    for guest_id in row.ids:
        assert expected(STATES[row.state](replace(GOOD, guest_id=guest_id))) == (row.level, row.why)


def test_the_tables_have_every_state_and_both_matrices() -> None:
    assert {row.state for row in ROWS} == set(STATES)
    guests = {row.guest for row in ROWS}
    assert {"Windows XP", "Windows 2000", "Windows Vista", "Windows 7", "Windows Server 2003"} <= guests
    assert {"Windows Server 2008", "Windows Server 2008 R2", "Windows Server 2022", "Linux"} <= guests
    assert len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.guest}, {row.state}")
def test_what_is_out_of_reach_is_not_tried(row: Row) -> None:
    machine = STATES[row.state](replace(GOOD, guest_id=row.ids[0]))
    vm = Vm(VmId("v"), Address("c", "vm-1"), "v", power=machine.power, reach=row.level, reach_why=row.why)
    steps = ladder(vm, Consistency.APPLICATION, Consistency.CRASH, timeout=timedelta(minutes=20)).steps
    if machine.power is PowerState.OFF:
        assert [step.spec for step in steps] == [None]
        return
    assert [step.best for step in steps] == [*reversed(CONSISTENCY_ORDER[: CONSISTENCY_ORDER.index(row.level) + 1])]
    for step in steps:
        assert step.spec is None if step.best is Consistency.CRASH else step.spec.timeout == 20
        assert isinstance(step.spec, vim.vm.WindowsQuiesceSpec) == (step.best is Consistency.APPLICATION)
    assert not ladder(vm, Consistency.APPLICATION, Consistency.APPLICATION, timeout=timedelta(minutes=20)).steps or (
        row.level is Consistency.APPLICATION
    )


def test_a_guest_without_an_id_is_known_by_its_name() -> None:
    assert guest_of("", "Microsoft Windows Server 2008 R2 (64-bit)") is guest_of("windows7Server64Guest")
    assert guest_of("", "Microsoft Windows Server 2003 Standard (32-bit)") is guest_of("winNetStandardGuest")
    assert guest_of("", "Microsoft Windows 10 (64-bit)") is guest_of("windows9_64Guest")
    assert guest_of("", "Ubuntu Linux (64-bit)") is guest_of("ubuntu64Guest")
    assert guest_of("", "FreeBSD 13 (64-bit)") is guest_of("freebsd13_64Guest")


def test_free_places_are_those_of_all_scsi_controllers_without_their_own() -> None:
    scsi = [vim.vm.device.ParaVirtualSCSIController(key=1000, sharedBus="noSharing", busNumber=0)]
    more = [*scsi, vim.vm.device.VirtualLsiLogicController(key=1001, sharedBus="noSharing", busNumber=1)]
    disks = [vim.vm.device.VirtualDisk(key=2000 + n, controllerKey=1000, capacityInKB=1) for n in range(13)]
    elsewhere = [vim.vm.device.VirtualDisk(key=3000, controllerKey=200, capacityInKB=1)]
    assert free_scsi_places([*scsi, *disks, *elsewhere]) == 2
    assert free_scsi_places([*more, *disks]) == 17
    assert free_scsi_places(elsewhere) == 0
