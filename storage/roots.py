"""Everything that keeps packs: restore points, those being committed anywhere, and what is read or built on here.

One bad listing must never delete anything: manifests are listed at least twice, and each that an earlier listing or
the catalog knows and a later one lacks is asked for by its name.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Any

from policies.facts import PointId
from storage import manifest as manifests
from storage.commitment import announcements
from storage.errors import Damaged, Missing, NoSpace, Refused
from storage.format import ObjectKind
from storage.manifest import Manifest
from storage.parallel import for_each
from storage.pointmarks import READERS
from storage.reachability import Reached
from storage.repository import GIVE_UP, Repository


def reach(repo: Repository, reached: Reached, known: Collection[PointId]) -> tuple[Any, set[PointId]]:
    """What all of it reaches, apart from what the known restore points do; and all restore points. Refused if in doubt.

    On a shared store the order is manifests, announced manifests, manifests: see storage/commitment.py.
    """
    seen = set(known)
    told = _told(repo)
    rounds = 0
    try:
        while True:
            bases, points = repo.in_use()
            _refuse_short_listing(repo, told | seen, points)
            if not rounds:
                _refuse_lost(repo)
            for root in bases:
                reached.add_root(root)
            fresh = points - seen
            add_points(repo, reached, fresh)
            seen |= fresh
            if rounds and not fresh:  # every point of this moment was read, so later bases are reached, too
                return reached.sorted(), points
            if not rounds and repo.shared:
                _add(reached, announcements(repo.blobs, repo.sealing))
            rounds += 1
    except Damaged as error:
        raise Refused(
            f"what restore points reach cannot be told: {error}",
            hint="run verify, which names what is damaged, then expire the restore points that are",
        ) from error


def add_points(repo: Repository, reached: Reached, points: Collection[PointId]) -> None:
    """Add what these restore points reach; their manifests are read by some threads where the store is far away."""
    adding = threading.Lock()

    def take(point: PointId) -> None:
        found = _manifests(repo, point)
        with adding:
            _add(reached, found)

    for_each(sorted(points), lambda: take, READERS if repo.shared else 1)


def _add(reached: Reached, found: Iterable[Manifest]) -> None:
    for manifest in found:
        reached.add_chunks(manifest.configuration)
        for disk in manifest.disks:
            reached.add_root(disk.root)


def _manifests(repo: Repository, point: PointId) -> list[Manifest]:
    """One manifest, though it may be expiring: another process may build on it still. None when it is gone."""
    key = manifests.manifest_key(point)
    try:
        data = repo.blobs.get(key)
    except Missing:
        return []
    return [manifests.decode(repo.sealing.open(ObjectKind.MANIFEST, key, data), key)]


def _told(repo: Repository) -> set[PointId]:
    """The restore points that the catalog knows, if it is a witness."""
    try:
        catalog = repo.opened_catalog()
        return catalog.point_ids() if catalog.witness else set()
    except NoSpace:  # what frees a full disk must go on
        return set()


def _refuse_short_listing(repo: Repository, known: set[PointId], listed: set[PointId]) -> None:
    for point in sorted(known - listed):
        try:
            repo.blobs.size(manifests.manifest_key(point))
        except Missing:
            continue  # expired meanwhile, or lost, which is looked into elsewhere
        raise Refused(
            f"the store's listing lacks restore point {point}, which is there",
            hint="nothing was freed; look at the store before you run it again",
        )


def _refuse_lost(repo: Repository) -> None:
    if lost := repo.lost_points():
        names = ", ".join(f"{point.id} of {point.vm_name}" for point in lost[:5])
        raise Refused(f"restore points are lost, and what they reach with them: {names}", hint=GIVE_UP)
