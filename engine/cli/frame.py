"""The commands as cyclopts knows them."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App, Parameter

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
        default_parameter=Parameter(negative=(), show_default=False),
    )
    groups = {name: App(name=name.rpartition(" ")[2], help=summary) for name, summary in GROUPS.items()}
    for number, command in enumerate(COMMANDS):
        *group, name = command.words.split()
        parent = groups[" ".join(group)] if group else app
        # The one that is called tells all it has to say; the others would have to be loaded for that.
        called = tuple(given[: len(command.words.split())]) == tuple(command.words.split())
        summary = None if called else command.summary
        parent.command(f"engine.cli.{command.function}", name=name, help=summary, sort_key=number)
    for name, group_app in groups.items():
        if any(command.words.startswith(f"{name} ") for command in COMMANDS):
            above, _, last = name.rpartition(" ")
            (groups[above] if above else app).command(group_app, name=last)
    return app
