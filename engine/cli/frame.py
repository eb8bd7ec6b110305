"""The tree of commands: what exists, what it is called, and the one sentence that says what it is for."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import App, Parameter

from engine.failures import EXIT_MEANINGS

SUMMARY = "Back up VMware VMs as your policies say, while they move."

GROUPS = {
    "policy": "Look at policies, check them, confirm what they change.",
    "repo": "Make repositories.",
    "disk": "Back up and restore single disks that are in no vCenter.",
    "catalog": "Look after the catalog of a repository.",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its words, where its function is, and its summary in the list."""

    words: str
    function: str
    summary: str


COMMANDS = (
    Command("disk backup", "disk_backup:disk_backup", "Make a restore point of a file, block device or NBD export."),
    Command("disk restore", "disk_restore:disk_restore", "Write a disk of a restore point to a file or block device."),
    Command("points", "points:points", "List restore points."),
    Command("hold", "hold:hold", "Keep a restore point whatever retention says."),
    Command("release", "release:release", "Open the holds of a restore point."),
    Command("expire", "expire:expire", "Forget a restore point."),
    Command("verify", "verify:verify", "Read everything back and compare every hash."),
    Command("reclaim", "reclaim:reclaim", "Free what no restore point needs any more."),
    Command("catalog rebuild", "catalog_rebuild:catalog_rebuild", "Make the catalog again from the repository."),
    Command("sql", "sql:sql", "Ask the catalog and the journal, read-only."),
    Command("repo init", "repo_init:repo_init", "Make a repository."),
)


def build() -> App:
    """The application. Nothing of a command is loaded before it is called or its own help is shown."""
    app = App(
        name="backstay",
        help=SUMMARY,
        help_epilogue=exit_codes(),
        help_format="plaintext",
        help_formatter="plain",
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative=()),
    )
    groups = {name: App(name=name, help=summary) for name, summary in GROUPS.items()}
    for command in COMMANDS:
        *group, name = command.words.split()
        parent = groups[group[0]] if group else app
        parent.command(f"engine.cli.{command.function}", name=name, help=command.summary)
    for name, group_app in groups.items():
        if any(command.words.startswith(f"{name} ") for command in COMMANDS):
            app.command(group_app, name=name)
    return app


def exit_codes() -> str:
    """The exit codes, for the end of every help."""
    return "Exit codes:\n" + "\n".join(f"  {code.value:3}  {meaning}" for code, meaning in EXIT_MEANINGS.items())


def _version() -> str:
    from importlib.metadata import version

    return f"backstay {version('backstay')}"
