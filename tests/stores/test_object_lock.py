"""Locks of objects on a real S3 server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest

from policies.facts import RestorePoint, VmId
from storage.errors import AccessRefused, Missing, Refused
from storage.objectlock import ObjectLocks
from storage.places import ObjectPlace
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository, open_repository
from tests.storage_kit import DISK, image, make, read_back
from tests.stores.fixtures import PlaceOf
from tests.stores.server import ObjectServer

BUCKET = "lockable"


@pytest.fixture(scope="module")
def lockable(object_server: ObjectServer) -> Iterator[ObjectServer]:
    object_server.make_lockable_bucket(BUCKET)
    yield object_server


def _soon(**delta: float) -> datetime:
    return datetime.now(UTC) + timedelta(**delta)


def test_a_locked_version_outlives_every_attempt_to_remove_it(lockable: ObjectServer, tmp_path: Path) -> None:
    place = lockable.place(tmp_path, "here", bucket=BUCKET)
    store = lockable.store(BUCKET)
    obstore.put(store, "here/packs/a", b"pack")
    locks = ObjectLocks(place)
    locks.check()
    assert locks.until("packs/a") is None
    until = _soon(hours=1)
    locks.extend("packs/a", until)
    found = locks.until("packs/a")
    assert found is not None and until <= found <= until + timedelta(seconds=1)
    locks.extend("packs/a", _soon(minutes=5))
    assert locks.until("packs/a") == found
    longer = _soon(hours=3)
    locks.extend("packs/a", longer)
    assert (locks.until("packs/a") or until) >= longer
    with pytest.raises(AccessRefused):
        lockable.remove_versions(BUCKET, "here/packs/a")


def test_what_is_not_there_cannot_be_locked(lockable: ObjectServer, tmp_path: Path) -> None:
    locks = ObjectLocks(lockable.place(tmp_path, "here", bucket=BUCKET))
    with pytest.raises(Missing):
        locks.extend("packs/none", _soon(hours=1))
    with pytest.raises(Missing):
        locks.until("packs/none")


def test_a_bucket_without_object_lock_is_refused_with_what_to_do(lockable: ObjectServer, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="another bucket"):
        ObjectLocks(lockable.place(tmp_path, "here")).check()


def test_a_wrong_key_is_told_without_itself(lockable: ObjectServer, tmp_path: Path) -> None:
    login = {"access_key_id": lockable.key, "secret_access_key": "not-the-secret"}
    place = ObjectPlace("s3", BUCKET, "here", endpoint=lockable.endpoint, state_dir=tmp_path, credentials=lambda: login)
    with pytest.raises(AccessRefused) as told:
        ObjectLocks(place).check()
    assert "not-the-secret" not in str(told.value)


def test_other_stores_have_no_such_locks(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="only S3"):
        ObjectLocks(ObjectPlace("gs", "bucket", state_dir=tmp_path))


@pytest.fixture
def place(lockable: ObjectServer, tmp_path: Path) -> ObjectPlace:
    """An empty repository in a bucket whose objects can be locked."""
    place = replace(lockable.place(tmp_path / "state", f"r/{secrets.token_hex(6)}", bucket=BUCKET), object_lock=True)
    return make(place)


def _locked(repo: Repository, name: str, disk: bytearray, until: datetime | None) -> RestorePoint:
    head = PointHead(VmId(f"vm-{name}"), name, datetime.now(UTC), locked_until=until)
    with repo.new_point(head) as pending:
        ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
        ingest.write(0, memoryview(disk))
        ingest.finish()
        return pending.commit()


def _packs(repo: Repository) -> dict[str, datetime | None]:
    assert repo.locking is not None
    return {name.key: repo.locking.until(name.key) for name in repo.store.live.values()}


def test_every_pack_of_a_locked_point_is_locked_before_it_is_committed(place: ObjectPlace) -> None:
    disk, until = image(1, 30), _soon(hours=2)
    with _opened(place) as repo:
        _locked(repo, "free", image(2, 30), None)
        assert set(_packs(repo).values()) == {None}
        known = set(_packs(repo))
        point = _locked(repo, "web", disk, until)
        locked = {key: end for key, end in _packs(repo).items() if key not in known}
        assert len(locked) == 2 and all(end is not None and end >= until for end in locked.values())
        assert repo.locking is not None
        end = repo.locking.until(f"manifests/{point.id}")
        assert end is not None and end >= until
        # A point that shares every chunk with one that is not locked locks the packs of that one.
        _locked(repo, "again", image(2, 30), until)
        assert all(end is not None and end >= until for end in _packs(repo).values())


def test_a_lock_that_fails_leaves_no_restore_point(place: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ObjectLocks, key: str, until: datetime) -> None:
        raise AccessRefused("made to refuse", where=key)

    with _opened(place) as repo:
        monkeypatch.setattr(ObjectLocks, "extend", refuse)
        with pytest.raises(AccessRefused):
            _locked(repo, "web", image(1, 30), _soon(hours=2))
        assert repo.points() == []
        monkeypatch.undo()
        _locked(repo, "web", image(1, 30), _soon(hours=2))


def test_reclaim_leaves_locked_packs_alone_and_frees_them_when_the_lock_has_ended(place: ObjectPlace) -> None:
    ages = SafetyAges(timedelta(0), timedelta(days=36500))
    with _opened(place) as repo:
        short = _locked(repo, "short", image(1, 30), _soon(seconds=3))
        kept = _locked(repo, "long", image(2, 30), _soon(hours=2))
        packs = set(_packs(repo))
        ended = short.locked_until
        assert ended is not None
        with pytest.raises(Refused, match="locked until"):
            repo.expire(short.id, "old", datetime.now(UTC))
        repo.expire(short.id, "old", ended + timedelta(seconds=1))  # a clock that runs ahead
        for key in packs:
            with pytest.raises(Refused, match="locked until"):
                repo.blobs.delete(key)
        plan = plan_reclaim(repo, datetime.now(UTC), ages)
        assert plan.idle
        while datetime.now(UTC) < ended + timedelta(seconds=1):
            time.sleep(0.1)
        carry_out(repo, plan_reclaim(repo, datetime.now(UTC), ages), datetime.now(UTC))
        assert len(_packs(repo)) < len(packs)
        assert read_back(repo, kept.id) == image(2, 30)


def test_the_timer_locks_what_came_later(place: ObjectPlace) -> None:
    until = _soon(hours=2)
    with _opened(place) as repo:
        point = _locked(repo, "web", image(1, 30), None)
        repo.mark_lock(point.id, until, "a person", datetime.now(UTC))
        assert set(_packs(repo).values()) == {None}
        assert repo.renew_locks(datetime.now(UTC)) == 3  # two packs and the manifest
        assert all(end is not None and end >= until for end in _packs(repo).values())
        assert repo.renew_locks(datetime.now(UTC)) == 0


def test_a_repository_whose_bucket_locks_nothing_is_not_opened_with_object_lock(
    writer_place: PlaceOf, tmp_path: Path
) -> None:
    place = make(writer_place("a"))
    with pytest.raises(Refused, match="not on in this bucket"):
        open_repository(replace(place, object_lock=True), now=datetime.now(UTC))


def _opened(place: ObjectPlace) -> Repository:
    return open_repository(place, now=lambda: datetime.now(UTC), owner="test")


def test_no_repository_is_made_with_object_lock_in_a_bucket_that_has_none(
    lockable: ObjectServer, tmp_path: Path
) -> None:
    place = lockable.place(tmp_path, f"none/{secrets.token_hex(6)}")
    with pytest.raises(Refused, match="Object Lock is not on"):
        make(replace(place, object_lock=True))
    make(place)
