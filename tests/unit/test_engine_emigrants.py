"""Which two ids are one VM that moved to another vCenter, and which are left to a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.emigrants import moved_away
from engine.identity import Traits
from engine.records import VmRow
from policies.facts import Address, VmId

CAME = datetime(2026, 11, 20, 12, tzinfo=UTC)
OLD, NEW = VmId("old"), VmId("new")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def row(vm: VmId, vcenter: str, first_seen: datetime, left_at: datetime | None = None, **traits: str) -> VmRow:
    known = Traits(Address(vcenter, f"vm-{vm}"), "web", "instance", "bios")
    return VmRow(vm, replace(known, **traits), {}, first_seen, left_at)  # type: ignore[arg-type]


GONE = row(OLD, "a", CAME - 9 * DAY, CAME + MINUTE)
HERE = row(NEW, "b", CAME)
PAIR = [(OLD, NEW)]


@pytest.mark.parametrize(
    ("rows", "told", "found"),
    [
        ([GONE, HERE], {}, PAIR),
        ([replace(GONE, left_at=CAME + HOUR), HERE], {}, []),
        ([replace(GONE, left_at=CAME + HOUR), HERE], {OLD: CAME - HOUR}, PAIR),
        ([replace(GONE, left_at=CAME + HOUR), HERE], {NEW: CAME - HOUR}, []),
        ([replace(GONE, left_at=CAME + HOUR), HERE], {OLD: CAME - 3 * DAY}, []),
        ([replace(GONE, left_at=CAME + 3 * DAY), HERE], {OLD: CAME}, []),
        ([replace(GONE, left_at=CAME - MINUTE), HERE], {}, []),
        ([replace(GONE, left_at=None), HERE], {}, []),
        ([GONE, row(NEW, "a", CAME)], {}, []),
        ([GONE, row(NEW, "b", CAME, bios_uuid="other")], {}, []),
        ([GONE, row(NEW, "b", CAME, instance_uuid="other")], {}, []),
        ([row(OLD, "a", CAME - DAY, CAME, bios_uuid=""), row(NEW, "b", CAME, bios_uuid="")], {}, []),
        ([GONE, HERE, row(VmId("third"), "c", CAME)], {}, []),
        ([GONE, HERE, row(VmId("third"), "c", CAME, instance_uuid="other")], {}, []),
        ([GONE, HERE, row(VmId("third"), "c", CAME, instance_uuid="other", bios_uuid="other")], {}, PAIR),
    ],
    ids=[
        "left soon after", "left late", "left late, as was told", "another was told of",
        "told long before", "left too late though told", "left before the other came", "both stand there",
        "in one vCenter", "another BIOS UUID", "another instance UUID", "no BIOS UUID", "a third",
        "a third's BIOS UUID", "a stranger",
    ],
)  # fmt: skip
def test_what_left_one_vcenter_as_it_came_to_another_is_one_vm(
    rows: list[VmRow], told: Mapping[VmId, datetime], found: list[tuple[VmId, VmId]]
) -> None:
    present = {one.id for one in rows if one.id != OLD or one.left_at is None}
    assert moved_away({one.id: one for one in rows}, present, told) == found


def test_two_that_both_stand_there_are_never_one() -> None:
    assert moved_away({OLD: GONE, NEW: HERE}, {OLD, NEW}, {OLD: CAME}) == []
    assert moved_away({OLD: GONE, NEW: HERE}, set(), {OLD: CAME}) == []
