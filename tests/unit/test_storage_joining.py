"""Restore points of one VM id that count as another's, whatever becomes of the catalog."""

from __future__ import annotations

from pathlib import Path

from policies.facts import VmId
from storage.joining import begin_grace_anew, join
from storage.manifest import manifest_key
from storage.rebuild import rebuild
from storage.repository import Repository
from tests.storage_kit import NOW, back_up, image, later, make, opened

OLD, NEW = VmId("vm-old"), VmId("vm-new")


def _two_histories(repo: Repository) -> tuple[str, str]:
    old = back_up(repo, image(1, 10), vm=OLD)
    new = back_up(repo, image(2, 10), vm=NEW, at=later(hours=1))
    return old.id, new.id


def test_joined_restore_points_are_one_vms_and_a_rebuilt_catalog_says_so_too(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        old, new = _two_histories(repo)
        assert join(repo, NEW, OLD, NOW) == [new]
        assert [point.id for point in repo.points(OLD)] == [old, new]
        assert repo.points(NEW) == []
        latest = repo.latest(OLD)
        assert latest is not None and (latest.id, latest.head.vm) == (new, OLD)
        views = repo.catalog.export_views()
        assert views["vms"].column("id").to_pylist() == [OLD]
        rows = repo.catalog.rows()
        assert join(repo, NEW, OLD, NOW) == []
    rebuild(tmp_path / "r", now=NOW)
    with opened(tmp_path / "r") as repo:
        assert {point.vm for point in repo.points()} == {OLD}
        assert repo.catalog.rows() == rows


def test_an_expiry_of_a_joined_restore_point_takes_its_marks_along(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        old, new = _two_histories(repo)
        join(repo, NEW, OLD, NOW)
        repo.expire(repo.find(new), "by hand", NOW)
        assert [point.id for point in repo.points()] == [old]
        assert not list(repo.blobs.list("marks/"))


def test_a_lost_restore_point_is_joined_as_any_other(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        _, new = _two_histories(repo)
        repo.blobs.delete(manifest_key(repo.find(new)))
        repo.lost_points()
        assert join(repo, NEW, OLD, NOW) == [new]
        assert repo.points(OLD)[-1].damaged
    with opened(tmp_path / "r") as repo:
        assert [point.id for point in repo.points(OLD)][-1] == new
        assert repo.points(NEW) == []


def test_grace_begins_anew_and_what_has_none_is_locked(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        old, new = _two_histories(repo)
        repo.mark_expiring(repo.find(old), "too old", NOW)
        begin_grace_anew(repo, (OLD, NEW), later(days=3), reason="joined", lock={repo.find(new): later(days=4)})
        assert repo.detail(repo.find(old)).expiring_since is None
        assert repo.detail(repo.find(new)).locked_until == later(days=4)
