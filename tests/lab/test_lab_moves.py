"""VMs move as vCenter moves them: their place is right afterwards everywhere, and the events say who and from where."""

from collections.abc import Callable
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.lab.vcenter import Lab


def test_a_migrated_vm_is_on_one_host_s_list(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    before = lab.vm("web-01").host
    after = lab.migrate("web-01")
    assert after != before
    machine = lab.machine("web-01")
    holders = [h.name for h in machine.runtime.host.parent.host if machine._moId in [v._moId for v in h.vm]]
    assert holders == [after] == [lab.vm("web-01").host]


def test_a_person_s_move_and_drs_s_move_differ_by_event_and_user(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.migrate("web-01")
    lab.drs_move("web-01")
    told = [(e.type, e.user) for e in lab.event_log() if "MigratedEvent" in e.type]
    assert told == [
        ("VmBeingHotMigratedEvent", lab.admin), ("VmMigratedEvent", lab.admin),
        ("VmBeingHotMigratedEvent", ""), ("DrsVmMigratedEvent", ""),
    ]  # fmt: skip


def test_a_relocated_vm_s_files_lie_in_the_other_datastore_and_are_tracked_anew(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=3, disk_bytes=8 << 20, tracking=True)
    lab.remove_snapshot(lab.snapshot("db-03"))
    content = lab.flat("db-03").read_bytes()
    lab.relocate("db-03", "bulk-1")
    moved = lab.vm("db-03")
    assert moved.datastore == "bulk-1"
    assert all("datastores/bulk-1" in str(d.flat) and d.file.startswith("[bulk-1]") for d in moved.disks)
    assert lab.flat("db-03").read_bytes() == content
    assert [d.name for d in lab.machine("db-03").datastore] == ["bulk-1"]
    lab.snapshot("db-03")
    first, second = lab.frozen("db-03")
    assert first.disks[0].change_id.split("/")[0] != second.disks[0].change_id.split("/")[0]
    assert [e.datastore for e in lab.event_log() if e.type == "VmRelocatedEvent"] == ["bulk-1"]


def test_a_running_vm_that_changes_host_and_datastore_is_told_as_migrated_with_its_old_datastore(
    fresh_lab: Callable[..., Lab],
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    lab.relocate("web-01", "bulk-1", host=lab.host_for("web-01").name)
    with lab.session() as si:
        event: Any = next(
            e
            for e in si.content.eventManager.QueryEvents(vim.event.EventFilterSpec())
            if isinstance(e, vim.event.VmMigratedEvent)
        )
        assert (event.sourceDatastore.name, event.ds.name) == ("fast-1", "bulk-1")
        assert event.sourceHost.name != event.host.name


def test_a_snapshot_moves_along_and_still_holds_its_bytes(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 << 20)
    snapshot = lab.snapshot("web-01")
    frozen = lab.frozen_copy(snapshot).read_bytes()
    lab.write_random_grains("web-01", share=0.2)
    lab.relocate("web-01", "bulk-1")
    flat = lab.flat("web-01")
    assert flat.with_name(f"{flat.name}.{snapshot}").read_bytes() == frozen
    lab.remove_snapshot(snapshot)
    assert lab.vm("web-01").disks[0].file == "[bulk-1] web-01/web-01.vmdk"


def test_a_clone_has_the_source_s_bytes_and_identities_of_its_own(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=3, disk_bytes=8 << 20)
    lab.clone_vm("db-03", "copy")
    source, clone = lab.vm("db-03"), lab.vm("copy")
    assert [d.flat.read_bytes() for d in clone.disks] == [d.flat.read_bytes() for d in source.disks]
    assert not {d.uuid for d in source.disks} & {d.uuid for d in clone.disks}
    assert source.instance_uuid != clone.instance_uuid
    assert source.disks[0].file == "[fast-1] db-03/db-03.vmdk"


def test_a_registered_vm_is_a_new_object_with_the_same_identity(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20)
    before = lab.vm("web-01")
    lab.power_off("web-01")
    lab.register(lab.unregister("web-01"))
    after = lab.vm("web-01")
    assert after.moref != before.moref
    assert after.instance_uuid == before.instance_uuid
    assert [d.uuid for d in after.disks] == [d.uuid for d in before.disks]


def test_a_client_that_watches_sees_moves_renames_and_folders(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    with lab.session() as si:
        pc = vmodl.query.PropertyCollector
        view = si.content.viewManager.CreateContainerView(si.content.rootFolder, [vim.VirtualMachine], True)
        traverse = pc.TraversalSpec(name="v", type=vim.view.ContainerView, path="view", skip=False)
        paths = ["name", "runtime.host", "parent", "config.hardware.device", "config.changeTrackingEnabled", "snapshot"]
        spec = pc.FilterSpec(
            objectSet=[pc.ObjectSpec(obj=view, skip=True, selectSet=[traverse])],
            propSet=[pc.PropertySpec(type=vim.VirtualMachine, all=False, pathSet=paths)],
        )
        collector = si.content.propertyCollector.CreatePropertyCollector()
        collector.CreateFilter(spec, partialUpdates=False)
        version = collector.WaitForUpdatesEx("", pc.WaitOptions(maxWaitSeconds=5)).version

        def changed(until: str) -> None:
            nonlocal version
            for _ in range(20):
                updates = collector.WaitForUpdatesEx(version, pc.WaitOptions(maxWaitSeconds=5))
                assert updates is not None, f"no update of {until}"
                version = updates.version
                if any(c.name == until for s in updates.filterSet for o in s.objectSet for c in o.changeSet):
                    return
            pytest.fail(f"no update of {until}")

        lab.migrate("web-01")
        changed("runtime.host")
        lab.move_to_folder("web-01", "prod/shop")
        changed("parent")
        lab.set_tracking("web-01", True)
        changed("config.changeTrackingEnabled")
        lab.add_disk("web-01", 4 << 20)
        changed("config.hardware.device")
        lab.snapshot("web-01")
        changed("snapshot")
        lab.rename("web-01", "shop")
        changed("name")
