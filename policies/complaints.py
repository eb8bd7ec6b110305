"""What pydantic found, as a policy's author understands it: what is wrong, and what to write instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.schema import (
    ConsistencyTable,
    GuardTable,
    PolicyFile,
    PolicyTable,
    RetentionTable,
    SelectTable,
    TriggerTable,
)

_NESTED: Mapping[str, type[BaseModel]] = {
    "select": SelectTable,
    "consistency": ConsistencyTable,
    "retention": RetentionTable,
    "trigger": TriggerTable,
}

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
    close = closest(key, known)
    elsewhere = "" if close else _elsewhere(key)
    instead = f'write "{close}"' if close else elsewhere or f"write one of {', '.join(known)}"
    return Complaint(path, f"unknown key {quoted(key)}{_where(path[:-1])}", instead, False)


def _elsewhere(key: str) -> str:
    """A key that belongs into a nested table of a policy."""
    for name, model in _NESTED.items():
        if key in model.model_fields:
            return f"write it in the policy's {name} table"
    return ""


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


def _model(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model whose keys are allowed at a path."""
    names = [part for part in path if isinstance(part, str)]
    match names:
        case []:
            return PolicyFile
        case ["guard"]:
            return GuardTable
        case ["policy" | "template", _]:
            return PolicyTable
        case ["policy" | "template", _, nested]:
            return _NESTED.get(nested)
    return None


def _keys(path: tuple[str | int, ...]) -> list[str]:
    model = _model(path)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


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
    if names and (names[-1] in _NESTED or names[-1] == "guard"):
        return f"a table of {', '.join(_keys(names))}"
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
