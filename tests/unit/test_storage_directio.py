"""Large packs go around the page cache, and come out byte for byte whatever the order and whatever fails."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from storage import directio
from storage.blobs import LocalBlobs
from storage.errors import NoSpace, StoreFailed

KEY = "packs/01/large"
SEGMENT = 16 << 10


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directio, "SEGMENT_BYTES", SEGMENT)


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    (tmp_path / "packs" / "01").mkdir(parents=True)
    blobs = LocalBlobs(tmp_path)
    blobs.clean()
    return blobs


def _cut(content: bytes, seed: int, most: int = 3 * SEGMENT) -> list[tuple[int, list[bytes]]]:
    """Writes that make the content, in any order; some of several buffers, some across segments."""
    chance, at = random.Random(seed), 0
    writes: list[tuple[int, list[bytes]]] = []
    while at < len(content):
        buffers, begin = [], at
        for _ in range(chance.randint(1, 4)):
            end = min(at + chance.randint(0, most), len(content))
            buffers.append(content[at:end])
            at = end
        writes.append((begin, buffers))
    chance.shuffle(writes)
    return writes


def _whole(blobs: LocalBlobs) -> bytes:
    return (blobs.root / KEY).read_bytes()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [SEGMENT, SEGMENT + 1, 5 * SEGMENT, 20 * SEGMENT + 4097])
def test_several_threads_write_one_file_in_any_order(blobs: LocalBlobs, seed: int, size: int) -> None:
    content = random.Random(seed).randbytes(size)
    writer, writes = blobs.writer(), iter(_cut(content, seed))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                item = next(writes, None)
            if item is None:
                return
            offset, buffers = item
            writer.write_at(offset, buffers)
            length = sum(map(len, buffers))
            assert writer.read_at(offset, length) == content[offset : offset + length]

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.read_at(0, size) == content
    writer.publish(KEY)
    assert _whole(blobs) == content
    assert not list(blobs.spool.iterdir())


def _failing(real: Callable[..., int], error: int, after: int) -> Callable[..., int]:
    """Fails each write behind so many bytes."""

    def pwritev(fd: int, buffers: Sequence[Any], offset: int) -> int:
        if offset >= after:
            raise OSError(error, os.strerror(error))
        return real(fd, buffers, offset)

    return pwritev


@pytest.mark.parametrize(("error", "told"), [(errno.ENOSPC, NoSpace), (errno.EIO, StoreFailed)])
def test_a_write_that_fails_later_is_told_and_nothing_is_published(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, error: int, told: type[Exception]
) -> None:
    content = os.urandom(30 * SEGMENT)
    monkeypatch.setattr(os, "pwritev", _failing(os.pwritev, error, 3 * SEGMENT))
    writer = blobs.writer()
    with pytest.raises(told):
        for offset, buffers in sorted(_cut(content, 1)):
            writer.write_at(offset, buffers)
        writer.publish(KEY)
    writer.abandon()
    assert not (blobs.root / KEY).exists()
    assert not list(blobs.spool.iterdir())


def test_a_file_system_without_direct_writes_is_written_as_ever(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return real(path, flags, mode, **named)

    monkeypatch.setattr(os, "open", refuse)
    content = os.urandom(5 * SEGMENT + 7)
    writer = blobs.writer()
    for offset, buffers in _cut(content, 2):
        writer.write_at(offset, buffers)
    assert writer.read_at(SEGMENT - 5, 2 * SEGMENT) == content[SEGMENT - 5 : 3 * SEGMENT - 5]
    writer.publish(KEY)
    assert _whole(blobs) == content


def test_a_file_system_that_takes_the_flag_but_no_direct_write_is_written_as_ever(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.pwritev, 0

    def refuse(fd: int, buffers: Sequence[Any], offset: int) -> int:
        nonlocal refused
        fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        if int(fdinfo.split("flags:")[1].split()[0], 8) & os.O_DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", refuse)
    content = os.urandom(9 * SEGMENT)
    writer = blobs.writer()
    for offset, buffers in _cut(content, 3):
        writer.write_at(offset, buffers)
    writer.publish(KEY)
    assert refused == 1
    assert _whole(blobs) == content


def test_short_direct_writes_go_on_at_a_block(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = os.pwritev, []

    def short(fd: int, buffers: Sequence[Any], offset: int) -> int:
        done.append(real(fd, [memoryview(buffers[0])[:8192]], offset))
        return done[-1] - 100 if len(done) % 2 and done[-1] == 8192 else done[-1]

    monkeypatch.setattr(os, "pwritev", short)
    content = os.urandom(6 * SEGMENT)
    writer = blobs.writer()
    writer.write_at(0, [content[:SEGMENT]])
    writer.write_at(SEGMENT, [content[SEGMENT:]])
    writer.publish(KEY)
    assert len(done) > 12
    assert _whole(blobs) == content


@pytest.mark.parametrize("most", [1, 2048, 4095])
def test_writes_that_stay_shorter_than_a_block_come_to_an_end(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    real = os.pwritev

    def short(fd: int, buffers: Sequence[Any], offset: int) -> int:
        fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        if int(fdinfo.split("flags:")[1].split()[0], 8) & os.O_DIRECT:  # the least that such a write takes
            real(fd, [memoryview(buffers[0])[:4096]], offset)
            return most
        return real(fd, [memoryview(buffers[0])[: max(most, 512)]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    content = os.urandom(3 * SEGMENT + 5)
    writer = blobs.writer()
    for offset, buffers in _cut(content, 4):
        writer.write_at(offset, buffers)
    writer.publish(KEY)
    assert _whole(blobs) == content
