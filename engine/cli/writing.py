"""A file that a command writes where it is told to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from engine.failures import BadInput, Exit, verdict


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put a file in its place in one step; a pipe or a device such as /dev/stdout is written to, not replaced.

    Only its owner can read it: it names VMs and what they are made of. A link stays, what it points to is replaced.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        _replace(Path(os.path.realpath(path)), content, mode)
    except BrokenPipeError:
        raise
    except OSError as error:
        if verdict(error).exit_code is Exit.NO_SPACE:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise BadInput(f"cannot be written: {error.strerror}", where=str(path)) from None


def _replace(path: Path, content: bytes, mode: int) -> None:
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
