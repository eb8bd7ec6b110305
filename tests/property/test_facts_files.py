"""Facts written as a document and read again are the same facts; what is wrong in a document is told with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.facts import (
    Address,
    Consistency,
    Disk,
    Facts,
    PointId,
    PowerState,
    RestorePoint,
    Vm,
    VmHistory,
    VmId,
)
from policies.factsfile import KEYS, facts_as_json, facts_from_json

INSTANTS = st.datetimes(
    datetime(2000, 1, 1),  # noqa: DTZ001 (the strategy adds the zone)
    datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)
IDS = st.sampled_from(["a", "b", "c", "d"]).map(VmId)
NUMBERS = st.integers(0, (1 << 63) - 1)
VMS = st.builds(
    Vm,
    id=IDS,
    address=st.builds(Address),
    name=st.sampled_from(["a", "web-1", "ä"]),
    attributes=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    snapshots=st.just(()),
    disks=st.lists(st.builds(Disk, key=NUMBERS, capacity_bytes=NUMBERS), max_size=2).map(tuple),
)
POINTS = st.builds(
    RestorePoint,
    id=st.text(max_size=6).map(PointId),
    vm=IDS,
    vm_name=st.sampled_from(["a", "web-1", "gone"]),
    taken_at=INSTANTS,
    read_bytes=NUMBERS,
    stored_bytes=NUMBERS,
    disk_bytes=NUMBERS,
    locked_until=st.none() | INSTANTS,
    expiring_since=st.none() | INSTANTS,
)
HISTORIES = st.builds(
    VmHistory,
    last_success=st.none() | INSTANTS,
    last_good=st.none() | INSTANTS,
    last_attempt=st.none() | INSTANTS,
    consecutive_failures=NUMBERS,
)


def grouped(points: Iterable[RestorePoint]) -> dict[VmId, tuple[RestorePoint, ...]]:
    by_vm: dict[VmId, tuple[RestorePoint, ...]] = {}
    for point in points:
        by_vm[point.vm] = (*by_vm.get(point.vm, ()), point)
    return by_vm


FACTS = st.builds(
    Facts,
    now=INSTANTS,
    vms=st.lists(VMS, max_size=4).map(lambda vms: {vm.id: vm for vm in vms}),
    history=st.dictionaries(IDS, HISTORIES, max_size=3),
    points=st.lists(POINTS, max_size=6, unique_by=lambda point: point.id).map(grouped),
    fired=st.dictionaries(st.tuples(st.text(max_size=3), st.text(max_size=3), IDS), INSTANTS, max_size=3),
    left=st.dictionaries(IDS, INSTANTS, max_size=2),
    copies=st.dictionaries(
        st.text(max_size=3),
        st.lists(POINTS, max_size=3, unique_by=lambda point: point.id).map(grouped),
        max_size=2,
    ),
    unseen_copies=st.lists(st.text(max_size=3), max_size=2).map(tuple),
)


@given(FACTS)
def test_facts_survive_the_way_through_a_document(facts: Facts) -> None:
    assert facts_from_json(json.loads(json.dumps(facts_as_json(facts))), "state.json") == facts


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "id", "vm", "taken_at", "disks", "power"]), inner, max_size=4)
        ),
        max_leaves=8,
    ),
    st.sampled_from(
        ["vms", "points", "history", "fired", "now", "format", "copies", "empty_copies", "unseen_copies", "other"]
    ),
)
def test_whatever_a_document_holds_it_is_read_or_refused_with_its_place(value: Any, key: str) -> None:
    try:
        facts_from_json({"now": "2026-11-23T02:00:00Z", key: value}, "state.json")
    except PolicyError as error:
        assert all(problem.file == "state.json" and problem.what and problem.instead for problem in error.problems)


def test_a_vm_needs_only_its_name_and_its_id_is_made_of_it() -> None:
    document = {
        "now": "2026-11-23T02:00:00Z",
        "vms": [{"name": "sql-1", "tags": ["tier=gold"], "power": "on"}],
        "points": [{"id": "p1", "vm": "sql-1", "taken_at": "2026-11-22T02:00:00Z", "consistency": "application"}],
        "history": {"sql-1": {"consecutive_failures": 2}},
    }
    facts = facts_from_json(document, "inventory.json")
    vm = facts.vms[VmId("sql-1")]
    assert vm.name == "sql-1" and vm.tags == {"tier=gold"} and vm.power is PowerState.ON
    (point,) = facts.points[vm.id]
    assert point.vm_name == "sql-1" and point.consistency is Consistency.APPLICATION
    assert facts.history[vm.id].consecutive_failures == 2
    assert facts_as_json(facts) == {"format": 1, "fired": [], "left": {}, **document}


def test_now_is_the_callers_where_the_document_has_none() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    assert facts_from_json({}, "inventory.toml", now=now).now == now


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"vms": [{"name": "a"}, {"id": "b"}]}, "vms[1] has no name, write its name"),
        ({"vms": [{"name": "a", "powr": "on"}]}, 'vms[0] has an unknown key "powr", write power'),
        ({"vms": [{"name": "a", "power": "up"}]}, 'vms[0].power is "up", write one of on, off, suspended'),
        ({"vms": [{"name": "a", "tags": ["x=y", 7]}]}, 'vms[0].tags[1] is "7", write a text'),
        (
            {"vms": [{"name": "a", "disks": [{"key": "x"}]}]},
            'vms[0].disks[0].key is "x", write a whole number, 0 or more',
        ),
        ({"vms": [{"name": "a", "attributes": {"x": 1}}]}, 'vms[0].attributes.x is "1", write a text'),
        ({"vms": [{"name": "a"}, {"name": "a"}]}, 'vms[1] has the id "a" of another VM, give each VM an id of its own'),
        ({"vms": {"a": {}}}, 'vms is "{\'a\': {}}", write a list of tables'),
        ({"vms": ["a"]}, 'vms[0] is "a", write a table'),
        (
            {"points": [{"id": "p", "vm": "a", "taken_at": "2026-11-22 02:00"}]},
            'points[0].taken_at is "2026-11-22 02:00", '
            "write an instant with its time zone, such as 2026-11-23T02:00:00Z",
        ),
        (
            {"left": {"a": "9999-12-31T23:00:00-11:00"}},
            'left.a is "9999-12-31T23:00:00-11:00", write an instant of the years 1970 to 8999',
        ),
        (
            {"vms": [{"name": "a", "disks": [{"capacity_bytes": -1}]}]},
            'vms[0].disks[0].capacity_bytes is "-1", write a whole number, 0 or more',
        ),
        ({"format": 0}, 'format is "0", write 1'),
        ({"history": []}, 'history is "[]", write a table with a record for each id of a VM'),
        ({"history": {"a": {"running": 1}}}, 'history.a.running is "1", write true or false'),
        ({"fired": [{"policy": "p"}]}, "fired[0] has no rule, write its rule"),
        ({"vm": []}, 'has an unknown key "vm", write vms'),
        ({"format": 2}, 'format is "2", this Backstay reads format 1: use a newer one'),
        ({"now": 7}, 'now is "7", write an instant with its time zone, such as 2026-11-23T02:00:00Z'),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_document_is_told_with_its_place(document: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        facts_from_json({"now": "2026-11-23T02:00:00Z", **document}, "state.json")
    assert str(refused.value) == f"state.json:1:1: {said}"


def test_two_restore_points_of_one_id_are_refused() -> None:
    point = {"id": "p", "vm": "a", "taken_at": "2026-11-22T02:00:00Z"}
    with pytest.raises(PolicyError, match="another restore point"):
        facts_from_json({"now": "2026-11-23T02:00:00Z", "points": [point, point]}, "state.json")


def test_the_problems_told_of_one_document_have_an_end() -> None:
    with pytest.raises(PolicyError) as refused:
        facts_from_json({"now": "2026-11-23T02:00:00Z", "vms": [{}] * 1000}, "state.json")
    assert len(refused.value.problems) == 20
    assert [one.what for one in refused.value.problems][9:11] == ["vms[9] has no name", "vms[10] has no name"]


def test_a_disk_written_by_hand_needs_nothing_but_what_differs() -> None:
    document = {"vms": [{"name": "sql-1", "disks": [{}, {"label": "scratch", "capacity_bytes": 5}]}]}
    facts = facts_from_json(document, "inventory.json", now=datetime(2026, 11, 23, tzinfo=UTC))
    first, second = facts.vms[VmId("sql-1")].disks
    assert (first.key, first.label, first.uuid, first.mode) == (2000, "Hard disk 1", "disk-0", "persistent")
    assert (second.key, second.label, second.capacity_bytes, second.uuid) == (2001, "scratch", 5, "disk-1")


def test_the_document_is_described_with_its_keys() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    section = page.split("### The state file\n")[1].split("\n## ")[0]
    rows = {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}
    assert {*rows} == {*KEYS}
    for key, kind in (("vms", Vm), ("points", RestorePoint), ("history", VmHistory)):
        known = {field.name for field in fields(kind)} | {field.name for field in fields(Disk)}
        told = set(re.findall(r"`([a-z_]+)`", rows[key].partition("|")[2].partition("|")[2]))
        assert told <= known, told - known
