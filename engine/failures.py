"""What an error means: whether trying again helps, which exit code, which sentence. Decided here alone."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, TypeVar

from connectors import errors as connector
from policies.errors import PolicyError
from storage import errors as storage

E = TypeVar("E", bound=Exception)


class Exit(IntEnum):
    """The exit codes that scripts rely on."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PARTIAL = 3
    DAMAGED = 4
    REFUSED = 5
    UNREACHABLE = 6
    NO_SPACE = 7
    NO_REPOSITORY = 10
    LOCKED = 11
    WRONG_KEY = 12
    TRY_LATER = 75
    INTERRUPTED = 130


EXIT_MEANINGS: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.BUG: "a bug in Backstay",
    Exit.USAGE: "bad input or usage",
    Exit.PARTIAL: "done in part, or something would change where that was asked",
    Exit.DAMAGED: "damage found",
    Exit.REFUSED: "refused by a guard",
    Exit.UNREACHABLE: "engine, vCenter, NATS, store or disk unreachable, or login refused",
    Exit.NO_SPACE: "no space left",
    Exit.NO_REPOSITORY: "no repository here that this version can open",
    Exit.LOCKED: "the repository is locked by another process",
    Exit.WRONG_KEY: "wrong passphrase or key",
    Exit.TRY_LATER: "try again later",
    Exit.INTERRUPTED: "interrupted",
}


class Kind(StrEnum):
    """What becomes of a job that met an error."""

    RETRY = "retry"
    FAIL = "fail"
    QUARANTINE = "quarantine"
    """Put aside: trying again would meet the same, and a person has to look."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means for the job that met it, for the process that ends with it, and for who reads it."""

    kind: Kind
    exit_code: Exit
    sentence: str


class BadInput(Exception):
    """What a user wrote (arguments, configuration, a file) cannot be used.

    Like the three families it says what, where (`file:line` when known) and what to write instead.
    """

    exit_code = Exit.USAGE

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.what}{hint}"


class Declined(BadInput):
    """A guard of the command line keeps something from being overwritten or removed."""

    exit_code = Exit.REFUSED


class NotYet(BadInput):
    """The engine cannot tell yet, as it has only just started, or is at it; asking again later helps."""

    exit_code = Exit.TRY_LATER


class NotReachable(BadInput):
    """The engine's API does not answer."""

    exit_code = Exit.UNREACHABLE


class RemoteFailure(Exception):
    """The engine refused or failed a request that came over its API; it has judged the error already.

    `result` is what is so all the same.
    """

    def __init__(self, verdict: Verdict, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(verdict.sentence)
        self.verdict = verdict
        self.result = result or {}


_CONNECTOR: dict[type[connector.ConnectorError], tuple[Kind, Exit]] = {
    connector.Unreachable: (Kind.RETRY, Exit.UNREACHABLE),
    connector.LoginRefused: (Kind.FAIL, Exit.UNREACHABLE),
    connector.NotPermitted: (Kind.FAIL, Exit.UNREACHABLE),
    connector.AlreadyThere: (Kind.FAIL, Exit.REFUSED),
    connector.Rejected: (Kind.FAIL, Exit.USAGE),
    connector.Gone: (Kind.FAIL, Exit.USAGE),
    connector.Busy: (Kind.RETRY, Exit.TRY_LATER),
    connector.SnapshotFailed: (Kind.RETRY, Exit.TRY_LATER),
    connector.Unconsolidated: (Kind.RETRY, Exit.TRY_LATER),
    connector.NoRoom: (Kind.RETRY, Exit.NO_SPACE),
    connector.TrackingUnusable: (Kind.FAIL, Exit.TRY_LATER),
    connector.TransportFailed: (Kind.RETRY, Exit.UNREACHABLE),
    connector.ReadFailed: (Kind.RETRY, Exit.UNREACHABLE),
    connector.WriteFailed: (Kind.RETRY, Exit.UNREACHABLE),
    connector.BadMessage: (Kind.QUARANTINE, Exit.USAGE),
}

_STORAGE: dict[type[storage.StorageError], tuple[Kind, Exit]] = {
    storage.NoRepository: (Kind.FAIL, Exit.NO_REPOSITORY),
    storage.AlreadyExists: (Kind.FAIL, Exit.REFUSED),
    storage.Locked: (Kind.RETRY, Exit.LOCKED),
    storage.WrongKey: (Kind.FAIL, Exit.WRONG_KEY),
    storage.Damaged: (Kind.QUARANTINE, Exit.DAMAGED),
    storage.Unsupported: (Kind.FAIL, Exit.NO_REPOSITORY),
    storage.NoSpace: (Kind.RETRY, Exit.NO_SPACE),
    storage.StoreFailed: (Kind.RETRY, Exit.UNREACHABLE),
    storage.AccessRefused: (Kind.FAIL, Exit.UNREACHABLE),
    storage.Changed: (Kind.RETRY, Exit.TRY_LATER),
    storage.NoSuchPoint: (Kind.FAIL, Exit.USAGE),
    storage.Refused: (Kind.FAIL, Exit.REFUSED),
}

FAMILIES = (BadInput, RemoteFailure, PolicyError, connector.ConnectorError, storage.StorageError)
"""Everything that is raised on purpose."""

# RLIMIT_FSIZE and quotas mean the same to an operator as a full disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# In a group of errors the one that needs a person first tells the story.
_GRAVITY = (Kind.QUARANTINE, Kind.FAIL, Kind.RETRY)


def verdict(error: BaseException) -> Verdict:
    """Judge any error. An error of none of our families is a bug, whose sentence names its type alone."""
    match error:
        case BaseExceptionGroup():
            return _worst(error)
        case RemoteFailure():
            return error.verdict
        case BadInput():
            return Verdict(Kind.FAIL, error.exit_code, str(error))
        case PolicyError():
            return Verdict(Kind.FAIL, Exit.USAGE, str(error))
        case connector.ConnectorError() | storage.StorageError() if _is_full(error.__cause__):
            return Verdict(Kind.RETRY, Exit.NO_SPACE, str(error))
        case connector.ConnectorError():
            return _by_type(error, _CONNECTOR, error.retry)
        case storage.StorageError():
            return _by_type(error, _STORAGE, error.retry)
        case OSError() if _is_full(error):
            where = f"{error.filename}: " if error.filename else ""
            return Verdict(Kind.RETRY, Exit.NO_SPACE, f"{where}no space left (free some, then run the command again)")
        case PermissionError() if isinstance(error.filename, str):
            return Verdict(Kind.FAIL, Exit.USAGE, str(storage.no_permission(error, error.filename)))
        case OSError() if error.filename is not None:
            return Verdict(Kind.FAIL, Exit.USAGE, f"{error.filename}: {error.strerror}")
        case KeyboardInterrupt():
            return Verdict(Kind.RETRY, Exit.INTERRUPTED, "interrupted")
        case _:
            return Verdict(Kind.QUARANTINE, Exit.BUG, f"unexpected {type(error).__name__}")


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _by_type(error: E, table: dict[type[E], tuple[Kind, Exit]], retry: bool) -> Verdict:
    for family, (kind, exit_code) in table.items():
        if isinstance(error, family):
            return Verdict(kind, exit_code, str(error))
    kind = Kind.RETRY if retry else Kind.FAIL
    return Verdict(kind, Exit.TRY_LATER if retry else Exit.UNREACHABLE, str(error))


def _worst(group: BaseExceptionGroup[BaseException]) -> Verdict:
    verdicts = [verdict(error) for error in _leaves(group)]
    return min(verdicts, key=lambda v: (v.exit_code is not Exit.BUG, _GRAVITY.index(v.kind)))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
