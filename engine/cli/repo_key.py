"""backstay repo key list | add | remove | rotate"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import say, show_json, show_table
from engine.cli.reach import ask_new_passphrase, locate, refuse_engine, utc_now
from engine.credentials import read_secret_file
from engine.failures import BadInput, Declined
from engine.plain import show_time
from storage.blobs import LocalBlobs
from storage.config import list_slots
from storage.filecalls import sync_folder
from storage.keys import KeySlot, add_slot, described, remove_slot, require_slot, rotate
from storage.keyslots import new_key_file
from storage.places import open_blobs
from storage.repository import Repository, open_repository

NewPassphraseFile = Annotated[
    Path | None,
    Parameter(name="--new-passphrase-file", help="File that holds the new passphrase, or a key file; else a prompt."),
]
NewKeyFile = Annotated[
    Path | None,
    Parameter(name="--new-key-file", help="Make a key file here, in place of a passphrase."),
]


def list_keys(*, repo: Repo = None, config: Config = None, json: Json = False) -> None:
    """List the keys that open a repository. Needs none of them, and tells no secret."""
    directory, _ = locate(repo, config, None)
    store = LocalBlobs(directory) if isinstance(directory, Path) else open_blobs(directory)
    keys = [described(slot) for slot in list_slots(store)]
    if json:
        show_json(keys)
    elif not keys:
        say("The repository is not encrypted and has no keys.")
    else:
        rows = [(key.id, key.kind, _moment(key), key.derivation) for key in keys]
        show_table(("KEY", "KIND", "MADE (UTC)", "DERIVATION"), rows)


def add(
    *,
    new_passphrase_file: NewPassphraseFile = None,
    new_key_file: NewKeyFile = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Let one more passphrase or key file open a repository.

    It is opened with a key that it has, then the new one is added. Ends with 11 while an engine owns the repository.
    """
    with _opened(repo, config, passphrase_file, "add") as repository:
        key = add_slot(repository, _new(repository, new_passphrase_file, new_key_file))
    say(f"Key {key} opens the repository too.")


def remove(
    key: Annotated[str, Parameter(help="Id of the key, as the list has it.")],
    /,
    *,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take a key away, so that it opens the repository no more.

    The repository is opened with another key: the last one cannot be removed. What is stored is not encrypted anew:
    who has the removed key and an old copy of the config can still read everything. Ends with 11 while an engine
    owns the repository.
    """
    with _opened(repo, config, passphrase_file, "remove") as repository:
        remove_slot(repository, key)
    say(f"Key {key} opens the repository no more.")


def rotate_key(
    key: Annotated[str | None, Parameter(help="Id of the key; else the one that opens the repository.")] = None,
    /,
    *,
    new_passphrase_file: NewPassphraseFile = None,
    new_key_file: NewKeyFile = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a new passphrase or key file in the place of one, with a new salt and today's key derivation.

    What is stored is not encrypted anew: who has the old key and an old copy of the config can still read everything.
    Ends with 11 while an engine owns the repository.
    """
    with _opened(repo, config, passphrase_file, "rotate") as repository:
        if key is not None:
            require_slot(repository, key)  # before a key file is made for it
        rotated = rotate(repository, _new(repository, new_passphrase_file, new_key_file), key)
    say(f"Key {rotated} is another one now; what opened it before does so no more.")


def _moment(key: KeySlot) -> str:
    return show_time(key.created_at)[:19].replace("T", " ") if key.created_at is not None else ""


@contextmanager
def _opened(repo: str | None, config: Path | None, passphrase_file: Path | None, command: str) -> Iterator[Repository]:
    directory, passphrase = locate(repo, config, passphrase_file)
    refuse_engine(directory)
    with open_repository(
        directory, passphrase=passphrase, now=utc_now, owner=f"backstay repo key {command}"
    ) as repository:
        yield repository


def _new(repository: Repository, passphrase_file: Path | None, key_file: Path | None) -> str:
    """The new passphrase, or the line of a key file, which is durable before anything depends on it."""
    if not repository.encrypted:
        return ""  # refused next
    if passphrase_file is not None and key_file is not None:
        raise BadInput("one new key at a time", where="--new-key-file", hint="leave out --new-passphrase-file")
    if key_file is None:
        given = read_secret_file(passphrase_file) if passphrase_file is not None else ask_new_passphrase()
        if not given:
            raise BadInput("an empty passphrase protects nothing", where=str(passphrase_file))
        return given
    if key_file.absolute().resolve().is_relative_to(repository.work.absolute().resolve()):
        raise Declined("a key beside what it opens protects nothing", where=str(key_file), hint="name another folder")
    return _made(key_file)


def _made(path: Path) -> str:
    line = new_key_file()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(fd)
        sync_folder(path.absolute().parent)
    except FileExistsError:
        raise Declined("this file is there already", where=str(path), hint="name a new one") from None
    except OSError as error:
        raise BadInput(f"the key file cannot be made: {error.strerror}", where=str(path)) from None
    say(f"Made the key file {path}. Keep a copy elsewhere: it is as good as a passphrase.")
    return line
