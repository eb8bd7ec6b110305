"""One warning about policies, with the key that it is about."""

from __future__ import annotations

from collections.abc import Callable
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


Advise = Callable[[Path, str, str], Advice]
"""Advice about a key of one policy: its path below the policy, what is odd, what to write instead."""


def adviser(policy: Policy, origins: Origins) -> Advise:
    """What advises about this policy."""

    def advise(path: Path, what: str, instead: str) -> Advice:
        source = origins.of(policy, path)
        return Advice(source.file, source.line, source.column, f"policy {quoted(policy.name)} {what}", instead)

    return advise
