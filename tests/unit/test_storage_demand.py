"""Restore points that a policy wants read back sooner: only what they need is read, first, and their marks say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from policies.facts import PointId
from storage.repository import Repository, open_repository
from storage.verify import Bounds, Scope, Sooner, points_read, verify
from tests.storage_kit import back_up, changed, files, image, later, make, opened


@pytest.fixture
def location(tmp_path: Path) -> Path:
    """Four VMs of two packs each, and a second restore point of the first, all read back a day later."""
    place = make(tmp_path / "r")
    with opened(place) as repo:
        first = image(0, 20)
        base = back_up(repo, first, vm="vm-0")
        for vm in range(1, 4):
            back_up(repo, image(vm, 20), vm=f"vm-{vm}")
        back_up(repo, changed(first, 7, [3]), vm="vm-0", at=later(hours=1), base=base.id, blocks=[3])
        for pack in files(place, "packs"):
            os.utime(pack, (later().timestamp(),) * 2)
        verify(repo, now=later(days=1))
    return place


def points_of(repo: Repository, vm: int) -> tuple[PointId, ...]:
    return tuple(point.id for point in repo.points() if point.vm == f"vm-{vm}")


def sooner(repo: Repository, *vms: int, days: float) -> Bounds:
    groups = tuple(Sooner(points_of(repo, vm), later(days=days)) for vm in vms)
    return Bounds(Scope.INCREMENTAL, timedelta(days=30), sooner=groups)


def test_only_the_packs_that_these_restore_points_need_are_read(location: Path) -> None:
    with opened(location) as repo:
        everything = sum(path.stat().st_size for path in files(location, "packs"))
        report = verify(repo, now=later(days=8), bounds=sooner(repo, 0, days=2))
        assert 0 < report.counted_bytes < everything
        assert report.complete and report.sound
        read = points_read(repo)
        assert {read[point] for point in points_of(repo, 0)} == {later(days=8)}
        assert {read[point] for vm in (1, 2, 3) for point in points_of(repo, vm)} == {later(days=1)}
        assert verify(repo, now=later(days=9), bounds=sooner(repo, 0, days=2)).checked_bytes == 0


def test_a_reading_that_counts_is_not_made_again_and_the_mark_tells_its_age(location: Path) -> None:
    with opened(location) as repo:
        verify(repo, now=later(days=5), bounds=sooner(repo, 1, days=2))
        [point] = points_of(repo, 1)
        assert repo.detail(point).verified_at == later(days=5)
        report = verify(repo, now=later(days=6), bounds=sooner(repo, 1, days=4))
        assert report.checked_bytes == 0
        assert repo.detail(point).verified_at == later(days=6), "looked at now"
        assert points_read(repo)[point] == later(days=5), "read then"


def ticking(location: Path, days: float) -> Repository:
    """The repository with a clock on which each question costs a second."""
    ticks: Iterator[int] = count()
    return open_repository(location, now=lambda: later(days=days, seconds=next(ticks)), owner="test")


def test_the_most_urgent_is_read_first_and_counts_though_the_deadline_came(location: Path) -> None:
    with ticking(location, 8) as repo:
        wanted = sooner(repo, 2, 0, 1, 3, days=2)
        bounds = Bounds(Scope.INCREMENTAL, timedelta(days=30), later(days=8, seconds=4), sooner=wanted.sooner)
        report = verify(repo, now=later(days=8), bounds=bounds, threads=1)
        assert report.left_bytes > 0
        read = points_read(repo)
        done = [vm for vm in (2, 0, 1, 3) if {read[point] for point in points_of(repo, vm)} == {later(days=8)}]
        assert done == [2, 0, 1, 3][: len(done)]
        assert 1 <= len(done) < 4
    with opened(location) as repo:
        rest = verify(repo, now=later(days=9), bounds=sooner(repo, 2, 0, 1, 3, days=2))
        assert rest.complete
        assert rest.checked_bytes > 0
        assert min(points_read(repo).values()) >= later(days=8)


def test_what_is_damaged_was_not_read_back(location: Path) -> None:
    with opened(location) as repo:
        [point] = points_of(repo, 3)
        for pack in files(location, "packs"):
            data = bytearray(pack.read_bytes())
            data[len(data) // 3] ^= 1
            stamp = pack.stat().st_mtime
            pack.write_bytes(data)
            os.utime(pack, (stamp, stamp))
        report = verify(repo, now=later(days=8), bounds=sooner(repo, 0, 1, 2, 3, days=2))
        assert not report.sound
        assert repo.detail(point).damaged
        assert point not in points_read(repo)


def test_packs_whose_owner_cannot_be_told_are_read(location: Path) -> None:
    with opened(location) as repo:
        [point] = points_of(repo, 3)
        manifest = next(path for path in files(location, "manifests") if point in path.name)
        manifest.write_bytes(manifest.read_bytes()[:-1])
    with opened(location) as repo:
        report = verify(
            repo,
            now=later(days=8),
            bounds=Bounds(Scope.INCREMENTAL, timedelta(days=30), sooner=(Sooner((point,), later(days=2)),)),
        )
        assert report.counted_bytes == 0, "everything was read"
        assert [damage.points for damage in report.damaged] == [(point,)]


def test_a_restore_point_that_expired_meanwhile_asks_for_nothing(location: Path) -> None:
    with opened(location) as repo:
        gone = Sooner((PointId("20200101t000000z-00000000"),), later(days=2))
        bounds = Bounds(Scope.INCREMENTAL, timedelta(days=30), sooner=(gone,))
        assert verify(repo, now=later(days=8), bounds=bounds).checked_bytes == 0


def test_a_new_restore_point_was_never_read(location: Path) -> None:
    with opened(location) as repo:
        new = back_up(repo, image(9, 20), vm="vm-9", at=later(days=3))
        assert new.id not in points_read(repo)
