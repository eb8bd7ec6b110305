"""Every blob operation fails in turn: nothing that was there is harmed, and the repository opens by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import PointId
from storage.errors import NoSpace, StorageError, StoreFailed
from storage.rebuild import rebuild_catalog
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import Repository
from storage.verify import verify
from tests.storage_kit import BLOCK, FaultyBlobs, back_up, changed, image, later, make, opened, read_back

AGELESS = SafetyAges(timedelta(0), timedelta(days=36500))
EAGER = Thresholds(dead_share=0.01)
NEW_BLOCKS = (3, 30)


@dataclass(frozen=True)
class Stage:
    """A repository with two restore points that stay and one that may go."""

    location: Path
    kept: dict[PointId, bytes]
    old: PointId


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    location = make(tmp_path / "stage")
    disk = image(1, 60)
    with opened(location) as repo:
        old = back_up(repo, image(2, 60)[: 30 * BLOCK] + disk[30 * BLOCK :], vm="vm-old")  # half of it is shared
        one = back_up(repo, disk)
        second = changed(disk, 3, [4, 5])
        two = back_up(repo, second, base=one.id, blocks=[4, 5], at=later(hours=1))
    return Stage(location, {one.id: bytes(disk), two.id: bytes(second)}, old.id)


def _backup(repo: Repository, stage: Stage) -> None:
    base = max(stage.kept)
    back_up(repo, changed(bytearray(stage.kept[base]), 9, NEW_BLOCKS), base=base, blocks=NEW_BLOCKS, at=later(hours=2))


def _expire(repo: Repository, stage: Stage) -> None:
    repo.expire(stage.old, "old", later(hours=2))


def _reclaim(repo: Repository, stage: Stage) -> None:
    _expire(repo, stage)
    carry_out(repo, plan_reclaim(repo, later(days=3650), AGELESS, EAGER), later(days=3650))


def _marks(repo: Repository, stage: Stage) -> None:
    point = min(stage.kept)
    repo.mark_hold(point, "court", later(hours=2))
    repo.release(point, None, later(hours=2))
    verify(repo, now=later(hours=2))


def _rebuild(repo: Repository, stage: Stage) -> None:
    rebuild_catalog(repo)


@pytest.mark.parametrize(("once", "late"), [(False, False), (True, True)], ids=["for good, before", "once, after"])
@pytest.mark.parametrize("act", [_backup, _expire, _reclaim, _marks, _rebuild])
def test_no_failing_operation_harms_what_was_there(
    tmp_path: Path, stage: Stage, act: Callable[[Repository, Stage], None], once: bool, late: bool
) -> None:
    for fail_at in range(1, 500):
        location = tmp_path / "trial"
        shutil.copytree(stage.location, location)
        blobs = FaultyBlobs(location, fail_at, error=NoSpace if fail_at % 2 else StoreFailed, once=once, late=late)
        failed = False
        try:
            with opened(location, now=later(hours=2), blobs=blobs) as repo:
                act(repo, stage)
        except StorageError:
            failed = True
        with opened(location, now=later(hours=3)) as repo:
            known = {point.id for point in repo.points()}
            assert set(stage.kept) <= known, f"operation {fail_at}"
            assert verify(repo, now=later(hours=3)).sound, f"operation {fail_at}"
            for point, disk in stage.kept.items():
                assert read_back(repo, point) == disk, f"operation {fail_at}"
            if act is _backup and not failed:
                assert len(known) == 4
            if not failed or stage.old not in known:
                act(repo, stage) if act is _backup else None
            else:
                act(repo, stage)  # what failed can simply be done again
        shutil.rmtree(location)
        if not blobs.fired:
            assert fail_at > 1 or act is _rebuild
            return
    pytest.fail("the scenario never ended")


def test_a_full_store_is_told_as_such_and_a_later_run_succeeds(tmp_path: Path, stage: Stage) -> None:
    blobs = FaultyBlobs(stage.location, 3, error=NoSpace, once=True)
    with opened(stage.location, blobs=blobs) as repo:
        with pytest.raises(NoSpace) as told:
            _backup(repo, stage)
        assert told.value.retry
        _backup(repo, stage)
        assert len(repo.points()) == 4
        assert verify(repo, now=later(hours=1)).sound


def test_a_failure_of_one_run_breaks_those_beside_it_but_not_those_after(tmp_path: Path, stage: Stage) -> None:
    from policies.facts import VmId
    from storage.repository import DiskHead, PointHead
    from tests.storage_kit import NOW

    blobs = FaultyBlobs(stage.location, 2, once=True)
    fresh = image(77, 20, used=1.0)
    with opened(stage.location, blobs=blobs) as repo:
        pending = [repo.new_point(PointHead(VmId(f"n{i}"), "n", NOW)) for i in range(2)]
        disks = [one.disk(DiskHead("d", len(fresh)), base=None) for one in pending]
        with pytest.raises(StoreFailed):
            disks[0].write(0, memoryview(fresh))
        with pytest.raises(StoreFailed):
            disks[1].write(0, memoryview(fresh)[:BLOCK])
        for one in pending:
            with pytest.raises(StoreFailed):
                one.commit()
            one.abandon()
        point = back_up(repo, fresh, vm="n3")
        assert read_back(repo, point.id) == fresh
        assert verify(repo, now=NOW).sound
