"""What is wrong in a TOML text that does not fit its model, told with its place and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError


def complaints(error: ValidationError, root: type[BaseModel], text: str, path: Path) -> Iterator[str]:
    """One line per mistake in a TOML text that does not fit root: where it stands and what to write instead."""
    for mistake in error.errors(include_url=False, include_input=False):
        keys = [str(key) for key in mistake["loc"]]
        line = place_of(text, keys)
        where = f"{path}:{line}" if line else str(path)
        name = ".".join(keys)
        match mistake["type"]:
            case "extra_forbidden":
                yield f"{where}: unknown key {name}{_suggestion(root, keys)}"
            case "missing":
                yield f"{where}: {name} is missing; add it"
            case _:
                said = mistake["msg"].removeprefix("Value error, ")
                yield f"{where}: {name + ': ' if name else ''}{said[:1].lower() + said[1:]}"


def _suggestion(root: type[BaseModel], keys: list[str]) -> str:
    known = _known_keys(root, keys[:-1])
    near = difflib.get_close_matches(keys[-1], known, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; known here: {', '.join(sorted(known))}"


def _known_keys(section: type[BaseModel], keys: list[str]) -> list[str]:
    if keys:
        field = section.model_fields.get(keys[0])
        if field is None:
            return []
        inner = next(_kinds(field.annotation), None)
        named = get_origin(field.annotation) is dict
        return _known_keys(inner, keys[2:] if named else keys[1:]) if inner else []
    return [field.alias or name for name, field in section.model_fields.items()]


def _kinds(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def place_of(text: str, keys: list[str]) -> int:
    """The line of a dotted key in a TOML text, or of the nearest table that would hold it; 0 for the whole file."""
    table: list[str] = []
    best, depth = 0, 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        pair = re.match(r"""\s*([A-Za-z0-9_."'-]+)\s*=""", line)
        if header:
            table = _split(header[1])
            found = table
        elif pair:
            found = table + _split(pair[1])
        else:
            continue
        shared = _shared(found, keys)
        if shared > depth and shared == len(found):
            best, depth = number, shared
    return best


def _shared(left: list[str], right: list[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _split(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
