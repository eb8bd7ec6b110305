"""What people are shown of a VM that a restore point keeps, and the way there through a running engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.cli.points import _rows
from engine.client import Engine
from engine.failures import Exit, Kind, RemoteFailure, Verdict
from engine.keptvm import shown

SUMMARY = {
    "datacenter": "DC0", "folder": "/prod", "host": "esx-1", "cpus": 2, "memory_bytes": 4 << 30, "firmware": "efi",
    "tags": ["tier=gold"], "attributes": {"owner": "ledger"}, "missing": {"nvram": "it is not there"},
    "cards": [
        {"label": "Network adapter 1", "network": "", "portgroup_key": "dvportgroup-7", "mac": "00:50:56:00:00:01",
         "starts_connected": False},
    ],
}  # fmt: skip


def test_a_summary_is_shown_in_lines_and_nothing_of_an_older_restore_point() -> None:
    told = dict(shown(SUMMARY))
    assert told["place"] == "datacenter DC0; folder /prod; host esx-1"
    assert told["hardware"] == "2 CPUs, 4096 MiB, efi"
    assert told["network"] == "Network adapter 1 on dvportgroup-7, 00:50:56:00:00:01, disconnected"
    assert (told["tags"], told["attributes"], told["no nvram"]) == ("tier=gold", "owner=ledger", "it is not there")
    assert list(shown({})) == []


@pytest.mark.parametrize(
    ("home", "first", "second", "words"),
    [
        ("Gold", "Gold", "Gold", "Gold"),
        ("Gold", "Gold", "", "home Gold, Hard disk 1 Gold, Hard disk 2 none"),
        ("", "Gold", "Silver", "home none, Hard disk 1 Gold, Hard disk 2 Silver"),
        ("", "", "", ""),
    ],
    ids=["one", "a-default", "no-home", "none"],
)
def test_storage_policies_are_shown_in_one_word_where_they_are_one(
    home: str, first: str, second: str, words: str
) -> None:
    disks = [{"label": "Hard disk 1", "storage_policy": first}, {"label": "Hard disk 2", "storage_policy": second}]
    assert dict(shown({"storage_policy": home, "disks": disks}))["storage"] == words


class KnowsNoSuchVm(Engine):
    """An engine that knows no VM of the name that it is asked for."""

    def __init__(self, code: Exit) -> None:
        super().__init__(Path("nowhere"))
        self.code = code

    def get(self, path: str, query: Any = None) -> Any:
        raise RemoteFailure(Verdict(Kind.FAIL, self.code, "no VM is known as this"))


def test_the_name_of_a_restore_point_is_not_taken_for_an_unknown_vm() -> None:
    assert _rows(KnowsNoSuchVm(Exit.USAGE), "web@latest", None) == []
    assert _rows(KnowsNoSuchVm(Exit.USAGE), "20261123t132021z-0215", None) == []
    with pytest.raises(RemoteFailure):
        _rows(KnowsNoSuchVm(Exit.USAGE), "web", None)
    with pytest.raises(RemoteFailure):
        _rows(KnowsNoSuchVm(Exit.UNREACHABLE), "web@latest", None)
