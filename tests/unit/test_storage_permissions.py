"""What a user is told who may not use a repository: where, whose it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.errors import StoreFailed
from storage.keeper import establish
from storage.repository import open_repository
from tests.storage_kit import NOW, make
from tests.users import OWNER, STRANGER, WRITER, as_user, give, open_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def refused(user: int, place: Path, *, at: Path, state_dir: Path | None = None) -> None:
    def act() -> None:
        with pytest.raises(StoreFailed) as told:
            open_repository(place, now=NOW, state_dir=state_dir)
        assert told.value.where == str(at)
        assert f"permission denied for user {user}" in told.value.what
        assert f"run the command as {OWNER}" in told.value.hint

    as_user(user, act, gid=user)


def test_a_directory_that_may_not_be_read_is_told_with_its_owner(folder: Path) -> None:
    root = make(folder / "repo")
    give(root, OWNER)
    root.chmod(0o700)
    refused(STRANGER, root, at=root)


def test_a_repository_of_another_user_is_told_with_what_may_not_be_used(folder: Path) -> None:
    root = make(folder / "repo")
    give(root, OWNER)
    refused(STRANGER, root, at=root / "config")


def test_a_state_folder_of_another_user_is_told(folder: Path) -> None:
    root, state = make(folder / "repo"), folder / "state"
    state.mkdir()
    for place in (root, state):
        give(place, OWNER)
    state.chmod(0o700)
    as_user(OWNER, partial(establish, root, folder / "keeper.sock", WRITER))
    refused(WRITER, root, at=state, state_dir=state)
