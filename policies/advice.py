"""One warning about policies, with the key that it is about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from policies.errors import printable, quoted
from policies.origins import Origins, Path
from policies.policy import Policy


@dataclass(frozen=True, slots=True, order=True)
class Advice:
    """One thing to look at. `file` is "" when it is about the VMs rather than about a policy."""

    file: str
    line: int
    column: int
    what: str
    instead: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.file else ""
        return printable(f"{place}{self.what}, {self.instead}")


NAMES_SHOWN = 12

_ABOUT_ONE = re.compile(r'policy ("[^"]*") (.*)', re.DOTALL)


def advice_lines(advice: Iterable[Advice]) -> Iterator[str]:
    """For a person: what a template brings on many policies is one line that names them all."""
    groups: dict[tuple[object, ...], tuple[Advice, list[str]]] = {}
    for one in advice:
        about = _ABOUT_ONE.fullmatch(one.what)
        name, what = (about[1], about[2]) if about else ("", one.what)
        place = (one.file, one.line, one.column, what, one.instead)
        groups.setdefault(place, (one, []))[1].append(name)
    for first, names in groups.values():
        same, more = names[1 : NAMES_SHOWN + 1], len(names) - 1 - NAMES_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        yield f"{first}; the same for {', '.join(same)}{rest}" if same else str(first)


Advise = Callable[[Path, str, str], Advice]
"""Advice about a key of one policy: its path below the policy, what is odd, what to write instead."""


def adviser(policy: Policy, origins: Origins) -> Advise:
    """What advises about this policy."""

    def advise(path: Path, what: str, instead: str) -> Advice:
        source = origins.of(policy, path)
        return Advice(source.file, source.line, source.column, f"policy {quoted(policy.name)} {what}", instead)

    return advise
