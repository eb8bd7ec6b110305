"""Which commit the policy files are at, read from git's own files without running git.

Only what is certain is said: a commit where HEAD leads to one, "+dirty" where a policy file is not what git's index
holds of it. Where anything is unusual the answer is empty, never an error: it is for the record, nothing depends
on it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("engine.policies")

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
LARGEST = 64 << 20
"""Bytes of a file of git that are read: an index of half a million files."""

_ENTRY = struct.Struct(">40x20sH")
"""Of an index entry: times and such, the SHA-1 of the content, and the flags whose low bits are the name's length."""

DEEPEST_REFERENCE = 5


def commit_of(directory: Path, files: Mapping[str, bytes] | None = None) -> str:
    """The commit of the checkout that the directory lies in, "" without one.

    `files` are contents by path below the directory: with them "+dirty" is added where one differs.
    """
    try:
        found = _checkout(directory.resolve())
        if found is None:
            return ""
        root, git = found
        commit = _head(git)
        if not commit or files is None:
            return commit
        below = directory.resolve().relative_to(root).as_posix()
        dirty = _dirty((git / "index").read_bytes(), "" if below == "." else f"{below}/", files)
        return f"{commit}+dirty" if dirty else commit
    except (OSError, ValueError, struct.error, RecursionError) as error:
        log.info("commit of the policies not known", extra={"path": str(directory), "why": str(error)})
        return ""


def _checkout(directory: Path) -> tuple[Path, Path] | None:
    """The root of the working tree and its git directory, which a worktree or submodule keeps elsewhere."""
    for root in (directory, *directory.parents):
        place = root / ".git"
        if place.is_dir():
            return root, place
        if place.is_file():
            said = _text(place)
            if said.startswith("gitdir: "):
                return root, (root / said.removeprefix("gitdir: ")).resolve()
    return None


def _head(git: Path) -> str:
    common = git
    if (git / "commondir").is_file():
        common = (git / _text(git / "commondir")).resolve()
    said = _text(git / "HEAD")
    for _ in range(DEEPEST_REFERENCE):
        if _COMMIT.fullmatch(said):
            return said
        name = said.removeprefix("ref: ")
        if name == said or ".." in name or not name.startswith("refs/"):
            return ""
        loose = next((place / name for place in (git, common) if (place / name).is_file()), None)
        said = _text(loose) if loose else _packed(common, name)
    return ""


def _packed(common: Path, name: str) -> str:
    place = common / "packed-refs"
    if not place.is_file():
        return ""
    for line in _text(place).splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return commit
    return ""


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(LARGEST).decode("utf-8", "replace").strip()


def _dirty(index: bytes, prefix: str, files: Mapping[str, bytes]) -> bool:
    """Whether a file is not as the index holds it; False where the index is of a kind that is not known here."""
    signature, version, count = struct.unpack_from(">4sII", index)
    if signature != b"DIRC" or version not in (2, 3):
        return False
    held: dict[str, bytes] = {}
    at = 12
    for _ in range(count):
        digest, flags = _ENTRY.unpack_from(index, at)
        start = at + _ENTRY.size + (2 if flags & 0x4000 else 0)
        end = index.index(b"\0", start)
        held[index[start:end].decode("utf-8", "surrogateescape")] = digest
        at += (end - at + 8) // 8 * 8
    return any(held.get(prefix + name) != _blob(content) for name, content in files.items())


def _blob(content: bytes) -> bytes:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).digest()
