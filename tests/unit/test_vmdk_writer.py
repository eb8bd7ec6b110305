"""Streams that are written are what QEMU and our own reader read, of the length that was told before."""

from __future__ import annotations

import io
import random
import subprocess
from pathlib import Path

import pytest

from connectors.disks import Extent, pieces
from connectors.errors import WriteFailed
from connectors.vsphere.vmdk_stream import VmdkStream
from connectors.vsphere.vmdk_writer import GRAIN_BYTES, StreamWriter, plan_stream

MIB = 1 << 20
ODD = 70 * MIB + 1536

SHAPES: dict[str, tuple[int, list[Extent]]] = {
    "empty": (8 * MIB, []),
    "full": (3 * MIB, [Extent(0, 3 * MIB)]),
    "last-sector-alone": (ODD, [Extent(ODD - 512, 512)]),
    "off-the-grain": (ODD, [Extent(512, 100), Extent(GRAIN_BYTES - 1, 2), Extent(5 * GRAIN_BYTES, 3 * GRAIN_BYTES)]),
    "across-tables": (ODD, [Extent(31 * MIB, 2 * MIB), Extent(64 * MIB - 1, 2), Extent(ODD - 70_000, 70_000)]),
}


def written(capacity: int, extents: list[Extent]) -> tuple[bytes, bytes]:
    """A disk with data in these extents, and its stream, written in pieces that are not the grains'."""
    disk, out = bytearray(capacity), bytearray()
    for extent in extents:
        disk[extent.offset : extent.end] = random.Random(extent.offset).randbytes(extent.length)
    plan = plan_stream(capacity, extents)
    writer = StreamWriter(plan, out.extend, "here")
    writer.begin()
    for piece in pieces(extents, 100_000):
        writer.write(piece.offset, memoryview(disk)[piece.offset : piece.end])
    writer.finish()
    assert len(out) == plan.length
    assert plan.refusal == ""
    return bytes(disk), bytes(out)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_is_read_back_by_qemu_and_by_our_own_reader(shape: str, tmp_path: Path) -> None:
    disk, stream = written(*SHAPES[shape])
    back = bytearray(len(disk))
    for offset, data in VmdkStream(io.BytesIO(stream), "here").grains():
        back[offset : offset + len(data)] = data
    assert back == disk
    raw, vmdk = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    raw.write_bytes(disk)
    vmdk.write_bytes(stream)
    for words in (["check", "-f", "vmdk", str(vmdk)], ["compare", "-f", "raw", "-F", "vmdk", str(raw), str(vmdk)]):
        subprocess.run(["qemu-img", *words], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_a_writer_is_held_to_what_was_told() -> None:
    def begun() -> StreamWriter:
        return StreamWriter(plan_stream(MIB, [Extent(0, 2 * GRAIN_BYTES)]), lambda data: None, "here")

    piece = memoryview(bytes(GRAIN_BYTES))
    for offsets, says in (
        ((GRAIN_BYTES,), "is not to be written at offset 65536 now"),
        ((0, 4 * GRAIN_BYTES), "is not to be written at offset 262144 now"),
        ((0, 0), "cannot be written behind offset 65536"),
        ((MIB,), "cannot be written behind offset 0"),
    ):
        writer = begun()
        with pytest.raises(WriteFailed, match=says):
            for offset in offsets:
                writer.write(offset, piece)
    writer = begun()
    writer.write(0, piece)
    with pytest.raises(WriteFailed, match="was not written at offset 65536"):
        writer.finish()


def test_what_one_stream_cannot_hold_is_refused_before_anything_is_sent() -> None:
    most = 64 << 40
    assert plan_stream(most, [Extent(most - GRAIN_BYTES, GRAIN_BYTES)]).refusal == ""
    assert "more than one stream can hold" in plan_stream(most, [Extent(0, 2 << 40)]).refusal
    assert "no whole sectors" in plan_stream(MIB + 1, []).refusal
