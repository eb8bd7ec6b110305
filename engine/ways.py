"""Which ways to a disk are left when one breaks while it is read, and which only read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ONLY_READ = frozenset({"export", "https"})
"""Ways by which a disk is read and never written."""


def left_after(ways: Sequence[str], used: str, broken: Sequence[str]) -> tuple[str, ...]:
    """The ways that may be tried now, in order, after `used` broke; empty when each had its chances.

    `broken` are the ways that broke before, in this reading of the disk. A way is opened once more before it is given
    up: after a move a new opening reaches the new host. What could not be opened is not tried again.
    """
    at = ways.index(used) if used in ways else 0
    return tuple(ways[at + 1 :] if used in broken else ways[at:])


def none_writes(ways: Iterable[str]) -> str:
    """Why no disk can be written by these ways, as a sentence; empty when one can be."""
    told = sorted(ways)
    return "" if set(told) - ONLY_READ else f"by {' and '.join(told) or 'no transport'} disks are only read"
