"""What the crash tests play: things that are done to a stage's repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from policies.facts import PointId, RestorePoint
from storage import chunkstore, keyslots
from storage.blobs import Blobs
from storage.condemned import CONDEMNED, FREEING, Condemnation, write_note
from storage.copies import copy_points, plan_copy
from storage.errors import NoRepository, Refused
from storage.format import Pieced
from storage.joining import join
from storage.keys import add_slot, remove_slot, rotate
from storage.marks import MarkKind
from storage.rebuild import rebuild, rebuild_catalog
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import Repository
from storage.verify import verify
from tests.crash.stages import HINTED, NEW, OLD, PIECED_BLOCK, WEB, at_work, disks, open_at
from tests.storage_kit import DISK, PASSPHRASE, back_up, later, make, opened

AGELESS = SafetyAges(timedelta(0), timedelta(days=36500))
SHORT = SafetyAges(timedelta(microseconds=1), timedelta(days=36500))
EAGER = Thresholds(dead_share=0.01)


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


def newest(repo: Repository, vm: str = WEB) -> PointId:
    return [point.id for point in repo.points() if point.vm == vm][-1]


def _of(repo: Repository, vm: str) -> list[RestorePoint]:
    return [point for point in repo.points() if point.vm == vm]


# --- what is done ---


def hinted_backup(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        back_up(repo, disks()["hinted"], base=newest(repo), blocks=HINTED, vm=WEB, at=later(hours=5))


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
            repo, disks()["grown"], base=newest(repo), blocks=[2, 40, *range(60, 80)], vm=WEB, at=later(hours=5)
        )  # fmt: skip


def _shrunk(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        back_up(repo, disks()["shrunk"], base=newest(repo), blocks=(2, 20), vm=WEB, at=later(hours=5))


def _marks(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        point = newest(repo)
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


def expire(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        for point in _of(repo, OLD):
            repo.expire(point.id, "old", later(hours=5))


def reclaim(location: Path, blobs: Blobs | None, ages: SafetyAges = AGELESS) -> None:
    expire(location, blobs)
    with at_work(location, blobs) as repo:
        now = later(days=3650)
        carry_out(repo, plan_reclaim(repo, now, ages, EAGER), now)


def _reclaim_in_phases(location: Path, blobs: Blobs | None) -> None:
    reclaim(location, blobs, SHORT)
    reclaim(location, blobs, SHORT)


def reclaim_what_is_needed(location: Path, blobs: Blobs | None) -> None:
    with at_work(location, blobs) as repo:
        now = later(days=3650)
        carry_out(repo, plan_reclaim(repo, now, SHORT, EAGER), now)


def _second_key(repo: Repository) -> str:
    """The slot of a second passphrase: a new one, or what an attempt that was cut off has left."""
    try:
        return add_slot(repo, "another horse")
    except Refused:
        return next(str(slot["id"]) for slot in repo.config.slots if slot["id"] != repo.config.opened_by)


def _shifted_backup(location: Path, blobs: Blobs | None, disk: str = "web shifted") -> None:
    """A copy of another VM's disk, at places that do not fall on its blocks."""
    with at_work(location, blobs) as repo:
        data = disks(PIECED_BLOCK)[disk]
        point = back_up(repo, data, vm=NEW, name="new", at=later(hours=5))
        pieced = [type(block) is Pieced for _, row in repo.read_disk(point.id, DISK).leaves() for block in row.values()]
        assert blobs is not None or sum(pieced) > len(pieced) / 4, "a fault may keep shared pages from being found"


def _shifted_survivor(location: Path, blobs: Blobs | None) -> None:
    """What a copy is put together from loses the restore points that brought it."""
    _shifted_backup(location, blobs, "dead shifted")
    reclaim(location, blobs)


def _add_key(location: Path, blobs: Blobs | None) -> None:
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256), at_work(location, blobs) as repo:
        _second_key(repo)


def _rotate_key(location: Path, blobs: Blobs | None) -> None:
    """A second key, the first one wrapped anew, and the second one away again: at each moment the first one opens."""
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256), at_work(location, blobs) as repo:
        slot = _second_key(repo)
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


def begin_to_free(location: Path) -> None:
    """Another process began to free every pack, and what it took for dead turned out to be needed."""
    _condemn_everything(location, FREEING)


def forget_writer(location: Path) -> None:
    """The next writer is another one: it knows nothing of what is private to the one before it."""
    shutil.rmtree(location / "state")


SCENES = {
    scene.name: scene
    for scene in (
        Scene("hinted", hinted_backup, ("hinted",)),
        Scene("hinted-encrypted", hinted_backup, ("hinted",), kind="encrypted"),
        Scene("pieced", _shifted_backup, ("web shifted",), kind="pieced"),
        Scene("full", _full_backup, ("new",)),
        Scene("many-packs", _many_packs, ("new",)),
        Scene("many-packs-encrypted", _many_packs, ("new",), kind="encrypted"),
        Scene("grown", _grown, ("grown",)),
        Scene("shrunk", _shrunk, ("shrunk",)),
        Scene("marks", _marks),
        Scene("join", _join),
        Scene("expire", expire, goes=True),
        Scene("reclaim", reclaim, goes=True),
        Scene("pieced-reclaim", _shifted_survivor, ("dead shifted",), goes=True, kind="pieced"),
        Scene("reclaim-in-phases", _reclaim_in_phases, goes=True),
        Scene("reclaim-what-is-needed", reclaim_what_is_needed, prepare=_condemn_everything),
        Scene("copy", _copy, ("new", "newer"), prepare=_lay_source),
        Scene("copy-encrypted", _copy, ("new", "newer"), kind="encrypted", prepare=_lay_source),
        Scene("create", _create, after=_is_made_or_can_be, own_store=False),
        Scene("key-added", _add_key, kind="encrypted"),
        Scene("key-rotated", _rotate_key, kind="encrypted"),
        Scene("reclaim-encrypted", reclaim, goes=True, kind="encrypted"),
        Scene("shared-hinted", hinted_backup, ("hinted",), kind="shared"),
        Scene("shared-other-writer", hinted_backup, ("hinted",), kind="shared", prepare=forget_writer),
        Scene("shared-expire", expire, goes=True, kind="shared"),
        Scene("shared-reclaim", _reclaim_in_phases, goes=True, kind="shared"),
        Scene("shared-rescue", reclaim_what_is_needed, kind="shared", prepare=begin_to_free),
        Scene("verify", _verify),
        Scene("rebuild", _rebuild, own_store=False),
        Scene("rebuild-open", _rebuild_open),
        Scene("open-spoilt-catalog", _open, prepare=_spoil_catalog),
        Scene("open-nothing-derived", _open, prepare=_lose_derived),
        Scene("open-half-expired", _open, goes=True, prepare=_leave_expiry),
    )
}
