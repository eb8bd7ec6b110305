from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from storage.errors import Damaged
from storage.restore import restore_disk
from tests.storage_kit import BLOCK, DISK, back_up, image, make, opened


def test_holes_stay_sparse_and_progress_is_told(tmp_path: Path) -> None:
    disk = image(1, 2000, used=0.1)
    target = tmp_path / "out"
    target.write_bytes(os.urandom(5000))
    seen: list[int] = []
    with opened(make(tmp_path / "r")) as repo, target.open("r+b") as file:
        point = back_up(repo, disk)
        written = restore_disk(repo.read_disk(point.id, DISK), file.fileno(), progress=seen.append)
    assert target.read_bytes() == disk
    assert target.stat().st_blocks * 512 < len(disk) / 3
    assert (
        max(seen)
        == written
        == sum(len(disk[b : b + BLOCK].strip(b"\0")) > 0 for b in range(0, len(disk), BLOCK)) * BLOCK
    )


@pytest.mark.parametrize("blocks", [1, 300, 1000])
def test_what_is_not_a_file_gets_its_zeros_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    disk = image(2, blocks, used=0.3, tail=512)
    disk[64 * BLOCK : 640 * BLOCK] = bytes(len(disk[64 * BLOCK : 640 * BLOCK]))
    target = tmp_path / "out"
    target.write_bytes(b"\xff" * len(disk))
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: False)
    with opened(make(tmp_path / "r")) as repo, target.open("r+b") as file:
        restore_disk(repo.read_disk(back_up(repo, disk).id, DISK), file.fileno())
    assert target.read_bytes() == disk


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_damaged_chunk_stops_the_restore_and_is_never_written(tmp_path: Path, threads: int) -> None:
    disk = image(3, 1000, used=1.0)
    target = tmp_path / "out"
    with opened(make(tmp_path / "r")) as repo, target.open("w+b") as file:
        point = back_up(repo, disk)
        pack = next((tmp_path / "r" / "packs").rglob("*.data"))
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
        with pytest.raises(Damaged):
            restore_disk(repo.read_disk(point.id, DISK), file.fileno(), threads=threads)
    found = target.read_bytes()
    assert all(found[b : b + BLOCK] in (disk[b : b + BLOCK], bytes(BLOCK)) for b in range(0, len(disk), BLOCK))
