"""What can be wrong with a policy file. Every problem names its place and says what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class Unusable(ValueError):
    """A text that means nothing here: what is wrong with it and what to write instead, without a place.

    `instead` may be a function, where a guess costs time: of a thousand mistakes only the first are told. `str()`
    does not have it.
    """

    def __init__(self, what: str, instead: str | Callable[[], str]) -> None:
        super().__init__(what)
        self.what = what
        self._instead = instead

    @property
    def instead(self) -> str:
        """What to write instead."""
        if not isinstance(self._instead, str):
            self._instead = self._instead()
        return self._instead


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to correct, at one place. Lines and columns count from 1, columns in characters."""

    file: str
    line: int
    column: int
    what: str
    instead: str

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.line}:{self.column}: {self.what}, {self.instead}")


class PolicyError(Exception):
    """Policies that cannot be used, with every problem found, in the order of files and lines.

    Trying again does not help before a file has changed. `str()` has one line a problem.
    """

    retry = False

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(set(problems), key=_order))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def _order(problem: Problem) -> tuple[object, ...]:
    """By place; at one place by the text, in which vms[2] comes before vms[10]."""
    words = [(len(one) if number % 2 else 0, one) for number, one in enumerate(_DIGITS.split(problem.what))]
    return (problem.file, problem.line, problem.column, words, problem.instead)


_DIGITS = re.compile("([0-9]+)")


def quoted(text: object, longest: int = 60) -> str:
    """What a file said, on one line, printable and not too long, in double quotes."""
    value = text if isinstance(text, str) else str(text)
    if len(value) > longest:
        value = value[: longest - 1] + "…"
    return f'"{printable(value)}"'


def printable(text: str) -> str:
    """The text on one line, whatever a file smuggled into it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
