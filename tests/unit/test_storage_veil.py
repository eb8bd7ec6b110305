"""Names in the store of an encrypted repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storage.blobs import LocalBlobs
from storage.errors import AlreadyExists, Changed, Missing, StorageError
from storage.marks import MarkKind
from storage.sealing import Sealing
from storage.veil import PADDING_BYTES, VeiledBlobs, veiled
from storage.verify import verify
from tests.storage_kit import NOW, back_up, files, image, later, make, opened, read_back

POINT = "20260301t120000z-0123abcd"
OPAQUE = re.compile(r"[0-9a-f]{96}")


@pytest.fixture
def blobs(tmp_path: Path) -> VeiledBlobs:
    """A store seen through the veil."""
    (tmp_path / "spool").mkdir()
    return VeiledBlobs(LocalBlobs(tmp_path), Sealing(b"r" * 16, b"m" * 32))


def test_a_store_behind_the_veil_is_a_store(tmp_path: Path, blobs: VeiledBlobs) -> None:
    keys = {f"manifests/{POINT}", f"marks/{POINT}/000001-hold-01234567", f"marks/{POINT}/000002-expired-01234567"}
    for key in keys:
        blobs.put(key, key.encode())
        with pytest.raises(AlreadyExists):
            blobs.put(key, b"")
        assert (blobs.get(key), blobs.size(key)) == (key.encode(), len(key))
        view = memoryview(bytearray(3))
        blobs.read_into(key, 2, view)
        assert bytes(view) == key.encode()[2:5]
        assert blobs.age_stamp(key) > 0
    assert {*blobs.list("manifests/"), *blobs.list("marks/")} == keys
    assert len(list(blobs.list(f"marks/{POINT}/"))) == 2
    assert not list(blobs.list("marks/another/"))
    blobs.replace(f"manifests/{POINT}", b"new")
    with pytest.raises(Changed):
        blobs.replace_if(f"manifests/{POINT}", b"newer", b"old")
    blobs.replace_if(f"manifests/{POINT}", b"newer", b"new")
    for key in keys:
        blobs.delete(key)
        with pytest.raises(Missing):
            blobs.get(key)
    assert not files(tmp_path, "manifests", "marks") and not list((tmp_path / "marks").iterdir())
    assert blobs.clean() == 0 and (blobs.free_bytes() or 0) > 0 and abs(blobs.clock().timestamp()) > 0
    writer = blobs.writer()
    writer.write_at(0, [b"abc"])
    writer.publish("packs/00/x")
    assert (tmp_path / "packs" / "00" / "x").read_bytes() == b"abc"


def test_no_two_kinds_of_marks_differ_in_the_length_of_their_names(blobs: VeiledBlobs) -> None:
    names = {kind: blobs.outer(f"marks/{POINT}/000001-{kind.value}-01234567") for kind in MarkKind}
    assert {len(name) for name in names.values()} == {len("marks/") + 96 + 1 + 96}
    assert len(POINT) < PADDING_BYTES


def test_one_name_has_another_form_in_each_repository_and_folder(blobs: VeiledBlobs, tmp_path: Path) -> None:
    others = [VeiledBlobs(LocalBlobs(tmp_path), Sealing(b"s" * 16, b"m" * 32)), blobs]
    forms = {one.outer(f"{folder}/{POINT}").split("/")[1] for one in others for folder in ("manifests", "marks")}
    assert len(forms) == 4


@pytest.mark.parametrize("name", ["notes.txt", "ab", "0" * 96, "?", "??x", "ünsinn", "A" * 96, "\udcff"])
def test_a_name_that_is_not_ours_is_listed_and_reached(tmp_path: Path, blobs: VeiledBlobs, name: str) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "marks" / name).mkdir(parents=True)
    (tmp_path / "manifests" / name).write_bytes(b"x")
    (tmp_path / "marks" / name / name).write_bytes(b"y")
    for folder, content in (("manifests/", b"x"), ("marks/", b"y")):
        (key,) = blobs.list(folder)
        assert blobs.get(key) == content
        blobs.delete(key)
    assert not files(tmp_path, "manifests", "marks")


def test_an_encrypted_repository_has_no_readable_name(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    disk = image(1, 30)
    with opened(location) as repo:
        one, two = back_up(repo, disk), back_up(repo, image(2, 30), at=later(hours=1))
        repo.mark_hold(two.id, "court", NOW)
        repo.mark_lock(two.id, later(days=9), "law", NOW)
        repo.expire(one.id, "old", NOW)
        assert repo.point_ids() == {two.id}
        assert verify(repo, now=NOW).sound
    folders = {"manifests": OPAQUE, "marks": re.compile(r"[0-9a-f]{96}/[0-9a-f]{96}")}
    for folder, shape in folders.items():
        for path in files(location, folder):
            assert shape.fullmatch(str(path.relative_to(location / folder)))
    names = {path.name for path in location.rglob("*")} - {"lock", "expiries"}
    for word in ("2026", "hold", "lock", "expired", two.id, "web"):
        assert not [name for name in names if word in name]
    (location / "catalog.duckdb").unlink()
    with opened(location) as repo:
        assert [point.id for point in repo.points()] == [two.id]
        assert repo.mark_state(two.id).holds == ("court",)
        assert read_back(repo, two.id) == image(2, 30)


def test_a_plain_repository_has_readable_names(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(1, 30))
        assert repo.blobs is veiled(repo.blobs, repo.sealing)
    assert (location / "manifests" / point.id).exists()


@pytest.mark.parametrize("folder", ["manifests", "marks"])
def test_an_object_under_another_name_is_damage(tmp_path: Path, folder: str) -> None:
    location = make(tmp_path / "r", encrypted=True)
    with opened(location) as repo:
        point = back_up(repo, image(1, 30))
        repo.mark_hold(point.id, "court", NOW)
    (path,) = files(location, folder)
    path.rename(path.with_name("0" * 96))
    try:
        with opened(location) as repo:
            assert not verify(repo, now=NOW).sound
    except StorageError:
        pass
