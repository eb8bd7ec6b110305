"""How many chunks of each pack are dead, by the lookup index alone: no footer is read for it.

The index is derived and may be wrong. What it calls live is kept; what it calls dead is looked up in the footer.
"""

from __future__ import annotations

import threading
from typing import Any

from storage.chunkreads import ChunkReads
from storage.parallel import for_each
from storage.runs import Columns

SLICE_ENTRIES = 1 << 16
"""Entries compared at once: they and what is reached between them fit a cache."""

THREADS = 2
MAX_NUMBER = 1 << 24
"""Packs with higher numbers than this, which is a petabyte, are not counted."""


def count_chunks(store: ChunkReads, reached: Any) -> tuple[Any, Any]:
    """Numpy arrays by pack number: how many chunks the index has of each pack, and how many of them are not reached.

    `reached` are sorted, different 64-bit prefixes.
    Packs beyond the end of the arrays, or without chunks, are not known.
    """
    import numpy as np

    highest = max((number for number in store.live if number < MAX_NUMBER), default=0)
    counts, dead = np.zeros(highest + 1, np.int64), np.zeros(highest + 1, np.int64)
    lock = threading.Lock()

    def count(part: Columns) -> None:
        low, high = np.searchsorted(reached, part.keys[[0, -1]])
        around = reached[low : high + 1]
        numbers = part.numbers
        unreached = numbers
        if len(around):
            at = np.searchsorted(around, part.keys)
            unreached = numbers[around[np.minimum(at, len(around) - 1)] != part.keys]
        all_of = np.bincount(numbers[numbers <= highest])
        dead_of = np.bincount(unreached[unreached <= highest])
        with lock:
            counts[: len(all_of)] += all_of
            dead[: len(dead_of)] += dead_of

    for_each(store.indexed(SLICE_ENTRIES), lambda: count, THREADS)
    return counts, dead
