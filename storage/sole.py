"""How many stored bytes some restore points hold alone: what would be dead once exactly they had expired."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from policies.facts import PointId
from storage.errors import Damaged
from storage.nodes import StoredNodes
from storage.pack import Footer
from storage.packcounts import count_chunks
from storage.reachability import Reached, pack_usage
from storage.repository import Repository
from storage.roots import add_points, reach


def sole_bytes(repo: Repository, points: Collection[PointId]) -> int:
    """Stored bytes of the chunks and map nodes that these restore points reach and no other does.

    Every map node is read once, as for reclaim, and of the packs only the footers of those that hold some of it.
    Refused when a restore point cannot be read.
    """
    import numpy as np

    reached = Reached(StoredNodes(repo.store), repo.config.fan_out)
    going = set(points)
    staying, listed = reach(repo, reached, going)
    add_points(repo, reached, going & listed)
    alone = np.setdiff1d(reached.sorted(), staying, assume_unique=True)
    if not len(alone):
        return 0
    counts, others = count_chunks(repo.store, alone)
    holding = [int(number) for number in np.flatnonzero(counts > others)]
    return sum(live for _, live, _ in pack_usage(_footers(repo, holding), alone))


def _footers(repo: Repository, numbers: list[int]) -> Iterator[Footer]:
    for number in numbers:
        name = repo.store.live.get(number)
        if name is not None:
            with suppress(Damaged):  # its bytes are not known
                yield repo.store.footers.get(name)
