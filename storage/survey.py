"""What a verification looks at beside the packs' payloads: footers, manifests, marks, maps, the catalog."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from policies.facts import PointId
from storage import config as configs
from storage.catalog_rows import TABLES
from storage.commitment import ANNOUNCED_KEPT, drop_abandoned, unreadable
from storage.condemned import CONDEMNED, FREEING, noted, read_note
from storage.damage import Damage
from storage.errors import UNREADABLE, Missing, NoSuchPoint, StorageError
from storage.format import CONFIG_KEY, PackName, parse_pack_key
from storage.manifest import Manifest, manifest_key
from storage.mapcheck import are_few, reach, reach_few
from storage.mending import check_marks
from storage.parallel import for_each
from storage.pointmarks import READERS
from storage.readback import Packs, heads
from storage.repository import Repository

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Survey:
    """What was found. `reached` is what all restore points need, None when a map cannot be followed to its end."""

    damaged: list[Damage] = field(default_factory=list)
    heads: dict[PackName, array[int]] = field(default_factory=dict)
    broken: dict[PackName, str] = field(default_factory=dict)
    manifests: list[Manifest] = field(default_factory=list)
    unreadable: dict[PointId, str] = field(default_factory=dict)
    names: dict[PointId, str] = field(default_factory=dict)
    """The name of each restore point's VM."""
    few: bool = False
    """Whether `reached` is a set, as there are few chunks; else a numpy array."""

    reached: Any = None


def list_packs(repo: Repository) -> tuple[list[Damage], list[PackName]]:
    """The packs that the store lists, with what does not belong among them; ones that vanished are forgotten."""
    known = list(repo.store.live.values())
    damaged, names = [], []
    seen: dict[int, PackName] = {}
    for key in sorted(repo.blobs.list("packs/")):
        name = parse_pack_key(key)
        if name is None:
            damaged.append(Damage(key, "", (), "this is not a pack of the repository"))
        elif seen.setdefault(name.number, name) != name:
            damaged.append(Damage(key, "", (), f"another pack has the same number: {seen[name.number].key}"))
        else:
            names.append(name)
    for name in set(known) - set(names):
        log.error("pack is gone: %s", name.key)
        repo.store.forget(name)
    return damaged, names


def survey(
    repo: Repository, packs: Packs, names: Sequence[PackName], to_read: set[PackName], points: Sequence[PointId]
) -> Survey:
    """Look at everything but the packs' payloads. It runs beside the threads that read those."""
    found = Survey()
    found.damaged += _check_config(repo) + check_marks(repo) + _check_notes(repo)
    found.damaged += _check_announcements(repo)
    found.damaged += _check_catalog(repo)
    lost = repo.lost_points()
    found.damaged += [Damage(manifest_key(one.id), "", (one.id,), one.reason, (one.vm_name,)) for one in lost]
    with suppress(StorageError):
        found.names = {point.id: point.vm_name for point in repo.points()}
    _read_manifests(repo, points, found)
    for name in names:
        try:
            found.heads[name] = heads(packs.footer(name))
        except UNREADABLE as error:
            found.broken[name] = error.what
        if name not in to_read:
            packs.done_with(name)
    found.few = are_few(found.heads.values())
    found.reached = (reach_few if found.few else reach)(repo, found.manifests)
    return found


def _read_manifests(repo: Repository, points: Sequence[PointId], found: Survey) -> None:
    """By some threads where the store is far away."""
    read: dict[PointId, Manifest | StorageError] = {}

    def look(point: PointId) -> None:
        with suppress(NoSuchPoint):
            try:
                read[point] = repo.manifest(point)
            except UNREADABLE as error:
                read[point] = error

    for_each(points, lambda: look, READERS if repo.shared else 1)
    for point in points:
        match read.get(point):
            case Manifest() as manifest:
                found.manifests.append(manifest)
                found.names[point] = manifest.head.vm_name
            case StorageError() as error:
                found.unreadable[point] = error.what


def _check_config(repo: Repository) -> list[Damage]:
    """Both copies of the config; one that is not what it should be is written again from the other."""
    found = configs.damage(repo.blobs, repo.sealing)
    mended = ""
    if found:
        with suppress(StorageError):
            configs.mend(repo.blobs, replace(repo.config, whole=False), repo.sealing)
            mended = "" if configs.damage(repo.blobs, repo.sealing) else "written again from the other copy"
    return [Damage(error.where or CONFIG_KEY, "", (), error.what, mended=mended) for error in found]


def _check_notes(repo: Repository) -> list[Damage]:
    """What reclaim noted of packs. A note that cannot be read still counts as one: it keeps nothing from being kept."""
    damaged = []
    for prefix in (CONDEMNED, FREEING):
        for name in sorted(noted(repo.blobs, prefix)):
            try:
                read_note(repo.blobs, repo.sealing, prefix, name)
            except Missing:
                continue  # taken back meanwhile
            except UNREADABLE as error:
                damaged.append(Damage(error.where or prefix, "", (), error.what))
    return damaged


def _check_announcements(repo: Repository) -> list[Damage]:
    """Manifests that somebody announced. One that cannot be read holds reclaim up until its writer is given up."""
    found = unreadable(repo.blobs, repo.sealing)
    if not found:
        return []
    gone: set[str] = set()
    with suppress(StorageError):
        gone = drop_abandoned(repo.blobs, repo.blobs.clock())
    waits = f"; reclaim waits until it is {ANNOUNCED_KEPT.days} days old and was verified again"
    return [
        Damage(key, "", (), error.what, mended="removed, as its writer died long ago")
        if key in gone
        else Damage(key, "", (), error.what + waits)
        for key, error in found.items()
    ]


def _check_catalog(repo: Repository) -> list[Damage]:
    """DuckDB checks its blocks when they are read, so read them all; a catalog that fails is made again."""
    try:
        for table in TABLES:
            repo.opened_catalog().query(f"SELECT sum(hash(COLUMNS(*))) FROM {table}")
    except StorageError as error:
        log.warning("catalog made again: %s", error)
        repo.catalog.rebuild()
        repo.catalog.rebuilds["damaged"] += 1
        return [Damage("catalog.duckdb", "", (), error.what, mended="made again")]
    return []
