"""qemu-img and Backstay understand the same stream-optimised VMDKs."""

from __future__ import annotations

import random
import subprocess
from io import BytesIO
from pathlib import Path

import pytest

from connectors.errors import ReadFailed
from connectors.vsphere.vmdk_stream import Forward, VmdkStream
from tests.streamed_vmdk import streamed

MIB = 1 << 20


@pytest.fixture
def disk() -> bytes:
    """A disk of more than one grain table, mostly empty, whose size is no multiple of a grain's."""
    chance = random.Random(7)
    content = bytearray(33 * MIB + 3 * 512)
    for at in (0, 65536 - 5, 5 * MIB, 32 * MIB - 100, 32 * MIB + 70_000, 33 * MIB + 512):
        content[at : at + 1000] = chance.randbytes(1000)
    return bytes(content)


def converted(source: Path, source_format: str, target: Path, *words: str) -> bytes:
    command = ["qemu-img", "convert", "-f", source_format, "-O", *words, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def read(stream: bytes) -> bytes:
    forward = Forward(VmdkStream(BytesIO(stream), "a stream"), "a stream")
    found = bytearray(forward.capacity_bytes)
    forward.read_into(0, memoryview(found))
    return bytes(found)


def test_what_qemu_writes_is_read_and_missed_when_its_end_is(disk: bytes, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(disk)
    stream = converted(raw, "raw", tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=streamOptimized")
    whole = read(stream)
    assert whole[: len(disk)] == disk
    assert not any(whole[len(disk) :])
    with pytest.raises(ReadFailed, match="cut off at byte"):
        read(stream[: len(stream) // 2])


def test_what_hosts_write_is_the_same_disk_to_qemu(disk: bytes, tmp_path: Path) -> None:
    source = tmp_path / "disk.vmdk"
    source.write_bytes(streamed(disk))
    assert converted(source, "vmdk", tmp_path / "disk.raw", "raw") == disk == read(source.read_bytes())
