from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from storage.errors import NoRepository, Refused
from storage.format import PackKind
from storage.mending import check_marks
from storage.nodes import StoredNodes
from storage.objects import ObjectBlobs
from storage.places import open_blobs
from storage.reachability import Reached
from storage.repository import Repository
from storage.roots import reach
from storage.verify import verify
from tests.storage_kit import NOW, back_up, image, later, make, opened, read_back, restored
from tests.stores.fixtures import PlaceOf


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_disk_comes_back_from_an_object_store(writer_place: PlaceOf, tmp_path: Path, encrypted: bool) -> None:
    disk = image(1, 300)
    place = make(writer_place("a"), encrypted=encrypted)
    with opened(place) as repo:
        point = back_up(repo, disk)
    with opened(place) as repo:
        assert [one.id for one in repo.points()] == [point.id]
        assert read_back(repo, point.id) == disk
        assert restored(repo, point.id, tmp_path / "target") == disk
        assert repo.sizes().free_bytes is None


def test_nothing_private_lies_in_the_store(writer_place: PlaceOf) -> None:
    place = make(writer_place("a"))
    with opened(place) as repo:
        back_up(repo, image(1, 50))
        work = repo.work
    assert {key.partition("/")[0] for key in open_blobs(place).list("")} <= {
        "config", "config.copy", "packs", "manifests", "numbers",
    }  # fmt: skip
    assert (work / "catalog.duckdb").exists() and (work / "index").is_dir()


def test_a_place_that_holds_something_is_left_alone(writer_place: PlaceOf) -> None:
    place = writer_place("a")
    with pytest.raises(NoRepository):
        opened(place)
    open_blobs(place).put("photos/holiday.jpg", b"x")
    with pytest.raises(Refused, match=r"photos/holiday\.jpg"):
        make(place)


def test_footers_are_fetched_once_and_checked_where_they_are_kept(writer_place: PlaceOf) -> None:
    place, disk = make(writer_place("a")), image(1, 100)
    with opened(place) as repo:
        point = back_up(repo, disk)
        folder = repo.work / "footers"
    with opened(place) as repo:
        asked = store_of(repo).calls.counts["get"]
        for name in repo.store.live.values():
            repo.store.footers.get(name)
        assert store_of(repo).calls.counts["get"] == asked
    for path in folder.iterdir():
        kept = bytearray(path.read_bytes())
        kept[-100] ^= 1
        path.write_bytes(kept)
    with opened(place) as repo:
        assert read_back(repo, point.id) == disk
    with opened(writer_place("b")) as repo:  # fetched from the store, by another writer
        assert read_back(repo, point.id) == disk


def test_verification_reads_the_store_and_not_what_is_kept(writer_place: PlaceOf) -> None:
    place = make(writer_place("a"))
    with opened(place) as repo:
        point = back_up(repo, image(1, 100))
        (name,) = [one for one in repo.store.live.values() if one.kind is PackKind.DATA]
        content = bytearray(repo.blobs.get(name.key))
        content[-100] ^= 1  # in the footer
        repo.blobs.replace(name.key, bytes(content))
    with opened(place) as repo:
        report = verify(repo, now=NOW)
        assert not report.sound
        assert point.id in {one for damage in report.damaged for one in damage.points}


def store_of(repo: Repository) -> ObjectBlobs:
    assert isinstance(repo.blobs, ObjectBlobs)
    return repo.blobs


def _reads_two_at_once(repo: Repository, prefix: str, act: Callable[[], object]) -> bool:
    """Whether one read below a folder is met by a second before it ends."""
    get, under_way, met = repo.blobs.get, threading.Semaphore(1), threading.Event()

    def look(key: str) -> bytes:
        if key.startswith(prefix):
            if under_way.acquire(blocking=False):
                met.wait(10)
            else:
                met.set()
        return get(key)

    with patch.object(repo.blobs, "get", look):
        act()
    return met.is_set()


def test_manifests_and_marks_are_read_several_at_a_time(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as repo:
        points = [back_up(repo, image(seed, 5), at=later(hours=seed)).id for seed in range(3)]
        for point in points:
            repo.mark_hold(point, "audit", NOW)
        reached = Reached(StoredNodes(repo.store), repo.config.fan_out)
        assert _reads_two_at_once(repo, "manifests/", lambda: reach(repo, reached, ()))
        assert _reads_two_at_once(repo, "marks/", lambda: check_marks(repo))


def test_a_verification_takes_sizes_and_ages_of_packs_from_the_listing(writer_place: PlaceOf) -> None:
    make(writer_place("a"))
    with opened(writer_place("a")) as repo:
        back_up(repo, image(1, 50))
    with opened(writer_place("a")) as repo:
        assert isinstance(repo.blobs, ObjectBlobs)
        with patch.object(repo.blobs, "_head", wraps=repo.blobs._head) as asked:
            assert verify(repo, now=NOW).sound
        assert not [call for call in asked.call_args_list if call.args[0].startswith("packs/")]
