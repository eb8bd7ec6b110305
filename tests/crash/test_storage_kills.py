"""SIGKILL at each named point: the repository opens by itself, and every older restore point is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.verify import verify
from tests.crash import killed
from tests.storage_kit import BLOCK, back_up, changed, image, later, make, opened, read_back

POINTS = {
    "backup": [
        "pack.reserved",
        "pack.written",
        "pack.written:2",
        "pack.before_publish",
        "pack.before_publish:2",
        "pack.sealed",
        "pack.sealed:2",
        "commit.packs_sealed",
        "commit.manifest_written",
        "commit.catalog_written",
    ],
    "expire": ["expire.marked", "expire.manifest_removed", "expire.catalog"],
    "hold": ["mark.written"],
    "reclaim": [
        "reclaim.hidden",
        "reclaim.pack_deleted",
        "reclaim.pack_deleted:2",
        "pack.before_publish",
        "pack.sealed",
        "reclaim.copied",
        "reclaim.hidden:2",
        "reclaim.pack_deleted:4",
    ],
    "rebuild": ["rebuild.index_removed", "catalog.removed", "catalog.created"],
}
CASES = [(scenario, point) for scenario, points in POINTS.items() for point in points]


@pytest.mark.parametrize(("scenario", "failpoint"), CASES, ids=lambda value: str(value))
def test_a_process_killed_at_any_step_harms_no_restore_point(tmp_path: Path, scenario: str, failpoint: str) -> None:
    location = make(tmp_path / "r")
    first = image(1, 60)
    second = changed(first, 2, [7, 8, 9])
    with opened(location) as repo:
        gone = back_up(
            repo, image(4, 60), vm="vm-0", name="old"
        )  # its packs will be wholly dead, those of the next partly
        old = back_up(repo, image(3, 60)[: 30 * BLOCK] + first[30 * BLOCK :], vm="vm-0", name="old")
        one = back_up(repo, first, at=later(hours=1))
        two = back_up(repo, second, base=one.id, blocks=[7, 8, 9], at=later(hours=2))
    environment = {**os.environ, "BACKSTAY_FAILPOINT": failpoint}
    died = subprocess.run(
        [sys.executable, "-m", "tests.crash.killed", scenario, str(location)], env=environment, check=False
    )
    assert died.returncode == -signal.SIGKILL, "the failpoint was not reached"
    with opened(location, now=later(hours=6)) as repo:
        points = {point.id for point in repo.points()}
        assert {one.id, two.id} <= points
        assert points == repo.point_ids()
        if scenario in ("backup", "hold", "rebuild"):
            assert {gone.id, old.id} <= points
        committed = failpoint in ("commit.manifest_written", "commit.catalog_written")
        assert len(points - {gone.id, old.id, one.id, two.id}) == committed
        assert verify(repo, now=later(hours=6)).sound
        assert read_back(repo, one.id) == first
        assert read_back(repo, two.id) == second
        assert not list((location / "spool").iterdir())
        grown = {table: rows for table, rows in repo.catalog.rows().items()}
        repo.catalog.rebuild()
        assert repo.catalog.rows() == grown
    if scenario == "reclaim" and old.id not in points:
        killed.main("backup", location)
    elif scenario != "hold":
        killed.main(scenario, location)
    with opened(location, now=later(hours=7)) as repo:
        assert verify(repo, now=later(hours=7)).sound
