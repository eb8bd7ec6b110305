from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from storage.blobs import LocalBlobs, as_storage_error, write_all
from storage.errors import AlreadyExists, Damaged, NoSpace, StoreFailed


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    (tmp_path / "spool").mkdir()
    return LocalBlobs(tmp_path)


def test_a_blob_is_created_once(blobs: LocalBlobs) -> None:
    blobs.put("manifests/a", b"one")
    with pytest.raises(AlreadyExists):
        blobs.put("manifests/a", b"two")
    assert blobs.get("manifests/a") == b"one"
    assert list(blobs.list("manifests/")) == ["manifests/a"]
    assert not list(blobs.spool.iterdir())
    blobs.replace("manifests/a", b"three")
    assert blobs.get("manifests/a") == b"three"
    blobs.delete("manifests/a")
    blobs.delete("manifests/a")
    assert list(blobs.list("manifests/")) == list(blobs.list("none/")) == []


def test_a_large_blob_is_invisible_until_published(blobs: LocalBlobs) -> None:
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
    assert not list(blobs.spool.iterdir())


def test_what_is_missing_or_short_is_damage(blobs: LocalBlobs) -> None:
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


def test_left_overs_are_cleaned(blobs: LocalBlobs) -> None:
    blobs.writer().write_at(0, [b"x"])
    assert blobs.clean() == 1
    assert blobs.clean() == 0


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StoreFailed)]
)
def test_foreign_errors_become_ours(number: int, kind: type[Exception]) -> None:
    assert isinstance(as_storage_error(OSError(number, "x"), "here"), kind)


def test_a_file_system_without_hard_links_will_do(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    blobs.put("manifests/a", b"one")
    with pytest.raises(AlreadyExists):
        blobs.put("manifests/a", b"two")
    assert blobs.get("manifests/a") == b"one"


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
