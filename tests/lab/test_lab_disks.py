"""Snapshots stay still, and what they tell about changes is what differs between their files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.lab.images import GRAIN
from tests.lab.vcenter import Frozen, Lab, Machine


def disks(holder: Any) -> list[Any]:
    return [d for d in holder.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]


def take(lab: Lab, vm: str, name: str = "run") -> tuple[Any, Frozen]:
    """A snapshot as pyVmomi has it, and what the lab froze for it."""
    moref = lab.snapshot(vm, name)
    return vim.vm.Snapshot(moref, lab.machine(vm)._stub), next(f for f in lab.frozen() if f.snapshot == moref)


def changes(lab: Lab, vm: str, snapshot: Any, disk: Any, change_id: str) -> tuple[list[tuple[int, int]], list[int]]:
    """The extents of all windows, and how many each window held."""
    machine = lab.machine(vm)
    offset, extents, windows = 0, [], []
    while offset < disk.capacityInBytes:
        window = machine.QueryChangedDiskAreas(
            snapshot=snapshot, deviceKey=disk.key, startOffset=offset, changeId=change_id
        )
        assert window.startOffset == offset
        assert window.length > 0
        extents += [(area.start, area.length) for area in window.changedArea]
        windows.append(len(window.changedArea))
        offset += window.length
    assert offset == disk.capacityInBytes
    return extents, windows


def difference(old: Path, new: Path) -> set[int]:
    """The grains that differ."""
    with old.open("rb") as a, new.open("rb") as b:
        return {n for n in range(old.stat().st_size // GRAIN) if a.read(GRAIN) != b.read(GRAIN)}


def grains(extents: list[tuple[int, int]]) -> set[int]:
    return {n for start, length in extents for n in range(start // GRAIN, (start + length) // GRAIN)}


def test_a_snapshot_stays_still_while_the_guest_writes(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=16 << 20)
    with lab.busy_guest("web-01"):
        snapshot, frozen = take(lab, "web-01")
        image = frozen.disks[0].image
        first = image.read_bytes()
        lab.write_random_grains("web-01", share=0.2, seed=1)
        assert image.read_bytes() == first
    assert lab.flat("web-01").read_bytes() != first
    assert disks(snapshot)[0].capacityInBytes == 16 << 20


def test_the_live_disk_is_a_delta_while_a_snapshot_holds_its_base(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    machine = lab.machine("web-01")
    base = disks(machine)[0].backing.fileName
    one, _ = take(lab, "web-01", "one")
    two, _ = take(lab, "web-01", "two")
    assert [disks(s)[0].backing.fileName for s in (one, two)] == [base, base.replace(".vmdk", "-000001.vmdk")]
    assert disks(machine)[0].backing.fileName == base.replace(".vmdk", "-000002.vmdk")
    assert disks(machine)[0].backing.parent.parent.fileName == base
    lab.remove_snapshot(one._moId)
    assert disks(two)[0].backing.fileName == base
    assert disks(machine)[0].backing.parent.fileName == base
    lab.remove_snapshot(two._moId)
    assert disks(machine)[0].backing.fileName == base
    assert disks(machine)[0].backing.parent is None
    assert machine.snapshot is None


def test_changes_in_all_windows_together_are_the_difference_of_the_frozen_files(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=3, disk_bytes=32 << 20, tracking=True, settings={"page_areas": 3, "empty_page_every": 1})
    old_snapshot, old = take(lab, "db-03", "old")
    lab.remove_snapshot(old_snapshot._moId)
    for disk in (0, 1):
        lab.write_random_grains("db-03", disk, share=0.05, seed=disk)
    snapshot, new = take(lab, "db-03", "new")
    for number, disk in enumerate(disks(snapshot)):
        extents, windows = changes(lab, "db-03", snapshot, disk, old.disks[number].change_id)
        assert grains(extents) == difference(old.disks[number].image, new.disks[number].image)
        assert max(windows) <= 3
        assert 0 in windows[:-1], "an empty window before the end"


def test_a_full_copy_patched_with_the_changes_is_the_new_snapshot(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=32 << 20, tracking=True)
    first, old = take(lab, "web-01")
    copy = bytearray(old.disks[0].image.read_bytes())
    lab.remove_snapshot(first._moId)
    lab.write_random_grains("web-01", share=0.1, seed=7)
    lab.write_guest_file("web-01", 0, "/report.txt", b"quarterly " * 5000)
    snapshot, new = take(lab, "web-01")
    current = new.disks[0].image.read_bytes()
    extents, _ = changes(lab, "web-01", snapshot, disks(snapshot)[0], old.disks[0].change_id)
    for start, length in extents:
        copy[start : start + length] = current[start : start + length]
    assert bytes(copy) == current


def test_more_changes_than_one_answer_holds_come_in_windows_of_two_thousand(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=512 << 20, content=False, tracking=True)
    first, old = take(lab, "web-01")
    lab.remove_snapshot(first._moId)
    for grain in range(0, 8192, 2):
        lab.write_as_guest("web-01", 0, grain * GRAIN, b"!")
    snapshot, _ = take(lab, "web-01")
    extents, windows = changes(lab, "web-01", snapshot, disks(snapshot)[0], old.disks[0].change_id)
    assert len(extents) == 4096
    assert windows[0] == 2000


def test_rewriting_equal_bytes_counts_as_a_change(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 << 20, tracking=True)
    first, old = take(lab, "web-01")
    lab.remove_snapshot(first._moId)
    lab.write_as_guest("web-01", 0, 3 * GRAIN, lab.read_guest("web-01", 0, 3 * GRAIN, GRAIN))
    snapshot, _ = take(lab, "web-01")
    extents, _ = changes(lab, "web-01", snapshot, disks(snapshot)[0], old.disks[0].change_id)
    assert extents == [(3 * GRAIN, GRAIN)]


def test_supersets_cover_what_changed(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 << 20, content=False, tracking=True, settings={"superset_grains": 1})
    first, old = take(lab, "web-01")
    lab.remove_snapshot(first._moId)
    lab.write_as_guest("web-01", 0, 5 * GRAIN, b"!")
    snapshot, _ = take(lab, "web-01")
    extents, _ = changes(lab, "web-01", snapshot, disks(snapshot)[0], old.disks[0].change_id)
    assert extents == [(4 * GRAIN, 3 * GRAIN)]


def test_a_star_tells_what_is_allocated_or_everything_or_that_it_cannot(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, tracking=True)
    lab.write_as_guest("web-01", 0, 2 * GRAIN, b"!")
    snapshot, _ = take(lab, "web-01")
    disk = disks(snapshot)[0]
    assert changes(lab, "web-01", snapshot, disk, "*")[0] == [(2 * GRAIN, GRAIN)]
    lab.settings(star="whole")
    assert changes(lab, "web-01", snapshot, disk, "*")[0] == [(0, 4 << 20)]
    lab.settings(star="fault")
    with pytest.raises(vim.fault.FileFault) as caught:
        changes(lab, "web-01", snapshot, disk, "*")
    assert caught.value.faultMessage[0].key == "vim.hostd.vmsvc.cbt.noEpoch"


def test_an_unknown_change_id_is_an_invalid_argument(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, tracking=True)
    snapshot, frozen = take(lab, "web-01")
    uuid = frozen.disks[0].change_id.split("/")[0]
    for wrong in ("rubbish", "00 11/1", f"{uuid}/99"):
        with pytest.raises(vmodl.fault.InvalidArgument) as caught:
            changes(lab, "web-01", snapshot, disks(snapshot)[0], wrong)
        assert caught.value.invalidProperty == "changeId"


def test_without_tracking_the_snapshot_has_no_change_id_and_the_query_says_so(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    snapshot, frozen = take(lab, "web-01")
    assert frozen.disks[0].change_id == ""
    assert disks(snapshot)[0].backing.changeId is None
    with pytest.raises(vim.fault.FileFault) as caught:
        changes(lab, "web-01", snapshot, disks(snapshot)[0], "*")
    assert caught.value.faultMessage[0].key == "vim.hostd.vmsvc.cbt.noTrack"


def test_tracking_that_was_off_begins_with_a_new_identity(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, tracking=True)
    first, old = take(lab, "web-01")
    lab.remove_snapshot(first._moId)
    lab.set_tracking("web-01", False)
    lab.set_tracking("web-01", True)
    _, new = take(lab, "web-01")
    assert old.disks[0].change_id.split("/")[0] != new.disks[0].change_id.split("/")[0]


def test_a_revert_brings_the_bytes_back_and_the_sequence_of_change_ids_too(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, tracking=True)
    snapshot, old = take(lab, "web-01", "before")
    lab.write_random_grains("web-01", share=0.3)
    between, later = take(lab, "web-01", "later")
    lab.remove_snapshot(between._moId)
    lab.finish(snapshot.RevertToSnapshot_Task)
    assert lab.flat("web-01").read_bytes() == old.disks[0].image.read_bytes()
    _, after = take(lab, "web-01", "after")
    assert after.disks[0].change_id == later.disks[0].change_id != old.disks[0].change_id


def test_disks_outside_snapshots_are_not_frozen(fresh_lab: Callable[..., Lab]) -> None:
    odd = Machine(name="odd", disks=(4 << 20, 4 << 20), independent=(1,), raw_mappings=1, content=False)
    lab = fresh_lab(vms=0, extra=[odd])
    _, frozen = take(lab, "odd")
    assert len(disks(lab.machine("odd"))) == 3
    assert len(frozen.disks) == 1


def test_a_disk_that_other_vms_write_too_keeps_its_vm_from_being_snapshotted(fresh_lab: Callable[..., Lab]) -> None:
    shared = Machine(name="shared", disks=(4 << 20,), multi_writer=(0,), content=False)
    lab = fresh_lab(vms=0, extra=[shared])
    with pytest.raises(vim.fault.SnapshotIncompatibleDeviceInVm):
        lab.snapshot("shared")


def test_an_extended_disk_keeps_its_bytes_and_has_room(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, tracking=True)
    first, old = take(lab, "web-01")
    lab.remove_snapshot(first._moId)
    lab.extend_disk("web-01", 0, 8 << 20)
    lab.write_as_guest("web-01", 0, 6 << 20, b"!")
    snapshot, new = take(lab, "web-01")
    assert disks(snapshot)[0].capacityInBytes == 8 << 20
    assert new.disks[0].uuid == old.disks[0].uuid
    image = new.disks[0].image.read_bytes()
    assert len(image) == 8 << 20
    assert image[: 4 << 20] == old.disks[0].image.read_bytes()
    extents, _ = changes(lab, "web-01", snapshot, disks(snapshot)[0], old.disks[0].change_id)
    assert extents == [(6 << 20, GRAIN)]


def test_tools_run_and_end_with_the_guest(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    seen = [lab.machine("web-01").guest.toolsRunningStatus]
    lab.power_off("web-01")
    seen.append(lab.machine("web-01").guest.toolsRunningStatus)
    lab.power_on("web-01")
    seen.append(lab.machine("web-01").guest.toolsRunningStatus)
    assert seen == ["guestToolsRunning", "guestToolsNotRunning", "guestToolsRunning"]


def test_quiescing_without_tools_is_ignored_without_a_word(fresh_lab: Callable[..., Lab]) -> None:
    bare = Machine(name="bare", disks=(4 << 20,), tools=False, content=False)
    good = Machine(name="good", disks=(4 << 20,), content=False)
    lab = fresh_lab(vms=0, extra=[bare, good])
    quiesced = {}
    for name in ("bare", "good"):
        machine = lab.machine(name)
        spec = vim.vm.GuestQuiesceSpec(timeout=5)
        call = partial(machine.CreateSnapshotEx_Task, name="q", description="", memory=False, quiesceSpec=spec)
        lab.finish(call)
        quiesced[name] = machine.snapshot.rootSnapshotList[0].quiesced
    assert quiesced == {"bare": False, "good": True}
