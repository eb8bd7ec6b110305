"""What a backup reads and how much memory it takes, counted by others: nbdkit's statistics and the kernel."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.engine_process import ON_REQUEST, engine_for, frozen_at
from tests.lab import images
from tests.lab.vcenter import MIB, Lab, start_lab

GRAIN = images.GRAIN


def test_an_incremental_after_writes_to_one_percent_of_the_grains_reads_at_most_1_2_percent_of_the_disk(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    capacity = 256 * MIB
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=capacity, content=False)
    [vm] = lab.vms()
    for offset in range(0, capacity, 16 * MIB):
        lab.write_as_guest(vm.name, 0, offset, random.Random(offset).randbytes(4 * MIB))
    with engine_for(lab, tmp_path / "engine", ON_REQUEST) as engine:
        folder = tmp_path / "statistics"
        folder.mkdir()
        engine.extra["BACKSTAY_NBDKIT_STATS"] = str(folder)
        engine.start()
        engine.back_up(vm.name)
        [whole] = folder.iterdir()
        assert bytes_read(whole) >= 64 * MIB
        written = lab.write_random_grains(vm.name, 0, share=0.01, seed=5)
        assert sum(length for _, length in written) == round(0.01 * capacity / GRAIN) * GRAIN
        point = engine.back_up(vm.name)
        [second] = set(folder.iterdir()) - {whole}
        print(f"an incremental read {bytes_read(second) / capacity:.2%} of the disk")
        assert 0.0099 * capacity <= bytes_read(second) <= 0.012 * capacity
        engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)


def test_the_engine_stays_under_400_mib_while_it_backs_up_6_gib_of_unique_data(large_lab: Lab, tmp_path: Path) -> None:
    [vm] = large_lab.vms()
    with engine_for(large_lab, tmp_path / "engine", ON_REQUEST) as engine:
        engine.start()
        point = engine.back_up(vm.name)
        peak = engine.peak_memory_bytes()
        print(f"peak memory: {peak / MIB:.0f} MiB")
        assert point["disks"][0]["read_bytes"] == point["disks"][0]["new_bytes"] == 6 << 30
        assert peak < 400 * MIB, f"{peak / MIB:.0f} MiB"
        assert engine.backstay("verify", "--json").data["sound"]


@pytest.fixture
def large_lab(tmp_path: Path) -> Iterator[Lab]:
    """One VM with 6 GiB on its disk; what is so large does not outlive the test."""
    # A hard link takes the place of the frozen copy: no guest writes here.
    settings = {"link_frozen": True}
    with (
        tempfile.TemporaryDirectory(dir=roomy(tmp_path)) as scratch,
        start_lab(Path(scratch), vms=1, tracking=True, disk_bytes=6 << 30, content=False, settings=settings) as lab,
    ):
        [vm] = lab.vms()
        # Each block is like no other in its first KiB; the rest of it is a hole, so that the lab is quick.
        images.write(vm.disks[0].flat, ((offset, os.urandom(1024)) for offset in range(0, 6 << 30, GRAIN)))
        yield lab


def roomy(otherwise: Path) -> Path:
    """Memory, where it has room for the pages of such a disk: a hundred thousand extents come and go slowly on disk."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30 else otherwise


def bytes_read(statistics: Path) -> int:
    """What nbdkit's stats filter counted behind everything else, to the hundredth of a unit."""
    found = re.search(r"^read: \d+ ops, [\d.]+ s, ([\d.]+) (bytes|KiB|MiB|GiB)", statistics.read_text(), re.MULTILINE)
    assert found, statistics.read_text()
    unit = ("bytes", "KiB", "MiB", "GiB").index(found[2])
    return round(float(found[1]) * 2.0 ** (10 * unit))
