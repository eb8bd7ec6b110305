"""A whole repository whose writer can only add: backups and restores work, and no deletion counts but the owner's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import PointId
from storage.errors import Refused
from storage.filecalls import write_all
from storage.format import ObjectKind
from storage.keeper import Keeper, establish
from storage.marks import MAX_SEQUENCE, OWNER_SEQUENCES, MarkKind, encode, new_mark
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.repository import Repository, open_repository
from storage.verify import verify
from tests.storage_kit import BLOCK, NOW, PASSPHRASE, back_up, changed, image, later, make, read_back
from tests.users import OWNER, WRITER, as_user, give, open_folder, serving


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty repository that OWNER keeps for WRITER, and folders for their private things."""
    with open_folder() as folder:
        root = make(folder / "repo", encrypted=request.param)
        give(root, OWNER)
        for name, user in (("run", OWNER), ("owner", OWNER), ("writer", WRITER)):
            (folder / name).mkdir()
            give(folder / name, user)
        yield root


@pytest.fixture(autouse=True)
def keeper(root: Path) -> Iterator[None]:
    path = root.parent / "run" / "keeper.sock"
    with serving(OWNER, lambda: Keeper(root, establish(root, path, WRITER)).serve(), path):
        yield


def opened(root: Path, who: str) -> Repository:
    return open_repository(root, now=NOW, passphrase=lambda: PASSPHRASE, owner=who, state_dir=root.parent / who)


def _open_to_write(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


def written(root: Path) -> tuple[PointId, PointId]:
    """Two restore points that the writer made; their ids."""

    def act() -> None:
        with opened(root, "writer") as repo:
            disk = image(1, 40)
            first = back_up(repo, disk)
            second_disk = changed(disk, 2, (3, 7))
            second = back_up(repo, second_disk, at=later(hours=1), base=first.id, blocks=(3, 7))
            assert read_back(repo, second.id) == second_disk
            assert verify(repo, now=NOW).sound
            (root.parent / "writer" / "points").write_text(f"{first.id} {second.id}")

    as_user(WRITER, act)
    first, second = (root.parent / "writer" / "points").read_text().split()
    return PointId(first), PointId(second)


def test_a_writer_backs_up_restores_and_verifies_and_so_does_the_owner(root: Path) -> None:
    first, second = written(root)

    def act() -> None:
        with opened(root, "owner") as repo:
            assert [point.id for point in repo.points()] == [first, second]
            assert read_back(repo, second) == changed(image(1, 40), 2, (3, 7))

    as_user(OWNER, act)


def test_a_writer_neither_expires_nor_releases_nor_reclaims(root: Path) -> None:
    first, _ = written(root)

    def act() -> None:
        with opened(root, "writer") as repo:
            repo.mark_hold(first, "court", NOW)
            with pytest.raises(Refused, match="append-only"):
                repo.release(first, None, NOW)
            with pytest.raises(Refused, match="append-only"):
                repo.expire(first, "old", NOW)
            with pytest.raises(Refused, match="append-only"):
                carry_out(repo, plan_reclaim(repo, NOW), NOW)

    as_user(WRITER, act)


def test_a_tombstone_or_release_that_a_writer_forged_counts_for_nobody(root: Path) -> None:
    first, second = written(root)

    def forge() -> None:
        with opened(root, "writer") as repo:
            repo.mark_hold(first, "court", NOW)
            repo.marks.add(first, MarkKind.RELEASE, NOW, "", None)
            repo.marks.add(second, MarkKind.EXPIRED, NOW, "", None)

    def look(who: str) -> None:
        with opened(root, who) as repo:
            assert [point.id for point in repo.points()] == [first, second]
            assert repo.detail(first).holds == ("court",)

    as_user(WRITER, forge)
    as_user(OWNER, lambda: look("owner"))
    as_user(WRITER, lambda: look("writer"))


def test_a_writer_cannot_use_up_the_numbers_of_marks(root: Path) -> None:
    first, _ = written(root)

    def forge() -> None:
        with opened(root, "writer") as repo:
            for sequence in (OWNER_SEQUENCES - 1, MAX_SEQUENCE):
                mark = new_mark(first, sequence, MarkKind.HOLD, NOW, "for ever")
                repo.blobs.put(mark.key, repo.sealing.close(ObjectKind.MARK, mark.key, encode(mark)))

    def release() -> None:
        with opened(root, "owner") as repo:
            repo.release(first, None, NOW)
            assert repo.detail(first).holds == ()
            repo.expire(first, "old", NOW)

    as_user(WRITER, forge)
    as_user(OWNER, release)


def test_what_the_owner_expires_and_reclaims_is_gone_for_the_writer(root: Path) -> None:
    first, second = written(root)

    def clear() -> None:
        with opened(root, "owner") as repo:
            repo.expire(first, "old", NOW)
            plan = plan_reclaim(repo, NOW, SafetyAges())
            carry_out(repo, plan, NOW)

    def look() -> None:
        with opened(root, "writer") as repo:
            assert [point.id for point in repo.points()] == [second]
            assert read_back(repo, second) == changed(image(1, 40), 2, (3, 7))
            back_up(repo, image(5, 20), vm="vm-5", at=later(hours=2))

    as_user(OWNER, clear)
    as_user(WRITER, look)


def test_a_writer_that_was_taken_over_cannot_touch_a_byte(root: Path) -> None:
    written(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "spool" not in path.parts}

    def attack() -> None:
        for path in before:
            for harm in (
                os.unlink,
                lambda path: os.open(path, os.O_RDWR),
                lambda path: path.rename(path.with_name("x")),
            ):
                with pytest.raises(PermissionError):
                    harm(path)
        with pytest.raises(PermissionError):
            root.rename(root.with_name("x"))
        fd = os.open(root / "config", os.O_RDONLY)
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_all(fd, 0, [bytes(BLOCK)])

    as_user(WRITER, attack)
    assert {path: path.read_bytes() for path in before} == before


def test_what_the_writer_marks_the_owner_expires_by_the_stores_clock(root: Path) -> None:
    first, second = written(root)

    def mark() -> None:
        with opened(root, "writer") as repo:
            repo.mark_expiring(first, "not kept", later(days=-300))  # a writer that lies about the time
            assert repo.marked_since(second) is None

    def look() -> None:
        with opened(root, "owner") as repo:
            since = repo.marked_since(first)
            assert since is not None and abs(repo.blobs.clock() - since) < timedelta(minutes=1)

    as_user(WRITER, mark)
    as_user(OWNER, look)
