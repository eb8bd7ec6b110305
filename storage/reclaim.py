"""Freeing what no restore point reaches any more: a plan that can be printed and refused, then carried out.

It runs beside backups. The packs are listed before the manifests, so that a newer pack is never a candidate. Before a
pack goes, it is hidden from lookups, and every restore point committed or begun since the plan is asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from policies.facts import PointId
from storage.catalog import Changes
from storage.chunkstore import PACK_BYTES
from storage.errors import Damaged, NoSuchPoint, Refused
from storage.failpoints import failpoint
from storage.format import PackKind, PackName, parse_pack_key
from storage.nodes import StoredNodes
from storage.pack import Footer
from storage.reachability import Reached, all_held, live_bytes, live_slots
from storage.repository import GIVE_UP, Repository

log = logging.getLogger(__name__)


UNREADABLE = "its footer is damaged, and other packs hold all that restore points reach"


@dataclass(frozen=True, slots=True)
class SafetyAges:
    """The ages that keep reclaim away from what may still be needed."""

    young_pack: timedelta = timedelta(hours=24)
    """A pack is left alone for this long: longer than any backup may stay uncommitted, by both clocks that saw it."""

    clock_ahead: timedelta = timedelta(minutes=10)
    """A pack from further in the future than this means that a clock is wrong: nothing is reclaimed then."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a partly dead pack is worth writing again."""

    dead_share: float = 0.5
    small_pack_bytes: int = PACK_BYTES // 8
    small_packs: int = 16


@dataclass(frozen=True, slots=True)
class PackFate:
    """What is to happen to one pack, and why."""

    name: PackName
    bytes: int
    live_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReclaimPlan:
    """What reclaim would do. `points` are the restore points that were asked."""

    made_at: datetime
    drop: tuple[PackFate, ...]
    rewrite: tuple[PackFate, ...]
    young: int
    total_bytes: int
    points: frozenset[PointId] = field(repr=False)
    reached: Any = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """What carrying it out gives back."""
        return sum(fate.bytes for fate in self.drop) + sum(fate.bytes - fate.live_bytes for fate in self.rewrite)

    def __str__(self) -> str:
        lines = [
            f"{len(self.drop)} packs to drop, {len(self.rewrite)} to write again, {self.young} too young to judge;"
            f" frees {self.freed_bytes} of {self.total_bytes} bytes"
        ]
        lines += [f"drop    {fate.name.key} {fate.bytes} bytes: {fate.reason}" for fate in self.drop]
        lines += [f"rewrite {fate.name.key} {fate.live_bytes} of {fate.bytes} bytes live" for fate in self.rewrite]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ReclaimOutcome:
    """What was done. `kept` are packs that turned out to be needed since the plan."""

    dropped: int
    rewritten: int
    kept: int
    freed_bytes: int
    copied_bytes: int


def plan_reclaim(
    repo: Repository, now: datetime, safety: SafetyAges | None = None, thresholds: Thresholds | None = None
) -> ReclaimPlan:
    """Decide which packs may go. Refused when a restore point cannot be read, or a clock is wrong."""
    safety, thresholds = safety or SafetyAges(), thresholds or Thresholds()
    packs = sorted({*repo.store.live.values(), *repo.store.distrusted.packs} & _listed(repo))
    reached, points = _reach(repo, Reached(StoredNodes(repo.store), repo.config.fan_out), ())
    drop: list[PackFate] = []
    rewrite: list[PackFate] = []
    small: list[PackFate] = []
    young = total = 0
    judged: list[Footer] = []
    unreadable: list[PackName] = []
    for name in packs:
        try:
            footer = repo.store.footers.get(name)
        except Damaged as error:
            log.warning("pack not judged by its footer: %s", error)
            unreadable.append(name)
            continue
        judged.append(footer)
        total += footer.size
        if _age(repo, footer, now, safety) < safety.young_pack:
            young += 1
            continue
        live, body = live_bytes(footer, reached)
        if not live:
            drop.append(PackFate(name, footer.size, 0, "no restore point reaches any of it"))
        elif name in repo.store.distrusted.packs:
            rewrite.append(PackFate(name, footer.size, live, "damaged"))
        elif live < body * (1 - thresholds.dead_share):
            rewrite.append(PackFate(name, footer.size, live, "mostly dead"))
        elif footer.size < thresholds.small_pack_bytes:
            small.append(PackFate(name, footer.size, live, "small"))
    if unreadable and all_held(reached, judged):
        old = [name for name in unreadable if now - _stored(repo, name) >= safety.young_pack]
        drop += [PackFate(name, repo.blobs.size(name.key), 0, UNREADABLE) for name in old]
    for kind in PackKind:
        of_kind = [fate for fate in small if fate.name.kind is kind]
        if len(of_kind) >= thresholds.small_packs:
            rewrite += of_kind
    return ReclaimPlan(now, tuple(drop), tuple(rewrite), young, total, frozenset(points), reached)


def carry_out(repo: Repository, plan: ReclaimPlan, now: datetime) -> ReclaimOutcome:
    """Do what the plan says, as far as it is still right. Wholly dead packs go first and need no free space."""
    with repo.maintenance:
        dropped, freed, kept = _drop(repo, plan, plan.drop, {})
        rewritten, copied, freed_again = 0, 0, 0
        for kind in PackKind:
            fates = [fate for fate in plan.rewrite if fate.name.kind is kind]
            moved: dict[PackName, set[bytes]] = {}
            if fates:
                moved, amount = _copy_live(repo, plan, fates)
                copied += amount
            failpoint("reclaim.copied")
            gone, gone_bytes, still = _drop(repo, plan, fates, moved)
            rewritten, freed_again, kept = rewritten + gone, freed_again + gone_bytes, kept + still
        repo.store.compact_index()
    return ReclaimOutcome(dropped, rewritten, kept, freed + freed_again - copied, copied)


def _reach(repo: Repository, reached: Reached, known: Iterable[PointId]) -> tuple[Any, set[PointId]]:
    """What restore points reach, those under way included, apart from known ones."""
    if lost := repo.lost_points():
        names = ", ".join(f"{point.id} of {point.vm_name}" for point in lost[:5])
        raise Refused(f"{len(lost)} restore points are lost, and what they reach with them: {names}", hint=GIVE_UP)
    seen = set(known)
    try:
        while True:
            bases, points = repo.in_use()
            for root in bases:
                reached.add_root(root)
            if not (fresh := points - seen):  # every point of this moment was read, so later bases are reached, too
                break
            seen |= fresh
            for point in sorted(fresh):
                try:
                    manifest = repo.manifest(point)
                except NoSuchPoint:
                    continue  # expired meanwhile
                reached.add_chunks(manifest.configuration)
                for disk in manifest.disks:
                    reached.add_root(disk.root)
    except Damaged as error:
        raise Refused(
            f"what restore points reach cannot be told: {error}",
            hint="run verify, then expire the restore points that are damaged",
        ) from error
    return reached.sorted(), points


def _age(repo: Repository, footer: Footer, now: datetime, safety: SafetyAges) -> timedelta:
    created = datetime.fromtimestamp(footer.header.created, UTC)
    if created - now > safety.clock_ahead:
        raise Refused(
            f"{footer.name.key} is from the future ({created:%Y-%m-%d %H:%M} UTC)", hint="set the clock right first"
        )
    stored = _stored(repo, footer.name)
    return min(now - created, now - stored) if stored <= now else now - created


def _listed(repo: Repository) -> set[PackName]:
    return {name for name in map(parse_pack_key, repo.blobs.list("packs/")) if name}


def _needed(repo: Repository, fate: PackFate, newly: Any) -> set[bytes]:
    """The chunks of a pack that restore points reach; the pack's id for those of one that cannot be read."""
    try:
        footer = repo.store.footers.get(fate.name)
    except Damaged:
        others = []
        for name in list(repo.store.live.values()):
            with suppress(Damaged):
                others.append(repo.store.footers.get(name))
        return set() if all_held(newly, others) else {fate.name.id}
    return {footer.entry(int(slot)).id for slot in live_slots(footer, newly).nonzero()[0]}


def _stored(repo: Repository, name: PackName) -> datetime:
    return datetime.fromtimestamp(repo.blobs.age_stamp(name.key), UTC)


def _copy_live(
    repo: Repository, plan: ReclaimPlan, fates: Sequence[PackFate]
) -> tuple[dict[PackName, set[bytes]], int]:
    """Write the live chunks of these packs again that no other has; returns them by pack, and the bytes written."""
    moved: dict[PackName, set[bytes]] = {}
    copied = 0
    victims = {fate.name for fate in fates}
    session = repo.store.session()
    try:
        for fate in fates:
            footer = repo.store.footers.get(fate.name)
            chunks = [footer.entry(int(slot)).id for slot in live_slots(footer, plan.reached).nonzero()[0]]
            node = fate.name.kind is PackKind.TREE
            hash_of = repo.store.sealing.node_id if node else repo.store.sealing.chunk_id
            missing = [chunk for chunk in chunks if repo.store.other_copy(chunk, victims, hash_of) is None]
            try:
                for start in range(0, len(missing), 32):
                    part = missing[start : start + 32]
                    data = repo.store.read_many(part, node=node)
                    copied += repo.store.copy(session, fate.name.kind, list(zip(part, data, strict=True)))
            except Damaged as error:
                log.warning("pack left as it is: %s", error)
                continue
            moved[fate.name] = set(chunks)
        repo.store.flush(session)
    finally:
        repo.store.end(session)
    return moved, copied


def _drop(
    repo: Repository, plan: ReclaimPlan, fates: Sequence[PackFate], moved: dict[PackName, set[bytes]]
) -> tuple[int, int, int]:
    """Remove packs that nothing needs but for what was moved; returns packs, bytes, and packs kept after all."""
    hidden = [fate for fate in fates if (fate.name in moved or not fate.live_bytes) and repo.store.hide(fate.name)]
    failpoint("reclaim.hidden")
    gone: list[PackFate] = []
    try:
        newly, _ = _reach(repo, Reached(StoredNodes(repo.store), repo.config.fan_out), plan.points)
        for fate in hidden:
            if _needed(repo, fate, newly) - moved.get(fate.name, set()):
                continue
            repo.store.forget(fate.name)
            repo.blobs.delete(fate.name.key)
            failpoint("reclaim.pack_deleted")
            gone.append(fate)
    finally:
        repo.store.show(fate.name for fate in hidden)
    if gone or moved:
        there = list(repo.store.live.values())
        repo.tell_catalog(Changes(packs=there, gone_packs=[fate.name.number for fate in gone]))
    return len(gone), sum(fate.bytes for fate in gone), len(fates) - len(gone)
