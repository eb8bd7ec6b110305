"""Verification in pieces: what was read counts for a while, a deadline ends it cleanly, and the next one goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from storage.readings import KEY, RECORD_BYTES
from storage.repository import Repository, open_repository
from storage.verify import Bounds, Scope, read_back_since, verified_since, verify
from tests.storage_kit import back_up, files, image, later, make, opened

LATELY = Bounds(Scope.INCREMENTAL, timedelta(days=30))


@pytest.fixture
def location(tmp_path: Path) -> Path:
    """A repository of eight packs, all written at the same instant."""
    place = make(tmp_path / "r")
    with opened(place) as repo:
        for vm in range(4):
            back_up(repo, image(vm, 20), vm=f"vm-{vm}")
    for pack in files(place, "packs"):
        os.utime(pack, (later().timestamp(),) * 2)
    return place


@contextmanager
def _ticking(location: Path, start: datetime) -> Iterator[Repository]:
    """The repository with a clock on which each question costs a second."""
    ticks = count()
    clock: Callable[[], datetime] = lambda: start + timedelta(seconds=next(ticks))  # noqa: E731
    with open_repository(location, now=clock, owner="test") as repo:
        yield repo


def test_an_incremental_verification_reads_what_is_new_and_what_was_not_read_for_a_while(location: Path) -> None:
    with opened(location) as repo:
        full = verify(repo, now=later(days=1))
        assert full.counted_bytes == 0
        back_up(repo, image(9, 20), vm="vm-9", at=later(days=2))
        new = verify(repo, now=later(days=2), bounds=LATELY)
        assert 0 < new.checked_bytes < full.checked_bytes
        assert new.counted_bytes == sum(path.stat().st_size for path in files(location, "packs")[:8])
        assert (new.sound, new.complete, new.checked_points) == (True, True, 5)
        assert new.read_back_since == later(days=1)
        assert repo.detail(max(repo.point_ids())).verified_at == later(days=2)
        assert verify(repo, now=later(days=3), bounds=LATELY).checked_bytes == 0
        again = verify(repo, now=later(days=31, hours=1), bounds=LATELY)
        assert again.checked_bytes == full.checked_bytes
        assert read_back_since(repo) == later(days=2)
        assert verified_since(repo) == later(days=31, hours=1)
        assert verify(repo, now=later(days=32)).counted_bytes == 0, "full scope reads everything"


@pytest.mark.parametrize("scope", Scope)
def test_a_deadline_ends_it_cleanly_and_the_next_one_goes_on(location: Path, scope: Scope) -> None:
    rounds = []
    for day in range(1, 20):
        with _ticking(location, later(days=day)) as repo:
            report = verify(
                repo, now=later(days=day), threads=1, bounds=Bounds(scope, deadline=later(days=day, seconds=3))
            )
            rounds.append(report)
            assert report.sound
            if report.complete:
                break
            assert report.left_bytes > 0
            assert verified_since(repo) is None, "not before all was read"
    assert 2 < len(rounds) < 10
    assert [one.left_bytes for one in rounds] == sorted((one.left_bytes for one in rounds), reverse=True)
    assert rounds[-1].read_back_since == later(days=1)
    with opened(location) as repo:
        assert verified_since(repo) == later(days=len(rounds))
        assert all(repo.detail(point).verified_at for point in repo.point_ids())


def test_an_interrupted_full_verification_is_continued_unless_it_shall_begin_anew(location: Path) -> None:
    with _ticking(location, later(days=1)) as repo:
        first = verify(repo, now=later(days=1), threads=1, bounds=Bounds(deadline=later(days=1, seconds=3)))
        assert not first.complete
    with opened(location) as repo:
        rest = verify(repo, now=later(days=2))
        assert 0 < rest.counted_bytes < first.left_bytes + rest.counted_bytes
        assert rest.complete
    with _ticking(location, later(days=3)) as repo:
        verify(repo, now=later(days=3), threads=1, bounds=Bounds(deadline=later(days=3, seconds=3)))
    with opened(location) as repo:
        assert verify(repo, now=later(days=4), bounds=Bounds(anew=True)).counted_bytes == 0
    with _ticking(location, later(days=5)) as repo:
        verify(repo, now=later(days=5), threads=1, bounds=Bounds(deadline=later(days=5, seconds=3)))
    with opened(location) as repo:
        assert verify(repo, now=later(days=50)).counted_bytes == 0, "what was read long ago counts no more"


class _Died(BaseException):
    pass


def test_what_was_read_before_the_process_died_counts(location: Path) -> None:
    reads = count()

    def die(_: int) -> None:
        if next(reads) == 3:
            raise _Died

    with opened(location) as repo, pytest.raises(_Died):
        verify(repo, now=later(days=1), threads=1, progress=die)
    log = location / KEY
    log.write_bytes(log.read_bytes() + b"torn")
    with opened(location) as repo:
        assert verify(repo, now=later(days=2)).counted_bytes > 0
        assert log.stat().st_size % RECORD_BYTES == 0


def test_a_pack_that_was_written_to_since_is_read_again(location: Path) -> None:
    with opened(location) as repo:
        verify(repo, now=later(days=1))
        one, two = files(location, "packs")[:2]
        os.utime(one, (later(days=2).timestamp(),) * 2)
        two.write_bytes(two.read_bytes()[:-1])
        report = verify(repo, now=later(days=2), bounds=LATELY)
        assert {damage.object for damage in report.damaged} >= {str(two.relative_to(location))}
        assert report.checked_bytes > 0


def test_a_log_that_was_changed_is_not_believed(location: Path) -> None:
    with opened(location) as repo:
        everything = verify(repo, now=later(days=1)).checked_bytes
    log = location / KEY
    sound = log.read_bytes()
    for place in (0, 9, 30, 50, 70, len(sound) - 1):
        log.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with opened(location) as repo:
            assert verify(repo, now=later(days=2), bounds=LATELY).checked_bytes == everything, place


def test_damaged_packs_are_read_by_every_verification(location: Path) -> None:
    pack = files(location, "packs")[0]
    data = bytearray(pack.read_bytes())
    data[300] ^= 1
    pack.write_bytes(data)
    with opened(location) as repo:
        for day in (1, 2, 3):
            assert not verify(repo, now=later(days=day), bounds=LATELY).sound
        data[300] ^= 1
        pack.write_bytes(data)
        assert verify(repo, now=later(days=4), bounds=LATELY).sound


def test_a_reading_from_the_future_does_not_count(location: Path) -> None:
    with opened(location) as repo:
        everything = verify(repo, now=later(days=500)).checked_bytes
        assert verify(repo, now=later(days=1), bounds=LATELY).checked_bytes == everything


def test_the_log_does_not_grow_without_end(location: Path) -> None:
    with opened(location) as repo:
        for day in range(1, 30):
            verify(repo, now=later(days=day))
    assert (location / KEY).stat().st_size < 100 * RECORD_BYTES
