"""An append-only repository whose keeper dies, or whose writer: two processes of two users."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from policies.facts import PointId
from storage import failpoints
from storage.errors import StoreFailed
from storage.keeper import Keeper, establish
from storage.repository import Repository, open_repository
from tests.crash.aftermath import after_a_crash
from tests.crash.scenes import SCENES
from tests.crash.stages import NEW, Stage, disks, fresh_copy
from tests.damage_kit import in_memory
from tests.storage_kit import back_up, later
from tests.users import OWNER, WRITER, as_user, give, serving

KEEPER_DIES = (
    "blob.spooled:1", "keeper.put:1", "keeper.synced:1", "blob.linked:2", "keeper.synced:2", "keeper.put:2",
    "blob.linked:4", "keeper.put:3", "blob.unlinked:1", "blob.linked:5", "keeper.put:4",
)  # fmt: skip
"""The writer claims numbers (put), has two packs published, announces, writes the manifest, and holds."""

WRITER_DIES = ("pack.written:1", "pack.sealed:1", "commit.announced:1", "commit.manifest_written:1", "mark.written:1")


@dataclass(frozen=True)
class Kept:
    """A copy of a stage that OWNER keeps for WRITER."""

    root: Path
    stage: Stage

    @property
    def socket(self) -> Path:
        return self.root.parent / "run" / "keeper.sock"

    def keeper(self, point: str = "") -> AbstractContextManager[None]:
        """Keep it in a process of its own, which dies at a point."""
        self.socket.unlink(missing_ok=True)

        def serve() -> None:
            if point:
                failpoints.watch(failpoints.dying_at(point))
            Keeper(self.root, establish(self.root, self.socket, WRITER)).serve()

        return serving(OWNER, serve, self.socket)

    def write(self, point: str = "") -> None:
        """Back up and hold, and die at a point; without one, expect the keeper to die meanwhile."""

        def act() -> None:
            self._at_home()
            if point:
                failpoints.watch(failpoints.dying_at(point))
                self._back_up_and_hold()
            else:
                with pytest.raises(StoreFailed, match="keeper does not answer"):
                    self._back_up_and_hold()

        as_user(WRITER, act, status=-signal.SIGKILL if point else 0)

    def look(self) -> None:
        """Fail unless all that was there or acknowledged is so, for the writer, who goes on, and then for the owner."""
        acknowledged = self._acknowledged.read_text() if self._acknowledged.exists() else ""
        told = acknowledged.splitlines()

        def writer_looks() -> None:
            self._at_home()
            after_a_crash(self.root, self.stage, SCENES["full"], least=len(told) > 0, most=1, told=told)

        as_user(WRITER, writer_looks)
        as_user(OWNER, self._owner_looks)
        left = [path.name for path in (self.root / "spool").iterdir() if path.is_file()]
        assert not left, f"left in spool: {left}"

    def _back_up_and_hold(self) -> None:
        with self._opened("writer") as repo:
            point = back_up(repo, disks()["new"], vm=NEW, name="new", at=later(hours=5))
            self._acknowledged.write_text(f"committed {point.id}\n")
            repo.mark_hold(point.id, "court", later(hours=5))
            with self._acknowledged.open("a") as file:
                file.write(f"held {point.id} court\n")

    def _owner_looks(self) -> None:
        with self._opened("owner") as repo:
            points: set[PointId] = {point.id for point in repo.points()}
            assert self.stage.kept.keys() | self.stage.going.keys() < points

    def _opened(self, who: str) -> Repository:
        return open_repository(self.root, now=later(hours=5), owner=who, state_dir=self.root.parent / who)

    @property
    def _acknowledged(self) -> Path:
        return self.root.parent / "writer" / "acknowledged"

    def _at_home(self) -> None:
        os.environ["XDG_STATE_HOME"] = str(self.root.parent / "writer")


@contextmanager
def kept(stage: Stage) -> Iterator[Kept]:
    """A copy of the stage, ready to be kept."""
    with in_memory() as folder:
        root = fresh_copy(stage, folder / "repo")
        for name in ("run", "owner", "writer"):
            (folder / name).mkdir()
        for name, user in (("repo", OWNER), ("run", OWNER), ("owner", OWNER), ("writer", WRITER)):
            give(folder / name, user)
        os.chown(folder, -1, WRITER)
        folder.chmod(0o775)  # what is restored goes beside the repository
        as_user(OWNER, partial(establish, root, folder / "run" / "keeper.sock", WRITER))
        yield Kept(root, stage)
