"""What pydantic found, as a policy's author understands it: what is wrong, and what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.schema import PolicyFile

_KINDS = {
    "int_type": "a whole number",
    "string_type": "a text in quotes",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """One problem without its place: the path of the key, and whether key or value is to blame."""

    path: tuple[str | int, ...]
    what: str
    instead: str
    at_value: bool


def complaint(error: ErrorDetails) -> Complaint:
    """One error of pydantic in our words."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    context: Mapping[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return _unknown(path, key)
        case "missing":
            instead = "write schema = 1 at the top" if key == "schema" else f"write {_example(path)}"
            return Complaint(path[:-1], f'the key "{key}" is missing', instead, False)
        case "value_error" if isinstance(context.get("error"), Unusable):
            unusable: Unusable = context["error"]
            return Complaint(path, unusable.what, unusable.instead, True)
        case "literal_error":
            return _literal(path, key, error["input"], str(context.get("expected", "")))
        case "too_short":
            return Complaint(path, f"{key} is empty", f"write {_example(path)} or leave the key out", True)
        case "too_long":
            most = context.get("max_length")
            return Complaint(path, f"{key} has more than {most} entries", f"write at most {most}", True)
        case "greater_than_equal" | "less_than_equal":
            limit = context.get("ge", context.get("le"))
            side = "at least" if "ge" in context else "at most"
            return Complaint(
                path, f"{key} = {str(error['input'])[:20]} is out of bounds", f"write {side} {limit}", True
            )
    kind = _KINDS.get(error["type"], "something else")
    return Complaint(path, f"{key} must be {kind}, not {_shown(error['input'])}", f"write {_example(path)}", True)


def _unknown(path: tuple[str | int, ...], key: str) -> Complaint:
    known = _keys(path[:-1])
    beside = _elsewhere(key, path[:-1], path[:1])
    close = closest(key, known) if not beside else ""
    elsewhere = beside or ("" if close else _elsewhere(key, path[:-1]))
    instead = f'write "{close}"' if close else elsewhere or f"write one of {', '.join(known)}"
    return Complaint(path, f"unknown key {quoted(key)}{_where(path[:-1])}", instead, False)


def _elsewhere(key: str, here: tuple[str | int, ...], kind: tuple[str | int, ...] = ()) -> str:
    """Another table that has this key, or one like it; with a kind one of that kind that has just this key."""
    names = [part for part in here if isinstance(part, str)]
    tables = [known for known in _TABLES if known.path[: len(kind)] == kind]
    wanted = key if kind else closest(key, {name for known in tables for name in _names(known.model)})
    found = [known for known in tables if wanted in _names(known.model)]
    if not found:
        return ""

    def distance(known: _Known) -> tuple[int, int]:
        common = sum(
            1 for _ in takewhile(lambda pair: pair[1] in (pair[0], "NAME"), zip(names, known.path, strict=False))
        )
        return (-common, len(known.path))

    nearest = min(found, key=distance)
    word = "it" if wanted == key else f'"{wanted}"'
    return f"write {word} {_into(nearest, names)}"


def _into(table: _Known, names: Sequence[str]) -> str:
    """Where a table is written, with the names that are known from here."""
    if not table.path:
        return "at the top of the file"
    path = list(table.path)
    for number, (part, name) in enumerate(zip(table.path, names, strict=False)):
        if part not in (name, "NAME"):
            break
        path[number] = name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else part
    header = f"[{'.'.join(path)}]"
    return f"in [{header}]" if table.many else f"in {header}"


def _literal(path: tuple[str | int, ...], key: str, given: object, expected: str) -> Complaint:
    if key == "schema":
        return Complaint(path, f"schema {_shown(given)} is not known to this version", "write schema = 1", True)
    known = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    close = closest(str(given), known)
    return Complaint(
        path,
        f"{quoted(given)} is not a value of {key}",
        f'write "{close}"' if close else f"write one of {', '.join(known)}",
        True,
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """A table of a policy file: its path, with NAME for a name that the author chose; `many` is an array of tables."""

    path: tuple[str, ...]
    model: type[BaseModel]
    many: bool = False


def _tables() -> tuple[_Known, ...]:
    """Every table that a policy file may have, the outer ones first."""
    found = [_Known((), PolicyFile)]
    for known in found:  # grows while it is gone through
        for name, field in known.model.model_fields.items():
            nested = _nested(field.annotation)
            if nested is not None:
                between, model, many = nested
                found.append(_Known((*known.path, field.alias or name, *between), model, many))
    return tuple(found)


def _nested(annotation: Any) -> tuple[tuple[str, ...], type[BaseModel], bool] | None:
    """The model of the tables that a key holds, the names that come between, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (), annotation, False
    origin = get_origin(annotation)
    for argument in get_args(annotation):
        if (found := _nested(argument)) is not None:
            return ((("NAME",) if origin is dict else ()) + found[0], found[1], found[2] or origin is list)
    return None


_TABLES = _tables()


def _model(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model whose keys are allowed at a path."""
    names = [part for part in path if isinstance(part, str)]
    for known in _TABLES:
        if len(known.path) == len(names) and all(a in (b, "NAME") for a, b in zip(known.path, names, strict=True)):
            return known.model
    return None


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _keys(path: tuple[str | int, ...]) -> list[str]:
    model = _model(path)
    return _names(model) if model else []


def _where(path: tuple[str | int, ...]) -> str:
    names = ".".join(part for part in path if isinstance(part, str))
    return f" in [{names[:80]}]" if names.isprintable() and names else ""


def _example(path: tuple[str | int, ...]) -> str:
    names = tuple(part for part in path if isinstance(part, str))
    model = _model(names[:-1])
    if names and model:
        for name, field in model.model_fields.items():
            if (field.alias or name) == names[-1] and field.examples:
                return f"{names[-1]} = {_toml(field.examples[0])}"
    if (keys := _keys(names)) and len(names) != 2:
        return f"a table of {', '.join(keys)}"
    return "a table such as [policy.gold]"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"the text {quoted(value)}"
        case dict():
            return "a table"
        case list():
            return "a list"
    return quoted(value, 30).strip('"')
