"""Policy files as a revision of their git repository has them. Blocking: asks git, and changes nothing.

What a caller names is never taken for an option, and no file of the working directory is read.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.failures import BadInput
from policies.loading import LARGEST_FILE_BYTES, is_policy_file

GIT_SECONDS = 60.0
"""How long one question to git may take: a repository of policies answers in milliseconds."""

REGULAR = (b"100644", b"100755")
"""The modes of files. Links and sub-repositories are no texts."""


def policy_texts(directory: Path, revision: str) -> dict[str, bytes]:
    """The policy files of a directory and below, by their paths below it, as a revision has them; maybe none.

    BadInput when git is not there, the directory is in no repository, or the revision is not known.
    """
    if not directory.is_dir():
        raise BadInput("is not a directory", where=str(directory), hint="name the directory of policies")
    commit = commit_of(directory, revision)
    prefix = _git(directory, ["rev-parse", "--show-prefix"]).decode().rstrip("\n")
    below = ["--", prefix] if prefix else []
    listed = _git(directory, ["ls-tree", "-r", "-z", "-l", "--full-tree", commit, *below])
    named = {name: (blob, size) for name, blob, size in _listed(listed, prefix)}
    if not named:
        return {}
    for name, (_, size) in named.items():
        if size > LARGEST_FILE_BYTES:
            raise BadInput(f"is larger than {LARGEST_FILE_BYTES} bytes", where=f"{revision}:{name}", hint="split it")
    asked = "".join(f"{blob}\n" for blob, _ in named.values()).encode()
    answer = _git(directory, ["cat-file", "--batch"], asked)
    return dict(zip(named, _contents(answer, [size for _, size in named.values()]), strict=True))


def commit_of(directory: Path, revision: str) -> str:
    """The full id of the commit that a revision names."""
    if not revision or "\0" in revision or "\n" in revision:
        raise BadInput("is no revision", where=repr(revision), hint="name a commit, a tag or a branch")
    try:
        found = _git(directory, ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"])
    except _Failed as error:
        if error.said:
            raise
        raise BadInput(
            f"git knows no revision {revision}", where=str(directory), hint="see: git log; a shallow clone has few"
        ) from None
    return found.decode().strip()


class _Failed(BadInput):
    """Git ended with an error, and said this."""

    def __init__(self, directory: Path, said: str) -> None:
        super().__init__(f"git: {said or 'failed without a word'}", where=str(directory))
        self.said = said


def _listed(answer: bytes, prefix: str) -> Iterator[tuple[str, str, int]]:
    for line in answer.split(b"\0"):
        if not line:
            continue
        facts, _, path = line.partition(b"\t")
        mode, kind, blob, size = facts.split()
        name = os.fsdecode(path)
        if kind == b"blob" and mode in REGULAR and name.startswith(prefix) and is_policy_file(name[len(prefix) :]):
            yield name[len(prefix) :], blob.decode(), int(size)


def _contents(answer: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Each of them stands behind a line that names it, and before a line's end."""
    start = 0
    for size in sizes:
        start = answer.index(b"\n", start) + 1
        yield answer[start : start + size]
        start += size + 1


def _git(directory: Path, arguments: Sequence[str], asked: bytes = b"") -> bytes:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            input=asked,
            capture_output=True,
            timeout=GIT_SECONDS,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        raise BadInput("git is not installed here", where=str(directory), hint="install it, or use --against") from None
    except subprocess.TimeoutExpired:
        raise BadInput(f"git does not answer within {GIT_SECONDS:.0f} s", where=str(directory)) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _Failed(directory, said[0].removeprefix("fatal: ") if said else "")
    return done.stdout
