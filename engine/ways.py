"""Which ways to a disk are left when one breaks while it is read, and which of them write. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

IMPORT = "import"
"""What an export is in the other direction. It makes a whole new VM, and writes into none that is there."""

WRITES = ("hotadd", "nbd", IMPORT)
"""The ways by which disks are written."""


def left_after(ways: Sequence[str], used: str, broken: Sequence[str]) -> tuple[str, ...]:
    """The ways that may be tried now, in order, after `used` broke; empty when each had its chances.

    `broken` are the ways that broke before, in this reading of the disk. A way is opened once more before it is given
    up: after a move a new opening reaches the new host. What could not be opened is not tried again.
    """
    at = ways.index(used) if used in ways else 0
    return tuple(ways[at + 1 :] if used in broken else ways[at:])


def in_writing(ways: Iterable[str]) -> tuple[str, ...]:
    """The ways by which a new VM's disks are written, in the order in which disks are read."""
    turned = (IMPORT if way == "export" else way for way in ways)
    return tuple(way for way in dict.fromkeys(turned) if way in WRITES)


def steps(ways: Iterable[str]) -> list[tuple[str, ...]]:
    """The ways of writing in the order to try them: those that fill disks of a VM together, an import alone."""
    return [tuple(group) for _, group in groupby(ways, key=lambda way: way == IMPORT)]


def none_writes(ways: Iterable[str], *, new: bool = False) -> str:
    """Why no disk can be written by these ways, as a sentence; empty when one can be. With `new`, of a new VM."""
    told = sorted(ways)
    writing = set(in_writing(told)) - (set() if new else {IMPORT})
    if writing:
        return ""
    if "export" in told:
        return f"by {' and '.join(told)} no disk is written into a VM that is there"
    return f"by {' and '.join(told) or 'no transport'} disks are only read"
