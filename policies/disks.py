"""Terms on single disks of a VM, such as "label:*scratch*", "number:2" or "datastore:*-tmp".

A number is the one that vSphere shows: "Hard disk 2" is disk 2, whatever it is attached to and in whatever language
the label is. A disk whose label ends without a number has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.facts import Disk
from policies.terms import LONGEST_GLOB, glob_matches

_LAST_NUMBER = re.compile(r"([0-9]+)\s*$", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DiskTerm:
    """One term; `value` is a glob, or a number."""

    text: str
    value: str
    of: Callable[[Disk], str] = field(compare=False, repr=False)

    def matches(self, disk: Disk) -> bool:
        """Whether this disk is meant."""
        return glob_matches(self.value, self.of(disk))


def number_of(disk: Disk) -> str:
    """The number at the end of the disk's label, as vSphere shows it; "" where there is none."""
    found = _LAST_NUMBER.search(disk.label)
    return str(int(found[1])) if found else ""


_VALUES: Mapping[str, Callable[[Disk], str]] = {
    "label": lambda disk: disk.label,
    "number": number_of,
    "datastore": lambda disk: disk.datastore,
}


def parse_disk_term(text: str) -> DiskTerm:
    """One term as a policy writes it; raises Unusable."""
    name, colon, value = text.partition(":")
    if not colon:
        guess = f"number:{text}" if _NUMBER.fullmatch(text) else f"label:{text}"
        raise Unusable(
            f"term {quoted(text)} does not say what of a disk it looks at", f"write {quoted(guess)} or the like"
        )
    if name not in _VALUES:
        close = closest(name, _VALUES)
        guess = f"write {quoted(f'{close}:{value}')}" if close else f"write one of {', '.join(_VALUES)}"
        raise Unusable(f"term {quoted(text)} looks at an unknown property of a disk", guess)
    if not value or len(value) > LONGEST_GLOB:
        raise Unusable(
            f"term {quoted(text)} needs a value of 1 to {LONGEST_GLOB} characters", f'write "{name}:…" with a value'
        )
    if name == "number" and not _NUMBER.fullmatch(value):
        raise Unusable(f"term {quoted(text)} is not the number of a disk", 'write "number:2" for "Hard disk 2"')
    return DiskTerm(text, value, _VALUES[name])
