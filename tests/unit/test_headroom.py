"""Whether a datastore has room for a snapshot: what may be written, what must stay free, and the sentences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.hypervisor import DatastoreSpace
from engine.config import parse
from engine.failures import BadInput
from engine.headroom import (
    LEAST_DAILY_CHANGE,
    UNKNOWN_AT_MOST,
    Expected,
    Mark,
    Marks,
    blocked,
    expect,
    no_room,
    parse_mark,
    rate_of,
    running_low,
)
from engine.sections import Limits
from policies.facts import Address, Disk, PointId, RestorePoint, Vm, VmId

GIB = 1 << 30
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def machine(*disks: tuple[str, int]) -> Vm:
    held = tuple(
        Disk(2000 + n, f"Hard disk {n + 1}", gib * GIB, f"u{n}", datastore, "", "persistent")
        for n, (datastore, gib) in enumerate(disks)
    )
    return Vm(VmId("vm-1"), Address("vc", "vm-1"), "web", disks=held)


def points(*read: float, every: timedelta = timedelta(days=1), of: int = 100) -> list[RestorePoint]:
    """Restore points, one each day, that read so many GiB."""
    return [
        RestorePoint(
            PointId(str(n)), VmId("vm-1"), "web", MONDAY + n * every, read_bytes=int(gib * GIB), disk_bytes=of * GIB
        )
        for n, gib in enumerate(read)
    ]


def needed(vm: Vm, made: Sequence[RestorePoint], *, speed: float | None = None, last: float | None = None) -> int:
    return sum(expect(vm, made, bytes_per_second=speed, last_seconds=last).by_datastore.values())


def test_the_busiest_of_the_last_intervals_tells_the_rate() -> None:
    rate = rate_of(points(100, 2, 5, 3), 100 * GIB)
    assert rate.daily_bytes == 5 * GIB
    assert rate.last_read_bytes == 3 * GIB
    assert rate.told_by == "measured over 3 incremental runs"


def test_points_an_hour_apart_tell_the_change_of_a_day() -> None:
    assert rate_of(points(100, 1, every=timedelta(hours=1)), 100 * GIB).daily_bytes == 24 * GIB


def test_two_runs_in_a_row_do_not_keep_the_vm_from_its_next_one() -> None:
    made = points(100, 1, every=timedelta(minutes=1))
    assert rate_of(made, 100 * GIB).daily_bytes == 24 * GIB
    assert no_room([DatastoreSpace("ssd", 1000 * GIB, 200 * GIB)], expected_of(made), {}, Marks()) == ()


def expected_of(made: Sequence[RestorePoint]) -> Expected:
    return expect(machine(("ssd", 100)), made, bytes_per_second=None, last_seconds=4 * 3600)


def test_a_run_that_has_to_read_everything_is_not_expected_to_be_as_short_as_its_last_one() -> None:
    vm, made = machine(("ssd", 1000)), points(1000, 4, of=1000)
    short = expect(vm, made, bytes_per_second=100 << 20, last_seconds=60)
    long = expect(vm, made, bytes_per_second=100 << 20, last_seconds=60, whole=True)
    assert (short.seconds, long.seconds) == (660, 600 + 1000 * GIB / (100 << 20))
    assert long.by_datastore["ssd"] > 10 * short.by_datastore["ssd"]


def test_a_run_that_read_everything_and_a_damaged_one_tell_nothing() -> None:
    made = points(100, 100, 99)
    assert rate_of(made, 100 * GIB).last_read_bytes is None
    assert rate_of(made, 100 * GIB).daily_bytes == 10 * GIB


def test_a_quiet_vm_is_expected_to_wake_up() -> None:
    assert rate_of(points(100, 0, 0), 100 * GIB).daily_bytes == int(LEAST_DAILY_CHANGE * 100 * GIB)


def test_what_is_expected_grows_with_the_rate_and_with_the_time_of_the_run() -> None:
    vm = machine(("ssd", 100))
    base = needed(vm, points(100, 4), last=3000)
    assert needed(vm, points(100, 8), last=3000) == pytest.approx(2 * base, rel=0.01)
    assert needed(vm, points(100, 4), last=2 * 3000 + 600) == pytest.approx(2 * base, rel=0.01)
    # 4 GiB a day for an hour (50 minutes and 10 beside), doubled
    assert base == pytest.approx(4 * GIB / 24 * 2, rel=0.01)


def test_without_a_last_run_the_speed_of_others_tells_the_time() -> None:
    vm = machine(("ssd", 100))
    slow, quick = needed(vm, [], speed=100 << 20), needed(vm, [], speed=1000 << 20)
    assert slow > quick > 0


def test_a_huge_vm_of_which_nothing_is_known_is_expected_to_need_a_fifth_of_its_disks_at_most() -> None:
    vm = machine(("ssd", 50_000))
    assert needed(vm, []) == int(UNKNOWN_AT_MOST * 50_000 * GIB)


def test_each_disk_counts_on_its_own_datastore_and_independent_ones_nowhere() -> None:
    vm = machine(("ssd", 10), ("bulk", 30))
    found = expect(vm, points(40, 4, of=40), bytes_per_second=None, last_seconds=3000).by_datastore
    assert found["bulk"] == pytest.approx(3 * found["ssd"], rel=0.01)


def test_a_snapshot_needs_the_free_mark_and_its_deltas_above_the_low_mark() -> None:
    marks = Marks(free=Mark(share=0.10), low=Mark(share=0.05))
    small, large = Expected({"ssd": GIB}, 60, "why"), Expected({"ssd": 20 * GIB}, 60, "why")
    at = [DatastoreSpace("ssd", 100 * GIB, 10 * GIB)]
    assert no_room(at, small, {}, marks) == ()
    assert no_room([DatastoreSpace("ssd", 100 * GIB, 10 * GIB - 1)], small, {}, marks) != ()
    assert no_room([DatastoreSpace("ssd", 100 * GIB, 25 * GIB)], large, {}, marks) == ()
    (sentence,) = no_room([DatastoreSpace("ssd", 100 * GIB, 24 * GIB)], large, {}, marks)
    assert sentence == (
        "datastore ssd has 24 GiB free (24.0% of 100 GiB); 25 GiB must be free for a snapshot, whose deltas may come"
        " to 20 GiB (why)"
    )


def test_what_other_runs_may_still_need_is_not_counted_on_twice() -> None:
    at = [DatastoreSpace("ssd", 100 * GIB, 30 * GIB)]
    expected = Expected({"ssd": 20 * GIB}, 60, "why")
    assert no_room(at, expected, {"bulk": 90 * GIB}, Marks()) == ()
    (sentence,) = no_room(at, expected, {"ssd": 6 * GIB}, Marks())
    assert "31 GiB must be free" in sentence
    assert "those of other runs 6 GiB" in sentence


def test_a_datastore_on_which_only_the_vms_home_lies_is_looked_at_too() -> None:
    at = [DatastoreSpace("home", 100 * GIB, 2 * GIB), DatastoreSpace("ssd", 100 * GIB, 50 * GIB)]
    assert "datastore home" in no_room(at, Expected({"ssd": GIB}, 60, "why"), {}, Marks())[0]


def test_a_snapshot_has_to_go_below_the_low_mark_and_not_before() -> None:
    assert running_low([DatastoreSpace("ssd", 100 * GIB, 5 * GIB)], Marks()) == ()
    assert running_low([DatastoreSpace("ssd", 100 * GIB, 4 * GIB)], Marks()) == (
        "datastore ssd has only 4 GiB free (4.0% of 100 GiB), less than the 5 GiB with which a snapshot may stay",
    )
    assert list(blocked([DatastoreSpace("ssd", 100 * GIB, 9 * GIB)], Marks())) == ["ssd"]


def test_marks_are_shares_or_sizes() -> None:
    assert parse_mark("10%").of(200 * GIB) == 20 * GIB
    assert parse_mark("50GiB").of(200 * GIB) == 50 * GIB
    assert parse_mark("0%").of(200 * GIB) == 0
    with pytest.raises(ValueError, match="not a share"):
        parse_mark("110%")


def configured(limits: str) -> Limits:
    text = f'schema = 1\nrepository.path = "repo"\n[limits]\n{limits}\n'
    return parse(text, Path("/etc/backstay/backstay.toml")).limits


def test_the_configuration_says_what_is_kept_free_and_how_much_is_done_at_once() -> None:
    limits = configured('datastore_free = "50GiB"\ndatastore_low = "1%"\nremovals_per_datastore = 1')
    assert (limits.datastore_free, limits.datastore_low) == (Mark(fixed_bytes=50 * GIB), Mark(share=0.01))
    assert limits.removals_per_datastore == 1
    assert str(limits.model_dump()["datastore_low"]) == "1%"
    assert str(limits.datastore_free) == f"{50 << 20}KiB"


@pytest.mark.parametrize(
    "wrong",
    [
        'datastore_free = "5%"\ndatastore_low = "10%"',
        'datastore_free = "1GiB"\ndatastore_low = "2GiB"',
        'datastore_free = "much"',
        "datastore_free = 10",
    ],
)
def test_marks_that_cannot_be_are_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match="datastore_"):
        configured(wrong)
