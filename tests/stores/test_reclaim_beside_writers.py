"""Reclaim beside the writers of other machines, on a real S3 server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from policies.facts import VmId
from storage.errors import Overtaken
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository, create, open_repository
from storage.verify import verify
from tests.storage_kit import BLOCK, DISK, back_up, changed, image, read_back
from tests.stores.fixtures import PlaceOf

AT_ONCE = SafetyAges(timedelta(0))
EAGER = Thresholds(dead_share=0.01)


def _now() -> datetime:
    return datetime.now(UTC)


def _writer(writer_place: PlaceOf, name: str) -> Repository:
    return open_repository(writer_place(name), now=_now, owner=name)


def test_a_backup_that_a_reclaim_elsewhere_overtakes_is_told_so_and_the_next_one_succeeds(
    writer_place: PlaceOf,
) -> None:
    disk = image(1, 30)
    create(writer_place("one"), now=_now(), block_bytes=BLOCK)
    with _writer(writer_place, "one") as one:
        gone = back_up(one, disk, at=_now())
        with _writer(writer_place, "two") as two:
            one.expire(gone.id, "old", _now())
            with two.new_point(PointHead(VmId("v"), "v", _now())) as pending:
                ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
                ingest.write(0, memoryview(disk))
                assert ingest.finish().new_bytes == 0
                assert carry_out(one, plan_reclaim(one, _now(), AT_ONCE), _now()).freed == 2
                with pytest.raises(Overtaken):
                    pending.commit()
            two.refresh()
            again = back_up(two, disk, at=_now())
            assert again.stored_bytes > 0
            assert carry_out(one, plan_reclaim(one, _now(), AT_ONCE), _now()).freed == 0
            assert read_back(two, again.id) == disk
            assert verify(two, now=_now()).sound


def test_a_restore_elsewhere_finds_what_reclaim_has_copied_meanwhile(writer_place: PlaceOf) -> None:
    first = image(2, 60)
    second = changed(first, 3, range(40))
    create(writer_place("one"), now=_now(), block_bytes=BLOCK)
    with _writer(writer_place, "one") as one:
        old = back_up(one, first, at=_now())
        kept = back_up(one, second, base=old.id, blocks=range(40), at=_now())
        with _writer(writer_place, "two") as two:
            reading = two.read_disk(kept.id, DISK)
            one.expire(old.id, "old", _now())
            outcome = carry_out(one, plan_reclaim(one, _now(), AT_ONCE, EAGER), _now())
            assert outcome.rewritten > 0
            data = bytearray(len(second))
            reading.read_into(0, memoryview(data))
            assert data == second


def test_two_phases_on_an_object_store(writer_place: PlaceOf) -> None:
    create(writer_place("one"), now=_now(), block_bytes=BLOCK)
    short = SafetyAges(timedelta(milliseconds=1))
    with _writer(writer_place, "one") as one:
        gone, kept = back_up(one, image(4, 20), vm="gone", at=_now()), back_up(one, image(5, 20), at=_now())
        one.expire(gone.id, "old", _now())
        while not (condemned := carry_out(one, plan_reclaim(one, _now(), short), _now()).condemned):
            pass  # the packs are younger than the store's clock can tell
        while not (freed := carry_out(one, plan_reclaim(one, _now(), short), _now()).freed):
            pass
        assert condemned == freed == 2
        assert read_back(one, kept.id) == image(5, 20)
        assert verify(one, now=_now()).sound


def test_packs_that_a_reclaim_elsewhere_frees_are_no_damage(writer_place: PlaceOf) -> None:
    create(writer_place("one"), now=_now(), block_bytes=BLOCK)
    with _writer(writer_place, "one") as one:
        gone = back_up(one, image(1, 30), at=_now())
        kept = back_up(one, image(2, 30), vm="vm-2", at=_now())
        with _writer(writer_place, "two") as two:

            def free(_: int) -> None:
                if gone.id in one.point_ids():
                    one.expire(gone.id, "old", _now())
                    assert carry_out(one, plan_reclaim(one, _now(), AT_ONCE), _now()).freed

            # What the other reads first decides whether it meets a freed pack; damage it never tells.
            try:
                assert verify(two, now=_now(), progress=free, threads=1).sound
            except Overtaken as told:
                assert "another process freed packs" in str(told)
            assert verify(two, now=_now()).sound
            assert [(point.id, point.damaged) for point in two.points()] == [(kept.id, False)]
            assert not two.store.distrusted.packs
