"""A short day: the whole of Backstay against a vCenter on which everything happens at once. Long ones: `make day`."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.day.play import play
from tests.acceptance.day.script import BIG, script

VMS = 12
SECONDS = 8.0
SEED = 3


def test_a_day_of_moves_writes_faults_and_kills_leaves_nothing_behind_and_every_restore_point_is_right(
    tmp_path: Path,
) -> None:
    found = play(tmp_path, seed=SEED, vms=VMS, seconds=SECONDS)
    assert found.wrong == []
    figures = found.figures
    assert figures.restored_identical == figures.restore_points >= VMS
    assert (figures.leftover_snapshots, figures.leftover_disks, figures.silently_unprotected) == (0, 0, 0)
    assert figures.events > VMS


def test_a_script_follows_from_its_seed_and_has_each_kind_of_trouble() -> None:
    day = script(SEED, VMS, SECONDS)
    assert day == script(SEED, VMS, SECONDS) != script(SEED + 1, VMS, SECONDS)
    assert list(day) == sorted(day, key=lambda step: step.at)
    assert {"kill", "start", "lose_sessions", "fault", "write"} <= {step.what for step in day}
    assert {step.more["transport"] for step in day if step.what == "move_while_read"} == set(BIG)
