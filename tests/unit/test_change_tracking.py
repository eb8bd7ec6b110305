"""When changes are asked for, and which answers are believed."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pyVmomi import vim

from connectors.disks import Extent, Whole
from connectors.errors import TrackingUnusable
from connectors.hypervisor import Snapshot, SnapshotDisk, TrackedBase, TrackingDoubt
from connectors.vsphere.cbt import checked, doubt
from connectors.vsphere.tracking import LATER, NOT_RESET, UNDER_A_SNAPSHOT, Believed, Tracking, believed
from connectors.vsphere.tracking_defects import DEFECTS, GIB, known_defect, parse_build, parse_defect
from engine.sections import VCenter
from metrics.labels import FULL_READ_REASONS
from policies.facts import Address, Consistency, Disk, Vm, VmId

CAPACITY = 1 << 20
DISK = Disk(2000, "Hard disk 1", CAPACITY, "6000C29a", "fast-1", "[fast-1] a/a.vmdk", "persistent")


FILE = "[fast-1] a/a.vmdk"


def snapshot(reason: str = "", host: str = "") -> Snapshot:
    vm = Vm(VmId("x"), Address("vc", "vm-7"), "db")
    at = datetime(2026, 11, 22, tzinfo=UTC)
    return Snapshot("snapshot-1", "n", "r", vm, at, Consistency.CRASH, "", (), (), b"", reason, host_build=host)


def doubted(
    now: str = "52 de/9", before: str = "52 de/4", uuid: str = "6000C29a", size: int = CAPACITY, file: str = FILE,
    here: str = FILE, host: str = "", host_before: str = "", capacity: int = CAPACITY,
) -> Whole | None:  # fmt: skip
    disk = replace(DISK, file_name=here, capacity_bytes=capacity)
    base = TrackedBase(before, uuid, size, file, host_before)
    return doubt(snapshot("tracking is off", host), SnapshotDisk(disk, now), base)


def test_nothing_speaks_against_asking_when_only_the_sequence_has_grown() -> None:
    assert doubted() is None


@pytest.mark.parametrize(
    ("found", "says", "kind"),
    [
        (doubted(now=""), "tracking is off", ""),
        (doubted(before=""), "not tracked when", ""),
        (doubted(uuid="6000C29b"), "another disk", "disk_changed"),
        (doubted(size=CAPACITY * 2), "size changed", "disk_changed"),
        (doubted(now="aa bb/9"), "reset", "tracking_reset"),
        (doubted(now="52 de/3"), "reverted", "reverted"),
        (doubted(here="[bulk-1] a/a.vmdk"), r"moved from \[fast-1\] a/a.vmdk to \[bulk-1\]", "relocated"),
        (doubted(here="[fast-1] a_1/a.vmdk"), "moved", "relocated"),
        (doubted(host="6.0.0 build 3029758"), "ESXi 6.0.0 build 3029758 loses .*KB 317933", "known_defect"),
        (doubted(host="7.0.3 build 1", host_before="6.0.0 build 3029758"), "KB 317933", "known_defect"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_doubt_is_a_sentence_and_a_kind_that_can_be_counted(found: Whole | None, says: str, kind: str) -> None:
    assert found is not None
    assert re.search(says, found.reason)
    assert found.kind == kind
    assert not kind or kind in FULL_READ_REASONS


def test_a_delta_on_top_of_the_same_file_is_no_move() -> None:
    assert doubted(file="[fast-1] a/a-000002.vmdk") is None
    assert doubted(file="", here="[bulk-1] a/a.vmdk") is None, "an older restore point remembers no file"


@pytest.mark.parametrize(
    ("build", "size", "denied"),
    [
        ("5.5.0 build 2143827", 128 * GIB, False),
        ("5.5.0 build 2143827", 129 * GIB, True),
        ("6.0.0 build 3247720", 129 * GIB, False),
        ("6.5.0 build 4564106", 129 * GIB, False),
        ("50.0 build 1", 129 * GIB, False),
        ("", 129 * GIB, False),
    ],
)
def test_the_table_of_defects_knows_versions_builds_and_sizes(build: str, size: int, denied: bool) -> None:
    assert bool(known_defect(DEFECTS, parse_build(build), size)) is denied


def test_the_configuration_makes_the_table_longer() -> None:
    below, whole = parse_defect("8.0.2 < 22380479"), parse_defect("8.0")
    assert known_defect([below], parse_build("8.0.2 build 22380478"), 1)
    assert not known_defect([below], parse_build("8.0.2 build 22380479"), 1)
    assert not known_defect([below], parse_build("8.0.3 build 1"), 1)
    assert known_defect([whole], parse_build("8.0.3 build 24022510"), 1)
    with pytest.raises(ValueError, match="not a version of ESXi"):
        parse_defect("eight")


def test_a_configured_build_is_understood_or_refused_when_it_is_read() -> None:
    given = {"host": "vc", "user": "u", "password": "env:P"}
    read = VCenter.model_validate({**given, "distrusted_builds": ["8.0.2 < 22380479", "7"]})
    assert [parse_defect(text).version for text in read.distrusted_builds] == ["8.0.2", "7"]
    with pytest.raises(ValueError, match="distrusted_builds"):
        VCenter.model_validate({**given, "distrusted_builds": ["ESXi 8"]})


def test_a_snapshot_that_came_between_spoils_change_ids_and_late_ones_are_told() -> None:
    fresh, ids = Tracking(just_now=True), {2000: "52 de/1"}
    assert believed(Tracking(), 3, ids) == Believed(ids)
    assert believed(fresh, 1, ids) == Believed(ids)
    assert believed(fresh, 1, {2000: ""}) == Believed({2000: ""}, LATER)
    spoilt = TrackingDoubt(UNDER_A_SNAPSHOT, frozenset({"52 de"}))
    assert believed(fresh, 2, ids) == Believed({2000: ""}, UNDER_A_SNAPSHOT, spoilt)


def test_a_doubt_lasts_until_tracking_was_switched_on_anew_and_is_another_one() -> None:
    doubt, ids, none = TrackingDoubt("it lies", frozenset({"52 de"})), {2000: "52 de/7"}, {2000: ""}
    waiting = Tracking("it lies; it is not reset while the VM has snapshots", doubt)
    assert believed(waiting, 2, ids) == Believed(none, waiting.reason, doubt)
    other = believed(waiting, 2, {2000: "61 f0/1"}).doubted
    assert other is not None
    assert other.identities == {"52 de", "61 f0"}
    assert believed(Tracking("", doubt, just_now=True), 1, ids) == Believed(none, f"it lies; {NOT_RESET}", doubt)
    assert believed(Tracking("", doubt, just_now=True), 1, {2000: "61 f0/1"}) == Believed({2000: "61 f0/1"})


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
