from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.blobs import LocalBlobs
from storage.errors import AlreadyExists, Changed, Damaged, NoSpace, StorageError, StoreFailed
from storage.filecalls import as_storage_error, write_all
from storage.objects import PART_BYTES, ObjectBlobs
from storage.places import open_blobs
from tests.stores.fixtures import PlaceOf


@pytest.fixture
def local(tmp_path: Path) -> LocalBlobs:
    (tmp_path / "spool").mkdir()
    return LocalBlobs(tmp_path)


@pytest.fixture(params=["directory", "S3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> LocalBlobs | ObjectBlobs:
    if request.param == "directory":
        made: LocalBlobs = request.getfixturevalue("local")
        return made
    place_of: PlaceOf = request.getfixturevalue("writer_place")
    store = open_blobs(place_of("only"))
    store.spool = tmp_path / "spool"
    store.spool.mkdir()
    return store


def left_over(blobs: LocalBlobs | ObjectBlobs) -> list[Path]:
    assert blobs.spool is not None
    return list(blobs.spool.iterdir())


def test_a_blob_is_created_once(blobs: LocalBlobs | ObjectBlobs) -> None:
    blobs.put("manifests/a", b"one")
    with pytest.raises(AlreadyExists):
        blobs.put("manifests/a", b"two")
    assert blobs.get("manifests/a") == b"one"
    assert list(blobs.list("manifests/")) == ["manifests/a"]
    assert not left_over(blobs)
    blobs.replace("manifests/a", b"three")
    assert blobs.get("manifests/a") == b"three"
    blobs.delete("manifests/a")
    blobs.delete("manifests/a")
    assert list(blobs.list("manifests/")) == list(blobs.list("none/")) == []


def test_a_large_blob_is_invisible_until_published(blobs: LocalBlobs | ObjectBlobs) -> None:
    writer = blobs.writer()
    writer.write_at(5, [b"world", bytearray(b"!")])
    writer.write_at(0, [b"hello"])
    assert writer.read_at(3, 4) == b"lowo"
    assert list(blobs.list("packs/")) == []
    writer.publish("packs/00/x")
    view = bytearray(5)
    blobs.read_into("packs/00/x", 5, memoryview(view))
    assert view == b"world"
    assert blobs.size("packs/00/x") == 11
    assert blobs.age_stamp("packs/00/x") > 0
    other = blobs.writer()
    with pytest.raises(AlreadyExists):
        other.publish("packs/00/x")
    other.abandon()
    other.abandon()
    assert not left_over(blobs)


def test_what_is_missing_or_short_is_damage(blobs: LocalBlobs | ObjectBlobs) -> None:
    blobs.put("manifests/a", b"abc")
    view = memoryview(bytearray(4))
    for act in (
        lambda: blobs.get("manifests/b"),
        lambda: blobs.size("manifests/b"),
        lambda: blobs.age_stamp("manifests/b"),
        lambda: blobs.read_into("manifests/b", 0, view),
        lambda: blobs.read_into("manifests/a", 0, view),
    ):
        with pytest.raises(Damaged):
            act()


def test_a_blob_is_replaced_only_while_it_is_what_was_read(blobs: LocalBlobs | ObjectBlobs) -> None:
    blobs.replace_if("config", b"one", None)
    with pytest.raises(Changed):
        blobs.replace_if("config", b"two", None)
    with pytest.raises(Changed):
        blobs.replace_if("config", b"two", b"other")
    blobs.replace_if("config", b"two", b"one")
    assert blobs.get("config") == b"two"
    with pytest.raises(Changed):
        blobs.replace_if("none", b"two", b"one")


def test_of_twenty_creators_one_wins(blobs: LocalBlobs | ObjectBlobs) -> None:
    won: list[int] = []
    failed: list[StorageError] = []
    together = threading.Barrier(20)

    def create(number: int) -> None:
        together.wait()
        try:
            blobs.put("numbers/000001", b"%d" % number)
            won.append(number)
        except StorageError as error:
            failed.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [type(error) for error in failed] == [AlreadyExists] * 19
    assert blobs.get("numbers/000001") == b"%d" % won[0]


@pytest.mark.parametrize("multipart", [False, True])
def test_a_large_blob_comes_back(writer_place: PlaceOf, tmp_path: Path, multipart: bool) -> None:
    blobs = open_blobs(replace(writer_place("only"), multipart=multipart))
    blobs.spool = tmp_path
    content = os.urandom(2 * PART_BYTES + 12345)
    writer = blobs.writer()
    writer.write_at(0, [content])
    writer.publish("packs/00/large")
    late = blobs.writer()
    late.write_at(0, [content])
    with pytest.raises(AlreadyExists):
        late.publish("packs/00/large")
    back = bytearray(len(content))
    blobs.read_into("packs/00/large", 0, memoryview(back))
    assert back == content
    assert blobs.size("packs/00/large") == len(content)


def test_the_store_has_a_clock_that_its_ages_go_by(blobs: LocalBlobs | ObjectBlobs) -> None:
    before = blobs.clock()
    blobs.put("marks/p/1", b"x")
    stamp = datetime.fromtimestamp(blobs.age_stamp("marks/p/1"), UTC)
    assert before - timedelta(seconds=1) <= stamp <= blobs.clock() + timedelta(seconds=1)


def test_left_overs_are_cleaned(blobs: LocalBlobs | ObjectBlobs) -> None:
    blobs.writer().write_at(0, [b"x"])
    assert blobs.clean() == 1
    assert blobs.clean() == 0


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StoreFailed)]
)
def test_foreign_errors_become_ours(number: int, kind: type[Exception]) -> None:
    assert isinstance(as_storage_error(OSError(number, "x"), "here"), kind)


def test_a_file_system_without_hard_links_will_do(local: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    local.put("manifests/a", b"one")
    with pytest.raises(AlreadyExists):
        local.put("manifests/a", b"two")
    assert local.get("manifests/a") == b"one"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [bytes(buffers[0])[:3]], offset))
    with (tmp_path / "x").open("w+b") as file:
        write_all(file.fileno(), 2, [b"abcdefgh", b"", bytearray(b"ij"), memoryview(b"klmno")])
        assert file.read() == b"\0\0abcdefghijklmno"


@pytest.mark.parametrize("act", ["put", "writer", "list"])
def test_a_store_that_is_gone_is_told_in_our_words(tmp_path: Path, act: str) -> None:
    blobs = LocalBlobs(tmp_path / "gone")
    with pytest.raises(StoreFailed):
        {"put": lambda: blobs.put("a", b""), "writer": blobs.writer, "list": blobs.free_bytes}[act]()
