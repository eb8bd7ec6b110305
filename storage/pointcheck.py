"""Verifying some restore points only, by the way that a restore takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto

from policies.facts import PointId
from storage.damage import Damage
from storage.errors import UNREADABLE, Damaged, NoSuchPoint
from storage.format import Pieced, parse_pieces
from storage.manifest import Manifest
from storage.piecelists import WHERE, read_blocks
from storage.repository import Repository

_BATCH = 32


class _Needed(Enum):
    """What is read in a batch; for BLOCKS the ids are of piece lists, whose blocks are put together."""

    CHUNKS = auto()
    LISTS = auto()
    BLOCKS = auto()


@dataclass(slots=True)
class PointFindings:
    """What reading came to. `judged` has what each restore point lacks."""

    chunks: int = 0
    read_bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    judged: dict[PointId, list[str]] = field(default_factory=dict)
    lost: set[bytes] = field(default_factory=set)
    left: int = 0
    """Restore points that were not looked at before the deadline."""


def check_points(
    repo: Repository, points: Sequence[PointId], step: Callable[[int], None], time_is_up: Callable[[], bool]
) -> PointFindings:
    """Read back all that these restore points need."""
    found = PointFindings()
    damaged: dict[tuple[str, str, str], list[PointId]] = {}
    names: dict[PointId, str] = {}
    for at, point in enumerate(points):
        if time_is_up():
            found.left = len(points) - at
            break
        found.judged[point] = []
        try:
            manifest = repo.manifest(point)
            names[point] = manifest.head.vm_name
            for batch, needed in _batches(repo, manifest):
                if needed is _Needed.BLOCKS:
                    for list_id, error in _not_made(repo, [one for one in batch if one not in found.lost]):
                        damaged.setdefault((error.where, list_id.hex(), error.what), []).append(point)
                        found.judged[point].append(error.what)
                        found.lost.add(list_id)
                    continue
                read = repo.store.read_each(batch, node=needed is _Needed.LISTS, strict=False)
                for chunk, data in zip(batch, read, strict=True):
                    if isinstance(data, Damaged):
                        damaged.setdefault((data.where, chunk.hex(), data.what), []).append(point)
                        found.judged[point].append(data.what)
                        found.lost.add(chunk)
                    else:
                        found.chunks, found.read_bytes = found.chunks + 1, found.read_bytes + len(data)
                        step(len(data))
        except NoSuchPoint:
            del found.judged[point]
        except UNREADABLE as error:
            damaged.setdefault((error.where, "", error.what), []).append(point)
            found.judged[point].append(error.what)
    for (where, chunk_id, what), of in damaged.items():
        vms = tuple(sorted({names[point] for point in of if point in names}))
        found.damaged.append(Damage(where, chunk_id, tuple(of), what, vms))
    return found


def _not_made(repo: Repository, lists: Sequence[bytes]) -> Iterator[tuple[bytes, Damaged]]:
    """Piece lists, intact themselves as are their chunks, that do not make the block that was written."""
    for list_id in lists:
        try:
            read_blocks(repo.store, [list_id])
        except Damaged as error:
            if error.where == WHERE:  # else a chunk is damaged, which was told
                yield list_id, error


def _batches(repo: Repository, manifest: Manifest) -> Iterator[tuple[list[bytes], _Needed]]:
    """Ids of what is needed, a few at a time; piece lists come once more after their chunks."""
    if manifest.configuration:
        yield list(manifest.configuration), _Needed.CHUNKS
    for disk in manifest.disks:
        for _, children in repo.read_disk(manifest.id, disk.head.name).leaves():
            ids = [id_ for id_ in children.values() if not isinstance(id_, Pieced)]
            lists: list[bytes] = [id_ for id_ in children.values() if isinstance(id_, Pieced)]
            for part in _parts(lists):
                yield part, _Needed.LISTS
                for data in repo.store.read_each(part, node=True, strict=False):
                    with suppress(Damaged):  # told when its block is made
                        ids += () if isinstance(data, Damaged) else parse_pieces(bytes(data), WHERE).chunks
            for part in _parts(list(dict.fromkeys(ids))):
                yield part, _Needed.CHUNKS
            for part in _parts(lists):
                yield part, _Needed.BLOCKS


def _parts(ids: Sequence[bytes]) -> Iterator[list[bytes]]:
    return (list(ids[start : start + _BATCH]) for start in range(0, len(ids), _BATCH))
