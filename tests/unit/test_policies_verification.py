"""Which restore points policies want read back, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.facts import Address, Facts, PointId, RestorePoint, Vm, VmId
from policies.loading import load_texts
from policies.policyset import PolicySet
from policies.protection import protection
from policies.settings import settings_of
from policies.verification import VerificationStanding, due_verifications, verification_standing

NOW = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)

POLICIES = """
schema = 1
[policy.gold]
select.all = ["name:db-*"]
rpo = "24h"
[policy.gold.verify]
every = "7d"
[policy.wide]
select.all = ["*"]
rpo = "24h"
verify.every = "30d"
[policy.silent]
select.all = ["*"]
schedule = "0 3 * * *"
"""


def policies(text: str = POLICIES) -> PolicySet:
    return load_texts({"all.toml": text})


def vm(name: str) -> Vm:
    return Vm(VmId(name), Address("vc", name), name)


def point(of: str, days_ago: float, *, policy: str = "wide", damaged: bool = False) -> RestorePoint:
    taken = NOW - days_ago * DAY
    return RestorePoint(PointId(f"{of}@{days_ago:g}"), VmId(of), of, taken, policy=policy, damaged=damaged)


def facts(*points: RestorePoint, gone: tuple[str, ...] = ()) -> Facts:
    by_vm: dict[VmId, tuple[RestorePoint, ...]] = {}
    for one in points:
        by_vm[one.vm] = (*by_vm.get(one.vm, ()), one)
    return Facts(NOW, {of: vm(of) for of in by_vm if of not in gone}, points=by_vm)


def due(found: Facts, read: dict[str, float] | None = None, *, by: datetime = NOW) -> list[str]:
    last_read = {PointId(name): NOW - days * DAY for name, days in (read or {}).items()}
    return [one.point for one in due_verifications(policies(), found, last_read, by)]


def test_a_restore_point_is_due_so_long_after_it_was_read_or_taken() -> None:
    found = facts(point("web", 40), point("web", 31), point("web", 29))
    assert due(found) == ["web@40", "web@31"]
    assert due(found, {"web@40": 3, "web@31": 30.5}) == ["web@31"]
    assert due(found, {"web@40": 50}) == ["web@40", "web@31"], "a reading before it was taken says nothing"


def test_the_shortest_time_of_all_policies_that_select_the_vm_counts() -> None:
    found = facts(point("db-1", 8), point("web", 8))
    [one] = due_verifications(policies(), found, {}, NOW)
    assert (one.point, one.policy, one.every) == ("db-1@8", "gold", 7 * DAY)
    assert one.reason == "never read back; policy gold wants it every 7 d"
    assert protection(policies(), vm("db-1")).verify_every == 7 * DAY
    assert settings_of(protection(policies(), vm("db-1")))["verify"] == "every 7 d"


def test_the_most_overdue_comes_first() -> None:
    found = facts(point("db-1", 9), point("web", 40), point("db-2", 12))
    assert due(found) == ["web@40", "db-2@12", "db-1@9"]


def test_what_comes_due_before_the_next_reading_is_due_now() -> None:
    found = facts(point("db-1", 6))
    assert due(found) == []
    assert due(found, by=NOW + DAY) == ["db-1@6"]


def test_of_a_vm_that_is_gone_its_own_policy_says_so() -> None:
    found = facts(point("db-1", 8, policy="gold"), point("db-2", 8, policy="removed"), gone=("db-1", "db-2"))
    assert due(found) == ["db-1@8"]


def test_known_damage_is_not_read_again() -> None:
    assert due(facts(point("web", 50, damaged=True))) == []


def test_who_wants_nothing_gets_nothing() -> None:
    quiet = policies('schema = 1\n[policy.p]\nrpo = "1d"\nselect.all = ["*"]\nverify = {}\n')
    assert due_verifications(quiet, facts(point("web", 900)), {}, NOW) == ()
    assert verification_standing(quiet, facts(point("web", 900)), {}) == ()


def test_how_each_policy_stands_is_told() -> None:
    found = facts(point("db-1", 8), point("db-1", 1), point("web", 40))
    read = {PointId("web@40"): NOW - 2 * DAY}
    assert verification_standing(policies(), found, read) == (
        VerificationStanding("gold", 7 * DAY, 2, 1, NOW - 8 * DAY),
        VerificationStanding("wide", 30 * DAY, 3, 0, NOW - 8 * DAY),
    )
    assert verification_standing(policies(), facts(), {})[0] == VerificationStanding("gold", 7 * DAY, 0, 0, None)


def test_less_than_a_day_is_refused() -> None:
    with pytest.raises(PolicyError, match="nothing is read back every"):
        policies('schema = 1\n[policy.p]\nverify.every = "12h"\n')


@given(st.dictionaries(st.integers(0, 80), st.integers(0, 80)), st.integers(0, 10))
def test_what_is_read_when_it_is_due_is_not_overdue_until_then(ages: dict[int, int], ahead: int) -> None:
    found = facts(*(point("db-1", age) for age in ages))
    read = {PointId(f"db-1@{age}"): NOW - days * DAY for age, days in ages.items()}
    by = NOW + ahead * DAY
    for one in due_verifications(policies(), found, read, by):
        read[one.point] = NOW
    later = Facts(min(by, NOW + 7 * DAY), found.vms, points=found.points)
    assert all(standing.overdue == 0 for standing in verification_standing(policies(), later, read))
