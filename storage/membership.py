"""Whether hashes are among many others: a table of where each beginning stands replaces a search."""

from __future__ import annotations

from typing import Any

MAX_BITS = 27
SLICE = 1 << 22


class Members:
    """Sorted, different 64-bit prefixes of hashes (a numpy array), to be asked for hundreds of thousands at a time.

    The table has as many places as there are prefixes, so one of them is looked at on average. 4 bytes a place.
    """

    def __init__(self, prefixes: Any) -> None:
        import numpy as np

        self._prefixes = prefixes
        bits = min(MAX_BITS, max(1, len(prefixes).bit_length()))
        self._shift = np.uint64(64 - bits)
        counts = np.zeros((1 << bits) + 1, np.uint32)
        for start in range(0, len(prefixes), SLICE):
            places = (prefixes[start : start + SLICE] >> self._shift).astype(np.int64)
            first = int(places[0])
            amount = np.bincount(places - first)
            counts[first + 1 : first + 1 + len(amount)] += amount.astype(np.uint32)
        self._begins = np.cumsum(counts, out=counts)

    def has(self, heads: Any) -> Any:
        """A numpy array of booleans: which of these are there."""
        import numpy as np

        prefixes = self._prefixes
        if not len(prefixes):
            return np.zeros(len(heads), bool)
        last = len(prefixes) - 1
        at = self._begins[(heads >> self._shift).astype(np.int64)].astype(np.int64)
        there = prefixes[np.minimum(at, last)]
        found = there == heads
        left = np.flatnonzero((there < heads) & (at < last))
        at = at[left]
        while len(left):
            at = at + 1
            there, wanted = prefixes[at], heads[left]
            found[left] = there == wanted
            more = (there < wanted) & (at < last)
            left, at = left[more], at[more]
        return found
