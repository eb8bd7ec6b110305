"""Events are what a collector gives from the oldest on, and what the lab's own log says."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.lab.vcenter import Lab


def names(events: list[Any]) -> list[str]:
    return [type(e).__name__.rsplit(".", 1)[-1] for e in events]


def read_all(collector: Any, page: int = 7) -> list[Any]:
    found = []
    while batch := collector.ReadNextEvents(page):
        found += batch
    return found


def test_a_collector_walks_from_the_oldest_event_to_the_newest_and_goes_on(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=3, content=False)
    with lab.session() as si:
        manager = si.content.eventManager
        collector = manager.CreateCollectorForEvents(vim.event.EventFilterSpec())
        keys = [e.key for e in read_all(collector)]
        assert keys == sorted(keys)
        assert keys[0] == 1
        assert manager.latestEvent.key == keys[-1]
        assert collector.ReadNextEvents(100) == []
        lab.power_off("web-01")
        assert names(read_all(collector))[-2:] == ["VmStoppingEvent", "VmPoweredOffEvent"]


def test_the_newest_page_is_newest_first_and_no_longer_than_asked(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=3, content=False)
    with lab.session() as si:
        collector = si.content.eventManager.CreateCollectorForEvents(vim.event.EventFilterSpec())
        collector.SetCollectorPageSize(4)
        page = [e.key for e in collector.latestPage]
        newest = lab.event_log()[-1].key
        assert page == [newest, newest - 1, newest - 2, newest - 3]
        collector.ResetCollector()
        assert [e.key for e in collector.ReadNextEvents(10)] == page[::-1]
        collector.RewindCollector()
        assert collector.ReadNextEvents(1)[0].key == 1


def test_a_time_filter_leaves_out_what_is_older(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.post_event("VmReloadFromPathEvent", "web-01", age_seconds=3600)
    with lab.session() as si:
        begin = si.CurrentTime() - timedelta(minutes=10)
        spec = vim.event.EventFilterSpec(time=vim.event.EventFilterSpec.ByTime(beginTime=begin))
        found = read_all(si.content.eventManager.CreateCollectorForEvents(spec))
        assert "VmReloadFromPathEvent" not in names(found)
        assert "VmCreatedEvent" in names(found)
        assert names(si.content.eventManager.QueryEvents(spec)) == names(found)


def test_the_lab_s_log_holds_every_event_that_a_client_can_read(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=2, content=False)
    lab.migrate("web-01")
    lab.post_event("VmGuestRebootEvent", "app-02", count=50)
    with lab.session() as si:
        told = read_all(si.content.eventManager.CreateCollectorForEvents(vim.event.EventFilterSpec()))
        log = {e.key: e.type for e in lab.event_log()}
        assert {e.key: n for e, n in zip(told, names(told), strict=True)}.items() <= log.items()
        assert [*log] == [*range(1, len(log) + 1)]


def test_a_client_may_post_a_migration_event(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    with lab.session() as si:
        vm = vim.VirtualMachine(lab.vm("web-01").moref, si._stub)
        host = vim.event.HostEventArgument(name="old", host=vm.runtime.host)
        argument = vim.event.VmEventArgument(name=vm.name, vm=vm)
        event = vim.event.VmMigratedEvent(
            vm=argument, sourceHost=host, key=0, chainId=0, createdTime=si.CurrentTime(), userName="", template=False
        )
        si.content.eventManager.PostEvent(event)
    assert lab.event_log()[-2].type == "VmMigratedEvent"


def test_a_task_and_its_events_share_a_chain(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.migrate("web-01")
    chain = lab.event_log()[-1].chain
    assert [e.type for e in lab.event_log() if e.chain == chain] == [
        "TaskEvent",
        "VmBeingHotMigratedEvent",
        "VmMigratedEvent",
    ]


def test_a_restored_vcenter_uses_event_keys_again(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    before = lab.event_log()[-1].key
    lab.post_event("VmGuestRebootEvent", "web-01", count=20)
    lab.roll_back_events(before)
    with lab.session() as si:
        assert si.content.eventManager.latestEvent.key == before + 1


def test_keys_that_overflow_are_never_delivered(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.next_event_key(-2_000_000_000)
    with lab.session() as si:
        assert si.content.eventManager.latestEvent.key < 0
        collector = si.content.eventManager.CreateCollectorForEvents(vim.event.EventFilterSpec())
        assert all(e.key > 0 for e in read_all(collector))


def test_a_collector_dies_with_its_session(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, content=False)
    with lab.session() as si:
        collector = si.content.eventManager.CreateCollectorForEvents(vim.event.EventFilterSpec())
        assert lab.kill_sessions() >= 1
        with pytest.raises(vim.fault.NotAuthenticated):
            collector.ReadNextEvents(1)
        si.content.sessionManager.Login(lab.user, lab.password, None)
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            collector.ReadNextEvents(1)


def test_each_thing_that_happens_to_a_vm_is_told(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 << 20, content=False)
    start = len(lab.event_log())
    lab.suspend("web-01")
    lab.power_on("web-01")
    lab.rename("web-01", "shop")
    lab.add_disk("shop", 4 << 20)
    lab.clone_vm("shop", "copy")
    lab.create_vm("new")
    lab.power_off("shop")
    lab.register(lab.unregister("shop"))
    lab.remove_vm("new")
    seen = [(e.type, e.vm_name) for e in lab.event_log()[start:]]
    for expected in (
        ("VmSuspendedEvent", "web-01"), ("VmPoweredOnEvent", "web-01"), ("VmRenamedEvent", "shop"),
        ("VmReconfiguredEvent", "shop"), ("VmBeingClonedEvent", "shop"), ("VmClonedEvent", "copy"),
        ("VmCreatedEvent", "new"), ("VmPoweredOffEvent", "shop"), ("VmRemovedEvent", "shop"),
        ("VmRegisteredEvent", "shop"), ("VmRemovedEvent", "new"),
    ):  # fmt: skip
        assert expected in seen
    assert ("VmCreatedEvent", "copy") not in seen
    assert ("VmCreatedEvent", "shop") not in seen


def test_two_sessions_that_wait_with_their_default_collectors_both_hear_of_a_change(
    fresh_lab: Callable[..., Lab],
) -> None:
    lab = fresh_lab(vms=1, content=False)
    pc = vmodl.query.PropertyCollector
    with lab.session() as one, lab.session() as two:
        versions = []
        for si in (one, two):
            vm = vim.VirtualMachine(lab.vm("web-01").moref, si._stub)
            spec = pc.FilterSpec(
                objectSet=[pc.ObjectSpec(obj=vm)], propSet=[pc.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])]
            )
            si.content.propertyCollector.CreateFilter(spec, False)
            versions.append(si.content.propertyCollector.WaitForUpdatesEx("", None).version)
        lab.rename("web-01", "shop")
        for si, version in zip((one, two), versions, strict=True):
            for _ in range(5):
                updates = si.content.propertyCollector.WaitForUpdatesEx(version, pc.WaitOptions(maxWaitSeconds=5))
                assert updates is not None
                names_now = {c.val for s in updates.filterSet for o in s.objectSet for c in o.changeSet}
                if names_now == {"shop"}:
                    break
            else:
                pytest.fail("the change was not told")
