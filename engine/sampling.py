"""A sample of what change tracking calls unchanged: read again from the snapshot, held against the last restore point.

Change tracking has lied in the field, and since vSphere 6.5 it may do so without a fault. The blocks are drawn anew
for each run, so that what it forgets is found sooner or later, however little a run looks at.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from connectors.disks import Extent, align, subtract
from engine.copying import CopyPlan, Part
from engine.jobs import Sampled
from policies.protection import DEFAULT_SAMPLE
from storage.errors import StorageError
from storage.reading import PointDisk

DRAWN = 4
"""So many times the blocks that are wanted are drawn, to find those that hold data: most of a disk may hold none."""

EMPTY_SHARE = 4
"""One in so many blocks of a sample held nothing before, where there are enough that held something."""


SMALL_SHARE, FEWEST = 1000, 4
"""Where nobody says how much, a sample is at most one in so many blocks of a disk, so that it costs little, but at
least so many."""


def sample_size(wanted: int | None, blocks: int) -> int:
    """How many blocks of a disk are read again; `wanted` is None where no policy says."""
    return min(DEFAULT_SAMPLE, max(FEWEST, blocks // SMALL_SHARE)) if wanted is None else wanted


def draw(seed: str, extents: Sequence[Extent], block_bytes: int, count: int) -> list[int]:
    """Up to `count` blocks of these extents, each as likely as any other and none twice; sorted.

    The extents are disjoint and on the grid of blocks. The same seed draws the same blocks.
    """
    sizes = [-(-extent.length // block_bytes) for extent in extents]
    ends = list(accumulate(sizes))
    whole = ends[-1] if ends else 0
    drawn = sorted(random.Random(seed).sample(range(whole), min(count, whole)))
    found = []
    for number in drawn:
        at = bisect_right(ends, number)
        found.append(extents[at].offset // block_bytes + number - (ends[at] - sizes[at]))
    return found


def preferred(seed: str, candidates: Sequence[int], contents: Sequence[bytes], count: int) -> dict[int, bytes]:
    """At most `count` of the candidates with what they hold, most of them such as hold something; sorted."""
    pairs = list(zip(candidates, contents, strict=True))
    random.Random(seed).shuffle(pairs)
    used, empty = [pair for pair in pairs if pair[1]], [pair for pair in pairs if not pair[1]]
    few = max(count // EMPTY_SHARE, count - len(used))
    chosen = [*empty[:few], *used][:count]
    return dict(sorted(chosen))


class Sample:
    """The blocks of one disk that are to be read again, and the sink that compares them with how they were.

    Blocking: made and used in threads. A last restore point that cannot be read ends the sample, never the run.
    """

    def __init__(self, before: PointDisk, told: Sequence[Extent], *, seed: str, count: int) -> None:
        self._before = before
        self._lock = threading.Lock()
        self._blocks = self._differ = 0
        self._reason = ""
        step, capacity = before.block_bytes, before.capacity_bytes
        unchanged = subtract([Extent(0, capacity)] if capacity else [], align(told, step, capacity))
        candidates = draw(seed, unchanged, step, count * DRAWN)
        try:
            contents = before.contents(candidates)
        except StorageError as error:
            self._reason = str(error)
            candidates, contents = [], []
        self._held = preferred(seed, candidates, contents, count)

    @property
    def plan(self) -> CopyPlan:
        """What is to be read; each block by itself, so that `write_parts` sees whole blocks alone."""
        step, capacity = self._before.block_bytes, self._before.capacity_bytes
        return CopyPlan(tuple(Extent(b * step, min(step, capacity - b * step)) for b in self._held), ())

    def write_parts(self, parts: Sequence[Part]) -> None:
        """Compare them. From any thread."""
        for offset, view in parts:
            block = offset // self._before.block_bytes
            try:
                differs = self._before.content_of(view) != self._held[block] and not self._same(offset, view)
            except StorageError as error:
                with self._lock:
                    self._reason = str(error)
                continue
            with self._lock:
                self._blocks += 1
                self._differ += differs

    def zero(self, offset: int, length: int) -> None:
        """Nothing is planned as zero."""

    def _same(self, offset: int, view: memoryview) -> bool:
        """Byte for byte: ids of one content can differ where a disk once ended within the block."""
        before = bytearray(len(view))
        self._before.read_into(offset, memoryview(before))
        return before == view

    def result(self) -> Sampled:
        """What came of it, after the last read."""
        return Sampled(self._blocks, self._differ, self._reason)
