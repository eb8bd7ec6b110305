from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import NoRepository, Refused
from storage.places import open_blobs
from tests.storage_kit import back_up, image, make, opened, read_back, restored
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
