"""Policy files in, policies or located problems out. The one module of this package that reads files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from policies.errors import PolicyError, Problem
from policies.policyset import PolicySet
from policies.reading import read_texts

LARGEST_FILE_BYTES = 1_048_576
"""A policy file is written by people; a larger one is a mistake and would stall a reload."""


def load(directory: Path | str) -> PolicySet:
    """All `*.toml` files of the directory and below as one policy set; raises PolicyError, and nothing else.

    Files are named by their path below the directory. Hidden files and folders are left out.
    """
    root = Path(directory)
    problems: list[Problem] = []
    texts: dict[str, str | bytes] = {}
    try:
        if not root.is_dir():
            raise PolicyError([Problem(str(root), 1, 1, "is not a directory", "name the directory of policies")])
        files = sorted(root.rglob("*.toml"))
    except OSError as error:
        raise PolicyError([_unreadable(str(root), error)]) from error
    for file in files:
        name = file.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        try:
            texts[name] = _content(file)
        except OSError as error:
            problems.append(_unreadable(name, error))
    if problems:
        raise PolicyError(problems)
    return load_texts(texts)


def load_texts(texts: Mapping[str, str | bytes]) -> PolicySet:
    """The same from texts by file name; raises PolicyError, and nothing else."""
    problems = [
        Problem(
            name,
            1,
            1,
            f"is larger than {LARGEST_FILE_BYTES} bytes",
            "split it into several files",
        )
        for name, text in texts.items()
        if len(text) > LARGEST_FILE_BYTES
    ]
    if problems:
        raise PolicyError(problems)
    return read_texts(texts)


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(LARGEST_FILE_BYTES + 1)


def _unreadable(name: str, error: OSError) -> Problem:
    return Problem(name, 1, 1, f"cannot be read ({error.strerror or error})", "make it readable by this user")
