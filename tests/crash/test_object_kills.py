"""SIGKILL of a process that writes a real object store: what it left half done harms no restore point."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.aftermath import after_a_crash, again
from tests.crash.objects import LOCKABLE, OBJECT_KILLS, OBJECT_SCENES, bucket_of, lock_until, reclaim_now
from tests.crash.stages import open_at, set_up
from tests.crash.victim import Victims
from tests.storage_kit import later
from tests.stores.server import ObjectServer


@pytest.fixture(scope="module")
def server(object_server: ObjectServer) -> ObjectServer:
    """The object server, with a bucket whose objects can be locked."""
    object_server.make_lockable_bucket(LOCKABLE)
    return object_server


@pytest.mark.parametrize(("name", "point", "committed"), OBJECT_KILLS)
def test_a_writer_of_an_object_store_killed_at_any_step_harms_no_restore_point(
    trials: Path, server: ObjectServer, victims: Victims, name: str, point: str, committed: int
) -> None:
    scene, location = OBJECT_SCENES[name], trials / "trial"
    stage = set_up(location, bucket=bucket_of(server, scene))
    if scene.prepare is not None:
        scene.prepare(location)
    assert victims.play(name, location, point).killed
    after_a_crash(location, stage, scene, least=committed, most=committed)
    if not scene.made:
        again(location, stage, scene)


def test_reclaim_waits_for_the_lock_of_packs_whose_writer_died_before_its_manifest(
    trials: Path, server: ObjectServer, victims: Victims
) -> None:
    scene, location = OBJECT_SCENES["locked-backup"], trials / "trial"
    set_up(location, bucket=bucket_of(server, scene))
    with open_at(location, later(hours=5)) as repo:
        before = set(repo.blobs.list("packs/"))
    assert victims.play(scene.name, location, "commit.packs_locked").killed
    reclaim_now(location)
    with open_at(location, later(hours=6)) as repo:
        left = set(repo.blobs.list("packs/")) - before
        assert left and repo.locking is not None
        ends = [repo.locking.until(key) for key in left]
        assert all(end is not None and lock_until() - end < later(minutes=5) - later() for end in ends)
