"""Policy files in, policies or located problems out. The one module of this package that reads files."""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import tomli

from policies.blackouts import is_calendar
from policies.errors import PolicyError, Problem, printable, quoted
from policies.policyset import PolicySet
from policies.reading import WrittenTest, read_tests, read_texts

LARGEST_FILE_BYTES = 1 << 20
"""So much is read of any file; a calendar has a limit of its own."""

LARGEST_POLICY_BYTES = 256 << 10
"""A policy file is written by people; a larger one is a mistake and would stall a reload. It takes half a second of CPU
at most, whatever is in it; one of 16 KiB, some fifty policies, under 50 ms."""

LARGEST_DOCUMENT_BYTES = 512 << 20
"""An inventory with restore points for a test or a plan: some 10,000 VMs with a hundred each."""

_GZIP = b"\x1f\x8b"

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
        if root.is_file():
            return _alone(root)
        if not root.is_dir():
            raise PolicyError([Problem(str(root), 1, 1, "is not a directory", "name the directory of policies")])
        found = sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES)
    except OSError as error:
        raise PolicyError([unreadable(str(root), error)]) from error
    named = {file.relative_to(root).as_posix(): file for file in found}
    if odd := [name for name in named if is_policy_file(name) and not _is_unicode(name)]:
        raise PolicyError([Problem(printable(name), 1, 1, "has a name that is not UTF-8", "rename it") for name in odd])
    return {name: file for name, file in named.items() if is_policy_file(name)}


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _alone(file: Path) -> dict[str, Path]:
    """A single file, with the calendars that lie beside it."""
    beside = sorted(file.parent.glob("*.ics"))
    return {one.name: one for one in (file, *beside)}


def load_tests(directory: Path | str, policies: PolicySet) -> tuple[tuple[WrittenTest, Mapping[str, Any] | None], ...]:
    """The tests beside these policies, each with the content of the inventory file that it names.

    `policies` are those of the directory. Raises PolicyError for an inventory that cannot be read.
    """
    root = Path(directory)
    top = root.parent if root.is_file() else root
    problems: list[Problem] = []
    known: dict[Path, Mapping[str, Any] | None] = {}
    found: list[tuple[WrittenTest, Mapping[str, Any] | None]] = []
    for test in read_tests(policies.texts):
        named = test.table.inventory
        file = None if named is None else top / Path(test.file).parent / named
        if file is not None and file not in known:
            place = test.place(("inventory",))
            known[file] = read_document(file, Problem(place.file, place.line, place.column, "", ""), problems)
        found.append((test, None if file is None else known[file]))
    if problems:
        raise PolicyError(problems)
    return tuple(found)


def read_document(file: Path, place: Problem, problems: list[Problem]) -> Mapping[str, Any] | None:
    """What a JSON or TOML file holds; adds what is wrong with it to `problems`, at `place` where it is not there."""
    try:
        with _opened(file) as opened:
            data = opened.read(LARGEST_DOCUMENT_BYTES + 1)
    except OSError as error:
        what = f"{quoted(file)} cannot be read ({error.strerror or error})"
        problems.append(replace(place, what=what, instead="name a file that is there, relative to this one"))
        return None
    name = str(file)
    if data.startswith(_GZIP):
        try:
            data = zlib.decompressobj(31).decompress(data, LARGEST_DOCUMENT_BYTES + 1)
        except zlib.error as error:
            problems.append(Problem(name, 1, 1, f"cannot be decompressed ({error})", "write it again"))
            return None
    if len(data) > LARGEST_DOCUMENT_BYTES:
        problems.append(
            Problem(name, 1, 1, f"is larger than {LARGEST_DOCUMENT_BYTES >> 20} MiB", "write a smaller one")
        )
        return None
    try:
        text = data.decode("utf-8")
        document = tomli.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (tomli.TOMLDecodeError, json.JSONDecodeError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON"
        what = f"is not valid {kind} ({error.msg[:1].lower()}{error.msg[1:]})"
        problems.append(Problem(name, error.lineno, error.colno, what, "correct it here or just before"))
        return None
    except (ValueError, RecursionError):
        problems.append(Problem(name, 1, 1, "is not UTF-8 text of JSON or TOML", "write what `policy state` writes"))
        return None
    if not isinstance(document, dict):
        problems.append(Problem(name, 1, 1, "is not a table", 'write {"format": 1, "vms": [...]}'))
        return None
    return document


def load_texts(texts: Mapping[str, str | bytes]) -> PolicySet:
    """The same from texts by file name; raises PolicyError, and nothing else."""
    problems = [
        Problem(
            name,
            1,
            1,
            f"is larger than {LARGEST_POLICY_BYTES} bytes",
            "split it into several files",
        )
        for name, text in texts.items()
        if len(text) > LARGEST_POLICY_BYTES and not is_calendar(name)
    ]
    if problems:
        raise PolicyError(problems)
    return read_texts(texts)


def _content(file: Path) -> bytes:
    with _opened(file) as opened:
        return opened.read(LARGEST_FILE_BYTES + 1)


def _opened(file: Path) -> BinaryIO:
    return open(file, "rb", opener=at_once)


def at_once(path: str, flags: int) -> int:
    """For `open` as its opener: OSError at once where there is no file, as nobody may ever write to a pipe."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("it is no file")
    return handle


def unreadable(name: str, error: OSError) -> Problem:
    """What to tell of a policy file that cannot be read."""
    return Problem(name, 1, 1, f"cannot be read ({error.strerror or error})", "make it a file that this user can read")
