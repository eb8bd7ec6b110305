from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage.errors import Refused
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository
from storage.verify import verify
from tests.storage_kit import BLOCK, DISK, NOW, back_up, changed, image, later, make, opened, read_back

AGELESS = SafetyAges(min_age=timedelta(0), clock_ahead=timedelta(days=36500))
EAGER = Thresholds(dead_share=0.01)
MUCH_LATER = later(days=3650)


def _reclaim(repo: Repository) -> int:
    return carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS, EAGER), MUCH_LATER).freed_bytes


def test_nothing_that_a_restore_point_reaches_is_planned(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, image(1, 100))
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS, EAGER)
        assert (plan.condemn, plan.rewrite, plan.freed_bytes) == ((), (), 0)


def test_packs_of_an_expired_point_are_dropped_and_shared_ones_stay(tmp_path: Path) -> None:
    disk = image(2, 100)
    with opened(make(tmp_path / "r")) as repo:
        gone = back_up(repo, image(3, 100), vm="gone")
        kept = back_up(repo, disk)
        repo.expire(gone.id, "old", NOW)
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert len(plan.condemn) == 2
        assert "condemn" in str(plan)
        outcome = carry_out(repo, plan, MUCH_LATER)
        assert (outcome.freed, outcome.kept) == (2, 0)
        assert outcome.freed_bytes == plan.freed_bytes
        assert repo.sizes().packs == 2
        assert read_back(repo, kept.id) == disk
        assert verify(repo, now=NOW).sound


def test_a_partly_dead_pack_is_written_again_without_its_dead_part(tmp_path: Path) -> None:
    first = image(4, 200)
    second = changed(first, 5, range(150))
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, first)
        two = back_up(repo, second, base=one.id, blocks=range(150))
        repo.expire(one.id, "old", NOW)
        before = repo.sizes().stored_bytes
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert plan.rewrite
        closed = carry_out(repo, plan, MUCH_LATER, lambda: False)
        assert (closed.rewritten, closed.kept, closed.copied_bytes) == (0, 0, 0), "its window is over: it is left"
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert plan.rewrite
        outcome = carry_out(repo, plan, MUCH_LATER)
        assert outcome.rewritten == len(plan.rewrite)
        assert repo.sizes().stored_bytes < before
        assert read_back(repo, two.id) == second
        assert verify(repo, now=NOW).sound
    with opened(tmp_path / "r") as repo:
        assert read_back(repo, two.id) == second
        assert not plan_reclaim(repo, MUCH_LATER, AGELESS).condemn


def test_young_packs_are_left_alone_by_either_clock(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        gone = back_up(repo, image(6, 20))
        repo.expire(gone.id, "old", NOW)
        soon = plan_reclaim(repo, later(hours=1))
        assert (soon.condemn, soon.young) == ((), 2)
        by_our_clock_only = plan_reclaim(repo, later(days=2))
        assert by_our_clock_only.young == 2 or by_our_clock_only.condemn


def test_a_clock_that_runs_behind_the_packs_stops_reclaim(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, image(7, 20))
        with pytest.raises(Refused, match="from the future"):
            plan_reclaim(repo, later(days=-1))


def test_reclaim_refuses_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, image(8, 20))
        (manifest,) = (tmp_path / "r" / "manifests").iterdir()
        data = bytearray(manifest.read_bytes())
        data[-40] ^= 1
        manifest.write_bytes(data)
        with pytest.raises(Refused, match="cannot be told"):
            plan_reclaim(repo, MUCH_LATER, AGELESS)


def test_a_point_committed_after_the_plan_keeps_what_it_found_in_dead_packs(tmp_path: Path) -> None:
    disk = image(9, 100)
    with opened(make(tmp_path / "r")) as repo:
        gone = back_up(repo, disk)
        repo.expire(gone.id, "old", NOW)
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert len(plan.condemn) == 2
        late = back_up(repo, disk, vm="late")
        assert late.stored_bytes == 0
        outcome = carry_out(repo, plan, MUCH_LATER)
        assert (outcome.freed, outcome.kept) == (0, 2)
        assert read_back(repo, late.id) == disk


def test_a_point_under_way_keeps_what_it_refers_to_and_its_base(tmp_path: Path) -> None:
    disk = image(10, 100)
    other = image(11, 50)
    with opened(make(tmp_path / "r")) as repo:
        base = back_up(repo, disk)
        seen = back_up(repo, other, vm="seen")
        with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
            based = pending.disk(DiskHead(DISK, len(disk)), base=(base.id, DISK))
            found = pending.disk(DiskHead("two", len(other)), base=None)
            found.write(0, memoryview(other))
            for point in (base, seen):
                repo.expire(point.id, "old", NOW)
            _reclaim(repo)
            based.finish()
            found.finish()
            point = pending.commit()
        _reclaim(repo)
        assert read_back(repo, point.id) == disk
        assert read_back(repo, point.id, "two") == other
        assert verify(repo, now=NOW).sound


def test_a_base_that_expires_before_it_is_taken_is_refused(tmp_path: Path) -> None:
    from storage.errors import NoSuchPoint

    with opened(make(tmp_path / "r")) as repo:
        base = back_up(repo, image(12, 5))
        pending = repo.new_point(PointHead(VmId("v"), "v", NOW))
        repo.expire(base.id, "old", NOW)
        with pytest.raises(NoSuchPoint):
            pending.disk(DiskHead(DISK, 5 * BLOCK), base=(base.id, DISK))
        pending.abandon()


def test_many_small_packs_become_few(tmp_path: Path) -> None:
    disk = image(13, 200)
    with opened(make(tmp_path / "r")) as repo:
        last = back_up(repo, disk)
        for number in range(17):
            disk = changed(disk, 100 + number, [number])
            last = back_up(repo, disk, base=last.id, blocks=[number], at=later(hours=number + 1))
        before = repo.sizes().packs
        _reclaim(repo)
        assert before >= 36
        assert repo.sizes().packs <= 4
        assert read_back(repo, last.id) == disk


def test_backups_expiry_and_reclaim_run_beside_each_other(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        stop = threading.Event()
        errors: list[BaseException] = []

        def reclaim_always() -> None:
            try:
                while not stop.is_set():
                    _reclaim(repo)
            except BaseException as error:
                errors.append(error)

        beside = threading.Thread(target=reclaim_always)
        beside.start()
        disks: dict[PointId, bytearray] = {}
        disk = image(14, 120)
        base: PointId | None = None
        for number in range(12):
            disk = changed(disk, number % 3, range(number % 5, 100, 5))
            blocks = range(100) if base else None
            base = back_up(repo, disk, base=base, blocks=blocks, at=later(minutes=number)).id
            disks[base] = disk
            if number % 2:
                old = min(disks)
                repo.expire(old, "old", NOW)
                del disks[old]
        stop.set()
        beside.join()
        assert not errors
        _reclaim(repo)
        for point, then in disks.items():
            assert read_back(repo, point) == then
        assert verify(repo, now=NOW).sound


def test_a_disk_that_is_being_read_keeps_its_chunks_though_its_point_expires(tmp_path: Path) -> None:
    disk = image(15, 100)
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, disk)
        back_up(repo, image(16, 20), vm="other")
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS, EAGER)
        reader = repo.read_disk(point.id, DISK)
        repo.expire(point.id, "old", NOW)
        assert not plan.condemn
        _reclaim(repo)
        data = bytearray(len(disk))
        reader.read_into(0, memoryview(data))
        assert data == disk
        del reader
        assert _reclaim(repo) > 0


def _hurt(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("place", [900, -70], ids=["chunk", "footer"])
def test_damage_that_a_later_backup_healed_leaves_with_the_next_reclaim(
    tmp_path: Path, place: int, again: bool
) -> None:
    location = make(tmp_path / "r")
    disk = image(17, 60)
    with opened(location) as repo:
        one = back_up(repo, disk)
    hurt = sorted(location.rglob("*.data" if place > 0 else "*.tree")) + sorted(location.rglob("*.data"))
    with opened(location) as repo:
        for pack in set(hurt):
            _hurt(pack, place)
        assert not verify(repo, now=NOW).sound
        if place > 0:
            assert not plan_reclaim(repo, MUCH_LATER, AGELESS).condemn
        two = back_up(repo, disk, at=later(hours=1))
        assert [damage.points for damage in verify(repo, now=NOW).damaged] == [()] * len(set(hurt))
        if not again:
            assert carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS), MUCH_LATER).kept == 0
            assert verify(repo, now=NOW).sound
    with opened(location) as repo:
        if again:
            assert carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS), MUCH_LATER).kept == 0
        assert verify(repo, now=NOW).sound
        assert read_back(repo, one.id) == read_back(repo, two.id) == disk
        assert not {*hurt} & {*location.rglob("*.*")}


def test_a_pack_that_cannot_be_read_stays_while_restore_points_may_need_it(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        back_up(repo, image(18, 60))
        (pack,) = location.rglob("*.data")
        _hurt(pack, -70)
    with opened(location) as repo:
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        assert (plan.condemn, plan.rewrite) == ((), ())
        _hurt(pack, -70)
    with opened(location) as repo:
        assert verify(repo, now=NOW).sound


def test_what_a_reclaim_that_died_has_copied_is_not_copied_again(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    first = image(19, 200)
    second = changed(first, 20, range(150))
    with opened(location) as repo:
        one = back_up(repo, first)
        two = back_up(repo, second, base=one.id, blocks=range(150))
        repo.expire(one.id, "old", NOW)
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS)
        victims = {fate.name.key: (location / fate.name.key).read_bytes() for fate in plan.rewrite}
        assert victims
        carry_out(repo, plan, MUCH_LATER)
        stored = repo.sizes().stored_bytes
    for key, data in victims.items():
        (location / key).write_bytes(data)
    with opened(location) as repo:
        assert repo.sizes().stored_bytes > stored
        outcome = carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS), MUCH_LATER)
        assert (outcome.rewritten, outcome.copied_bytes) == (len(victims), 0)
        assert repo.sizes().stored_bytes == stored
        assert read_back(repo, two.id) == second
        assert verify(repo, now=NOW).sound
