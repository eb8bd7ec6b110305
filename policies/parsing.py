"""One policy file from text to tables: UTF-8, TOML, and where each key stands. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import tomli

from policies.errors import Problem
from policies.places import Places

MOST_ENTRIES = 1000
"""Of one table or list: policies of one file, keys of a table, terms of a selection. People write dozens."""

DEEPEST = 64
"""Brackets nested deeper than this are a mistake or an attack; the parsers recurse."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that is valid TOML."""

    name: str
    text: str
    data: dict[str, Any]
    places: Places

    def problem(self, path: tuple[str | int, ...], what: str, instead: str, *, value: bool = False) -> Problem:
        """What is wrong at a key, or at its value."""
        place = self.places.value(path) if value else self.places.key(path)
        return Problem(self.name, place.line, place.column, what, instead)


def parse_file(name: str, text: str | bytes, problems: list[Problem]) -> File | None:
    """The file, or None and what is wrong with it in `problems`."""
    decoded = _decode(name, text, problems)
    if decoded is None:
        return None
    try:
        data = _loads(decoded)
    except tomli.TOMLDecodeError as error:
        problems.append(_misspelt(name, decoded, error))
        return None
    except ValueError as error:
        what = f"has a value that cannot be read ({_lower(str(error)).partition(':')[0]})"
        problems.append(Problem(name, 1, 1, what, "write a shorter or simpler value"))
        return None
    except RecursionError:
        problems.append(Problem(name, 1, 1, "is nested too deeply", f"nest at most {DEEPEST} levels"))
        return None
    crowd = _crowded(data)
    file = File(name, decoded, data, Places(decoded))
    if crowd is not None:
        what = f"there are more than {MOST_ENTRIES} entries in one table or list"
        problems.append(file.problem(crowd, what, "write fewer, or split the file", value=True))
        return None
    return file


def _crowded(data: dict[str, Any]) -> tuple[str | int, ...] | None:
    """The path of a table or list that is too large."""
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        if len(value) > MOST_ENTRIES:
            return path
        children = value.items() if isinstance(value, dict) else enumerate(value)
        stack.extend(((*path, key), child) for key, child in children if isinstance(child, dict | list))
    return None


def _decode(name: str, text: str | bytes, problems: list[Problem]) -> str | None:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text.encode("utf-8").decode("utf-8")
    except UnicodeError as error:
        line, column = 1, 1
        if isinstance(error, UnicodeDecodeError):
            before = bytes(error.object[: error.start])
            line = before.count(b"\n") + 1
            column = len(before.rpartition(b"\n")[2].decode("utf-8", errors="replace")) + 1
        problems.append(Problem(name, line, column, "is not UTF-8 text", "save the file as UTF-8"))
        return None
    return decoded.removeprefix("\ufeff")


def _loads(text: str) -> dict[str, Any]:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise RecursionError
    return tomli.loads(text)


def _misspelt(name: str, text: str, error: tomli.TOMLDecodeError) -> Problem:
    what = f"is not valid TOML ({_lower(error.msg)})"
    if "overwrite" not in error.msg:
        return Problem(name, error.lineno, error.colno, what, "correct it here or just before")
    # tomli stands behind the value by then; the key is what a reader looks for.
    line = text.split("\n")[error.lineno - 1]
    return Problem(name, error.lineno, len(line) - len(line.lstrip()) + 1, what, "remove it or rename the key")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
