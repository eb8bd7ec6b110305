"""What is read of a stream is the disk that it was made of, or an error: cut off anywhere, damaged anywhere."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import ReadFailed
from connectors.vsphere.vmdk_stream import Forward, VmdkStream
from tests.streamed_vmdk import raw_deflate, streamed

GRAIN = 4096
"""The smallest there may be: tables cover 2 MiB then."""

GRAINS = st.dictionaries(st.integers(0, 1100), st.binary(min_size=1, max_size=40), max_size=12)


class Dripping:
    """A source that gives as little at a time as it likes."""

    def __init__(self, data: bytes, pieces: Sequence[int] = ()) -> None:
        self._data = BytesIO(data)
        self._pieces = list(pieces)

    def read(self, count: int, /) -> bytes:
        return self._data.read(min(count, self._pieces.pop() if self._pieces else count))


def disk_of(grains: dict[int, bytes], sectors: int) -> bytes:
    disk = bytearray(sectors * 512)
    for number, data in grains.items():
        at = number * GRAIN
        if at + len(data) <= len(disk):
            disk[at : at + len(data)] = data
    return bytes(disk)


def read_all(stream: bytes, *, pieces: Sequence[int] = (), step: int = 1 << 20) -> bytes:
    forward = Forward(VmdkStream(Dripping(stream, pieces), "a stream"), "a stream")
    disk = bytearray(min(forward.capacity_bytes, 64 << 20))
    view = memoryview(disk)
    for at in range(0, len(disk), step):
        forward.read_into(at, view[at : at + step])
    assert forward.capacity_bytes == len(disk)
    return bytes(disk)


@cache
def example() -> tuple[bytes, bytes]:
    """A small disk of two tables' size, and its stream."""
    disk = disk_of({0: b"first", 3: bytes(range(1, 200)), 511: b"edge", 512: b"next", 600: b"last"}, 4810)
    return disk, streamed(disk, grain=GRAIN)


@given(
    GRAINS,
    st.integers(1, 9000),
    st.lists(st.integers(1, 700), max_size=40),
    st.sampled_from([512, 4096, 100 * 512, 1 << 20]),
    st.sampled_from([zlib.compress, raw_deflate]),
)
def test_a_disk_comes_out_of_its_stream_as_it_went_in(grains, sectors, pieces, step, pack) -> None:  # type: ignore[no-untyped-def]
    disk = disk_of(grains, sectors)
    assert read_all(streamed(disk, grain=GRAIN, pack=pack), pieces=pieces, step=step) == disk


@given(st.integers(0, len(example()[1]) - 1))
def test_a_stream_that_ends_early_is_an_error_wherever_it_ends(length: int) -> None:
    with pytest.raises(ReadFailed, match="a stream: "):
        read_all(example()[1][:length])


@given(st.integers(0, len(example()[1]) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_an_error_or_one_that_no_disk_is_made_of(at: int, flip: int) -> None:
    disk, stream = example()
    damaged = bytearray(stream)
    damaged[at] ^= flip
    try:
        assert read_all(bytes(damaged)) == disk
    except ReadFailed as error:
        assert "a stream: " in str(error)


@given(st.integers(128, 140), st.integers(1, 8))
def test_sectors_that_are_lost_in_the_middle_are_an_error(first: int, count: int) -> None:
    stream = example()[1]
    with pytest.raises(ReadFailed):
        read_all(stream[: first * 512] + stream[(first + count) * 512 :])


@given(st.binary(max_size=3000))
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(ReadFailed):
        read_all(data)
    with pytest.raises(ReadFailed):
        read_all(example()[1][: 128 * 512] + data)
