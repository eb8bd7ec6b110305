"""Python's search for garbage, kept off what an engine holds for long.

Ten thousand VMs with their restore points are a million objects, and looking through them stops everything for half a
second, several times while many events come.
"""

from __future__ import annotations

import gc

THRESHOLDS = (2_000, 10, 500)
"""How many new objects, and searches among new ones, there are between two searches through everything since then."""


def keep_out_of_search() -> None:
    """What lives now is not looked through any more. It is still freed as soon as nothing refers to it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
