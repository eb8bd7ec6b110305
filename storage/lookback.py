"""The last restore point of a VM, from the newest manifests: to open the catalog takes longer than to read them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import nlargest

from policies.facts import PointId, VmId
from storage.points import PointDetail

LOOKBACK = 64
"""So many manifests are read; behind them the catalog knows faster."""

SECOND = len("20260301t060000z")
"""How much of a restore point's id tells when it was taken; they sort by it."""


def newest(ids: Collection[PointId], vm: VmId, detail: Callable[[PointId], PointDetail]) -> PointDetail | None:
    """The newest complete and undamaged restore point of a VM; None when it is not among the newest of all VMs.

    Raises what `detail` raises for one that is damaged: whose it was only the catalog may know.
    """
    found: PointDetail | None = None
    for point in nlargest(LOOKBACK, ids):
        if found is not None and point[:SECOND] != found.id[:SECOND]:
            break
        one = detail(point)
        if one.head.vm == vm and one.head.complete and not one.damaged:
            found = one if found is None else max(found, one, key=lambda two: (two.head.taken_at, two.id))
    return found
