"""Every error of ours has one verdict, and everything else is a bug."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from connectors import errors as connector
from engine.failures import BadInput, Exit, Kind, RemoteFailure, Verdict, verdict
from engine.state_schema import translate
from policies.errors import PolicyError, Problem
from storage import errors as storage


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    for kind in root.__subclasses__():
        if kind.__module__ == root.__module__:  # others are made in their own ways
            yield kind
        yield from family(kind)


@pytest.mark.parametrize("kind", [*family(connector.ConnectorError), *family(storage.StorageError)])
def test_no_error_of_ours_counts_as_a_bug(kind: type[connector.ConnectorError | storage.StorageError]) -> None:
    judged = verdict(kind("it broke", where="there", hint="do this"))
    assert judged.exit_code is not Exit.BUG
    assert judged.sentence == "there: it broke (do this)"
    assert (judged.kind is Kind.RETRY) == kind.retry


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (storage.NoRepository("x"), 10),
        (storage.Locked("x"), 11),
        (storage.WrongKey("x"), 12),
        (storage.Damaged("x"), 4),
        (storage.NoSpace("x"), 7),
        (storage.Refused("x"), 5),
        (storage.NoSuchPoint("x"), 2),
        (connector.Unreachable("x"), 6),
        (connector.LoginRefused("x"), 6),
        (connector.Busy("x"), 75),
        (connector.Rejected("x"), 2),
        (connector.AlreadyThere("x"), 5),
        (PolicyError([Problem("a.toml", 1, 2, "this is wrong", "write that")]), 2),
        (BadInput("x"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 7),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "f"), 2),
        (RemoteFailure(Verdict(Kind.FAIL, Exit.LOCKED, "x")), 11),
    ],
)
def test_scripts_can_rely_on_the_exit_codes(error: BaseException, code: int) -> None:
    assert verdict(error).exit_code == code


def test_a_file_that_may_not_be_used_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch()
    judged = verdict(PermissionError(errno.EACCES, "Permission denied", str(path)))
    assert judged.exit_code is Exit.USAGE
    assert judged.sentence.startswith(f"{path}: permission denied for user ") and "ls -ld" in judged.sentence
    told = translate(duckdb.IOException(f'IO Error: Cannot open file "{path}": Permission denied'), path)
    assert str(told) == judged.sentence


def test_an_unknown_error_is_a_bug_whose_text_may_hold_secrets() -> None:
    judged = verdict(ValueError("password=hunter2"))
    assert judged == Verdict(Kind.QUARANTINE, Exit.BUG, "unexpected ValueError")


def test_an_error_that_the_full_disk_caused_says_so_with_its_code() -> None:
    error = connector.WriteFailed("writing 4096 bytes")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert verdict(error).exit_code is Exit.NO_SPACE


def test_of_a_group_the_gravest_error_tells_the_story() -> None:
    group = ExceptionGroup(
        "tasks", [connector.Busy("later"), ExceptionGroup("inner", [storage.Damaged("a byte changed")])]
    )
    assert verdict(group).exit_code is Exit.DAMAGED
    assert verdict(BaseExceptionGroup("both", [group, KeyError("x")])).exit_code is Exit.BUG
