"""A restored file appears whole or not at all, and never takes the place of another unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.failures import BadInput, Declined, Exit
from engine.file_restore import files_in, restore_to_file
from policies.facts import VmId
from storage.errors import Damaged
from storage.repository import DiskHead, PointDisk, PointHead, create, open_repository

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DATA = os.urandom(3 << 16) + bytes(5 << 16) + b"the end"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PointDisk]:
    create(tmp_path / "repo", now=NOW)
    with open_repository(tmp_path / "repo", now=NOW) as repository:
        with repository.new_point(PointHead(VmId("web"), "web", NOW)) as pending:
            ingest = pending.disk(DiskHead("disk", len(DATA)), base=None)
            ingest.write(0, memoryview(DATA))
            ingest.finish()
            point = pending.commit()
        yield repository.read_disk(point.id, "disk")


def test_the_file_equals_the_disk_and_nothing_else_is_left(disk: PointDisk, tmp_path: Path) -> None:
    target = tmp_path / "out" / "disk.raw"
    target.parent.mkdir()
    seen: list[int] = []
    restore_to_file(disk, target, progress=seen.append)
    assert target.read_bytes() == DATA
    assert [path.name for path in target.parent.iterdir()] == ["disk.raw"]
    assert max(seen) == 3 * (1 << 16) + 7


def test_a_file_that_is_there_stays_unless_force_is_set(disk: PointDisk, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    target.write_text("mine")
    with pytest.raises(Declined, match="is there already"):
        restore_to_file(disk, target)
    assert target.read_text() == "mine"
    restore_to_file(disk, target, force=True)
    assert target.read_bytes() == DATA


def test_several_disks_become_files_in_a_folder_if_none_of_them_is_there(tmp_path: Path) -> None:
    folder, labels = tmp_path / "out" / "web", ["Hard disk 1", "a/b"]
    files = files_in(folder, labels, force=False)
    assert files == {"Hard disk 1": folder / "Hard disk 1.raw", "a/b": folder / "a_b.raw"}
    files["a/b"].write_text("mine")
    with pytest.raises(Declined, match=r"a_b\.raw: is there already"):
        files_in(folder, labels, force=False)
    assert files_in(folder, labels, force=True) == files
    for no_folder in (files["a/b"], files["a/b"] / "below"):
        with pytest.raises(BadInput, match=r"is no folder.*name the disk") as caught:
            files_in(no_folder, labels, force=True)
        assert caught.value.exit_code is Exit.USAGE


def test_damage_leaves_no_file_and_keeps_the_old_one(disk: PointDisk, tmp_path: Path) -> None:
    for pack in (tmp_path / "repo" / "packs").rglob("*"):
        if pack.is_file():
            spoilt = bytearray(pack.read_bytes())
            spoilt[len(spoilt) // 3] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(spoilt)
    target = tmp_path / "out" / "disk.raw"
    target.parent.mkdir()
    target.write_text("mine")
    with pytest.raises(Damaged):
        restore_to_file(disk, target, force=True)
    assert {path.name: path.read_text() for path in target.parent.iterdir()} == {"disk.raw": "mine"}


def test_a_target_that_cannot_take_it_is_bad_input(disk: PointDisk, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a directory"):
        restore_to_file(disk, tmp_path)
    with pytest.raises(BadInput, match="folder does not exist"):
        restore_to_file(disk, tmp_path / "nowhere" / "disk.raw")
