"""Reading everything back and comparing: packs byte for byte, manifests, marks, and every map down to its chunks.

It trusts neither catalog nor lookup index: what it compares with, it has read from the packs themselves.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from policies.facts import PointId
from storage import marks
from storage.blockmap import Root
from storage.catalog_rows import aware
from storage.chunkreads import open_entry
from storage.errors import Damaged, NoSpace, NoSuchPoint, StorageError, StoreFailed
from storage.failpoints import failpoint
from storage.format import Node, PackKind, PackName, parse_node, parse_pack_key
from storage.index import prefix_of
from storage.manifest import Manifest, manifest_key
from storage.marks import MarkKind
from storage.pack import Footer, check_tiling, read_footer
from storage.repository import Repository

log = logging.getLogger(__name__)

READ_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written. `chunk` is empty when it is not about one chunk."""

    object: str
    chunk: str
    points: tuple[PointId, ...]
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read, and what was wrong."""

    checked_chunks: int
    checked_bytes: int
    checked_points: int
    damaged: tuple[Damage, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not self.damaged


@dataclass(slots=True)
class _Tally:
    """What the threads share."""

    names: Iterator[PackName]
    progress: Callable[[int], None] | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    chunks: int = 0
    read_bytes: int = 0
    expected: int = 0
    good: array[int] = field(default_factory=lambda: array("Q"))
    bad: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    good_again: set[bytes] = field(default_factory=set)
    nodes: dict[bytes, tuple[Footer, int]] = field(default_factory=dict)
    broken_packs: list[Damage] = field(default_factory=list)
    failure: BaseException | None = None


def verify(
    repo: Repository,
    *,
    now: datetime,
    points: Sequence[PointId] | None = None,
    progress: Callable[[int], None] | None = None,
    threads: int = 2,
) -> VerifyReport:
    """Read back everything, or all that some restore points need, and record the result in marks.

    `progress` gets the bytes read so far. StoreFailed when the store itself fails: that says nothing of the data.
    """
    with repo.maintenance:
        report, judged = (
            _verify_all(repo, progress, threads) if points is None else _verify_some(repo, points, progress)
        )
        for point, damages in judged.items():
            _record(repo, point, damages, now)
    return report


def verified_since(repo: Repository) -> datetime | None:
    """The oldest of the restore points' newest verifications without damage; None when there is none."""
    [(oldest,)] = repo.opened_catalog().query("SELECT min(marked_at) FROM marks WHERE kind = 'verified'")
    return aware(oldest) if oldest is not None else None


def _record(repo: Repository, point: PointId, damages: Sequence[str], now: datetime) -> None:
    earlier = [m for m in repo.marks.of(point) if m.kind in (MarkKind.VERIFIED, MarkKind.DAMAGED)]
    try:
        if damages:
            repo.add_mark(point, MarkKind.DAMAGED, now, "; ".join(damages[:3]))
        else:
            repo.add_mark(point, MarkKind.VERIFIED, now)
        failpoint("verify.recorded")
        repo.drop_marks(earlier)  # a newer verification replaces an older one
    except NoSuchPoint:
        log.info("restore point expired while it was verified: %s", point)
    except (NoSpace, StoreFailed) as error:
        log.error("result of the verification not recorded: %s", error)


# --- everything ---


def _verify_all(
    repo: Repository, progress: Callable[[int], None] | None, threads: int
) -> tuple[VerifyReport, dict[PointId, list[str]]]:
    points = sorted(repo.point_ids())  # before the packs: every pack of these is listed
    damaged, names = _list_packs(repo)
    tally = _read_packs(repo, names, progress, threads)
    damaged += tally.broken_packs + _check_marks(repo)
    damaged += [Damage(manifest_key(lost.id), "", (lost.id,), lost.reason) for lost in repo.lost_points()]
    judged: dict[PointId, list[str]] = {}
    affected: dict[bytes, list[PointId]] = {}
    walker = _Walker(repo, tally)
    for point in points:
        try:
            manifest = repo.manifest(point)
        except NoSuchPoint:
            continue
        except Damaged as error:
            damaged.append(Damage(manifest_key(point), "", (point,), error.what))
            judged[point] = [f"its manifest: {error.what}"]
            continue
        lost = walker.lost_by(manifest)
        judged[point] = [f"{len(lost)} chunks are lost"] if lost else []
        for chunk in lost:
            affected.setdefault(chunk, []).append(point)
    for chunk, of_points in affected.items():
        where, what = tally.bad.get(chunk, ("packs/", "no pack holds it"))
        damaged.append(Damage(where, chunk.hex(), tuple(of_points), what))
    for chunk, (where, what) in tally.bad.items():
        if chunk not in affected:
            damaged.append(Damage(where, chunk.hex(), (), what))
    damaged += _check_catalog(repo)
    bad_packs = {damage.object for damage in tally.broken_packs} | {where for where, _ in tally.bad.values()}
    lost = {chunk for chunk in tally.bad if chunk not in tally.nodes and walker.lost([chunk])}
    repo.store.distrust(lost, [name for name in names if name.key in bad_packs])
    return VerifyReport(tally.chunks, tally.read_bytes, len(judged), tuple(damaged)), judged


def _list_packs(repo: Repository) -> tuple[list[Damage], list[PackName]]:
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
    return damaged, names


def _read_packs(
    repo: Repository, names: Sequence[PackName], progress: Callable[[int], None] | None, threads: int
) -> _Tally:
    tally = _Tally(iter(names), progress)
    helpers = [
        threading.Thread(target=_run, args=(repo, tally), name=f"verify {n}", daemon=True) for n in range(1, threads)
    ]
    for helper in helpers:
        helper.start()
    _run(repo, tally)
    for helper in helpers:
        helper.join()
    if tally.failure is not None:
        raise tally.failure
    if tally.chunks != tally.expected:
        raise StoreFailed(f"{tally.chunks} chunks were checked where the packs list {tally.expected}")
    return tally


def _run(repo: Repository, tally: _Tally) -> None:
    buffer = bytearray(READ_BYTES + (32 << 20))
    try:
        while True:
            with tally.lock:
                name = next(tally.names, None) if tally.failure is None else None
            if name is None:
                return
            _read_pack(repo, name, tally, buffer)
    except BaseException as error:  # raised in the caller's thread
        with tally.lock:
            tally.failure = tally.failure or error


def _read_pack(repo: Repository, name: PackName, tally: _Tally, buffer: bytearray) -> None:
    try:
        footer = read_footer(repo.blobs, repo.sealing, name)
        check_tiling(footer)
    except Damaged as error:
        with tally.lock:
            tally.broken_packs.append(Damage(name.key, "", (), error.what))
        return
    node = name.kind is PackKind.TREE
    hash_of = repo.sealing.node_id if node else repo.sealing.chunk_id
    with tally.lock:
        tally.expected += len(footer)
    for first, end in _spans(footer):
        start = footer.entry(first).offset
        length = footer.entry(end - 1).offset + footer.entry(end - 1).stored - start
        view = memoryview(buffer)[:length]
        lost: Damaged | None = None
        try:
            repo.blobs.read_into(name.key, start, view)
        except Damaged as error:
            lost = error
        good = array("Q")
        bad: dict[bytes, tuple[str, str]] = {}
        nodes: dict[bytes, tuple[Footer, int]] = {}
        for slot in range(first, end):
            entry = footer.entry(slot)
            try:
                if lost is not None:
                    raise lost
                open_entry(footer, entry, view[entry.offset - start : entry.offset - start + entry.stored], hash_of)
                good.append(prefix_of(entry.id))
                if node:
                    nodes[entry.id] = footer, slot
            except Damaged as error:
                bad[entry.id] = name.key, error.what
        with tally.lock:
            tally.good.extend(good)
            tally.nodes.update(nodes)
            tally.bad.update(bad)
            tally.chunks += end - first
            tally.read_bytes += length
            done = tally.read_bytes
        if tally.progress is not None:
            tally.progress(done)


def _spans(footer: Footer) -> Iterator[tuple[int, int]]:
    """Runs of slots that are read by one call."""
    first, start = 0, 0
    for slot in range(len(footer)):
        entry = footer.entry(slot)
        if slot == first:
            start = entry.offset
        elif entry.offset + entry.stored - start > READ_BYTES:
            yield first, slot
            first, start = slot, entry.offset
    if len(footer):
        yield first, len(footer)


class _Walker:
    """Follows maps through nodes that were read back, and tells which chunks no intact pack has."""

    def __init__(self, repo: Repository, tally: _Tally) -> None:
        import numpy as np

        self._repo = repo
        self._tally = tally
        self._good: Any = np.unique(np.frombuffer(tally.good, np.uint64)) if tally.good else np.empty(0, np.uint64)
        self._clean: set[bytes] = set()
        self._dirty: dict[bytes, set[bytes]] = {}

    def lost_by(self, manifest: Manifest) -> set[bytes]:
        """The chunks and nodes of a restore point that are lost."""
        lost = self.lost(manifest.configuration)
        for disk in manifest.disks:
            lost |= self._below_root(disk.root, manifest.fan_out)
        return lost

    def _below_root(self, root: Root, fan_out: int) -> set[bytes]:
        return self._below(root.node, root.levels - 1, fan_out) if root.node else set()

    def _below(self, node: bytes, level: int, fan_out: int) -> set[bytes]:
        if node in self._clean:
            return set()
        if node in self._dirty:
            return self._dirty[node]
        parsed = self._node(node, level, fan_out)
        if parsed is None:
            lost = {node}
        elif level == 0:
            lost = self.lost(list(parsed.children.values()))
        else:
            lost = set()
            for child in parsed.children.values():
                lost |= self._below(child, level - 1, fan_out)
        if lost:
            self._dirty[node] = lost
        else:
            self._clean.add(node)
        return lost

    def _node(self, node: bytes, level: int, fan_out: int) -> Node | None:
        place = self._tally.nodes.get(node)
        if place is None:
            return None
        footer, slot = place
        entry = footer.entry(slot)
        data = bytearray(entry.stored)
        try:
            self._repo.blobs.read_into(footer.name.key, entry.offset, memoryview(data))
            plain = open_entry(footer, entry, data, self._repo.sealing.node_id)
            return parse_node(bytes(plain), level, fan_out, footer.name.key)
        except Damaged as error:
            self._tally.bad[node] = footer.name.key, error.what
            return None

    def lost(self, chunks: Sequence[bytes]) -> set[bytes]:
        """Those of these chunks that no intact pack has."""
        import numpy as np

        if not chunks:
            return set()
        heads = np.array([prefix_of(chunk) for chunk in chunks], np.uint64)
        if not len(self._good):
            return set(chunks)
        at = np.minimum(np.searchsorted(self._good, heads), len(self._good) - 1)
        there = self._good[at] == heads
        return {chunk for chunk, found in zip(chunks, there.tolist(), strict=True) if not found}


def _check_marks(repo: Repository) -> list[Damage]:
    damaged = []
    for key in sorted(repo.blobs.list(marks.PREFIX)):
        try:
            repo.marks.read(key)
        except Damaged as error:
            damaged.append(Damage(key, "", (PointId(key.split("/")[1]),), error.what))
    return damaged


def _check_catalog(repo: Repository) -> list[Damage]:
    """DuckDB checks its blocks when they are read, so read them all; a catalog that fails is made again."""
    try:
        for table in ("chunks", "packs", "points", "disks", "marks"):
            repo.opened_catalog().query(f"SELECT sum(hash(COLUMNS(*))) FROM {table}")
    except StorageError as error:
        log.warning("catalog made again: %s", error)
        repo.catalog.rebuild()
        repo.catalog.rebuilds["damaged"] += 1
        return [Damage("catalog.duckdb", "", (), f"{error.what}; it was made again")]
    return []


# --- some restore points, by the way of a restore ---


def _verify_some(
    repo: Repository, points: Sequence[PointId], progress: Callable[[int], None] | None
) -> tuple[VerifyReport, dict[PointId, list[str]]]:
    damaged: dict[tuple[str, str, str], list[PointId]] = {}
    judged: dict[PointId, list[str]] = {}
    chunks = read = 0
    for point in points:
        judged[point] = []
        try:
            manifest = repo.manifest(point)
            wanted = [list(manifest.configuration)]
            for disk in manifest.disks:
                leaves = repo.read_disk(point, disk.head.name).leaves()
                for batch in _batches(leaves, wanted):
                    for chunk, data in zip(batch, repo.store.read_each(batch, strict=False), strict=True):
                        if isinstance(data, Damaged):
                            damaged.setdefault((data.where, chunk.hex(), data.what), []).append(point)
                            judged[point].append(data.what)
                        else:
                            chunks, read = chunks + 1, read + len(data)
                    if progress is not None:
                        progress(read)
                wanted = []
        except Damaged as error:
            damaged.setdefault((error.where, "", error.what), []).append(point)
            judged[point].append(error.what)
    found = tuple(Damage(where, chunk, tuple(of), what) for (where, chunk, what), of in damaged.items())
    return VerifyReport(chunks, read, len(points), found), judged


def _batches(leaves: Iterator[tuple[int, dict[int, bytes]]], first: list[list[bytes]]) -> Iterator[list[bytes]]:
    yield from (batch for batch in first if batch)
    for _, children in leaves:
        ids = list(children.values())
        for start in range(0, len(ids), 32):
            yield ids[start : start + 32]
