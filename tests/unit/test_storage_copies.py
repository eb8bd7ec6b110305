from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage.copies import copy_points, pieces, plan_copy
from storage.errors import Refused, StoreFailed
from storage.forgotten import COPIED_FROM, forgotten
from storage.joining import join
from storage.marks import MarkKind
from storage.repository import Repository, open_repository
from storage.verify import verify
from tests.storage_kit import (
    BLOCK,
    NOW,
    FaultyBlobs,
    back_up,
    changed,
    files,
    image,
    later,
    make,
    opened,
    read_back,
)


def _history(repo: Repository) -> dict[PointId, bytes]:
    """Three restore points of one VM, whose disk grows and shrinks, and one of another; their disks by id."""
    first = image(1, 40, tail=100)
    second = changed(first, 2, (3, 4, 17))
    grown = bytearray(second) + image(3, 30)
    shrunk = grown[: 21 * BLOCK + 7]
    one = back_up(repo, first, at=NOW)
    two = back_up(repo, second, at=later(hours=1), base=one.id, blocks=(3, 4, 17))
    three = back_up(repo, grown, at=later(hours=2))
    four = back_up(repo, shrunk, at=later(hours=3))
    other = back_up(repo, first, vm="vm-2", name="db", at=later(hours=4))
    disks = {one.id: first, two.id: second, three.id: grown, four.id: shrunk, other.id: first}
    return {point: bytes(disk) for point, disk in disks.items()}


@pytest.mark.parametrize(
    ("from_encrypted", "to_encrypted"), [(False, False), (True, False), (False, True), (True, True)]
)
@pytest.mark.parametrize("to_block", [BLOCK, 4 * BLOCK])
def test_a_copied_restore_point_is_the_same_under_the_same_id(
    tmp_path: Path, from_encrypted: bool, to_encrypted: bool, to_block: int
) -> None:
    make(tmp_path / "a", encrypted=from_encrypted)
    make(tmp_path / "b", encrypted=to_encrypted, block_bytes=to_block)
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        disks = _history(source)
        outcome = copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert set(outcome.copied) == set(disks)
        assert not outcome.failed
        for point, disk in disks.items():
            assert read_back(target, point) == disk
            head, copy = source.detail(point).head, target.detail(point).head
            assert copy.attributes[COPIED_FROM] == source.repository_id
            assert (copy.vm, copy.vm_name, copy.taken_at) == (head.vm, head.vm_name, head.taken_at.astimezone(UTC))
        assert verify(target, now=NOW).sound


def test_only_what_is_missing_is_read_again(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", encrypted=True)
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        disk = image(1, 200)
        first = back_up(source, disk)
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        later_disk = changed(disk, 2, (5, 90))
        second = back_up(source, later_disk, at=later(hours=1), base=first.id, blocks=(5, 90))
        plan = plan_copy(source, target)
        assert [point.id for point in plan.missing] == [second.id]
        outcome = copy_points(source, target, plan, now=lambda: NOW)
        assert outcome.moved_bytes == 2 * BLOCK
        assert read_back(target, second.id) == later_disk
        again = copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert (again.copied, again.there, again.moved_bytes) == ((), 2, 0)


@pytest.mark.parametrize("fail_at", range(2, 40, 3))
def test_a_copy_that_was_interrupted_goes_on(tmp_path: Path, fail_at: int) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source:
        disks = _history(source)
        faulty = FaultyBlobs(tmp_path / "b", fail_at)
        try:
            with opened(tmp_path / "b", blobs=faulty) as target:
                copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        except StoreFailed:
            assert faulty.fired
        with opened(tmp_path / "b") as target:
            plan = plan_copy(source, target)
            assert plan.there + len(plan.missing) == len(disks)
            copy_points(source, target, plan, now=lambda: NOW)
            for point, disk in disks.items():
                assert read_back(target, point) == disk


def test_holds_and_locks_come_along_and_no_release_does(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        point = back_up(source, image(1, 10)).id
        source.mark_hold(point, "court", NOW)
        source.mark_lock(point, later(days=30), "rule", NOW)
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert target.detail(point).holds == ("court",)
        assert target.detail(point).locked_until == later(days=30)
        source.release(point, None, NOW)
        source.mark_hold(point, "audit", NOW)
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert target.detail(point).holds == ("court", "audit")


def test_a_damaged_restore_point_is_told_and_the_others_are_copied(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source:
        lost = back_up(source, image(1, 30), vm="vm-1").id
    pack = files(tmp_path / "a", "packs")
    data = next(path for path in pack if path.suffix == ".data")
    with opened(tmp_path / "a") as source:
        good = back_up(source, image(2, 30), vm="vm-2", at=later(hours=1)).id
    broken = bytearray(data.read_bytes())
    broken[200] ^= 1
    data.write_bytes(broken)
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        outcome = copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert outcome.copied == (good,)
        assert [point for point, _ in outcome.failed] == [lost]
        assert [point.id for point in target.points()] == [good]


def test_only_the_restore_points_asked_for_are_copied(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        first, _ = back_up(source, image(1, 10)).id, back_up(source, image(2, 10), at=later(hours=1))
        copy_points(source, target, plan_copy(source, target, [first]), now=lambda: NOW)
        assert target.point_ids() == {first}


def test_a_history_that_was_joined_is_joined_in_the_copy(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    old, new = VmId("vm-old"), VmId("vm-new")
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        before = back_up(source, image(1, 10), vm=new).id
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        join(source, new, old, NOW)
        after = back_up(source, image(2, 10), vm=old, at=later(hours=1)).id
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert [point.id for point in target.points(old)] == [before, after]
        assert target.points(new) == []


def test_a_repository_is_not_copied_into_itself(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with opened(tmp_path / "a") as source, pytest.raises(Refused, match="the same repository"):
        plan_copy(source, source)


def test_pieces_lie_on_the_targets_grid_and_cover_the_extents() -> None:
    asked = [(100, 50), (4096, 10), (9000, 1), (40_000, 10_000)]
    found = list(pieces(iter(asked), 4096, 45_000))
    assert found == [(0, 12288), (36864, 45_000 - 36864)]
    large = list(pieces(iter([(0, 5 << 20)]), 65536, 5 << 20))
    assert [length for _, length in large] == [1 << 20] * 5


def test_a_manifest_of_a_newer_version_keeps_no_other_restore_point_from_being_copied(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source:
        first, second = back_up(source, image(1, 40)), back_up(source, image(2, 40), at=later(hours=1))
    _flip(tmp_path / "a" / "manifests" / first.id, 8)
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        outcome = copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert outcome.copied == (second.id,)
        assert [point for point, _ in outcome.failed] == [first.id]


@pytest.mark.parametrize("what", ["manifest", "map"])
def test_damage_in_the_target_keeps_no_later_restore_point_from_being_copied(tmp_path: Path, what: str) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source:
        disk = image(1, 200)
        first = back_up(source, disk)
        with opened(tmp_path / "b") as target:
            copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        blocks = (3, 70, 140, 199)  # a new node everywhere
        newer = changed(disk, 2, blocks)
        second = back_up(source, newer, at=later(hours=1), base=first.id, blocks=blocks)
        tree = next(path for path in files(tmp_path / "b", "packs") if path.suffix == ".tree")
        _flip(tmp_path / "b" / "manifests" / first.id if what == "manifest" else tree, 140)
        with opened(tmp_path / "b") as target:
            outcome = copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
            assert outcome.copied == (second.id,)
            assert read_back(target, second.id) == newer


def test_a_copy_that_shares_what_is_damaged_is_not_called_sound(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source:
        disk = image(1, 200)
        first = back_up(source, disk)
        with opened(tmp_path / "b") as target:
            copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        second = back_up(source, changed(disk, 2, (3,)), at=later(hours=1), base=first.id, blocks=(3,))
        (tree,) = (path for path in files(tmp_path / "b", "packs") if path.suffix == ".tree")
        data = bytearray(tree.read_bytes())
        footer = int.from_bytes(data[-64:-56], "little")
        data[128:footer] = bytes(footer - 128)  # every node
        _write(tree, bytes(data))
        with opened(tmp_path / "b") as target:
            outcome = copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
            assert [point for point, _ in outcome.failed] == [second.id]
            assert target.mark_state(second.id).damaged


def test_what_was_expired_in_a_copy_is_not_said_to_be_copied_under_its_tombstone(tmp_path: Path) -> None:
    make(tmp_path / "a")
    terms = {"socket": str(tmp_path / "keeper.sock"), "writer_uid": 12345}
    (make(tmp_path / "b") / "keeper.json").write_text(json.dumps(terms))  # several processes may write it
    (tmp_path / "b" / "spool" / "owner").mkdir(parents=True)
    with (
        opened(tmp_path / "a") as source,
        open_repository(tmp_path / "b", now=NOW, owner="test", state_dir=tmp_path / "state") as target,
    ):
        point = back_up(source, image(1, 40))
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        target.expire(point.id, "by hand", NOW)
        plan = plan_copy(source, target)
        assert (plan.missing, plan.there, plan.expired) == ((), 0, 1)
        with pytest.raises(Refused, match=r"tombstone still lies here \(it goes 30 days after"):
            plan_copy(source, target, again=[point.id])


def test_what_another_process_copied_meanwhile_is_there(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        back_up(source, image(1, 40))
        plan = plan_copy(source, target)
        copy_points(source, target, plan, now=lambda: NOW)
        outcome = copy_points(source, target, plan, now=lambda: NOW)
        assert (outcome.copied, outcome.there, outcome.failed) == ((), 1, ())


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 2
    _write(path, bytes(data))


def _write(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def test_what_retention_expired_in_the_copy_stays_away_until_somebody_asks_for_it(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        disks = _history(source)
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        first, second, third, *_ = disks
        target.mark_expiring(first, "old", NOW)
        target.expire(first, "marked long enough", NOW)
        target.expire(second, "no grace", NOW, by_retention=True)
        target.expire(third, "by hand", NOW)
        plan = plan_copy(source, target)
        assert ([one.id for one in plan.missing], plan.there, plan.expired) == ([third], len(disks) - 3, 2)
        outcome = copy_points(source, target, plan_copy(source, target, [first], again=[first]), now=lambda: NOW)
        assert (outcome.copied, outcome.expired) == ((first,), 0)
        assert read_back(target, first) == disks[first]
        target.expire(first, "by hand", NOW)
        source.expire(second, "old", NOW)
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        assert {first, third} <= target.point_ids()
        assert not forgotten(target.private)


def test_what_retention_keeps_again_or_is_damaged_comes_back(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
        kept, damaged = list(_history(source))[:2]
        copy_points(source, target, plan_copy(source, target), now=lambda: NOW)
        target.mark_expiring(kept, "old", NOW)
        target.unmark(kept, "kept again", NOW)
        target.expire(kept, "by hand", NOW)
        target.add_mark(damaged, MarkKind.DAMAGED, NOW, "a flipped bit")
        target.expire(damaged, "no grace", NOW, by_retention=True)
        assert {one.id for one in plan_copy(source, target).missing} == {kept, damaged}
