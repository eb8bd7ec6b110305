"""Reclaim's two phases on a local repository, with a store whose clock the test moves."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from policies.facts import VmId
from storage import commitment
from storage.blobs import LocalBlobs
from storage.commitment import ANNOUNCED_KEPT, COMMITTING, Learnt, Reliance, announced, boot_seconds
from storage.condemned import CONDEMNED, FREED_KEPT, FREEING, Condemnation, note_key, noted, read_note, write_note
from storage.errors import Overtaken, Refused
from storage.manifest import encode, manifest_key
from storage.reclaim import ReclaimOutcome, SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository
from storage.verify import verify
from tests.storage_kit import DISK, NOW, back_up, changed, files, image, later, make, opened, read_back

DAY = timedelta(hours=24)
EAGER = Thresholds(dead_share=0.01)


class Aging(LocalBlobs):
    """A directory whose clock runs ahead by as much as the test says."""

    ahead = timedelta(0)

    def clock(self) -> datetime:
        return super().clock() + self.ahead


def _reclaim(repo: Repository) -> ReclaimOutcome:
    return carry_out(repo, plan_reclaim(repo, NOW, SafetyAges(), EAGER), NOW)


def test_a_dead_pack_is_condemned_first_and_freed_a_day_later(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    with opened(location, blobs=blobs) as repo:
        gone, kept = back_up(repo, image(1, 40), vm="gone"), back_up(repo, image(2, 40))
        repo.expire(gone.id, "old", NOW)
        assert plan_reclaim(repo, NOW).young == 4
        blobs.ahead = 2 * DAY
        plan = plan_reclaim(repo, NOW)
        assert (len(plan.condemn), plan.free, plan.freed_bytes) == (2, (), 0)
        assert plan.condemned_bytes == sum(fate.bytes for fate in plan.condemn) > 0
        outcome = carry_out(repo, plan, NOW)
        assert (outcome.condemned, outcome.freed, outcome.freed_bytes) == (2, 0, 0)
        assert len(files(location, "packs")) == 4
    with opened(location, blobs=blobs) as repo:
        said = read_note(blobs, repo.sealing, CONDEMNED, plan.condemn[0].name)
        assert said.reason == plan.condemn[0].reason
        blobs.ahead = timedelta(hours=1)  # the condemnations are an hour old
        plan = plan_reclaim(repo, NOW)
        assert (len(plan.waiting), plan.idle) == (2, True)
        assert all(fate.until is not None for fate in plan.waiting)
        blobs.ahead = DAY + timedelta(minutes=1)
        outcome = _reclaim(repo)
        assert (outcome.freed, outcome.freed_bytes > 0) == (2, True)
        assert len(files(location, "packs")) == repo.sizes().packs == 2
        assert not files(location, "condemned")
        assert read_back(repo, kept.id) == image(2, 40)
        assert verify(repo, now=NOW).sound


def test_nothing_refers_anew_to_a_condemned_pack_and_it_is_freed_all_the_same(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    disk = image(3, 40)
    with opened(location, blobs=blobs) as repo:
        repo.expire(back_up(repo, disk).id, "old", NOW)
        blobs.ahead = 2 * DAY
        assert _reclaim(repo).condemned == 2
        again = back_up(repo, disk)
        assert again.stored_bytes > 0
    with opened(location, blobs=blobs) as repo:
        third = back_up(repo, disk, at=later(hours=1))
        assert third.stored_bytes == 0
        outcome = _reclaim(repo)
        assert (outcome.freed, outcome.taken_back) == (2, 0)
        assert read_back(repo, again.id) == read_back(repo, third.id) == disk


def test_a_condemned_pack_that_is_reached_again_is_taken_back(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    disk = image(4, 40)
    with opened(location, blobs=blobs) as repo:
        point = back_up(repo, disk)
        manifest = location / "manifests" / point.id
        data = manifest.read_bytes()
        repo.expire(point.id, "by mistake", NOW)
        blobs.ahead = 2 * DAY
        assert _reclaim(repo).condemned == 2
        manifest.write_bytes(data)
        plan = plan_reclaim(repo, NOW)
        assert (len(plan.take_back), plan.free) == (2, ())
        assert carry_out(repo, plan, NOW).taken_back == 2
        assert not files(location, "condemned")
        assert read_back(repo, point.id) == disk
        assert back_up(repo, disk, at=later(hours=1)).stored_bytes == 0


def test_live_chunks_are_copied_before_their_pack_is_condemned(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    first = image(5, 200)
    second = changed(first, 6, range(150))
    with opened(location, blobs=blobs) as repo:
        one = back_up(repo, first)
        two = back_up(repo, second, base=one.id, blocks=range(150))
        repo.expire(one.id, "old", NOW)
        blobs.ahead = 2 * DAY
        outcome = _reclaim(repo)
        assert (outcome.rewritten > 0, outcome.copied_bytes > 0, outcome.freed) == (True, True, 0)
        before = repo.sizes().stored_bytes
    with opened(location, blobs=blobs) as repo:
        outcome = _reclaim(repo)
        assert outcome.freed > 0
        assert outcome.taken_back == 0
        assert repo.sizes().stored_bytes < before
        assert read_back(repo, two.id) == second
        assert verify(repo, now=NOW).sound


def test_a_listing_that_lacks_a_manifest_which_is_there_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        kept = back_up(repo, image(7, 40))
        honest = repo.blobs.list
        monkeypatch.setattr(
            repo.blobs, "list", lambda prefix: iter([key for key in honest(prefix) if key != manifest_key(kept.id)])
        )
        with pytest.raises(Refused, match="listing lacks"):
            carry_out(repo, plan_reclaim(repo, later(days=9), SafetyAges(timedelta(0)), EAGER), NOW)
        assert len(files(location, "packs")) == 2


def test_a_commit_is_overtaken_when_what_it_refers_to_is_being_freed(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    disk = image(8, 40)
    with opened(location) as repo:
        repo.shared = True
        back_up(repo, disk)
        with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
            ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
            ingest.write(0, memoryview(disk))
            ingest.finish()
            name = max(repo.store.live.values())
            write_note(repo.blobs, repo.sealing, FREEING, Condemnation(name, "a test", NOW, ""))
            with pytest.raises(Overtaken) as told:
                pending.commit()
        assert told.value.retry
        assert not files(location, "committing")
        assert len(repo.point_ids()) == 1


def test_a_commit_long_after_the_packs_were_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(make(tmp_path / "r")) as repo:
        repo.shared = True
        with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
            now = commitment.boot_seconds()
            monkeypatch.setattr(commitment, "boot_seconds", lambda: now + 21 * 3600)
            with pytest.raises(Overtaken, match="21:00:00"):
                pending.commit()
        repo.shared = False
        with repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
            assert pending.commit()


def test_what_was_freed_can_be_told_for_two_days(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    with opened(location, blobs=blobs) as repo:
        gone = back_up(repo, image(9, 10))
        (name, *_) = sorted(repo.store.live.values())
        repo.expire(gone.id, "old", NOW)
        write_note(blobs, repo.sealing, FREEING, Condemnation(name, "cut short", NOW, ""))
        assert carry_out(repo, plan_reclaim(repo, NOW), NOW).freed == 1
        assert noted(blobs, FREEING) == {name}
        assert (location / note_key(FREEING, name)).exists()
        blobs.ahead = FREED_KEPT + timedelta(minutes=1)
        _reclaim(repo)
        assert not noted(blobs, FREEING)


def test_a_pack_that_the_store_does_not_let_go_of_stays_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        point = back_up(repo, image(10, 10))
        repo.expire(point.id, "old", NOW)
        delete = repo.blobs.delete

        def locked(key: str) -> None:
            if key.startswith("packs/"):
                raise Refused("locked", where=key)
            delete(key)

        plan = plan_reclaim(repo, NOW, SafetyAges(timedelta(0)))
        with monkeypatch.context() as patched:
            patched.setattr(repo.blobs, "delete", locked)
            outcome = carry_out(repo, plan, NOW)
        assert (outcome.freed, outcome.kept) == (0, 2)
        assert back_up(repo, image(10, 10), at=later(hours=1)).stored_bytes == 0
        assert verify(repo, now=NOW).sound


def _died_as_it_announced(repo: Repository) -> str:
    """The key of what a writer announced that died right afterwards."""
    manifest = repo.manifest(min(repo.point_ids()))
    reliance = Reliance(Learnt(boot_seconds()), (), ())
    with pytest.raises(KeyboardInterrupt), announced(repo.blobs, repo.sealing, manifest.id, encode(manifest), reliance):
        raise KeyboardInterrupt
    [key] = repo.blobs.list(COMMITTING)
    return key


def test_an_announcement_keeps_what_it_reaches_until_its_writer_must_have_died(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    with opened(location, blobs=blobs) as repo:
        repo.shared = True
        point = back_up(repo, image(1, 40))
        key = _died_as_it_announced(repo)
        repo.expire(point.id, "old", NOW)
        blobs.ahead = ANNOUNCED_KEPT - timedelta(hours=1)
        assert plan_reclaim(repo, NOW).idle
        _reclaim(repo)
        assert list(blobs.list(COMMITTING)) == [key]
        assert verify(repo, now=NOW).sound
        blobs.ahead = ANNOUNCED_KEPT + timedelta(hours=1)
        _reclaim(repo)
        assert not list(blobs.list(COMMITTING))
        assert not plan_reclaim(repo, NOW).idle
        repo.shared = False


@pytest.mark.parametrize("left", [0, 100], ids=["empty", "cut"])
def test_an_announcement_that_cannot_be_read_holds_reclaim_up_until_verify_removes_it(
    tmp_path: Path, left: int
) -> None:
    location = make(tmp_path / "r")
    blobs = Aging(location)
    with opened(location, blobs=blobs) as repo:
        repo.shared = True
        disk = image(1, 40)
        point = back_up(repo, disk)
        key = _died_as_it_announced(repo)
        (location / key).write_bytes(blobs.get(key)[:left])
        with pytest.raises(Refused, match="cannot be told"):
            plan_reclaim(repo, NOW)
        [told] = verify(repo, now=NOW).damaged
        assert (told.object, told.points, told.mended) == (key, (), "")
        assert "reclaim waits until it is 7 days old" in told.what
        blobs.ahead = ANNOUNCED_KEPT + timedelta(hours=1)
        [told] = verify(repo, now=NOW).damaged
        assert (told.object, told.mended) == (key, "removed, as its writer died long ago")
        assert verify(repo, now=NOW).sound
        assert plan_reclaim(repo, NOW).idle
        assert read_back(repo, point.id) == disk
        repo.shared = False
