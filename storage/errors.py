"""What can go wrong in a repository. Each error says what happened, where, what to do, and whether to try again."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


class StorageError(Exception):
    """The repository could not do what was asked.

    `retry` tells whether the same call may succeed later; `hint` tells an operator what to do.
    """

    retry = False

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.what}{hint}"


class NoRepository(StorageError):
    """There is no repository at this place."""


class AlreadyExists(StorageError):
    """What was to be created once is there already."""


class Changed(StorageError):
    """What was to be replaced is no longer what it was when it was read."""

    retry = True


class Locked(StorageError):
    """Another process owns the repository; the message names its pid."""

    retry = True


class WrongKey(StorageError):
    """The passphrase or key file does not open this repository."""


class Damaged(StorageError):
    """Bytes in the repository are not what was written."""


class Missing(Damaged):
    """A blob that should be there is not."""


class Unsupported(StorageError):
    """The repository was written by a newer version or uses a feature that this one lacks."""


UNREADABLE = (Damaged, Unsupported)
"""What one object of a repository that opened may be told as: a flipped bit can pose as a newer version."""


class NoSpace(StorageError):
    """The blob store is full."""

    retry = True


class StoreFailed(StorageError):
    """The blob store reported an error that is not about our bytes."""

    retry = True


class AccessRefused(StorageError):
    """The blob store refused the login, or the login has no right to this."""


class Overtaken(StoreFailed):
    """Reclaim elsewhere frees what a restore point was to count on: it was not committed, and a new run is needed."""


class NoSuchPoint(StorageError):
    """No restore point has this id or name."""


class Refused(StorageError):
    """A guard forbids this: a hold, a lock, or a safety age."""


def no_permission(error: PermissionError, where: str) -> StoreFailed:
    """What to tell of a place that this user may not use: the nearest folder that can be seen, and whose it is."""
    user = _user(os.geteuid())
    path = Path(error.filename) if isinstance(error.filename, str) else Path(where)
    path = path if path.is_absolute() else Path(where)
    for seen in (path, *path.parents) if path.is_absolute() else ():
        try:
            owner = _user(seen.stat().st_uid)
        except OSError:
            continue
        hint = f"it belongs to user {owner}: run the command as {owner}, or give {user} the right to it"
        if owner == user:
            hint = "it belongs to this user: look at its mode (ls -ld), and at how its file system is mounted"
        return StoreFailed(f"permission denied for user {user}", where=str(seen), hint=hint)
    return StoreFailed(f"permission denied for user {user}", where=where)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
