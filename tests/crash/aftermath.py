"""What must hold after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from policies.facts import PointId
from storage.repository import Repository
from storage.verify import verify
from tests.crash.scenes import Scene
from tests.crash.stages import FIRST_CHANGED, WEB, Stage, disks, open_at
from tests.storage_kit import back_up, later, read_back, restored


def after_a_crash(
    location: Path,
    stage: Stage,
    scene: Scene,
    *,
    least: int = 0,
    most: int = 0,
    thorough: bool = True,
    told: Sequence[str] = (),
) -> None:
    """AssertionError unless the repository opens by itself, holds what it must, and goes on as if nothing happened.

    `least` and `most`: how many restore points of the scene may be seen. `thorough`: compare the catalog with
    one that is made again, and back up once more. `told`: what was acknowledged before the crash.
    """
    with open_at(location, later(hours=6)) as repo:
        points = {point.id: point for point in repo.points()}
        assert points.keys() == repo.point_ids(), "the catalog and the manifests disagree"
        assert stage.kept.keys() <= points.keys(), "a restore point is gone"
        if not scene.goes:
            assert stage.going.keys() <= points.keys(), "a restore point is gone that nobody expired"
        new = points.keys() - stage.kept.keys() - stage.going.keys()
        assert least <= len(new) <= most, f"{len(new)} new restore points, not {least} to {most}"
        for point, disk in {**stage.kept, **stage.going}.items():
            assert point not in points or read_back(repo, point) == disk, f"{point} is not what it was"
        for point in new:
            data = read_back(repo, point, repo.manifest(point).disks[0].head.name)
            assert data in [disks(stage.unit)[disk] for disk in scene.made], "a new point is not its disk"
        _keeps_its_word(repo, told)
        if scene.after is not None:
            scene.after(location)
        held = [point for point in stage.kept if "audit" in repo.mark_state(point).holds]
        assert len(held) == 1, "a hold is gone"
        report = verify(repo, now=later(hours=6))
        assert report.sound, report.damaged
        left = sorted(path.name for path in (repo.work / "spool").iterdir())
        assert not left, f"left in spool: {left}"
        if not thorough:
            return
        rows = repo.catalog.rows()
        repo.catalog.rebuild()
        assert repo.catalog.rows() == rows, "the catalog is not what a rebuild makes"
        base = next(iter(sorted(stage.kept)))
        nxt = disks(stage.unit)["next"]
        changes = [*FIRST_CHANGED, 1, 11, 50]
        made = back_up(repo, nxt, vm=WEB, base=base, blocks=changes, at=later(hours=7))
        target = location.with_name(location.name + ".restored")
        assert restored(repo, made.id, target) == nxt, "the next backup does not restore"
        target.unlink()


def _keeps_its_word(repo: Repository, told: Sequence[str]) -> None:
    for what, point, *reason in (said.split() for said in told if " " in said):
        match what:
            case "committed":
                assert PointId(point) in repo.point_ids(), f"acknowledged and gone: {point}"
            case "expired":
                assert PointId(point) not in repo.point_ids(), f"expired and back: {point}"
            case "held":
                assert reason != ["court"] or "court" in (repo.mark_state(PointId(point)).holds), (
                    f"held and not held: {point}"
                )


def again(location: Path, stage: Stage, scene: Scene) -> None:
    """AssertionError unless what was cut off can simply be done again."""
    scene.play(location, None)
    with open_at(location, later(hours=8)) as repo:
        points = {point.id for point in repo.points()}
        assert stage.kept.keys() <= points
        if scene.goes:
            assert not stage.going.keys() & points, "done again, it leaves what it should forget"
        assert verify(repo, now=later(hours=8)).sound
