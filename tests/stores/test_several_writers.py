"""Two writers of one repository, each with its own work folder, as two machines have."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest

from policies.facts import PointId
from storage import following
from storage.errors import NoSuchPoint, Refused
from storage.format import parse_pack_key
from storage.marks import MarkKind
from storage.numbering import PREFIX
from storage.places import open_blobs
from storage.rebuild import rebuild_catalog
from storage.repository import Repository
from tests.storage_kit import NOW, back_up, image, in_threads, later, make, opened, read_back
from tests.stores.fixtures import PlaceOf


def pack_numbers(place_of: PlaceOf) -> list[int]:
    names = [parse_pack_key(key) for key in open_blobs(place_of("onlooker")).list("packs/")]
    return [name.number for name in names if name is not None]


def test_two_writers_at_once_disturb_neither(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    disks = [image(seed, 200) for seed in range(2)]
    points: dict[int, PointId] = {}
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:

        def work(number: int) -> None:
            points[number] = back_up((first, second)[number], disks[number], vm=f"vm-{number}").id

        assert in_threads(work, 2) == []
        for repo in (first, second):
            repo.refresh()
            assert {point.id for point in repo.points()} == set(points.values())
            for number, point in points.items():
                assert read_back(repo, point) == disks[number]
    numbers = pack_numbers(writer_place)
    assert len(set(numbers)) == len(numbers) == 4
    with opened(writer_place("c")) as third:
        assert {point.id for point in third.points()} == set(points.values())


def test_what_another_writer_stored_is_not_stored_again(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    disk = image(1, 100)
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        back_up(first, disk)
        second.refresh()
        assert back_up(second, disk, vm="vm-2").stored_bytes == 0


def test_a_private_catalog_equals_one_made_anew(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        kept = back_up(first, image(1, 50))
        gone = back_up(second, image(2, 50), vm="vm-2", at=later(hours=1))
        first.refresh()
        second.refresh()
        first.mark_hold(kept.id, "audit", later(hours=2))
        second.expire(gone.id, "old", later(hours=2))
        for repo in (first, second):
            repo.refresh()
        rows = [repo.opened_catalog().rows() for repo in (first, second)]
        assert rows[0] == rows[1]
        rebuild_catalog(first)
        assert first.catalog.rows() == rows[0]
        assert [point.id for point in first.points()] == [kept.id]


def test_a_restore_point_that_another_writer_expired_is_not_lost(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        point = back_up(first, image(1, 20))
        second.refresh()
        second.expire(point.id, "old", later(hours=1))
        assert first.lost_points() == []
        first.refresh()
        assert first.points() == []
    with opened(writer_place("a")) as first:
        assert first.points() == first.lost_points() == []
        assert not first.catalog.rebuilds.total()


def test_a_catalog_that_followed_nobody_for_long_is_made_again(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        point = back_up(first, image(1, 20))
        second.refresh()
        second.expire(point.id, "old", NOW)
        for mark in [one for one in second.marks.of(point.id)]:  # as after TOMBSTONE_KEPT
            second.blobs.delete(mark.key)
    with opened(writer_place("a"), now=NOW + following.TOMBSTONE_KEPT) as first:
        assert first.points() == first.lost_points() == []


def test_a_manifest_that_vanished_is_lost_for_every_writer(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        point = back_up(first, image(1, 20))
        second.refresh()
        assert [one.id for one in second.points()] == [point.id]
        first.blobs.delete(f"manifests/{point.id}")
        assert [one.id for one in second.lost_points()] == [point.id]
        first.refresh()
        assert [one.id for one in first.points() if one.damaged] == [point.id]


def test_an_expiry_that_was_taken_back_since_it_was_seen_removes_nothing(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        disk = image(1, 20)
        point = back_up(first, disk).id
        tombstone = first.marks.add(point, MarkKind.EXPIRED, NOW, "old", None)
        second.refresh()
        first.marks.drop([tombstone])
        assert not following.settle(second, point)
        assert read_back(second, point) == disk


def between(repo: Repository, kind: str, act: Callable[[], object]) -> AbstractContextManager[object]:
    """A patch after which `act` runs once, as soon as this repository has written a mark of a kind."""
    put = repo.blobs.put
    done: list[bool] = []

    def put_then_act(key: str, data: bytes) -> None:
        put(key, data)
        if f"-{kind}-" in key and not done:
            done.append(True)
            act()

    return patch.object(repo.blobs, "put", put_then_act)


def test_a_hold_that_comes_during_an_expiry_keeps_the_restore_point(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        disk = image(1, 20)
        point = back_up(first, disk)
        second.refresh()

        def place_hold() -> None:
            second.marks.add(point.id, MarkKind.HOLD, NOW, "audit", None)

        with between(first, "expired", place_hold), pytest.raises(Refused, match="held by another writer"):
            first.expire(point.id, "old", later(hours=1))
        second.refresh()
        assert second.detail(point.id).holds == ("audit",)
        assert read_back(second, point.id) == disk


def test_a_hold_upon_an_expired_restore_point_fails(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        point = back_up(first, image(1, 20))
        second.refresh()
        put = second.blobs.put

        def too_late(key: str, data: bytes) -> None:
            first.expire(point.id, "old", NOW)
            put(key, data)

        with patch.object(second.blobs, "put", too_late), pytest.raises(NoSuchPoint):
            second.mark_hold(point.id, "audit", NOW)
        with pytest.raises(NoSuchPoint):
            second.mark_hold(point.id, "audit", NOW)
        with patch.object(following, "EXPIRY_SETTLE", timedelta(0)):
            first.refresh()
        assert [key for key in first.blobs.list("marks/") if "hold" in key] == []
        assert first.lost_points() == []


def test_a_release_of_all_holds_releases_what_was_seen(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first, opened(writer_place("b")) as second:
        point = back_up(first, image(1, 20))
        second.refresh()
        second.mark_hold(point.id, "one", NOW)

        def hold() -> None:
            second.marks.add(point.id, MarkKind.HOLD, NOW, "two", None)

        with between(first, "release", hold):
            first.release(point.id, None, NOW)
        first.refresh()
        assert first.detail(point.id).holds == ("two",)


def test_an_expiry_whose_writer_died_is_finished_after_a_while(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first:
        point = back_up(first, image(1, 20))
        first.add_mark(point.id, MarkKind.EXPIRED, NOW, "old", into_catalog=False)
    manifest = f"manifests/{point.id}"
    with opened(writer_place("b")) as second:
        assert second.points() == []
        assert manifest in set(second.blobs.list("manifests/"))  # its writer may be about to take it back
        with patch.object(following, "EXPIRY_SETTLE", timedelta(0)):
            second.refresh()
        assert set(second.blobs.list("manifests/")) == set()
        assert second.lost_points() == []


def test_tombstones_go_when_no_catalog_needs_them(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as first:
        point = back_up(first, image(1, 20))
        first.expire(point.id, "old", NOW)
        assert len(list(first.blobs.list("marks/"))) == 1
    late = datetime.now(UTC) + following.TOMBSTONE_KEPT + timedelta(days=1)
    with opened(writer_place("a"), now=late) as first, patch.object(first.blobs, "clock", lambda: late):
        first.refresh()
        assert list(first.blobs.list("marks/")) == []


def test_a_writer_goes_on_with_the_numbers_that_it_claimed(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    for seed in range(3):
        with opened(writer_place("a")) as repo:
            back_up(repo, image(seed, 10), vm=f"vm-{seed}")
    with opened(writer_place("b")) as repo:
        back_up(repo, image(9, 10), vm="vm-9")
    numbers = sorted(pack_numbers(writer_place))
    assert numbers == [256, 257, 258, 259, 260, 261, 512, 513]
    assert sorted(open_blobs(writer_place("a")).list(PREFIX)) == ["numbers/000001", "numbers/000002"]
