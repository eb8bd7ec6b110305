"""The kernel is told to write early; the file is what was written either way, and a bad descriptor harms nobody."""

from __future__ import annotations

import os
from pathlib import Path

from storage.writeback import STEP_BYTES, WriteBehind


def test_a_file_that_is_written_behind_holds_what_was_written(tmp_path: Path) -> None:
    path, data = tmp_path / "file", os.urandom(1 << 20)
    with path.open("w+b", buffering=0) as file, WriteBehind(file.fileno()) as behind:
        for at in range(0, 2 * STEP_BYTES, len(data)):
            os.pwrite(file.fileno(), data, at)
            behind.wrote(len(data))
    assert path.read_bytes() == data * (2 * STEP_BYTES // len(data))


def test_what_the_kernel_refuses_is_left_to_the_fsync() -> None:
    read, write = os.pipe()
    try:
        with WriteBehind(write) as behind:
            behind.wrote(STEP_BYTES)
    finally:
        os.close(read)
        os.close(write)
