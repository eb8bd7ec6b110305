"""Restore points that shall be read back sooner than the rest: the packs they need, and when each was last read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from policies.facts import PointId
from storage.catalog_rows import aware
from storage.errors import UNREADABLE, NoSuchPoint
from storage.format import PackName
from storage.mapcheck import reach
from storage.moments import moment, stamp
from storage.reachability import live_slots
from storage.repository import Repository

_SAID = "every byte was read back since "


@dataclass(frozen=True, slots=True)
class Sooner:
    """Restore points of which every byte shall be read back that was not read after this moment."""

    points: tuple[PointId, ...]
    after: datetime


def needed_packs(repo: Repository, names: Sequence[PackName], groups: Sequence[Sooner]) -> list[set[PackName]]:
    """The packs that each group needs; all of them where one of its maps cannot be followed to its end.

    Maps of all these restore points are read, and the footers of all packs.
    """
    reached = [_reached(repo, group.points) for group in groups]
    needed: list[set[PackName]] = [set() for _ in groups]
    for name in names if groups else ():
        try:
            footer = repo.store.footers.get(name)
        except UNREADABLE:
            footer = None  # nobody can tell what it holds
        for packs, prefixes in zip(needed, reached, strict=True):
            if footer is None or prefixes is None or live_slots(footer, prefixes).any():
                packs.add(name)
    return needed


def _reached(repo: Repository, points: Sequence[PointId]) -> Any:
    manifests = []
    for point in points:
        with suppress(NoSuchPoint):
            try:
                manifests.append(repo.manifest(point))
            except UNREADABLE:
                return None
    return reach(repo, manifests)


def read_wholly(
    groups: Sequence[Sooner],
    needed: Sequence[set[PackName]],
    read_at: Mapping[PackName, datetime],
    left: Collection[PackName],
    now: datetime,
) -> dict[PointId, datetime]:
    """The restore points of groups of which nothing is left to read, each with when its oldest reading was made.

    `read_at` are the readings that were known before those of now.
    """
    done: dict[PointId, datetime] = {}
    for group, packs in zip(groups, needed, strict=True):
        if packs.isdisjoint(left):
            earlier = [at for name in packs if (at := read_at.get(name)) is not None and at > group.after]
            done |= dict.fromkeys(group.points, min(earlier, default=now))
    return done


def said_of(since: datetime) -> str:
    """What the mark of a verification says that was made of readings at this moment or later."""
    return f"{_SAID}{stamp(since)}"


def last_read(repo: Repository, since: datetime | None) -> dict[PointId, datetime]:
    """When each restore point was last read back as a whole, without those that never were, or are damaged.

    `since` is when every stored byte was read back, or written, at the latest.
    """
    catalog = repo.opened_catalog()
    found: dict[PointId, datetime] = {}
    for point, at, text in catalog.query("SELECT point, marked_at, text FROM marks WHERE kind = 'verified'"):
        with suppress(ValueError):
            read = moment(text.removeprefix(_SAID)) if text else aware(at)
            found[point] = max(read, found.get(point, read))
    if since is not None:
        for point, taken_at in catalog.query("SELECT id, taken_at FROM points"):
            if aware(taken_at) <= since:
                found[point] = max(since, found.get(point, since))
    for (point,) in catalog.query("SELECT point FROM marks WHERE kind = 'damaged'"):
        found.pop(point, None)
    return found
