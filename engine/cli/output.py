"""What a command prints: data to stdout, messages to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def say(message: str) -> None:
    """One message for a person. What was done stays done where nobody can be told."""
    try:
        sys.stderr.write(message.rstrip("\n") + "\n")
        sys.stderr.flush()
    except OSError:
        # The interpreter flushes once more at its end, and would change the exit code there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def show(text: str) -> None:
    """A line of data."""
    sys.stdout.write(text + "\n")


def show_json(value: Any) -> None:
    """Data for a program: one JSON value."""
    from engine.plain import plain

    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def show_table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, right: frozenset[str] = frozenset()) -> None:
    """Aligned columns; the titles in `right` mark columns of numbers. Control characters are shown, not sent."""
    cells = [list(titles), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    for row in cells:
        line = "  ".join(
            text.rjust(width) if title in right else text.ljust(width)
            for text, width, title in zip(row, widths, titles, strict=True)
        )
        show(line.rstrip())


def printable(text: str) -> str:
    """Names come from outside; none may move the cursor or fake a line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _cell(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case _:
            return printable(str(value))
