"""Verifying some restore points only, by the way that a restore takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from policies.facts import PointId
from storage.damage import Damage
from storage.errors import UNREADABLE, Damaged, NoSuchPoint
from storage.format import Pieced, parse_pieces
from storage.manifest import Manifest
from storage.repository import Repository

_BATCH = 32


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
            for batch, are_lists in _batches(repo, manifest):
                for chunk, data in zip(batch, repo.store.read_each(batch, node=are_lists, strict=False), strict=True):
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


def _batches(repo: Repository, manifest: Manifest) -> Iterator[tuple[list[bytes], bool]]:
    """Ids of what is needed, a few at a time, and whether they are of piece lists."""
    if manifest.configuration:
        yield list(manifest.configuration), False
    for disk in manifest.disks:
        for _, children in repo.read_disk(manifest.id, disk.head.name).leaves():
            ids = [id_ for id_ in children.values() if not isinstance(id_, Pieced)]
            lists: list[bytes] = [id_ for id_ in children.values() if isinstance(id_, Pieced)]
            for start in range(0, len(lists), _BATCH):
                part = lists[start : start + _BATCH]
                yield part, True
                for data in repo.store.read_each(part, node=True, strict=False):
                    if not isinstance(data, Damaged):
                        ids += parse_pieces(bytes(data), "piece list").chunks
            ids = list(dict.fromkeys(ids))
            for start in range(0, len(ids), _BATCH):
                yield ids[start : start + _BATCH], False
