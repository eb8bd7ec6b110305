"""`backstay copy` through the real console script."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from storage.repository import open_repository
from tests.console import backstay
from tests.storage_kit import NOW

SECRET = "correct horse battery"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(3).randbytes(3 << 20))
    return path


@pytest.fixture
def two(tmp_path: Path, image: Path) -> tuple[Path, Path, Path]:
    """A plain repository with one restore point, an empty encrypted one, and the file of its passphrase."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    backstay("repo", "init", tmp_path / "here", home=tmp_path)
    backstay("repo", "init", tmp_path / "there", "--encrypt", "--passphrase-file", secret, home=tmp_path)
    backstay("disk", "backup", image, "--name", "web", "--repo", tmp_path / "here", home=tmp_path)
    return tmp_path / "here", tmp_path / "there", secret


def test_a_copy_restores_under_the_same_id_and_is_made_once(
    tmp_path: Path, two: tuple[Path, Path, Path], image: Path
) -> None:
    here, there, secret = two
    options = ("--to-passphrase-file", secret)
    planned = backstay("copy", here, there, "--plan", "--json", *options, home=tmp_path, expect=3).data
    done = backstay("copy", here, there, "--json", *options, home=tmp_path).data
    assert done["copied"] == [row["id"] for row in planned["missing"]]
    assert done["moved_bytes"] == image.stat().st_size
    again = backstay("copy", here, there, "--json", *options, home=tmp_path).data
    assert (again["copied"], again["there"], again["moved_bytes"]) == ([], 1, 0)
    back = tmp_path / "back.img"
    point = done["copied"][0]
    backstay("disk", "restore", point, "--repo", there, "--passphrase-file", secret, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


def test_what_cannot_be_copied_is_told_with_its_exit_code(tmp_path: Path, two: tuple[Path, Path, Path]) -> None:
    here, there, secret = two
    assert "the same repository" in backstay("copy", here, here, home=tmp_path, expect=2).err
    assert "repo init" in backstay("copy", here, tmp_path / "nowhere", home=tmp_path, expect=10).err
    wrong = tmp_path / "wrong"
    wrong.write_text("something else")
    wrong.chmod(0o600)
    said = backstay("copy", here, there, "--to-passphrase-file", wrong, home=tmp_path, expect=12).err
    assert SECRET not in said and "Traceback" not in said
    unknown = backstay("copy", here, there, "--vm", "db", "--to-passphrase-file", secret, home=tmp_path, expect=2).err
    assert "no restore point of db" in unknown


def test_a_damaged_source_is_told_and_ends_with_4(tmp_path: Path, two: tuple[Path, Path, Path]) -> None:
    here, there, secret = two
    pack = next((here / "packs").rglob("*.data"))
    broken = bytearray(pack.read_bytes())
    broken[5000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(broken)
    ran = backstay("copy", here, there, "--to-passphrase-file", secret, home=tmp_path, expect=4)
    assert "not what was written" in ran.out + ran.err
    assert backstay("points", "--repo", there, "--passphrase-file", secret, "--json", home=tmp_path).data == []


def test_what_the_copy_expired_is_told_and_comes_back_by_its_id(tmp_path: Path, image: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    for place in (here, there):
        backstay("repo", "init", place, home=tmp_path)
    for name in ("web", "db"):
        backstay("disk", "backup", image, "--name", name, "--repo", here, home=tmp_path)
    gone, _ = backstay("copy", here, there, "--json", home=tmp_path).data["copied"]
    with open_repository(there, now=NOW) as repository:
        repository.expire(gone, "old", NOW, by_retention=True)
    said = backstay("copy", here, there, home=tmp_path).err
    assert "Copied 0 restore points, 1 there already" in said and "1 restore point expired there" in said
    assert backstay("copy", here, there, "--plan", "--json", home=tmp_path).data["expired"] == 1
    assert "Copied 1 restore point," in backstay("copy", here, there, "--point", gone, home=tmp_path).err
