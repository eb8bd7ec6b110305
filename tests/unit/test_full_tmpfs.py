"""A file system that really is full: a clear error from whatever needs room, nothing lost, and all goes on with room.

Without the right to mount one, the same steps run where there is room, and only nothing may be lost.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from engine.records import Audited
from engine.state import State
from policies.facts import PointId
from storage import keyslots
from storage.errors import NoSpace, StorageError
from storage.keys import add_slot, rotate
from storage.rebuild import rebuild_catalog
from storage.reclaim import carry_out
from storage.reclaim_plan import SafetyAges, plan_reclaim
from storage.repository import Repository
from storage.verify import verify
from tests.storage_kit import NOW, PASSPHRASE, back_up, image, later, make, opened, read_back

AT_ONCE = SafetyAges(timedelta(0), timedelta(days=36500))


@dataclass
class SmallDisk:
    """A tmpfs of 24 MiB. `real` unless it could not be mounted."""

    root: Path
    real: bool
    kept: dict[PointId, bytes] = field(default_factory=dict)

    def fill(self) -> None:
        """Until not one byte more fits."""
        if not self.real:
            return
        fd = os.open(self.root / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while True:
                        os.write(fd, bytes(size))
        finally:
            os.close(fd)

    def make_room(self) -> None:
        """Remove what filled it."""
        (self.root / "ballast").unlink(missing_ok=True)

    def nothing_is_lost(self, *, encrypted: bool) -> None:
        """Every restore point is listed and comes back, full or not."""
        with opened(self.root / "r") as repo:
            assert repo.encrypted is encrypted
            assert self.kept.keys() <= repo.point_ids()
            for point, disk in self.kept.items():
                assert read_back(repo, point) == disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)], capture_output=True, check=False
    )
    yield SmallDisk(root, mounted.returncode == 0)
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def _prepare(disk: SmallDisk, *, encrypted: bool) -> PointId:
    """Two restore points that stay, and one that may go."""
    with opened(make(disk.root / "r", encrypted=encrypted)) as repo:
        gone = back_up(repo, image(9, 40), vm="vm-9")
        for vm in range(2):
            content = image(vm, 60)
            disk.kept[back_up(repo, content, vm=f"vm-{vm}").id] = bytes(content)
    return gone.id


def _back_up(repo: Repository) -> object:
    return back_up(repo, image(20, 200), vm="vm-20", at=later(hours=3))


def _new_key(repo: Repository) -> object:
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256):
        return add_slot(repo, "another passphrase")


def _rotate(repo: Repository) -> object:
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256):
        return rotate(repo, PASSPHRASE)


def _rebuild(repo: Repository) -> object:
    return rebuild_catalog(repo)


@pytest.mark.parametrize("act", [_back_up, _new_key, _rotate, _rebuild], ids=lambda act: act.__name__.strip("_"))
def test_what_needs_room_says_so_harms_nothing_and_works_when_there_is_room(
    disk: SmallDisk, act: Callable[[Repository], object]
) -> None:
    _prepare(disk, encrypted=True)
    with opened(disk.root / "r") as repo:
        repo.points()
        disk.fill()
        if disk.real:
            with pytest.raises(NoSpace) as told:
                act(repo)
            assert "space" in str(told.value).lower()
    disk.nothing_is_lost(encrypted=True)
    disk.make_room()
    disk.nothing_is_lost(encrypted=True)
    with opened(disk.root / "r") as repo:
        act(repo)
        assert verify(repo, now=later(hours=4)).sound
        assert len(repo.points()) >= 3
    disk.nothing_is_lost(encrypted=True)


def test_verification_on_a_full_disk_still_tells_what_is_damaged(disk: SmallDisk) -> None:
    _prepare(disk, encrypted=False)
    location = disk.root / "r"
    pack = sorted(path for path in (location / "packs").rglob("*.data"))[1]
    sound = pack.read_bytes()
    with opened(location) as repo:
        repo.points()
        disk.fill()
        assert verify(repo, now=later(hours=1)).sound
        with pack.open("r+b") as file:
            file.seek(500)
            file.write(bytes([sound[500] ^ 1]))
        report = verify(repo, now=later(hours=2))
        assert report.vms == ("web",)
        with pack.open("r+b") as file:
            file.seek(500)
            file.write(sound[500:501])
        disk.make_room()
        assert verify(repo, now=later(hours=3)).sound
        assert all(repo.detail(point).verified_at == later(hours=3) for point in repo.point_ids())


def test_reclaim_frees_a_full_disk(disk: SmallDisk) -> None:
    gone = _prepare(disk, encrypted=False)
    location = disk.root / "r"
    with opened(location, now=later(days=3650)) as repo:
        repo.points()
        disk.fill()
        repo.expire(gone, "no room", later(days=3650))
        packs = set(repo.store.live)
        carry_out(repo, plan_reclaim(repo, later(days=3650), AT_ONCE), later(days=3650))
        assert len(packs - set(repo.store.live)) >= 2
    disk.nothing_is_lost(encrypted=False)
    disk.make_room()
    with opened(location, now=later(days=3651)) as repo:
        assert verify(repo, now=later(days=3651)).sound
        _back_up(repo)


@pytest.mark.parametrize("left", ["an old catalog", "no catalog"])
def test_a_repository_whose_catalog_finds_no_room_is_restored_from_and_caught_up(disk: SmallDisk, left: str) -> None:
    _prepare(disk, encrypted=False)
    location = disk.root / "r"
    with opened(location) as repo:
        rows = repo.catalog.rows() if repo.points() else {}
    if left == "no catalog":
        for path in location.glob("catalog.duckdb*"):
            path.unlink()
    disk.fill()
    disk.nothing_is_lost(encrypted=False)
    with opened(location) as repo, suppress(NoSpace):
        assert len(repo.points()) == 3
    assert not list(location.glob("*.corrupt-*"))
    disk.make_room()
    with opened(location) as repo:
        repo.points()
        assert repo.catalog.rows() == rows


def test_the_engine_s_state_on_a_full_disk_says_so_and_keeps_what_it_had(disk: SmallDisk) -> None:
    folder = disk.root / "state"
    entry = Audited(NOW, "root", "hold", "point-1", "x" * 3000)
    state = State(folder, now=NOW)
    try:
        state.audit(entry)
        disk.fill()
        if disk.real:
            with pytest.raises(StorageError) as told:
                for _ in range(2000):
                    state.audit(entry)
            assert "space" in str(told.value).lower() or os.strerror(errno.ENOSPC) in str(told.value)
    finally:
        state.close()
    disk.make_room()
    state = State(folder, now=NOW)
    try:
        assert not state.fresh
        assert state.audited()[-1] == entry
        state.audit(entry)
    finally:
        state.close()
