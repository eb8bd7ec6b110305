"""Makes stream-optimised VMDKs as ESXi hosts do, for tests: tables after their grains, directory and footer behind."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

SECTOR, GRAIN, ENTRIES, OVERHEAD = 512, 65536, 512, 128
AT_END = (1 << 64) - 1


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def header(capacity_bytes: int, directory: int = AT_END, *, grain: int = GRAIN) -> bytes:
    return padded(
        struct.pack(
            "<IIIQQQQIQQQB4sH", 0x564D444B, 3, 0x30001, capacity_bytes // SECTOR, grain // SECTOR, 1, 20, ENTRIES, 0,
            directory, OVERHEAD, 0, b"\n \r\n", 1,
        )
    )  # fmt: skip


def marker(value: int, size: int = 0, kind: int = 0) -> bytes:
    return padded(struct.pack("<QII", value, size, kind))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def streamed(disk: bytes, *, grain: int = GRAIN, pack: Callable[[bytes], bytes] = zlib.compress) -> bytes:
    """The disk as a stream. Grains of zeros are left out."""
    descriptor = (
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="streamOptimized"\n'
        f'RW {len(disk) // SECTOR} SPARSE "disk.vmdk"\n'
    )
    out = bytearray((header(len(disk), grain=grain) + descriptor.encode()).ljust(OVERHEAD * SECTOR, b"\0"))
    directory = []
    for first in range(0, len(disk), grain * ENTRIES):
        table = [0] * ENTRIES
        for number, at in enumerate(range(first, min(first + grain * ENTRIES, len(disk)), grain)):
            data = disk[at : at + grain]
            if data.strip(b"\0"):
                table[number] = len(out) // SECTOR
                packed = pack(data.ljust(grain, b"\0"))
                out += padded(struct.pack("<QI", at // SECTOR, len(packed)) + packed)
        directory.append(0)
        if any(table):
            out += marker(4, kind=1)
            directory[-1] = len(out) // SECTOR
            out += struct.pack(f"<{ENTRIES}I", *table)
    words = padded(struct.pack(f"<{len(directory)}I", *directory))
    out += marker(len(words) // SECTOR, kind=2)
    place = len(out) // SECTOR
    return bytes(out + words + marker(1, kind=3) + header(len(disk), place, grain=grain) + marker(0))
