"""What reclaim would do: a plan that can be printed and refused.

Reclaim has two phases. A pack that nothing reaches, or whose live chunks were copied, is condemned; when it has been
condemned for the safety age, by the store's clock, everything is reached again, and what is still unreached is freed.
The packs are listed before the manifests, so that a newer pack is never a candidate.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from policies.facts import PointId
from storage.chunkstore import PACK_BYTES
from storage.condemned import CONDEMNED, FREEING, note_key, noted, stored_at
from storage.errors import Damaged, Refused
from storage.format import ENTRY, HEADER_BYTES, TRAILER_BYTES, PackKind, PackName, parse_pack_key
from storage.nodes import StoredNodes
from storage.pack import Footer
from storage.packcounts import THREADS, count_chunks
from storage.parallel import for_each
from storage.reachability import Reached, all_held, live_slots, pack_usage
from storage.repository import Repository
from storage.roots import reach
from storage.sealing import TAG_BYTES

log = logging.getLogger(__name__)

SEAL_BYTES = 64
"""More than encryption adds to a chunk or a footer."""

UNREADABLE = "its footer is damaged, and other packs hold all that restore points reach"
DEAD = "no restore point reaches any of it"


@dataclass(frozen=True, slots=True)
class SafetyAges:
    """The ages that keep reclaim away from what may still be needed."""

    min_age: timedelta = timedelta(hours=24)
    """By the store's clock: a younger pack is never condemned, and a condemned one is freed no sooner than this.

    Longer than any backup may stay uncommitted (`SESSION_LIMIT`), so that none is overtaken.
    """

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
    """What is to happen to one pack, and why. `until` is when a condemned one may be freed."""

    name: PackName
    bytes: int
    live_bytes: int
    reason: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReclaimPlan:
    """What reclaim would do. `points` are the restore points that were asked.

    `condemn` and `rewrite` (after their live chunks were copied) become condemned; `free` were condemned long enough
    ago, `waiting` were not, and `take_back` are reached again. With no safety age what is condemned is freed at once.
    """

    made_at: datetime
    condemn: tuple[PackFate, ...]
    rewrite: tuple[PackFate, ...]
    free: tuple[PackFate, ...]
    waiting: tuple[PackFate, ...]
    take_back: tuple[PackFate, ...]
    young: int
    total_bytes: int
    at_once: bool
    points: frozenset[PointId] = field(repr=False)
    reached: Any = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """What carrying it out gives back now."""
        freed = sum(fate.bytes for fate in self.free)
        return freed + self.condemned_bytes if self.at_once else freed

    @property
    def condemned_bytes(self) -> int:
        """What the packs that it condemns will give back, apart from chunks that are copied out of them."""
        return sum(fate.bytes for fate in self.condemn) + sum(fate.bytes - fate.live_bytes for fate in self.rewrite)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.condemn or self.rewrite or self.free or self.take_back)

    def __str__(self) -> str:
        lines = [
            f"packs: {len(self.free)} to free, {len(self.condemn)} to condemn, {len(self.rewrite)} to write again,"
            f" {len(self.waiting)} waiting, {self.young} too young to judge;"
            f" frees {self.freed_bytes} of {self.total_bytes} bytes"
        ]
        for what in ("free", "condemn", "rewrite", "waiting", "take_back"):
            fates: tuple[PackFate, ...] = getattr(self, what)
            lines += [f"{what:9} {fate.name.key} {fate.bytes} bytes: {fate.reason}" for fate in fates]
        return "\n".join(lines)


def plan_reclaim(
    repo: Repository, now: datetime, safety: SafetyAges | None = None, thresholds: Thresholds | None = None
) -> ReclaimPlan:
    """Decide which packs go. Refused when a restore point cannot be read, a listing lies, or a clock is wrong."""
    safety, thresholds = safety or SafetyAges(), thresholds or Thresholds()
    if repo.shared:
        repo.refresh()
    clock = repo.blobs.clock()
    freeing, condemned = noted(repo.blobs, FREEING), noted(repo.blobs, CONDEMNED)
    packs = sorted({*repo.store.live.values(), *repo.store.distrusted.packs} & listed_packs(repo))
    reached, points = reach(repo, Reached(StoredNodes(repo.store), repo.config.fan_out), ())
    going = freeing | condemned
    sorter = _Sorter(repo, now, clock, safety, thresholds, reached)
    doubtful = sorter.settle([name for name in packs if name not in going])
    for footer, live, body in pack_usage(sorter.footers(doubtful), reached):
        sorter.judge(footer, live, body)
    rewrite = sorter.finish()
    free: list[PackFate] = []
    waiting: list[PackFate] = []
    take_back: list[PackFate] = []
    for name in packs:
        if name not in going:
            continue
        size = repo.blobs.size(name.key)
        if name in freeing:  # begun, and cut short: it is judged again, and what it still has is copied first
            free.append(PackFate(name, size, 0, "its freeing was interrupted"))
            continue
        since = stored_at(repo.blobs, note_key(CONDEMNED, name))
        if since is None:
            continue
        until = since + safety.min_age
        if needed(repo, name, (reached,), going):
            take_back.append(PackFate(name, size, 0, "restore points reach it again"))
        elif clock >= until:
            free.append(PackFate(name, size, 0, f"condemned since {since:%Y-%m-%d %H:%M} UTC"))
        else:
            waiting.append(PackFate(name, size, 0, f"condemned; free from {until:%Y-%m-%d %H:%M} UTC", until))
    return ReclaimPlan(
        made_at=clock,
        condemn=tuple(sorter.condemn),
        rewrite=rewrite,
        free=tuple(free),
        waiting=tuple(waiting),
        take_back=tuple(take_back),
        young=sorter.young,
        total_bytes=sorter.total_bytes + sum(fate.bytes for fate in (*free, *waiting, *take_back)),
        at_once=safety.min_age <= timedelta(0),
        points=frozenset(points),
        reached=reached,
    )


class _Sorter:
    """Sorts packs that are not condemned by what is to happen to them."""

    def __init__(
        self, repo: Repository, now: datetime, clock: datetime, safety: SafetyAges, thresholds: Thresholds, reached: Any
    ) -> None:
        self.condemn: list[PackFate] = []
        self.young = self.total_bytes = 0
        self._repo, self._now, self._clock = repo, now, clock
        self._safety, self._thresholds, self._reached = safety, thresholds, reached
        self._rewrite: list[PackFate] = []
        self._small: list[PackFate] = []
        self._judged: list[PackName] = []
        self._settled: set[PackName] = set()
        self._unreadable: list[PackName] = []

    def settle(self, names: Sequence[PackName]) -> list[PackName]:
        """Those of these packs that have to be judged by their footers; the others stay as they are.

        By the lookup index enough of a pack that stays is reached, or all of a small one, which is taken for one that
        is. A wrong index keeps a pack.
        """
        counts, dead = count_chunks(self._repo.store, self._reached)
        store = self._repo.store
        known = [
            name for name in names
            if name.number < len(counts) and counts[name.number] and store.live.get(name.number) == name
            and name not in store.distrusted.packs
        ]  # fmt: skip
        seal_bytes = TAG_BYTES if store.sealing.encrypted else 0
        lock = threading.Lock()
        settled: set[PackName] = set()

        def look(name: PackName) -> None:
            with suppress(Damaged):  # told by its footer
                header, size = store.footers.glance(name)
                chunks, unreached = int(counts[name.number]), int(dead[name.number])
                body = size - HEADER_BYTES - TRAILER_BYTES - chunks * ENTRY.size - seal_bytes
                most_dead = unreached * (self._repo.config.block_bytes + SEAL_BYTES)
                small = size < self._thresholds.small_pack_bytes
                if (small and unreached) or most_dead > body * self._thresholds.dead_share:
                    return
                self._refuse_future(name, datetime.fromtimestamp(header.created, UTC), self._now)
                young = small and self._is_young(name)
                with lock:
                    settled.add(name)
                    self.total_bytes += size
                    self.young += young
                    if small and not young:
                        self._small.append(PackFate(name, size, body, "small"))

        for_each(known, lambda: look, THREADS)
        self._settled = settled
        return [name for name in names if name not in settled]

    def footers(self, names: Iterable[PackName]) -> Iterator[Footer]:
        """The footers of these packs, one after the other; remembers what cannot be read."""
        for name in names:
            try:
                yield self._repo.store.footers.get(name)
            except Damaged as error:
                log.warning("pack not judged by its footer: %s", error)
                self._unreadable.append(name)
            else:
                self._judged.append(name)

    def judge(self, footer: Footer, live: int, body: int) -> None:
        """Take one pack: how many stored bytes of its chunks are reached, and all of them."""
        name = footer.name
        self.total_bytes += footer.size
        self._refuse_future(name, datetime.fromtimestamp(footer.header.created, UTC), self._now)
        if not live:
            into, fate = self.condemn, PackFate(name, footer.size, 0, DEAD)
        elif name in self._repo.store.distrusted.packs:
            into, fate = self._rewrite, PackFate(name, footer.size, live, "damaged")
        elif live < body * (1 - self._thresholds.dead_share):
            into, fate = self._rewrite, PackFate(name, footer.size, live, "mostly dead")
        elif footer.size < self._thresholds.small_pack_bytes:
            into, fate = self._small, PackFate(name, footer.size, live, "small")
        else:
            return
        if self._is_young(name):
            self.young += 1
        else:
            into.append(fate)

    def finish(self) -> tuple[PackFate, ...]:
        """The packs to write again, now that all were seen; unreadable ones that nobody needs join the condemned."""
        if self._unreadable and all_held(self._reached, _sound(self._repo, (*self._judged, *sorted(self._settled)))):
            sizes = [(name, self._repo.blobs.size(name.key)) for name in self._unreadable if not self._is_young(name)]
            self.condemn += [PackFate(name, size, 0, UNREADABLE) for name, size in sizes]
        for kind in PackKind:
            of_kind = sorted((fate for fate in self._small if fate.name.kind is kind), key=lambda fate: fate.name)
            if len(of_kind) >= self._thresholds.small_packs:
                self._rewrite += of_kind
        return tuple(self._rewrite)

    def _is_young(self, name: PackName) -> bool:
        locking = self._repo.locking
        until = locking.until(name.key) if locking is not None else None
        if until is not None and until > self._clock:
            return True
        stored = stored_at(self._repo.blobs, name.key)
        if stored is None:
            return True  # gone meanwhile
        self._refuse_future(name, stored, self._clock)
        return self._clock - stored < self._safety.min_age

    def _refuse_future(self, name: PackName, moment: datetime, clock: datetime) -> None:
        if moment - clock > self._safety.clock_ahead:
            raise Refused(
                f"{name.key} is from the future ({moment:%Y-%m-%d %H:%M} UTC)", hint="set the clock right first"
            )


def listed_packs(repo: Repository) -> set[PackName]:
    """The packs that are there."""
    return {name for name in map(parse_pack_key, repo.blobs.list("packs/")) if name}


def needed(repo: Repository, name: PackName, reached: Sequence[Any], going: Collection[PackName]) -> set[bytes]:
    """The chunks of a pack that are reached and that no pack which stays has; its own id if it cannot be read."""
    try:
        footer = repo.store.footers.get(name)
    except Damaged:
        held = all(all_held(one, _stay(repo, going)) for one in reached)
        return set() if held else {name.id}
    chunks = {footer.entry(int(slot)).id for one in reached for slot in live_slots(footer, one).nonzero()[0]}
    return {chunk for chunk in chunks if not any(_trusted(repo, repo.store.holders(chunk), {name, *going}))}


def _trusted(repo: Repository, holders: Iterable[PackName], going: Collection[PackName]) -> Iterator[PackName]:
    return (name for name in holders if name not in going and name not in repo.store.distrusted.packs)


def _stay(repo: Repository, going: Collection[PackName]) -> Iterator[Footer]:
    return _sound(repo, [name for name in list(repo.store.live.values()) if name not in going])


def _sound(repo: Repository, names: Iterable[PackName]) -> Iterator[Footer]:
    for name in names:
        with suppress(Damaged):
            yield repo.store.footers.get(name)
