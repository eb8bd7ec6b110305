"""A catalog that is cut, flipped, older, ahead, foreign or gone is told from a good one and made again, row for row."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policies.facts import PointId
from storage.errors import Refused, StorageError
from storage.reclaim import plan_reclaim
from storage.repository import Repository
from storage.verify import verify
from tests.damage_kit import in_memory
from tests.storage_kit import NOW, back_up, changed, image, later, make, opened, read_back

Rows = dict[str, list[tuple[Any, ...]]]

CATALOG, WAL = "catalog.duckdb", "catalog.duckdb.wal"


@dataclass(frozen=True)
class Scene:
    """A repository, the rows that its catalog must have, and older copies of its catalog, oldest first."""

    location: Path
    rows: Rows
    older: list[Path]
    disk: bytearray
    newest: PointId


def _build(folder: Path) -> Scene:
    location, disk = make(folder / "r"), image(1, 80)
    older: list[Path] = []

    def keep() -> None:
        copy = folder / f"older-{len(older)}"
        copy.mkdir()
        for name in (CATALOG, WAL):
            if (location / name).exists():
                shutil.copy(location / name, copy / name)
        older.append(copy)

    with opened(location) as repo:
        back_up(repo, disk, name='quotes "and, commas\nand lines')
        repo.catalog.checkpoint()
    keep()
    with opened(location) as repo:
        gone = back_up(repo, image(2, 20), vm="vm-2")
        repo.mark_hold(back_up(repo, image(3, 20), vm="vm-3").id, "court", NOW)
    keep()
    with opened(location) as repo:
        repo.expire(gone.id, "old", NOW)
        repo.catalog.checkpoint()
    keep()
    with opened(location) as repo:
        disk = changed(disk, 4, [3])
        newest = back_up(repo, disk, at=later(hours=1))
        repo.mark_lock(newest.id, later(days=1), "lock", NOW)
        rows = repo.catalog.rows()
    return Scene(location, rows, older, disk, newest.id)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with in_memory() as folder:
        yield _build(folder)


@pytest.fixture
def trial(scene: Scene) -> Iterator[Path]:
    target = scene.location.parent / "trial"
    shutil.copytree(scene.location, target)
    yield target
    shutil.rmtree(target)


def _again(scene: Scene, trial: Path) -> None:
    for name in (CATALOG, WAL):
        shutil.copy(scene.location / name, trial / name)
    for aside in trial.glob("*.corrupt-*"):
        aside.unlink()


def _equal_after_opening(trial: Path, scene: Scene, said: str) -> None:
    """At once, or after an error that verification answers by making it again: never other rows."""
    with opened(trial) as repo:
        try:
            repo.points()
            rows = repo.catalog.rows()
        except StorageError:
            verify(repo, now=later(hours=2))
            rows = {**repo.catalog.rows(), "marks": scene.rows["marks"]}  # it leaves marks of its own
            _forget_verification(repo)
        assert rows == scene.rows, said


def _forget_verification(repo: Repository) -> None:
    for point in repo.point_ids():
        repo.drop_marks([mark for mark in repo.marks.of(point) if mark.kind == "verified"])


@pytest.mark.parametrize("name", [CATALOG, WAL])
def test_a_catalog_cut_anywhere_is_made_again(scene: Scene, trial: Path, name: str) -> None:
    whole = (scene.location / name).read_bytes()
    chance = random.Random(name)
    cuts = {0, 1, 4096, 12288, len(whole) - 1} | {chance.randrange(len(whole)) for _ in range(30)}
    for cut in sorted(cut for cut in cuts if cut < len(whole)):
        (trial / name).write_bytes(whole[:cut])
        _equal_after_opening(trial, scene, f"{name} cut at {cut} of {len(whole)}")
        _again(scene, trial)


@pytest.mark.parametrize("name", [CATALOG, WAL])
def test_a_catalog_with_a_flipped_bit_never_answers_wrong(scene: Scene, trial: Path, name: str) -> None:
    whole = bytearray((scene.location / name).read_bytes())
    chance = random.Random(f"flip {name}")
    used = [at for at in range(len(whole)) if whole[at]]  # zeros lie in room that no block uses
    headers = [at for at in used if at < 3 * 4096]
    places = chance.sample(headers, min(20, len(headers))) + chance.sample(used, 35)
    assert len(places) >= 50
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << chance.randrange(8)
        (trial / name).write_bytes(broken)
        _equal_after_opening(trial, scene, f"{name} byte {place} of {len(whole)}")
        _again(scene, trial)


@pytest.mark.parametrize("age", range(3))
def test_an_older_catalog_is_caught_up(scene: Scene, trial: Path, age: int) -> None:
    for name in (CATALOG, WAL):
        (trial / name).unlink()
        if (scene.older[age] / name).exists():
            shutil.copy(scene.older[age] / name, trial / name)
    _equal_after_opening(trial, scene, f"the catalog of {age} steps")


def test_a_log_beside_the_catalog_of_another_time_is_not_believed(scene: Scene, trial: Path) -> None:
    for age in range(3):
        shutil.copy(scene.older[age] / CATALOG, trial / CATALOG)
        _equal_after_opening(trial, scene, f"the newest log with the catalog of {age} steps")
        _again(scene, trial)


def test_a_catalog_that_is_gone_is_made_again(scene: Scene, trial: Path) -> None:
    for names in ([CATALOG], [WAL], [CATALOG, WAL]):
        for name in names:
            (trial / name).unlink()
        _equal_after_opening(trial, scene, f"without {names}")
        _again(scene, trial)


def test_the_catalog_of_another_repository_is_no_witness_against_this_one(
    scene: Scene, trial: Path, tmp_path: Path
) -> None:
    other = make(tmp_path / "other")
    with opened(other) as repo:
        back_up(repo, scene.disk)
        repo.catalog.checkpoint()
    for names in ([CATALOG, WAL], [CATALOG], [WAL]):
        for name in names:
            (trial / name).unlink()
            if (other / name).exists():
                shutil.copy(other / name, trial / name)
        _equal_after_opening(trial, scene, f"{names} of another repository")
        with opened(trial) as repo:
            assert not repo.lost_points()
        _again(scene, trial)


def test_a_repository_put_back_from_an_older_copy_tells_what_it_lost(tmp_path: Path) -> None:
    """The catalog is ahead: it knows a restore point and packs that the copy does not have."""
    location, disk = make(tmp_path / "r"), image(5, 40)
    with opened(location) as repo:
        old = back_up(repo, disk)
    shutil.copytree(location, tmp_path / "copy")
    with opened(location) as repo:
        new = back_up(repo, image(6, 40), vm="vm-9", name="db", at=later(hours=1))
        repo.opened_catalog()
    for name in (CATALOG, WAL):
        shutil.copy(location / name, tmp_path / "copy" / name)
    with opened(tmp_path / "copy") as repo:
        assert [point.id for point in repo.points()] == [old.id, new.id]
        assert [point.id for point in repo.lost_points()] == [new.id]
        assert {pack for pack, *_ in repo.catalog.rows()["packs"]} == set(repo.store.live), "packs that are gone go"
        with pytest.raises(Refused, match="lost"):
            plan_reclaim(repo, later(days=40))
        assert read_back(repo, old.id) == disk
        report = verify(repo, now=later(hours=2))
        assert [(damage.points, damage.vms) for damage in report.damaged] == [((new.id,), ("db",))]
        repo.catalog.rebuild()
        assert [point.id for point in repo.lost_points()] == [new.id], "also when the catalog is made again"
        repo.expire(new.id, "given up", later(hours=3), lost=True)
        assert verify(repo, now=later(hours=4)).sound
        plan_reclaim(repo, later(days=40))
