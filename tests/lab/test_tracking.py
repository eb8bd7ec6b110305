"""How change tracking begins, ends, lies and is told of: connector and engine against the lab."""

from __future__ import annotations

import asyncio
import filecmp
from collections.abc import Callable
from pathlib import Path

import pytest
from pyVmomi import vim

from connectors.disks import Extent, Incremental, Whole
from connectors.hypervisor import TrackedBase, TrackingDoubt
from connectors.vsphere.tracking import LATER, switch_on
from policies.facts import EventType
from tests.lab.connect import connected
from tests.lab.images import GRAIN
from tests.lab.test_cbt import base_of, changes_since, first, snapshot
from tests.lab.test_engine_end_to_end import config_for, one_point_each, restored
from tests.lab.test_engine_moves import POLICY, assert_as_frozen, backed_up
from tests.lab.test_events import Journal
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of

Start = Callable[..., Lab]


@pytest.fixture
def untracked(fresh_lab: Start) -> Lab:
    """A lab with one VM whose changes are not tracked yet."""
    return fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)


@pytest.mark.parametrize("powered_on", [True, False], ids=["on", "off"])
async def test_tracking_that_begins_at_a_stun_begins_with_the_first_snapshot(untracked: Lab, powered_on: bool) -> None:
    lab = untracked
    lab.settings(tracking_starts="stun")
    if not powered_on:
        lab.power_off("web-01")
    async with connected(lab) as vcenter:
        async with snapshot(vcenter, "first") as made:
            assert made.tracking_reason == ""
            base = base_of(made)
        assert base.change_id
        if powered_on:
            lab.write_as_guest("web-01", 0, GRAIN, b"x")
            assert await changes_since(vcenter, base) == Incremental((Extent(GRAIN, GRAIN),))


async def test_tracking_that_begins_after_the_first_snapshot_is_told_and_read_in_full_once_more(untracked: Lab) -> None:
    lab = untracked
    lab.settings(tracking_starts="late")
    async with connected(lab) as vcenter:
        async with snapshot(vcenter, "first") as made:
            assert made.tracking_reason == LATER
            base = base_of(made)
            found = await vcenter.changes(made, made.disks[0], base)
        assert base.change_id == ""
        assert found == Whole(LATER)
        async with snapshot(vcenter, "second") as made:
            assert made.tracking_reason == ""
            second = base_of(made)
            assert isinstance(await vcenter.changes(made, made.disks[0], base), Whole)
        lab.write_as_guest("web-01", 0, GRAIN, b"x")
        async with snapshot(vcenter, "third") as made:
            assert await vcenter.changes(made, made.disks[0], second) == Incremental((Extent(GRAIN, GRAIN),))


@pytest.mark.parametrize("powered_on", [True, False], ids=["on", "off"])
async def test_tracking_that_is_doubted_is_reset_as_soon_as_no_snapshot_stands(
    untracked: Lab, powered_on: bool
) -> None:
    lab = untracked
    lab.settings(tracking_starts="stun")
    if not powered_on:
        lab.power_off("web-01")
    by_hand = lab.snapshot("web-01", "by hand")
    lab.set_tracking("web-01", True)
    doubt = TrackingDoubt("it was switched on under a snapshot")
    async with connected(lab) as vcenter:
        async with snapshot(vcenter, "first", doubted=doubt) as made:
            assert "is not reset while the VM has snapshots" in made.tracking_reason
            assert made.disks[0].change_id == ""
            assert made.doubted is not None
            assert made.doubted.identities, "what is not to be seen again"
            found = await vcenter.changes(made, made.disks[0], TrackedBase("52 de/1", "", 4 * MIB))
            assert isinstance(found, Whole)
            assert found.kind == "distrusted"
            doubt = made.doubted
        lab.remove_snapshot(by_hand)
        if powered_on:
            async with snapshot(vcenter, "second", doubted=doubt) as made:
                assert "it was switched off, and the next run switches it on again" in made.tracking_reason
                assert (made.disks[0].change_id, made.doubted) == ("", doubt)
        async with snapshot(vcenter, "third", doubted=doubt) as made:
            assert (made.tracking_reason, made.doubted) == ("", None)
            base = base_of(made)
        if powered_on:
            lab.write_as_guest("web-01", 0, GRAIN, b"x")
            assert await changes_since(vcenter, base) == Incremental((Extent(GRAIN, GRAIN),))


async def test_tracking_is_not_switched_on_over_deltas_that_no_snapshot_names(untracked: Lab) -> None:
    lab = untracked
    lab.settings(leave_deltas=1)
    held = lab.snapshot("web-01", "by hand")
    lab.remove_snapshot(held)
    async with connected(lab) as vcenter, snapshot(vcenter, "first") as made:
        assert "not switched on" in made.tracking_reason
        assert made.disks[0].change_id == ""


async def test_the_host_s_build_is_remembered_and_one_that_is_denied_is_not_believed(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False, tracking=True)
    async with connected(lab) as vcenter:
        async with snapshot(vcenter, "first") as made:
            build = made.host_build
            assert " build " in build
            disk = made.disks[0]
            base = TrackedBase(disk.change_id, disk.disk.uuid, disk.disk.capacity_bytes, disk.disk.file_name, build)
        assert await changes_since(vcenter, base) == Incremental(())
        denied = TrackedBase(base.change_id, base.disk_uuid, base.capacity_bytes, base.file_name, "6.0.0 build 2494585")
        async with snapshot(vcenter, "third") as made:
            found = await vcenter.changes(made, made.disks[0], denied)
    assert isinstance(found, Whole)
    assert found.kind == "known_defect"


async def test_one_disk_that_was_moved_alone_is_read_in_full_although_its_tracking_went_on(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disks_per_vm=2, disk_bytes=4 * MIB, content=False, tracking=True)
    lab.settings(keep_tracking=True)
    async with connected(lab) as vcenter:
        async with snapshot(vcenter, "first") as made:
            bases = [
                TrackedBase(one.change_id, one.disk.uuid, one.disk.capacity_bytes, one.disk.file_name)
                for one in made.disks
            ]
        lab.relocate_disk("web-01", 1, "bulk-1")
        async with snapshot(vcenter, "second") as made:
            found = [await vcenter.changes(made, one, base) for one, base in zip(made.disks, bases, strict=True)]
    assert found[0] == Incremental(())
    assert isinstance(found[1], Whole)
    assert found[1].kind == "relocated"
    assert "[fast-1]" in found[1].reason
    assert "[bulk-1]" in found[1].reason


async def test_more_changes_than_one_answer_holds_are_asked_for_to_the_end(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disk_bytes=260 * MIB, content=False, tracking=True)
    async with connected(lab) as vcenter:
        base = await first(vcenter)
        written = [Extent(2 * n * GRAIN, GRAIN) for n in range(2050)]
        with lab.flat("web-01").open("r+b") as disk:
            for extent in written:
                disk.seek(extent.offset)
                disk.write(b"x")
        asked = lab.calls().get("QueryChangedDiskAreas", 0)
        assert await changes_since(vcenter, base) == Incremental(tuple(written))
    assert lab.calls()["QueryChangedDiskAreas"] > asked + 1


async def test_a_disk_that_grows_under_the_snapshot_is_asked_about_to_the_end_of_the_snapshot_s_disk(
    fresh_lab: Start,
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False, tracking=True)
    async with connected(lab) as vcenter:
        base = await first(vcenter)
        lab.write_as_guest("web-01", 0, 4 * MIB - GRAIN, b"x")
        async with snapshot(vcenter, "second") as made:
            lab.extend_disk("web-01", 0, 8 * MIB)
            found = await vcenter.changes(made, made.disks[0], base)
    assert found == Incremental((Extent(4 * MIB - GRAIN, GRAIN),))


async def test_the_change_id_is_the_snapshot_s_and_what_comes_after_it_is_in_the_next_run(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False, tracking=True)
    async with connected(lab) as vcenter:
        async with snapshot(vcenter, "first") as made:
            lab.write_as_guest("web-01", 0, GRAIN, b"x")
            base = base_of(made)
            frozen = lab.frozen("web-01")[-1].disks[0]
        assert base.change_id == frozen.change_id
        assert await changes_since(vcenter, base) == Incremental((Extent(GRAIN, GRAIN),))


async def test_a_first_run_does_not_ask_which_areas_are_allocated(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False, tracking=True)
    async with connected(lab) as vcenter, snapshot(vcenter, "first") as made:
        assert isinstance(await vcenter.changes(made, made.disks[0], None), Whole)
        never = TrackedBase("", made.disks[0].disk.uuid, 4 * MIB)
        assert isinstance(await vcenter.changes(made, made.disks[0], never), Whole)
    assert "QueryChangedDiskAreas" not in lab.calls()


async def test_a_lab_that_forgets_changes_leaves_them_out(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False, tracking=True)
    async with connected(lab) as vcenter:
        base = await first(vcenter)
        lab.write_as_guest("web-01", 0, 0, b"x" * (2 * GRAIN))
        lab.settings(forget_every=2)
        assert await changes_since(vcenter, base) == Incremental((Extent(GRAIN, GRAIN),))


async def test_reverts_changed_disks_and_switched_tracking_arrive_as_events(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        lab.set_tracking("web-01", True)
        lab.extend_disk("web-01", 0, 8 * MIB)
        held = lab.snapshot("web-01", "by hand")
        lab.revert(held)
        await journal.follow(vcenter, lambda j: len(j.events) >= 3)
    assert all(event.type is EventType.RECONFIGURED for event in journal.events)
    told = [(event.detail.get("disks", ""), event.detail.get("tracking", "")) for event in journal.events]
    assert told == [("", "on"), ("Hard disk 1 extended", ""), ("it was reverted to a snapshot", "")]
    assert journal.events[2].cause == "revert"


async def test_a_vcenter_that_leaves_changes_out_is_found_out_and_the_restore_point_is_right(
    fresh_lab: Start, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=8 * MIB)
    [vm] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine", f"{POLICY}tracking_sample = 64\n")) as engine:
        await one_point_each(engine, [vm.name])
        await asyncio.to_thread(lab.write_random_grains, vm.name, 0, share=0.5, seed=7)
        lab.settings(forget_every=2)
        lied = (await backed_up(engine, vm.name))["disks"][0]
        assert (lied["whole"], lied["sampled"]["differ"] > 0) == ("sample_differed", True)
        await assert_as_frozen(engine, lab, vm.name, tmp_path / "restored.raw")
        lab.settings(forget_every=0)
        by_hand = await asyncio.to_thread(lab.snapshot, vm.name, "by hand")
        held_up = (await backed_up(engine, vm.name))["disks"][0]
        assert held_up["whole"] == "distrusted"
        assert "unchanged that had changed" in held_up["changes"]
        assert "it is not reset while the VM has snapshots" in held_up["changes"]
        await asyncio.to_thread(lab.remove_snapshot, by_hand)
        reset = (await backed_up(engine, vm.name))["disks"][0]
        assert reset["whole"] == "distrusted"
        assert "it is being reset: it was switched off, and the next run switches it on again" in reset["changes"]
        await engine.until(lambda: distrusted_as(engine, "reconfigured") == 1, seconds=30)
        anew = [(await backed_up(engine, vm.name))["disks"][0]["whole"] for _ in range(2)]
        assert anew == ["distrusted", ""]
    ids = [one.disks[0].change_id.partition("/")[0] for one in lab.frozen(vm.name) if one.name.startswith("backstay")]
    assert ids[-1] != ids[0], "the tracking that lied goes on"


async def test_a_revert_is_read_in_full_although_the_sequence_has_caught_up(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=8 * MIB)
    [vm] = lab.vms()
    held = lab.snapshot(vm.name, "by hand")
    async with engine_of(config_for(lab, tmp_path / "engine", f"{POLICY}tracking_sample = 0\n")) as engine:
        await asyncio.to_thread(lab.write_random_grains, vm.name, 0, share=0.5, seed=7)
        await one_point_each(engine, [vm.name])
        await asyncio.to_thread(lab.revert, held)
        for _ in range(4):
            await asyncio.to_thread(lambda: lab.remove_snapshot(lab.snapshot(vm.name, "more")))
        await engine.until(lambda: distrusted_as(engine, "reverted") == 1, seconds=30)
        done = (await backed_up(engine, vm.name))["disks"][0]
        assert done["whole"] == "distrusted"
        assert "it was reverted to a snapshot" in done["changes"]
        point = (await engine.control.points(vm.name))[-1]
        copy = await restored(engine, point.id, "Hard disk 1", tmp_path / "restored.raw")
        ours = next(one for one in reversed(lab.frozen(vm.name)) if one.name.startswith("backstay"))
        assert filecmp.cmp(copy, ours.disks[0].image, shallow=False)


async def test_a_host_that_failed_unseen_is_told_by_the_time_of_the_start_and_leads_to_a_full_read(
    fresh_lab: Start, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=4 * MIB, content=False)
    one, two = names = [vm.name for vm in lab.vms()]
    async with engine_of(config_for(lab, tmp_path / "engine", f"{POLICY}tracking_sample = 0\n")) as engine:
        await one_point_each(engine, names)
        await asyncio.to_thread(lab.lose_power, one, starts=True)
        await asyncio.to_thread(lab.lose_power, two)
        first = [(await backed_up(engine, name))["disks"][0] for name in names]
        assert [disk["whole"] for disk in first] == ["distrusted", "distrusted"]
        assert "nothing told that it had been switched off before" in first[0]["changes"]
        assert "not switched off in an orderly way" in first[1]["changes"]
        assert distrusted_as(engine, "host_failed") == 2
        await asyncio.to_thread(lab.power_on, two)
        assert (await backed_up(engine, one))["disks"][0]["whole"] == ""
        await engine.until_written("SELECT 1 FROM events WHERE type = 'vm.powered_on'")
        second = (await backed_up(engine, two))["disks"][0]
        assert "switched off before" not in second["changes"]


def distrusted_as(engine: Running, kind: str) -> float:
    read = engine.parts.metrics.registry.get_sample_value
    return read("backstay_tracking_distrusted_total", {"reason": kind}) or 0


async def test_tracking_is_not_switched_on_where_a_snapshot_came_after_the_vm_was_looked_at(untracked: Lab) -> None:
    lab = untracked
    async with connected(lab) as vcenter:
        [vm] = await vcenter.inventory()
        lab.snapshot("web-01", "by hand")
        managed = vcenter.session.managed(vim.VirtualMachine, vm.address.moref)
        found = await switch_on(vcenter.session, managed, vm)
        assert not found.just_now
        assert "not switched on while a disk has a delta" in found.reason
        [after] = await vcenter.inventory()
        assert not after.tracking_enabled
