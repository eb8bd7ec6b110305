"""The commands as cyclopts knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import FunctionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import cyclopts
from cyclopts import App

from engine.cli.options import Parameter
from engine.cli.table import COMMANDS, GROUPS, SUMMARY, exit_codes


def build(given: Sequence[str] = ()) -> App:
    """The application. Nothing of a command is loaded unless these arguments call it or ask for its help."""
    app = App(
        name="backstay",
        help=SUMMARY,
        help_epilogue=exit_codes(),
        help_format="plaintext",
        help_formatter="plain",
        version_flags=(),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(negative=(), show_default=False),
    )
    groups = {name: App(name=name.rpartition(" ")[2], help=summary) for name, summary in GROUPS.items()}
    for number, command in enumerate(COMMANDS):
        *group, name = command.words.split()
        parent = groups[" ".join(group)] if group else app
        # The one that is called tells all it has to say; the others would have to be loaded for that.
        called = tuple(given[: len(command.words.split())]) == tuple(command.words.split())
        if called:
            parent.command(_told(command.function), name=name, sort_key=number)
        else:
            parent.command(f"engine.cli.{command.function}", name=name, help=command.summary, sort_key=number)
    for name, group_app in groups.items():
        if any(command.words.startswith(f"{name} ") for command in COMMANDS):
            above, _, last = name.rpartition(" ")
            (groups[above] if above else app).command(group_app, name=last)
    return app


def _told(place: str) -> Callable[..., Any]:
    """A command's function with its arguments described as cyclopts reads it."""
    module, _, name = place.partition(":")
    function: FunctionType = getattr(import_module(f"engine.cli.{module}"), name)
    hints = get_type_hints(function, include_extras=True)
    told = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    told.__kwdefaults__, told.__doc__, told.__module__ = function.__kwdefaults__, function.__doc__, function.__module__
    told.__annotations__ = {argument: _translated(hint) for argument, hint in hints.items()}
    return told


def _translated(hint: Any) -> Any:
    if get_origin(hint) is not Annotated:
        return hint
    kind, *markers = get_args(hint)
    return Annotated[(kind, *(_cyclopts(m) if isinstance(m, Parameter) else m for m in markers))]


def _cyclopts(marker: Parameter) -> cyclopts.Parameter:
    return cyclopts.Parameter(**{name: value for name, value in marker._asdict().items() if value is not None})
