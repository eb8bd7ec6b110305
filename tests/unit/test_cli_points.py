"""What `backstay points POINT` tells of the ways that its disks took."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cli.points import _tell


def point(**disk: Any) -> dict[str, Any]:
    """A restore point with one disk, as the engine tells it."""
    told: dict[str, Any] = {
        "label": "Hard disk 1",
        "capacity_bytes": 1 << 20,
        "read_bytes": 1 << 20,
        "changes": "whole: first",
    }
    told["fallbacks"] = []
    return {
        "id": "p1",
        "vm": "web",
        "vm_id": "v1",
        "taken_at": "2026-11-23T12:00:00Z",
        "consistency": "crash",
        "attributes": {},
        "disks": [told | {"fallbacks": []} | disk],
        "unprotected": [],
        "holds": [],
        "locked_until": None,
        "verified_at": None,
        "damaged": False,
    }


def test_the_way_of_a_disk_and_why_it_was_no_better_one_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ways = [["hotadd", "the disk is on an IDE controller"], ["nbd", "the connection broke"]]
    _tell(point(transport="https", fallbacks=ways), json=False)
    shown = capsys.readouterr().out
    assert "Hard disk 1, 1.0 MiB, 1.0 MiB read by https (whole: first)" in shown
    assert "not by hotadd: the disk is on an IDE controller" in shown
    assert "not by nbd: the connection broke" in shown


def test_a_point_that_tells_no_way_is_shown_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    _tell(point(), json=False)
    assert "1.0 MiB read (whole: first)" in capsys.readouterr().out


def test_a_point_in_a_further_repository_says_in_which(capsys: pytest.CaptureFixture[str]) -> None:
    _tell(point() | {"repository": "archive"}, json=False)
    assert "repository   archive" in capsys.readouterr().out
    _tell(point(), json=False)
    assert "repository" not in capsys.readouterr().out


def test_disks_are_shown_in_the_order_of_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    told = point()
    told["disks"] = [told["disks"][0] | {"label": f"Hard disk {number}"} for number in (10, 2, 1)]
    _tell(told, json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk ")]
    assert [line.split(",")[0].split()[-1] for line in lines] == ["1", "2", "10"]


def test_how_long_the_guest_stood_still_is_shown_as_far_as_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    made = {"count": 1, "longest_seconds": 0.188405, "total_seconds": 0.188405}
    removed = {"count": 3, "longest_seconds": 1.5, "total_seconds": 2.0}
    _tell(point() | {"attributes": {"stun_creation": made, "stun_removal": removed}}, json=False)
    shown = "0.19 s when the snapshot was made; 3 times, 1.50 s at most, when the snapshot was removed"
    assert f"stood still  {shown}\n" in capsys.readouterr().out
    _tell(point() | {"attributes": {"stun_creation": "not what it should be", "stun_removal": {}}}, json=False)
    assert "stood still" not in capsys.readouterr().out
