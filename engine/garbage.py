"""Python's search for garbage, kept off what an engine holds for long.

Ten thousand VMs with their restore points are a million objects, and looking through them stops everything for half a
second, several times while many events come.
"""

from __future__ import annotations

import gc

THRESHOLDS = (2_000, 10, 20)
"""How many new objects, and searches among new ones, there are between two searches through everything since then.

What pyVmomi answers with refers to itself: 15 KB of each VM that is read again are freed by that search alone.
"""


def keep_out_of_search(first: bool = False) -> None:
    """What lives now is not looked through any more. It is still freed as soon as nothing refers to it.

    `first` is for when very much is new: only what is newest is looked through once more.
    """
    gc.collect(1 if first else 2)
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
