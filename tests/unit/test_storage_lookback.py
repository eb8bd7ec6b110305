"""The base of an incremental from the newest manifests must be the one that the catalog would name."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage import lookback
from storage.joining import join
from storage.marks import MarkKind
from storage.repository import PointHead, Repository
from tests.storage_kit import NOW, files, make, opened

VMS = [VmId(f"vm-{number}") for number in range(4)]


def add(repo: Repository, vm: VmId, seconds: float, *, complete: bool = True) -> PointId:
    said = {} if complete else {"complete": "no"}
    with repo.new_point(PointHead(vm, vm, NOW + timedelta(seconds=seconds), attributes=said)) as pending:
        return pending.commit().id


def both_ways(path: Path, vm: VmId) -> tuple[PointId | None, PointId | None]:
    """Without the catalog first, as a command does; then with it."""
    with opened(path) as repo:
        without = repo.latest(vm)
        repo.opened_catalog()
        from_catalog = repo.latest(vm)
    return without.id if without else None, from_catalog.id if from_catalog else None


@pytest.mark.parametrize("seed", range(6))
def test_both_ways_name_the_same_restore_point_whatever_happened(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with opened(make(tmp_path / "r", encrypted=bool(seed % 2))) as repo:
        points = [
            add(repo, chance.choice(VMS[:3]), chance.random() * 6, complete=chance.random() < 0.7) for _ in "x" * 20
        ]
        for point in chance.sample(points, 6):
            repo.add_mark(point, MarkKind.DAMAGED, NOW, "a flipped bit")
        for point in chance.sample(points, 4):
            repo.expire(point, "old", NOW)
        join(repo, VMS[2], VMS[3], NOW)
    for vm in VMS:
        without, from_catalog = both_ways(tmp_path / "r", vm)
        assert without == from_catalog


def test_the_catalog_stays_closed_where_a_new_manifest_tells(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        known = add(repo, VMS[0], 0)
    with opened(tmp_path / "r") as repo:
        found = repo.latest(VMS[0])
        assert found is not None
        assert found.id == known
        assert not repo._catalog_open


def test_the_catalog_tells_of_what_lies_behind_the_newest_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookback, "LOOKBACK", 3)
    with opened(make(tmp_path / "r")) as repo:
        old = add(repo, VMS[0], 0)
        for hours in range(1, 4):
            add(repo, VMS[1], 3600 * hours)
    with opened(tmp_path / "r") as repo:
        found = repo.latest(VMS[0])
        assert found is not None
        assert found.id == old
        assert repo._catalog_open


def test_a_newest_manifest_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        old = add(repo, VMS[0], 0)
        new = add(repo, VMS[0], 3600)
    (manifest,) = (path for path in files(tmp_path / "r", "manifests") if path.name == new)
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 4
    manifest.chmod(0o600)
    manifest.write_bytes(data)
    assert both_ways(tmp_path / "r", VMS[0]) == (old, old)
