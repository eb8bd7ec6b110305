"""Which storage policies a VM that is restored gets, and what is said of those that it does not."""

from __future__ import annotations

import pytest
from pyVmomi import vim, vmodl

from connectors.errors import ConnectorError, Rejected, Unreachable
from connectors.vsphere.faults import translate
from connectors.vsphere.storage_policies import Policies, choose, remembered, with_policy

HAD = {"home": "Gold", "2000": "Gold", "2001": "Silver"}
THERE = {"Gold": "id-g", "Silver": "id-s"}


def test_what_a_restore_point_remembers_is_that_of_the_home_and_of_the_disks_that_come_back() -> None:
    disks = [{"key": 2000, "storage_policy": "Gold"}, {"key": 2001, "storage_policy": "Silver"}, {"key": 2002}]
    summary = {"storage_policy": "Gold", "disks": disks}
    assert remembered(summary) == HAD
    assert remembered(summary, (2001, 2002)) == {"home": "Gold", "2001": "Silver"}
    assert remembered({}) == {}


def test_policies_are_chosen_by_name_and_what_is_asked_for_wins() -> None:
    assert dict(choose(HAD, {}, THERE, "").ids) == {"home": "id-g", "2000": "id-g", "2001": "id-s"}
    asked = choose(HAD, {"Gold": "Silver"}, {"Silver": "id-s"}, "")
    assert (set(asked.ids.values()), asked.warnings) == ({"id-s"}, ())
    assert choose({}, {}, {}, "the service is away") == Policies()


def test_what_is_only_remembered_is_told_where_it_cannot_be_set_and_what_is_asked_for_is_refused() -> None:
    lost = choose(HAD, {}, {"Gold": "id-g"}, "")
    assert lost.warnings == ("without the storage policy Silver, which is not there: the datastore's default counts",)
    assert "2001" not in lost.ids
    away = choose(HAD, {}, {}, "the service is away")
    assert (away.ids, away.warnings) == ({}, ("without its storage policies (Gold, Silver): the service is away",))
    for asked, there, unknown, why in (
        ({"Bronze": "Gold"}, THERE, "", "the VM had no storage policy Bronze"),
        ({"Gold": "Bronze"}, THERE, "", "there is no storage policy Bronze"),
        ({"Gold": "Silver"}, {}, "the service is away", "no storage policy can be set: the service is away"),
    ):
        with pytest.raises(Rejected, match=why):
            choose(HAD, asked, there, unknown)


async def test_only_where_vcenter_refused_is_it_tried_without_the_policy() -> None:
    tried: list[str] = []
    policies = choose(HAD, {}, THERE, "")

    async def refused(policy: str) -> str:
        tried.append(policy)
        if policy:
            raise Rejected("vCenter refused: it does not fit") from vmodl.fault.InvalidArgument()
        return "made"

    assert await with_policy(refused, policies, "2001", "Hard disk 2") == (
        "made",
        ["Hard disk 2 is without the storage policy Silver, which vCenter refused: vCenter refused: it does not fit"],
    )
    assert tried == ["id-s", ""]

    async def fails(policy: str) -> str:
        tried.append(policy)
        raise error

    # Whether it was made is not known, or it is no matter of vCenter's: a second one is never made on a guess.
    for error in (Unreachable("the connection failed"), Rejected("the name is taken"), ConnectorError("a bug")):
        tried.clear()
        with pytest.raises(type(error)):
            await with_policy(fails, policies, "home", "its home")
        assert tried == ["id-g"]


async def test_a_full_datastore_is_no_matter_of_policies() -> None:
    async def full(policy: str) -> None:
        fault = vim.fault.NoDiskSpace(datastore="fast-1")
        raise translate(fault, "vCenter") from fault

    with pytest.raises(ConnectorError, match="the datastore fast-1 is full"):
        await with_policy(full, choose(HAD, {}, THERE, ""), "home", "its home")
