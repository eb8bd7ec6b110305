"""What terms say together: which exclude each other, and which cover others. Pure.

Both are told only where they are certain from how the terms are written: "no" means that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from policies.policy import Selection
from policies.terms import Term
from policies.units import parse_size

_ONE_VALUE = {
    "name", "folder", "datacenter", "cluster", "host", "resource_pool",
    "power", "guest_os", "size", "disks", "template",
}  # fmt: skip
"""Properties of which a VM has exactly one value, so that two that differ exclude each other."""

_WILD = "*?["
_COMPARISON = re.compile(r"(>=|<=|>|<) ?(.+)", re.ASCII)


def exclude(one: Term, other: Term) -> bool:
    """Whether no VM matches both."""
    if one.property != other.property or one.property not in _ONE_VALUE:
        return False
    if one.property in ("size", "disks"):
        (low, high), (other_low, other_high) = _bounds(one), _bounds(other)
        return max(low, other_low) > min(high, other_high)
    if (value := _literal(one)) is not None:
        return not other.matches(value)
    if (value := _literal(other)) is not None:
        return not one.matches(value)
    return _rims_exclude(_glob(one), _glob(other))


def covers(wide: Term, narrow: Term) -> bool:
    """Whether every VM that matches `narrow` matches `wide`."""
    if not wide.property or wide.text.casefold() == narrow.text.casefold():
        return True
    if wide.property != narrow.property:
        return False
    if wide.property in ("size", "disks"):
        (low, high), (narrow_low, narrow_high) = _bounds(wide), _bounds(narrow)
        return low <= narrow_low and high >= narrow_high
    if (value := _literal(narrow)) is not None:
        return wide.matches(value)
    glob, inner = _glob(wide), _glob(narrow)
    if wide.property == "folder":
        return glob.endswith("/**") and not _wild(glob[:-3]) and inner.startswith(f"{glob[:-3]}/")
    head, star, tail = glob.partition("*")
    if not star or _wild(head + tail):
        return False
    return _start(inner).startswith(head) and _end(inner).endswith(tail) and len(inner) >= len(head) + len(tail)


def matches_nothing(selection: Selection) -> tuple[Term, Term] | None:
    """Two terms that exclude each other, so that the selection can match no VM."""
    for index, one in enumerate(selection.all):
        for other in selection.all[index + 1 :]:
            if exclude(one, other):
                return one, other
    if selection.any:
        against = [next((one for one in selection.all if exclude(one, some)), None) for some in selection.any]
        if all(against) and against[0] is not None:
            return against[0], selection.any[0]
    return None


def taken_away(selection: Selection) -> Term | None:
    """The term of `none` that leaves nothing of what the selection matches."""
    for never in selection.none:
        if any(covers(never, one) for one in selection.all):
            return never
        if selection.any and all(covers(never, some) for some in selection.any):
            return never
    if selection.any and all(any(covers(never, some) for never in selection.none) for some in selection.any):
        return selection.none[0]
    return None


def within(narrow: Selection, wide: Selection) -> bool:
    """Whether every VM that `narrow` selects is selected by `wide` too."""
    if not (wide.all or wide.any) or not (narrow.all or narrow.any):
        return False
    every = all(_ensured(term, narrow) for term in wide.all)
    some = not wide.any or any(covers(term, one) for term in wide.any for one in narrow.all)
    some = some or (bool(narrow.any) and all(_covered(one, wide.any) for one in narrow.any))
    return every and some and all(any(covers(out, never) for out in narrow.none) for never in wide.none)


def _ensured(term: Term, selection: Selection) -> bool:
    return any(covers(term, one) for one in selection.all) or (
        bool(selection.any) and all(covers(term, one) for one in selection.any)
    )


def _covered(term: Term, wide: Sequence[Term]) -> bool:
    return any(covers(one, term) for one in wide)


def _glob(term: Term) -> str:
    return term.text.partition(":")[2].casefold()


def _wild(glob: str) -> bool:
    return any(char in glob for char in _WILD)


def _literal(term: Term) -> str | None:
    """The one value that the term matches, if it has no wildcard."""
    glob = term.text.partition(":")[2]
    return None if _wild(glob) or term.property in ("size", "disks", "") else glob


def _start(glob: str) -> str:
    return "".join(takewhile(lambda char: char not in _WILD, glob))


def _end(glob: str) -> str:
    return "" if "[" in glob else _start(glob[::-1])[::-1]


def _rims_exclude(one: str, other: str) -> bool:
    """Whether what stands before the first wildcards, or after the last ones, differs."""
    starts, ends = (_start(one), _start(other)), (_end(one), _end(other))
    if one.endswith("/**") or other.endswith("/**"):  # "/a/**" is "/a" too
        starts, ends = (starts[0].rstrip("/"), starts[1].rstrip("/")), ("", "")
    shorter = min(map(len, starts))
    if starts[0][:shorter] != starts[1][:shorter]:
        return True
    shorter = min(map(len, ends))
    return bool(shorter) and ends[0][-shorter:] != ends[1][-shorter:]


def _bounds(term: Term) -> tuple[float, float]:
    """The smallest and the greatest whole number that the term allows."""
    found = _COMPARISON.fullmatch(_glob(term) if term.property == "disks" else term.text.partition(":")[2])
    if found is None:
        return float("-inf"), float("inf")
    number = parse_size(found[2]) if term.property == "size" else int(found[2])
    match found[1]:
        case ">":
            return number + 1, float("inf")
        case ">=":
            return number, float("inf")
        case "<":
            return float("-inf"), number - 1
    return float("-inf"), number
