"""Which commit policy files are at, compared with what git says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.checkout import commit_of


def git(place: Path, *words: str) -> str:
    said = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return said.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "repo"
    place.mkdir()
    git(place, "init", "-q", "-b", "main")
    (place / "policies" / "deep").mkdir(parents=True)
    for name in ("a.toml", "deep/b.toml"):
        (place / "policies" / name).write_text(f"schema = 1 # {name}\n")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "first")
    return place


def files(directory: Path) -> dict[str, bytes]:
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*.toml")}


def test_the_commit_of_a_branch_loose_or_packed_and_of_a_detached_head(checkout: Path) -> None:
    place, head = checkout / "policies", git(checkout, "rev-parse", "HEAD")
    assert commit_of(place) == commit_of(checkout) == head
    git(checkout, "pack-refs", "--all")
    assert commit_of(place, files(place)) == head
    git(checkout, "checkout", "-q", "--detach")
    assert commit_of(place, files(place)) == head


def test_a_worktree_has_its_own_commit(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(checkout, "worktree", "add", "-q", "-b", "side", str(other))
    (other / "policies" / "a.toml").write_text("schema = 1\n")
    git(other, "commit", "-q", "-a", "-m", "second")
    assert commit_of(other / "policies", files(other / "policies")) == git(other, "rev-parse", "HEAD")
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD") != commit_of(other)


@pytest.mark.parametrize("change", ["edited", "new"])
def test_a_file_that_git_does_not_hold_so_is_dirty(checkout: Path, change: str) -> None:
    place = checkout / "policies"
    (place / ("a.toml" if change == "edited" else "c.toml")).write_text("schema = 1 # other\n")
    assert commit_of(place, files(place)) == git(checkout, "rev-parse", "HEAD") + "+dirty"
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "done")
    assert commit_of(place, files(place)) == git(checkout, "rev-parse", "HEAD")


def test_without_a_commit_nothing_is_said(checkout: Path, tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""
    git(checkout, "checkout", "-q", "--orphan", "empty")
    assert commit_of(checkout) == ""
    git(checkout, "pack-refs", "--all")
    assert commit_of(checkout) == ""
    (checkout / ".git" / "refs" / "heads" / "circle").write_text("ref: refs/heads/circle")
    for said in ("ref: refs/heads/circle", "", "ref: refs/heads/../../etc", "nonsense", "ref: refs/heads/main\0"):
        (checkout / ".git" / "HEAD").write_text(said)
        assert commit_of(checkout) == ""


def test_an_index_of_another_kind_says_nothing_of_dirt(checkout: Path) -> None:
    place, head = checkout / "policies", git(checkout, "rev-parse", "HEAD")
    git(checkout, "update-index", "--index-version", "4")
    (place / "a.toml").write_text("schema = 1 # other\n")
    assert commit_of(place, files(place)) == head
    (checkout / ".git" / "index").write_bytes(b"DIRC\0\0\0\2\0\0\0\5")
    assert commit_of(place, files(place)) == ""
