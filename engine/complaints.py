"""What is wrong in a TOML text that does not fit its model, told with its place and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from policies.places import Places


def complaints(error: ValidationError, root: type[BaseModel], text: str, path: Path) -> list[str]:
    """One line per mistake in a TOML text that does not fit root, in the order of the text."""
    places = Places(text)
    found = []
    for mistake in error.errors(include_url=False, include_input=False):
        keys = [str(key) for key in mistake["loc"]]
        at = places.key(keys)
        found.append((at.line, at.column, _sentence(mistake["type"], mistake["msg"], keys, root)))
    return [f"{path}:{line}:{column}: {sentence}" for line, column, sentence in sorted(found)]


def _sentence(kind: str, said: str, keys: Sequence[str], root: type[BaseModel]) -> str:
    name = ".".join(keys)
    match kind:
        case "extra_forbidden":
            return f"unknown key {name}{_suggestion(root, keys)}"
        case "missing":
            return f"{name} is missing, add it{': schema = 1' if name == 'schema' else ''}"
        case "path_type":
            return f'{name}: write a path in quotes, such as "/etc/backstay/{keys[-1]}"'
        case _:
            said = said.removeprefix("Value error, ")
            return f"{name + ': ' if name else ''}{said[:1].lower() + said[1:]}"


def _suggestion(root: type[BaseModel], keys: Sequence[str]) -> str:
    known = _known_keys(root, keys[:-1])
    near = difflib.get_close_matches(keys[-1], known, n=1)
    return f', did you mean "{near[0]}"?' if near else f", write one of {', '.join(sorted(known))}"


def _known_keys(section: type[BaseModel], keys: Sequence[str]) -> list[str]:
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
