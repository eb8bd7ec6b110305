"""Locks of objects on a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest

from storage.errors import AccessRefused, Missing, Refused
from storage.objectlock import ObjectLocks
from storage.places import ObjectPlace
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
