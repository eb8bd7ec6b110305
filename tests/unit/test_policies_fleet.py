"""The made-up fleet: the same for the same seed, of a plausible shape, and selected in part by its policies."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise

import pytest

from policies.aftermath import changed_by
from policies.facts import EventType, PowerState
from policies.fleet import (
    HOSTS_PER_CLUSTER,
    change_per_day,
    cluster_of,
    daily_events,
    synthetic_events,
    synthetic_fleet,
    synthetic_policies,
)
from policies.loading import load_texts
from tests.policies.building import NOW, a_vm, an_event


def test_the_same_seed_gives_the_same_fleet_events_and_points() -> None:
    one, again, other = (synthetic_fleet(50, now=NOW, points_each=3, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert list(synthetic_events(one, 10, 5, 1)) == list(synthetic_events(again, 10, 5, 1))
    assert list(synthetic_events(one, 10, 5, 1)) != list(synthetic_events(one, 10, 5, 2))


def test_a_fleet_has_hosts_in_clusters_and_vms_on_datastores() -> None:
    fleet = synthetic_fleet(1000, now=NOW).vms.values()
    hosts = Counter(vm.host for vm in fleet)
    assert len({vm.name for vm in fleet}) == len({vm.id for vm in fleet}) == 1000
    assert len(hosts) == 33
    assert max(hosts.values()) < 60
    assert {vm.cluster for vm in fleet} == {"cluster-00", "cluster-01", "cluster-02"}
    assert all(disk.datastore in vm.datastores for vm in fleet for disk in vm.disks)
    assert all(0 < change_per_day(vm) < sum(disk.capacity_bytes for disk in vm.disks) for vm in fleet)


def test_restore_points_are_daily_and_in_the_past() -> None:
    facts = synthetic_fleet(20, now=NOW, points_each=5)
    for vm, points in facts.points.items():
        assert len(points) == 5
        assert all(later.taken_at - earlier.taken_at == timedelta(days=1) for earlier, later in pairwise(points))
        assert points[-1].taken_at < NOW
        assert facts.history[vm].last_success == points[-1].taken_at


def test_synthetic_policies_select_most_of_a_fleet_and_many_of_them_something() -> None:
    policies = load_texts({"synthetic.toml": synthetic_policies(60)})
    fleet = synthetic_fleet(2000, now=NOW).vms.values()
    used = Counter(policy.name for vm in fleet for policy in policies.matching(vm))
    assert len(policies.policies) == 60
    assert len(used) > 45
    assert 0.7 < sum(bool(policies.matching(vm)) for vm in fleet) / 2000 < 0.95


def test_events_come_in_order_and_a_fifth_of_them_changes_what_is_selected() -> None:
    facts = synthetic_fleet(2000, now=NOW)
    policies = load_texts({"synthetic.toml": synthetic_policies(200)})
    events = list(synthetic_events(facts, 100, 40))
    assert len({event.key for event in events}) == 4000
    assert all(a.at < b.at for a, b in pairwise(events))
    kinds = Counter(event.type for event in events)
    quiet = kinds[EventType.POWERED_ON] + kinds[EventType.SUSPENDED] + kinds[EventType.RECONFIGURED]
    assert 0.25 < quiet / 4000 < 0.35
    vms = [(facts.vms[event.vm], event) for event in events if event.vm is not None]
    changed = sum(policies.matching(vm) != policies.matching(changed_by(vm, event)) for vm, event in vms)
    assert 0.15 < changed / 4000 < 0.25


def test_moves_by_drs_stay_in_the_cluster() -> None:
    facts = synthetic_fleet(1000, now=NOW)
    moves = [event for event in synthetic_events(facts, 10, 100) if event.cause == "drs"]
    hosts = [(int(event.from_host[-3:]), int(event.to_host[-3:])) for event in moves]
    assert moves
    assert all(cluster_of(a) == cluster_of(b) and (a != b or a == 32) for a, b in hosts)  # 32 is alone in its cluster


@pytest.mark.parametrize("vms", [0, 1, 7, HOSTS_PER_CLUSTER])
def test_small_fleets_have_events_too(vms: int) -> None:
    facts = synthetic_fleet(vms, now=NOW)
    assert len(list(daily_events(facts, days=3, per_vm_day=2))) == vms * 6


def test_an_event_tells_how_the_vm_looks_afterwards() -> None:
    vm = a_vm(host="esx-1", cluster="a", datastores=("slow", "other"), power=PowerState.ON)
    assert changed_by(vm, an_event(EventType.POWERED_OFF, vm)).power is PowerState.OFF
    assert changed_by(vm, an_event(EventType.MIGRATED, vm, to_host="esx-2")).host == "esx-2"
    moved = an_event(EventType.RELOCATED, vm, detail={"from_datastore": "slow", "to_datastore": "fast"})
    assert changed_by(vm, moved).datastores == ("fast", "other")
    assert changed_by(vm, an_event(EventType.RENAMED, vm, detail={"new_name": "web-4"})).name == "web-4"
    assert changed_by(vm, an_event(EventType.MIGRATED, vm, detail={"to_cluster": "b"})).cluster == "b"
    assert changed_by(vm, an_event(EventType.POWERED_ON, vm, to_host="esx-1")) is vm
