"""Freeing what no restore point reaches any more, beside running backups, in two phases: condemn, later free.

A plan (storage/reclaim_plan.py) is carried out as far as it is still right. Before a pack goes it is hidden from
lookups here, noted as being freed where others write the store, too, and everything that may keep it is asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from storage.catalog_loading import Changes
from storage.chunkstore import Session
from storage.commitment import drop_abandoned
from storage.condemned import CONDEMNED, FREEING, Condemnation, note_key, noted, tidy, write_note
from storage.errors import Damaged, NoSpace, Refused
from storage.failpoints import failpoint
from storage.format import PackKind, PackName
from storage.nodes import StoredNodes
from storage.reachability import Reached, live_slots
from storage.reclaim_plan import PackFate, ReclaimPlan, SafetyAges, Thresholds, listed_packs, needed, plan_reclaim
from storage.repository import Repository
from storage.roots import reach

__all__ = [
    "PackFate",
    "ReclaimOutcome",
    "ReclaimPlan",
    "SafetyAges",
    "Thresholds",
    "carry_out",
    "plan_reclaim",
]

log = logging.getLogger(__name__)

COPY_CHUNKS = 32


@dataclass(frozen=True, slots=True)
class ReclaimOutcome:
    """What was done, in packs and bytes. `kept` are packs that turned out to be needed since the plan.

    `freed_bytes` may be negative: what is copied now is freed later.
    """

    condemned: int = 0
    rewritten: int = 0
    freed: int = 0
    taken_back: int = 0
    kept: int = 0
    freed_bytes: int = 0
    copied_bytes: int = 0


@dataclass(slots=True)
class _Tally:
    condemned: int = 0
    rewritten: int = 0
    taken_back: int = 0
    kept: int = 0
    copied_bytes: int = 0
    gone: list[PackFate] = field(default_factory=list)

    def outcome(self) -> ReclaimOutcome:
        freed = sum(fate.bytes for fate in self.gone)
        return ReclaimOutcome(
            self.condemned, self.rewritten, len(self.gone), self.taken_back, self.kept,
            freed - self.copied_bytes, self.copied_bytes,
        )  # fmt: skip


def carry_out(
    repo: Repository, plan: ReclaimPlan, now: datetime, go_on: Callable[[], bool] = lambda: True
) -> ReclaimOutcome:
    """Do what the plan says, as far as it is still right. Wholly dead packs go first and need no free space.

    `go_on` is asked before each pack whose live data is written again: once it says no, the rest is left to later.
    """
    if repo.append_only:
        raise Refused("this repository is append-only for this user", hint="run reclaim as its owner")
    tally = _Tally()
    with repo.maintenance:
        for fate in plan.take_back:
            _take_back(repo, fate, tally)
        if plan.free:
            _free(repo, plan, plan.free, now, tally)
        if plan.condemn:
            _condemn(repo, plan, plan.condemn, now, tally)
        for kind in PackKind:
            fates = [fate for fate in plan.rewrite if fate.name.kind is kind]
            if fates:
                fates, moved = _copy_live(repo, plan, fates, tally, go_on)
                failpoint("reclaim.copied")
                repo.tell_catalog(Changes(packs=list(repo.store.live.values())))
                tally.rewritten += _condemn(repo, plan, moved, now, tally)
                tally.kept += len(fates) - len(moved)
        clock = repo.blobs.clock()
        tidy(repo.blobs, listed_packs(repo), clock)
        drop_abandoned(repo.blobs, clock)
        repo.store.compact_index()
    return tally.outcome()


def _condemn(repo: Repository, plan: ReclaimPlan, fates: Sequence[PackFate], now: datetime, tally: _Tally) -> int:
    """Condemn packs that nothing needs, or free them at once; returns how many of them were."""
    if plan.at_once:
        return _free(repo, plan, fates, now, tally)
    hidden = [fate for fate in fates if repo.store.hide(fate.name)]
    failpoint("reclaim.hidden")
    count = 0
    try:
        newly = _reach_again(repo, plan)
        going = repo.store.going() | {fate.name for fate in hidden}
        for fate in hidden:
            if needed(repo, fate.name, (plan.reached, newly), going):
                continue
            write_note(repo.blobs, repo.sealing, CONDEMNED, _note(repo, fate, now))
            repo.store.condemn(fate.name)
            failpoint("reclaim.condemned")
            count += 1
    except NoSpace as error:
        log.warning("no room to condemn more packs: %s", error)
    finally:
        repo.store.show(fate.name for fate in hidden)
    tally.condemned += count
    tally.kept += len(fates) - count
    return count


def _free(repo: Repository, plan: ReclaimPlan, fates: Sequence[PackFate], now: datetime, tally: _Tally) -> int:
    """Delete packs that nothing needs; returns how many."""
    hidden = [fate for fate in fates if repo.store.hide(fate.name)]
    failpoint("reclaim.hidden")
    gone: list[PackFate] = []
    locked = False
    try:
        if repo.shared:
            for fate in hidden:
                write_note(repo.blobs, repo.sealing, FREEING, _note(repo, fate, now))
                failpoint("reclaim.freeing")
        freeing, condemned = noted(repo.blobs, FREEING), noted(repo.blobs, CONDEMNED)
        if repo.shared:
            repo.store.attach()  # what else is going was listed before the packs that could stay
        going = freeing | condemned | {fate.name for fate in hidden}
        newly = _reach_again(repo, plan)
        for fate in hidden:
            lacking = needed(repo, fate.name, (plan.reached, newly), going)
            if lacking and fate.name not in freeing:
                if fate.name in condemned:
                    _take_back(repo, fate, tally)
                continue
            if lacking and not _rescue(repo, fate, lacking, going, tally):
                continue
            if _delete(repo, fate, fate.name in condemned):
                gone.append(fate)
            else:
                locked = True
        if locked:
            repo.store.attach()  # what the store does not let go of is still there
    finally:
        repo.store.show(fate.name for fate in hidden)
        if gone:
            there = list(repo.store.live.values())
            repo.tell_catalog(Changes(packs=there, gone_packs=[fate.name.number for fate in gone]))
    tally.gone += gone
    tally.kept += len(fates) - len(gone)
    return len(gone)


def _delete(repo: Repository, fate: PackFate, condemned: bool) -> bool:
    repo.store.forget(fate.name)  # first: nothing may refer to it whatever comes of this
    try:
        repo.blobs.delete(fate.name.key)
    except Refused as error:
        log.info("pack stays, as the store locks it: %s", error)
        return False
    failpoint("reclaim.pack_deleted")
    if condemned:
        repo.blobs.delete(note_key(CONDEMNED, fate.name))
        failpoint("reclaim.condemnation_removed")
    return True


def _take_back(repo: Repository, fate: PackFate, tally: _Tally) -> None:
    """Condemned no more: restore points reach it again."""
    repo.blobs.delete(note_key(CONDEMNED, fate.name))
    failpoint("reclaim.taken_back")
    repo.store.reprieve(fate.name)
    tally.taken_back += 1


def _reach_again(repo: Repository, plan: ReclaimPlan) -> Any:
    """What is reached beside what the plan knows; manifests never change, so those that it read need no second look."""
    return reach(repo, Reached(StoredNodes(repo.store), repo.config.fan_out), plan.points)[0]


def _note(repo: Repository, fate: PackFate, now: datetime) -> Condemnation:
    return Condemnation(fate.name, fate.reason, now, repo.writer.id.hex())


def _rescue(repo: Repository, fate: PackFate, lacking: set[bytes], going: Collection[PackName], tally: _Tally) -> bool:
    """Copy what restore points need out of a pack that is being freed, which is never taken back; False if damaged."""
    session = repo.store.session()
    try:
        if lacking == {fate.name.id}:
            raise Damaged("its footer cannot be read", where=fate.name.key)
        apart = {*going, *repo.store.distrusted.packs}
        tally.copied_bytes += _copy(repo, session, fate.name.kind, sorted(lacking), apart)
        repo.store.flush(session)
    except Damaged as error:
        log.warning("%s is needed and cannot be copied, so it stays: %s", fate.name.key, error)
        return False
    finally:
        repo.store.end(session)
    failpoint("reclaim.rescued")
    return True


def _copy_live(
    repo: Repository, plan: ReclaimPlan, fates: Sequence[PackFate], tally: _Tally, go_on: Callable[[], bool]
) -> tuple[list[PackFate], list[PackFate]]:
    """Write the live chunks of these packs again that no pack which stays has.

    Returns the packs that were looked at, and of these those that are not needed any more.
    """
    looked: list[PackFate] = []
    moved: list[PackFate] = []
    apart = repo.store.going() | repo.store.distrusted.packs | {fate.name for fate in fates}
    session = repo.store.session()
    try:
        for fate in fates:
            if not go_on():
                break
            looked.append(fate)
            footer = repo.store.footers.get(fate.name)
            chunks = [footer.entry(int(slot)).id for slot in live_slots(footer, plan.reached).nonzero()[0]]
            try:
                tally.copied_bytes += _copy(repo, session, fate.name.kind, chunks, apart)
            except Damaged as error:
                log.warning("pack left as it is: %s", error)
                continue
            moved.append(fate)
        repo.store.flush(session)
    finally:
        repo.store.end(session)
    return looked, moved


def _copy(repo: Repository, session: Session, kind: PackKind, chunks: list[bytes], apart: Collection[PackName]) -> int:
    """Write chunks again that only these packs have intact; returns the bytes written. Damaged if one is lost."""
    node = kind is PackKind.TREE
    hash_of = repo.store.sealing.node_id if node else repo.store.sealing.chunk_id
    missing = [chunk for chunk in chunks if repo.store.other_copy(chunk, apart, hash_of) is None]
    copied = 0
    for start in range(0, len(missing), COPY_CHUNKS):
        part = missing[start : start + COPY_CHUNKS]
        data = repo.store.read_many(part, node=node)
        copied += repo.store.copy(session, kind, list(zip(part, data, strict=True)))
    return copied
