"""What the crash tests play: a small repository, things that are done to it, and what must hold after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from unittest.mock import patch

from policies.facts import PointId, RestorePoint
from storage import chunkstore, keyslots
from storage.blobs import Blobs, LocalBlobs
from storage.condemned import CONDEMNED, FREEING, Condemnation, write_note
from storage.copies import copy_points, plan_copy
from storage.errors import NoRepository
from storage.joining import join
from storage.keys import add_slot, remove_slot, rotate
from storage.marks import MarkKind
from storage.places import ObjectPlace
from storage.rebuild import rebuild, rebuild_catalog
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import Repository
from storage.verify import verify
from tests.storage_kit import BLOCK, NOW, PASSPHRASE, back_up, changed, image, later, make, opened, read_back, restored

AGELESS = SafetyAges(timedelta(0), timedelta(days=36500))
SHORT = SafetyAges(timedelta(microseconds=1), timedelta(days=36500))
EAGER = Thresholds(dead_share=0.01)
BLOCKS = 60
HINTED = (2, 40)
FIRST_CHANGED = (7, 8, 9)

BUCKET = "bucket"
KINDS = ("plain", "encrypted", "shared")
"""Shared: as in an object store, which other processes write too; here a folder stands for the bucket."""

OLD, WEB, NEW = "vm-0", "vm-1", "vm-2"
"""What may expire, what must stay, and what the scenes add."""


@dataclass(frozen=True)
class Scene:
    """A thing that is done to a repository. `play` gets the repository's folder and, for injected faults, its store.

    `made` names the disks of the restore points that it adds; `goes` says that those of OLD may be gone then. `kind` is
    one of KINDS.
    """

    name: str
    play: Callable[[Path, Blobs | None], None]
    made: tuple[str, ...] = ()
    goes: bool = False
    kind: str = "plain"
    prepare: Callable[[Path], None] | None = None
    after: Callable[[Path], None] | None = None
    own_store: bool = True
    """Whether `play` can be given a store."""


@dataclass(frozen=True)
class Stage:
    """A repository before anything is done to it, and copies of its restore points kept aside."""

    location: Path
    kept: Mapping[PointId, bytes]
    going: Mapping[PointId, bytes]
    holds: tuple[str, ...] = field(default=("audit",))


@cache
def disks() -> dict[str, bytearray]:
    """Every disk that is played with, by name."""
    first = image(1, BLOCKS)
    web = changed(first, 2, FIRST_CHANGED)
    new = image(6, BLOCKS, used=0.9)
    return {
        "dead": image(4, BLOCKS),
        "half dead": image(3, BLOCKS)[: 30 * BLOCK] + first[30 * BLOCK :],
        "first": first,
        "web": web,
        "hinted": changed(web, 5, HINTED),
        "new": new,
        "newer": changed(new, 6, HINTED),
        "grown": changed(web + image(7, 20), 8, HINTED),
        "shrunk": changed(web[: 20 * BLOCK + 512], 8, (2, 20)),
        "next": changed(web, 9, (1, 11, 50)),
    }


def set_up(location: Path, kind: str = "plain") -> Stage:
    """A repository with two restore points that stay, and two of which one is wholly and one half its own."""
    make(location / BUCKET if kind == "shared" else location, encrypted=kind == "encrypted")
    disk = disks()
    with open_at(location, NOW) as repo:
        dead = back_up(repo, disk["dead"], vm=OLD, name="old")
        half = back_up(repo, disk["half dead"], vm=OLD, name="old", at=later(minutes=1))
        first = back_up(repo, disk["first"], vm=WEB, at=later(hours=1))
        web = back_up(repo, disk["web"], vm=WEB, base=first.id, blocks=FIRST_CHANGED, at=later(hours=2))
        repo.mark_hold(first.id, "audit", later(hours=2))
    return Stage(
        location,
        {first.id: bytes(disk["first"]), web.id: bytes(disk["web"])},
        {dead.id: bytes(disk["dead"]), half.id: bytes(disk["half dead"])},
    )


def store_of(location: Path) -> Blobs:
    """The store that a stage's repository lies in."""
    if not (location / BUCKET).is_dir():
        return LocalBlobs(location)
    blobs = LocalBlobs(location / BUCKET)
    for spool in (location / "state" / "catalogs").glob("*/spool"):
        blobs.spool = spool  # as an object store's writers do
    return blobs


def open_at(location: Path, now: datetime, blobs: Blobs | None = None) -> Repository:
    """A stage's repository, open."""
    if not (location / BUCKET).is_dir():
        return opened(location, now=now, blobs=blobs)
    place = ObjectPlace("s3", BUCKET, state_dir=location / "state")
    return opened(place, now=now, blobs=blobs or store_of(location))


def at_work(location: Path, blobs: Blobs | None) -> Repository:
    """The repository as the scenes open it."""
    return open_at(location, later(hours=5), blobs)


def _newest(repo: Repository, vm: str = WEB) -> PointId:
    return [point.id for point in repo.points() if point.vm == vm][-1]


def _of(repo: Repository, vm: str) -> list[RestorePoint]:
    return [point for point in repo.points() if point.vm == vm]


# --- what is done ---


def _hinted_backup(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        back_up(repo, disks()["hinted"], base=_newest(repo), blocks=HINTED, vm=WEB, at=later(hours=5))


def _full_backup(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        repo.points()
        back_up(repo, disks()["new"], vm=NEW, name="new", at=later(hours=5))


def _many_packs(location: Path, blobs: Blobs | None) -> None:
    with patch.object(chunkstore, "PACK_BYTES", 24 << 10):
        _full_backup(location, blobs)


def _grown(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        back_up(
            repo, disks()["grown"], base=_newest(repo), blocks=[2, 40, *range(60, 80)], vm=WEB, at=later(hours=5)
        )  # fmt: skip


def _shrunk(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        back_up(repo, disks()["shrunk"], base=_newest(repo), blocks=(2, 20), vm=WEB, at=later(hours=5))


def _marks(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        point = _newest(repo)
        repo.mark_hold(point, "court", later(hours=5))
        repo.mark_hold(point, "police", later(hours=5))
        repo.mark_lock(point, later(days=9), "law", later(hours=5))
        repo.mark_expiring(point, "daily", later(hours=5))
        repo.unmark(point, "daily", later(hours=5))
        repo.release(point, "police", later(hours=5))


def _join(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        for vm in {point.vm for point in _of(repo, OLD)}:
            join(repo, vm, _of(repo, WEB)[0].vm, later(hours=5))


def _expire(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        for point in _of(repo, OLD):
            repo.expire(point.id, "old", later(hours=5))


def _reclaim(location: Path, blobs: Blobs | None, ages: SafetyAges = AGELESS) -> None:
    _expire(location, blobs)
    with at_work(location, blobs) as repo:
        now = later(days=3650)
        carry_out(repo, plan_reclaim(repo, now, ages, EAGER), now)


def _reclaim_in_phases(location: Path, blobs: Blobs | None) -> None:
    _reclaim(location, blobs, SHORT)
    _reclaim(location, blobs, SHORT)


def _reclaim_what_is_needed(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        now = later(days=3650)
        carry_out(repo, plan_reclaim(repo, now, SHORT, EAGER), now)


def _add_key(location: Path, blobs: Blobs | None) -> None:
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256), at_work(location, blobs) as repo:
        add_slot(repo, "another horse")


def _rotate_key(location: Path, blobs: Blobs | None) -> None:
    """A second key, the first one wrapped anew, and the second one away again: at each moment the first one opens."""
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256), at_work(location, blobs) as repo:
        slot = add_slot(repo, "another horse")
        rotate(repo, PASSPHRASE)
        remove_slot(repo, slot)


def _copy(location: Path, blobs: Blobs | None) -> None:
    """All that another repository beside it has: two restore points, of which the second shares much of the first."""
    with at_work(source_of(location), None) as source, at_work(location, blobs) as target:
        copy_points(source, target, plan_copy(source, target), now=lambda: later(hours=5), threads=1)


def _create(location: Path, blobs: Blobs | None) -> None:
    make(location / "more" / "repository", encrypted=True)


def _is_made_or_can_be(location: Path) -> None:
    """A repository that opens, or a place where one can be made as if nothing had happened."""
    place = location / "more" / "repository"
    try:
        opened(place, now=later(hours=6)).close()
    except NoRepository:
        make(place, encrypted=True)
        opened(place, now=later(hours=6)).close()


def source_of(location: Path) -> Path:
    """Where the repository lies from which the copying scene copies."""
    return location.with_name(location.name + ".source")


def _verify(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        verify(repo, now=later(hours=5))
        verify(repo, now=later(hours=6))


def _rebuild(location: Path, blobs: Blobs | None) -> None:
    rebuild(location, now=later(hours=5), passphrase=lambda: PASSPHRASE)


def _rebuild_open(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        rebuild_catalog(repo)


def _open(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        repo.points()


# --- what was left behind before ---


def _spoil_catalog(location: Path) -> None:
    path = location / "catalog.duckdb"
    path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:])


def _lose_derived(location: Path) -> None:
    for path in (location / "catalog.duckdb", location / "catalog.duckdb.wal"):
        path.unlink(missing_ok=True)
    for path in (location / "index").iterdir():
        path.unlink()


def _leave_expiry(location: Path) -> None:
    """Both going points have a tombstone; catalog, manifests and index still have them; the index is spoilt too."""
    with opened(location, now=later(hours=4)) as repo:
        for point in _of(repo, OLD):
            repo.add_mark(point.id, MarkKind.EXPIRED, later(hours=4), "old", into_catalog=False)
    for path in (location / "index").iterdir():
        path.write_bytes(path.read_bytes()[:-1])


def _lay_source(location: Path) -> None:
    with opened(make(source_of(location))) as repo:
        base = back_up(repo, disks()["new"], vm=NEW, name="new")
        back_up(repo, disks()["newer"], vm=NEW, name="new", base=base.id, blocks=HINTED, at=later(hours=1))


def _condemn_everything(location: Path, prefix: str = CONDEMNED) -> None:
    """Every pack is condemned although restore points need it."""
    with open_at(location, later(hours=4)) as repo:
        for name in repo.store.live.values():
            write_note(repo.blobs, repo.sealing, prefix, Condemnation(name, "by mistake", later(hours=4), "test"))


def _begin_to_free(location: Path) -> None:
    """Another process began to free every pack, and what it took for dead turned out to be needed."""
    _condemn_everything(location, FREEING)


SCENES = {
    scene.name: scene
    for scene in (
        Scene("hinted", _hinted_backup, ("hinted",)),
        Scene("hinted-encrypted", _hinted_backup, ("hinted",), kind="encrypted"),
        Scene("full", _full_backup, ("new",)),
        Scene("many-packs", _many_packs, ("new",)),
        Scene("many-packs-encrypted", _many_packs, ("new",), kind="encrypted"),
        Scene("grown", _grown, ("grown",)),
        Scene("shrunk", _shrunk, ("shrunk",)),
        Scene("marks", _marks),
        Scene("join", _join),
        Scene("expire", _expire, goes=True),
        Scene("reclaim", _reclaim, goes=True),
        Scene("reclaim-in-phases", _reclaim_in_phases, goes=True),
        Scene("reclaim-what-is-needed", _reclaim_what_is_needed, prepare=_condemn_everything),
        Scene("copy", _copy, ("new", "newer"), prepare=_lay_source),
        Scene("copy-encrypted", _copy, ("new", "newer"), kind="encrypted", prepare=_lay_source),
        Scene("create", _create, after=_is_made_or_can_be, own_store=False),
        Scene("key-added", _add_key, kind="encrypted"),
        Scene("key-rotated", _rotate_key, kind="encrypted"),
        Scene("reclaim-encrypted", _reclaim, goes=True, kind="encrypted"),
        Scene("shared-hinted", _hinted_backup, ("hinted",), kind="shared"),
        Scene("shared-expire", _expire, goes=True, kind="shared"),
        Scene("shared-reclaim", _reclaim_in_phases, goes=True, kind="shared"),
        Scene("shared-rescue", _reclaim_what_is_needed, kind="shared", prepare=_begin_to_free),
        Scene("verify", _verify),
        Scene("rebuild", _rebuild, own_store=False),
        Scene("rebuild-open", _rebuild_open),
        Scene("open-spoilt-catalog", _open, prepare=_spoil_catalog),
        Scene("open-nothing-derived", _open, prepare=_lose_derived),
        Scene("open-half-expired", _open, goes=True, prepare=_leave_expiry),
    )
}


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
            assert data in [disks()[disk] for disk in scene.made], "a new point is not its disk"
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
        nxt = disks()["next"]
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


def fresh_copy(stage: Stage, to: Path, prepare: Callable[[Path], None] | None = None) -> Path:
    """The stage once more, in another place."""
    shutil.copytree(stage.location, to)
    if prepare is not None:
        prepare(to)
    return to


def clear(location: Path) -> None:
    """Remove a copy and what lies beside it."""
    for path in location.parent.glob(location.name + "*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
