"""What goes wrong in a vCenter can be ordered in the lab."""

import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

import pytest
from pyVmomi import vim

from tests.lab.vcenter import Lab


def test_an_injected_fault_hits_so_many_calls_and_no_more(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    lab.inject("CreateSnapshotEx_Task", "TooManySnapshotLevels", times=2)
    for _ in range(2):
        with pytest.raises(vim.fault.TooManySnapshotLevels):
            lab.snapshot("web-01")
    lab.snapshot("web-01")


def test_a_fault_in_a_task_comes_after_its_call_was_answered(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    machine = lab.machine("web-01")
    lab.inject("CreateSnapshotEx_Task", "ApplicationQuiesceFault", in_task=True, delay_seconds=0.2, keys=["msg.vss"])
    task = machine.CreateSnapshotEx_Task(name="x", memory=False)
    assert task.info.state == vim.TaskInfo.State.running
    assert [t._moId for t in machine.recentTask] == [task._moId]
    with pytest.raises(vim.fault.ApplicationQuiesceFault) as caught:
        lab.finish(lambda: task)
    assert caught.value.faultMessage[0].key == "msg.vss"
    assert lab.vm("web-01").snapshots == ()


def test_an_answer_may_be_lost_although_the_call_was_carried_out(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    machine = lab.machine("web-01")
    lab.inject("CreateSnapshotEx_Task", drop=True)
    with pytest.raises((OSError, HTTPException)):
        machine.CreateSnapshotEx_Task(name="x", memory=False)
    lab.finish(lambda: machine.recentTask[-1])
    assert len(lab.vm("web-01").snapshots) == 1


def test_removing_a_snapshot_may_take_its_time(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, settings={"removal_delay_ms": 300})
    snapshot = lab.snapshot("web-01")
    started = time.monotonic()
    lab.remove_snapshot(snapshot)
    assert time.monotonic() - started >= 0.3


def test_a_removal_may_leave_deltas_that_have_to_be_consolidated(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False, settings={"leave_deltas": 1})
    machine = lab.machine("web-01")
    lab.remove_snapshot(lab.snapshot("web-01"))
    assert machine.snapshot is None
    assert machine.runtime.consolidationNeeded
    assert lab.vm("web-01").disks[0].file.endswith("-000001.vmdk")
    lab.finish(machine.ConsolidateVMDisks_Task)
    assert not machine.runtime.consolidationNeeded
    assert lab.vm("web-01").disks[0].file == "[fast-1] web-01/web-01.vmdk"


def test_an_outage_breaks_connections_and_ends(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    with lab.session() as si:
        key = si.content.sessionManager.currentSession.key
        lab.outage(0.3)
        with pytest.raises((OSError, HTTPException)):
            si.CurrentTime()
        assert eventually(si.CurrentTime) is not None
        assert si.content.sessionManager.currentSession.key == key


def test_a_restarted_vcenter_knows_its_inventory_but_no_sessions(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=2, content=False, disk_bytes=4 << 20)
    with lab.session() as si:
        lab.restart(0.2)
        with pytest.raises(vim.fault.NotAuthenticated):
            eventually(si.CurrentTime)
    eventually(lambda: lab.migrate("web-01"))
    assert [v.name for v in lab.vms()] == ["app-02", "web-01"]


def test_an_account_that_may_look_may_not_change(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    moref = lab.vm("web-01").moref
    with lab.session(lab.viewer) as si:
        machine = vim.VirtualMachine(moref, si._stub)
        assert machine.name == "web-01"
        with pytest.raises(vim.fault.NoPermission) as caught:
            machine.CreateSnapshotEx_Task(name="x", memory=False)
        assert caught.value.privilegeId == "VirtualMachine.State.CreateSnapshot"


def test_an_unset_property_reads_as_nothing(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    assert lab.machine("web-01").snapshot is None
    assert lab.machine("web-01").config.managedBy is None


def test_tags_and_attributes_are_kept(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    lab.tag("web-01", "tier", "gold")
    lab.set_attribute("web-01", "owner", "anna")
    lab.set_attribute("web-01", "owner", "bert")
    machine = lab.machine("web-01")
    assert [(v.key, v.value) for v in machine.customValue] == [(0, "bert")]


@pytest.mark.parametrize("path", ["/api/session", "/rest/com/vmware/cis/session"])
def test_the_rest_side_knows_a_wrong_password(fresh_lab: Callable[..., Lab], path: str) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    assert isinstance(lab.rest("POST", path), str | dict)
    lab.password = "wrong"
    with pytest.raises(HTTPError) as caught:
        lab.rest("POST", path)
    with caught.value:
        assert caught.value.code == 401


def test_tags_are_read_in_both_styles(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=2, content=False, disk_bytes=4 << 20)
    lab.tag("web-01", "tier", "gold")
    both = [{"id": lab.moref(n), "type": "VirtualMachine"} for n in ("web-01", "app-02")]
    new = lab.rest("POST", "/api/session")
    (tag,) = lab.rest("GET", "/api/cis/tagging/tag", session=new)
    assert lab.rest("GET", f"/api/cis/tagging/tag/{tag}", session=new)["name"] == "gold"
    ask = "tagging/tag-association?{}action=list-attached-tags-on-objects"
    told = lab.rest("POST", "/api/cis/" + ask.format(""), {"object_ids": both}, new)
    assert [t["tag_ids"] for t in told if t["object_id"] == both[0]] == [[tag]]
    old = lab.rest("POST", "/rest/com/vmware/cis/session")["value"]
    assert lab.rest("POST", "/rest/com/vmware/cis/" + ask.format("~"), {"object_ids": both}, old)["value"] == told


def eventually(action: Callable[[], Any]) -> Any:
    """The action's answer, once the outage is over."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return action()
        except (OSError, HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("kind", ["DrsVmMigratedEvent", "VmReconfiguredEvent", "VmClonedEvent", "VmFailedMigrateEvent"])
def test_posted_events_of_any_kind_can_be_read(fresh_lab: Callable[..., Lab], kind: str) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    lab.post_event(kind, "web-01")
    with lab.session() as si:
        spec = vim.event.EventFilterSpec(eventTypeId=[kind])
        (event,) = si.content.eventManager.QueryEvents(spec)
        assert event.vm.name == "web-01"


def test_extra_configuration_is_set_changed_and_taken_away(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    seen = []
    for value in ("one", "two", ""):
        lab.reconfigure("web-01", extraConfig=[vim.option.OptionValue(key="backstay.mark", value=value)])
        options = lab.machine("web-01").config.extraConfig
        seen.append([o.value for o in options if o.key == "backstay.mark"])
    assert seen == [["one"], ["two"], []]


def test_a_name_that_is_taken_and_a_datastore_that_is_not_there_are_refused(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    lab.create_vm("twin")
    with pytest.raises(vim.fault.DuplicateName):
        lab.create_vm("twin")
    with pytest.raises(vim.fault.InvalidDatastore):
        lab.create_vm("lost", datastore="nowhere")


def test_a_disk_frozen_by_a_link_refuses_its_guest(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, settings={"link_frozen": True, "keep_frozen": False})
    snapshot = lab.snapshot("web-01")
    assert lab.frozen_copy(snapshot).samefile(lab.flat("web-01"))
    with pytest.raises(RuntimeError, match="link"):
        lab.write_as_guest("web-01", 0, 0, b"x")
    lab.remove_snapshot(snapshot)
    lab.write_as_guest("web-01", 0, 0, b"x")


def test_a_datastore_can_be_out_of_a_host_s_sight(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=4 << 20)
    lab.hide_datastore("bulk-1", "DC0_C0_H0")
    seen = {h.name: [d.name for d in h.datastore] for h in lab.machine("web-01").runtime.host.parent.host}
    assert seen["DC0_C0_H0"] == ["fast-1"]
    assert "bulk-1" in seen["DC0_C0_H1"]
