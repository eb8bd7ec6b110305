"""When changes are asked for, and which answers are believed."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pyVmomi import vim

from connectors.disks import Extent
from connectors.errors import TrackingUnusable
from connectors.hypervisor import Snapshot, SnapshotDisk, TrackedBase
from connectors.vsphere.cbt import checked, doubt
from policies.facts import Address, Consistency, Disk, Vm, VmId

CAPACITY = 1 << 20
DISK = Disk(2000, "Hard disk 1", CAPACITY, "6000C29a", "fast-1", "[fast-1] a/a.vmdk", "persistent")


def snapshot(reason: str = "") -> Snapshot:
    vm = Vm(VmId("x"), Address("vc", "vm-7"), "db")
    at = datetime(2026, 11, 22, tzinfo=UTC)
    return Snapshot("snapshot-1", "n", "r", vm, at, Consistency.CRASH, "", (), (), b"", reason)


def why(now: str = "52 de/9", before: str = "52 de/4", uuid: str = "6000C29a", size: int = CAPACITY) -> str:
    return doubt(snapshot("tracking is off"), SnapshotDisk(DISK, now), TrackedBase(before, uuid, size))


def test_nothing_speaks_against_asking_when_only_the_sequence_has_grown() -> None:
    assert why() == ""


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (why(now=""), "tracking is off"),
        (why(before=""), "not tracked when"),
        (why(uuid="6000C29b"), "another disk"),
        (why(size=CAPACITY * 2), "size changed"),
        (why(now="aa bb/9"), "reset"),
        (why(now="52 de/3"), "reverted"),
    ],
)
def test_each_doubt_is_a_sentence(reason: str, says: str) -> None:
    assert says in reason


def page(start: int, length: int, *areas: tuple[int, int]) -> Any:
    extents = [vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent(start=s, length=n) for s, n in areas]
    return vim.VirtualMachine.DiskChangeInfo(startOffset=start, length=length, changedArea=extents)


def test_an_empty_page_is_believed_as_a_window_without_changes() -> None:
    assert checked(page(0, 4096), 0, CAPACITY) == []


def test_extents_of_a_page_are_taken_as_they_are() -> None:
    assert checked(page(0, CAPACITY, (0, 512), (4096, 512)), 0, CAPACITY) == [Extent(0, 512), Extent(4096, 512)]


@pytest.mark.parametrize(
    "bad", [page(512, 4096), page(0, 0), page(0, CAPACITY, (CAPACITY - 512, 1024)), page(0, 4096, (-512, 512))]
)
def test_an_answer_that_does_not_fit_the_question_is_not_believed(bad: Any) -> None:
    with pytest.raises(TrackingUnusable):
        checked(bad, 0, CAPACITY)
