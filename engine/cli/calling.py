"""The call that arguments plainly mean, found without what parses every form that they can have.

Read from the same signatures as cyclopts reads, and only where one reading is possible: known long options, each once
and followed by its value; text, paths, choices and switches. Whatever else is written, mistakes and --help above all,
is left to cyclopts, which takes a third of a short command's time to load. A test holds the two to each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from engine.cli.options import Parameter
from engine.cli.table import COMMANDS

PLAIN_TYPES: dict[Any, Callable[[str], object]] = {str: str, Path: Path, str | None: str, Path | None: Path}
NOTHING = ("none", "null")
"""Words that cyclopts takes for no value."""


def plain_call(given: Sequence[str]) -> Callable[[], Any] | None:
    """The call, ready to be made; None where cyclopts has to say what these arguments mean."""
    for command in COMMANDS:
        words = command.words.split()
        if list(given[: len(words)]) == words:
            module, _, name = command.function.partition(":")
            return _bound(getattr(import_module(f"engine.cli.{module}"), name), given[len(words) :])
    return None


def _bound(function: Callable[..., Any], given: Sequence[str]) -> Callable[[], Any] | None:
    """The function with these arguments; None unless they fit in one way only."""
    hints = get_type_hints(function, include_extras=True)
    places: list[tuple[inspect.Parameter, Any]] = []
    options: dict[str, tuple[inspect.Parameter, Any]] = {}
    more: Any = None
    for parameter in inspect.signature(function).parameters.values():
        kind, marker = _unwrapped(hints[parameter.name])
        if parameter.kind is parameter.POSITIONAL_ONLY:
            places.append((parameter, kind))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            more = kind
        elif parameter.kind is parameter.KEYWORD_ONLY:
            options |= dict.fromkeys(_options(parameter.name, marker), (parameter, kind))
        else:
            return None
    values: list[object] = []
    named: dict[str, object] = {}
    value: object
    left = iter(given)
    for word in left:
        if word.startswith("-"):
            if word not in options:
                return None
            parameter, kind = options[word]
            if parameter.name in named or (kind is bool and parameter.default is not False):
                return None
            value = True if kind is bool else _value(next(left, ""), kind)
            named[parameter.name] = value
        else:
            value = _value(word, places[len(values)][1] if len(values) < len(places) else more)
            values.append(value)
        if value is None:
            return None
    wanted = [parameter for parameter, _ in (*places[len(values) :], *options.values())]
    if any(parameter.default is parameter.empty and parameter.name not in named for parameter in wanted):
        return None
    return partial(function, *values, **named)


def _unwrapped(hint: Any) -> tuple[Any, Parameter]:
    """A type and how its parameter is written."""
    if get_origin(hint) is not Annotated:
        return hint, Parameter()
    kind, *markers = get_args(hint)
    return kind, next((marker for marker in markers if isinstance(marker, Parameter)), Parameter())


def _options(name: str, marker: Parameter) -> tuple[str, ...]:
    given = marker.name or f"--{name.replace('_', '-')}"
    return (given,) if isinstance(given, str) else given


def _value(word: str, kind: Any) -> object | None:
    """The value that a word stands for; None where that is not plain."""
    if not word or word.startswith("-") or word.lower() in NOTHING:
        return None
    if get_origin(kind) is Literal:
        return word if word in get_args(kind) else None
    return PLAIN_TYPES[kind](word) if kind in PLAIN_TYPES else None
