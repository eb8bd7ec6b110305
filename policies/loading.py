"""Policy files in, policies or located problems out. The one module of this package that reads files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from policies.errors import PolicyError, Problem
from policies.policyset import PolicySet
from policies.reading import read_texts

LARGEST_FILE_BYTES = 1_048_576
"""A policy file is written by people; a larger one is a mistake and would stall a reload."""

SUFFIXES = (".toml", ".ics")


def load(directory: Path | str) -> PolicySet:
    """All policy files of the directory as one policy set; raises PolicyError, and nothing else."""
    problems: list[Problem] = []
    texts: dict[str, str | bytes] = {}
    for name, file in policy_files(directory).items():
        try:
            texts[name] = _content(file)
        except OSError as error:
            problems.append(unreadable(name, error))
    if problems:
        raise PolicyError(problems)
    return load_texts(texts)


def is_policy_file(name: str) -> bool:
    """Whether a file, by its path below the directory, is one of the texts: policies and calendars, none hidden."""
    return name.endswith(SUFFIXES) and not any(part[0] == "." for part in name.split("/"))


def policy_files(directory: Path | str) -> dict[str, Path]:
    """The `*.toml` and `*.ics` files of the directory and below, by their path below it, without hidden ones.

    Raises PolicyError where the directory cannot be listed.
    """
    root = Path(directory)
    try:
        if not root.is_dir():
            raise PolicyError([Problem(str(root), 1, 1, "is not a directory", "name the directory of policies")])
        found = sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES)
    except OSError as error:
        raise PolicyError([unreadable(str(root), error)]) from error
    named = {file.relative_to(root).as_posix(): file for file in found}
    return {name: file for name, file in named.items() if is_policy_file(name)}


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


def unreadable(name: str, error: OSError) -> Problem:
    """What to tell of a policy file that cannot be read."""
    return Problem(name, 1, 1, f"cannot be read ({error.strerror or error})", "make it readable by this user")
