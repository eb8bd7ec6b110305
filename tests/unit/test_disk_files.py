"""Disks that are files: what they hold, and what is said when they do not behave."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from connectors.disk_files import FileReader, FileWriter
from connectors.disk_sources import open_source
from connectors.disks import Extent
from connectors.errors import ConnectorError, Gone, ReadFailed, TransportFailed, WriteFailed
from connectors.nbd import NbdDisk

MIB = 1 << 20


def image(path: Path, capacity: int, pieces: dict[int, bytes]) -> Path:
    """A sparse file with these pieces at these offsets."""
    with path.open("wb") as file:
        file.truncate(capacity)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return path


def test_extents_are_where_the_file_holds_data(tmp_path: Path) -> None:
    path = image(tmp_path / "d", 4 * MIB + 512, {MIB: b"x" * 65536, 4 * MIB: b"y" * 512})
    with FileReader(path) as disk:
        assert disk.capacity_bytes == 4 * MIB + 512
        assert disk.extents() == [Extent(MIB, 65536), Extent(4 * MIB, 512)]


@pytest.mark.parametrize("capacity", [0, MIB])
def test_a_file_of_holes_only_has_no_extents(tmp_path: Path, capacity: int) -> None:
    with FileReader(image(tmp_path / "d", capacity, {})) as disk:
        assert disk.extents() == []


def test_a_read_lands_in_the_caller_s_buffer(tmp_path: Path) -> None:
    path = image(tmp_path / "d", MIB, {4096: b"x" * 4096})
    buffer = bytearray(b"\xee" * 16384)
    with FileReader(path) as disk:
        disk.read_into(0, memoryview(buffer)[4096:12288])
    assert bytes(buffer) == b"\xee" * 4096 + bytes(4096) + b"x" * 4096 + b"\xee" * 4096


@pytest.mark.parametrize("size", [MIB // 2, 2 * MIB])
def test_a_file_that_changes_its_size_while_it_is_read_is_refused(tmp_path: Path, size: int) -> None:
    path = image(tmp_path / "d", MIB, {})
    with FileReader(path) as disk:
        os.truncate(path, size)
        with pytest.raises(ReadFailed, match=f"from {MIB} to {size} bytes"):
            disk.read_into(MIB - 4096, memoryview(bytearray(4096)))


def test_a_read_past_the_end_is_refused(tmp_path: Path) -> None:
    with (
        FileReader(image(tmp_path / "d", MIB, {})) as disk,
        pytest.raises(ReadFailed, match="do not lie on the disk"),
    ):
        disk.read_into(MIB - 1, memoryview(bytearray(2)))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_what_is_no_disk_is_refused_with_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    with pytest.raises(ConnectorError) as caught:
        FileReader(path)
    assert isinstance(caught.value, Gone if kind == "missing" else TransportFailed)
    assert str(path) in str(caught.value)


def test_a_written_file_keeps_its_size_and_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with FileWriter.create(path, MIB + 512) as disk:
        disk.write(MIB, memoryview(b"z" * 512))
        disk.flush()
        with pytest.raises(WriteFailed, match="do not lie on the disk"):
            disk.write(MIB, memoryview(b"z" * 513))
    assert path.read_bytes() == bytes(MIB) + b"z" * 512
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten_by_making_a_disk(tmp_path: Path) -> None:
    path = image(tmp_path / "there", 10, {0: b"precious.."})
    with pytest.raises(WriteFailed, match="File exists"):
        FileWriter.create(path, MIB)
    assert path.read_bytes() == b"precious.."


async def test_a_source_is_told_apart_by_what_it_is(tmp_path: Path) -> None:
    path = image(tmp_path / "d", MIB, {0: b"first"})
    async with open_source(str(path)) as disk:
        assert isinstance(disk, FileReader)
    socket, pid = tmp_path / "s", tmp_path / "pid"
    server = await asyncio.create_subprocess_exec(
        "nbdkit", "-f", "-r", "-U", str(socket), "-P", str(pid), "--exit-with-parent", "file", str(path),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not pid.exists():
            assert server.returncode is None, "nbdkit did not start"
            await asyncio.sleep(0.005)
        async with open_source(f"nbd+unix:///?socket={socket}") as disk:
            assert isinstance(disk, NbdDisk)
            buffer = bytearray(5)
            await disk.read_into(0, memoryview(buffer))
            assert buffer == b"first"
    finally:
        server.kill()
        await server.wait()


@pytest.mark.parametrize("source", ["nbd+unix:///x", "nbd://", "nbds://host/x"])
async def test_a_broken_address_is_explained(source: str) -> None:
    with pytest.raises(TransportFailed, match="NBD"):
        async with open_source(source):
            pass
