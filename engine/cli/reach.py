"""From options to what a command works on: the repository itself, or the engine that owns it."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.ahead import had_by_engine
from engine.client import Engine
from engine.credentials import Secret, read_secret_file
from engine.failures import BadInput, NotReachable
from storage.errors import Locked, NoRepository, WrongKey
from storage.keyderivation import ARGON2
from storage.opening import open_checked
from storage.places import Place, owner_file, parse_place

if TYPE_CHECKING:
    from storage.repository import Repository

START_SECONDS = 5.0
"""How long an engine that holds the repository may take until its API listens."""


@dataclass(frozen=True, slots=True)
class Passphrase:
    """What gives the passphrase when it is needed. `named` says that a file or the configuration names one."""

    read: Callable[[], str]
    named: bool

    def __call__(self) -> str:
        return self.read()


@contextmanager
def reach(
    repo: str | None, config: Path | None, passphrase_file: Path | None, *, command: str, needed: Sequence[str] = ()
) -> Iterator[Repository | Engine]:
    """What owns the repository: ourselves for as long as the block runs, or the engine that runs.

    `needed` are modules that the command imports later: where a key has to be derived they are loaded meanwhile.
    Locked, which names the pid, when another process owns it and no API of it answers.
    """
    directory, passphrase = locate(repo, config, passphrase_file)
    # Asked first: an engine needs no passphrase of us, and a key derivation takes its time.
    engine = _owner(directory)
    if engine is not None:
        yield engine
        return
    if passphrase.named:
        modules = (ARGON2, "storage.repository", *needed)
        threading.Thread(target=_load, args=(modules,), name="loading ahead", daemon=True).start()
    try:
        opened = open_checked(
            directory,
            passphrase=passphrase,
            must_be_encrypted=passphrase.named,
            now=utc_now(),
            owner=f"backstay {command}",
        )
    except Locked:
        engine = _starting(directory)
        if engine is None:
            raise
        yield engine
        return
    from storage.repository import repository_of

    with repository_of(opened, utc_now) as repository:
        yield repository


def _load(modules: Sequence[str]) -> None:
    for module in modules:
        with suppress(ImportError):  # told where it is imported
            importlib.import_module(module)


def locate(repo: str | None, config: Path | None, passphrase_file: Path | None) -> tuple[Place, Passphrase]:
    """Where the repository lies, and what gives its passphrase when it is needed."""
    place, secret = (place_of(repo), None) if repo is not None else configured_place(config)
    return place, Passphrase(_passphrase(passphrase_file, secret), passphrase_file is not None or secret is not None)


def place_of(text: str) -> Place:
    """What a person names: a directory or the URL of an object store."""
    if not text:  # a variable of a script that is not set; as a path it would be the working directory
        raise BadInput("an empty name is no repository", where="repository", hint="name a directory or a URL")
    try:
        place = parse_place(text)
    except ValueError as error:
        raise BadInput(str(error), where="repository") from None
    return place


def place_named(repo: str | None) -> str:
    """Which of an engine's repositories a command is about, as the engine calls its place; "" for its own."""
    if repo is None:
        return ""
    place = place_of(repo)
    return str(place.absolute() if isinstance(place, Path) else place)


def further_named(engine: Engine, repo: str | None) -> str:
    """The name of the further repository of an engine that a command names; "" for the engine's own."""
    if repo is None:
        return ""
    further = engine.get("/v1/status").get("repositories", ())
    return next((one["name"] for one in further if same_place(one["location"], place_named(repo))), "")


def same_place(one: str, other: str) -> bool:
    """Whether two texts name one repository."""
    there = [place.rstrip("/") if "://" in place else os.path.realpath(place) for place in (one, other)]
    return there[0] == there[1]


def detail_of(place: Repository | Engine, reference: str) -> tuple[str, tuple[str, ...]]:
    """The id of the restore point that a reference means now, and its holds."""
    if isinstance(place, Engine):
        row = place.get("/v1/point", {"reference": reference})
        return row["id"], tuple(row["holds"])
    detail = place.detail(place.find(reference))
    return detail.id, tuple(detail.holds)


def refuse_engine(directory: Place) -> None:
    """Locked, which names the pid, when an engine owns the repository: for what needs it alone."""
    engine = _owner(directory)
    if engine is not None:
        pid = engine.get("/v1/status")["engine"]["pid"]
        raise Locked(f"in use by pid {pid}, an engine", where=str(directory), hint="stop it first")


def utc_now() -> datetime:
    """The clock, read at the edge."""
    return datetime.now(UTC)


def running(repo: str | None, config: Path | None) -> Engine:
    """The engine that runs, for what only it can do; NotReachable when none does."""
    if repo is not None:
        engine = _owner(place_of(repo))
    else:
        from engine.config import load

        engine = Engine(load(config).socket)
    if engine is None or not engine.listens():
        where = str(repo) if engine is None else f"unix:{engine.path}"
        raise NotReachable("no engine runs here", where=where, hint="start it with: backstay run")
    return engine


def policy_place(directory: str | None, config: Path | None) -> Path:
    """The directory of policies, or one file, that a person names; else the configured one."""
    if directory is None:
        return configured_policies(config)
    if not directory.strip():  # a variable of a script that is not set; as a path it would be the working directory
        raise BadInput("an empty name is no directory", where="policies", hint="name the directory of policies")
    return Path(directory)


def configured_policies(config: Path | None) -> Path:
    """Where the policy files of this configuration are."""
    from engine.config import load

    return load(config).policies


def configured_state_dir(config: Path | None) -> Path:
    """Where the engine of this configuration keeps its state."""
    from engine.config import load

    return load(config).state_dir


def new_passphrase(passphrase_file: Path | None) -> str:
    """A passphrase for a new repository: from the file, BACKSTAY_PASSPHRASE, or asked twice on a terminal."""
    given = _given(passphrase_file, None)
    if given is not None:
        return given()
    return ask_new_passphrase("--encrypt", "set BACKSTAY_PASSPHRASE or use --passphrase-file")


def ask_new_passphrase(
    where: str = "--new-passphrase-file", hint: str = "use it, or --new-key-file; only a terminal can be asked"
) -> str:
    """A new passphrase asked twice on a terminal; BadInput says where it could have been given."""
    if not sys.stdin.isatty():
        raise BadInput("no passphrase was given", where=where, hint=hint)
    first = getpass.getpass("New passphrase: ")
    if first != getpass.getpass("The same again: "):
        raise BadInput("the two are not the same", where="passphrase")
    if not first:
        raise BadInput("an empty passphrase protects nothing", where="passphrase")
    return first


def given_passphrase(passphrase_file: Path | None) -> str | None:
    """What the file or BACKSTAY_PASSPHRASE holds, None when neither was given."""
    given = _given(passphrase_file, None)
    return given() if given is not None else None


def configured_place(config: Path | None) -> tuple[Place, Secret | None]:
    """Where the configured repository lies, and where its passphrase is kept if it has one."""
    from engine.config import find, load

    place = config or find()
    if config is None and not place.exists():
        raise NoRepository(
            "no repository was named, and there is no configuration",
            where=str(place),
            hint="name one (for most commands by --repo), or write a configuration: backstay init",
        )
    loaded = load(place)
    return loaded.place, loaded.repository.passphrase


def _passphrase(passphrase_file: Path | None, secret: Secret | None) -> Callable[[], str]:
    given = _given(passphrase_file, secret)
    if given is not None:
        return given
    if sys.stdin.isatty():
        return lambda: getpass.getpass("Passphrase: ")
    return _nothing_given


def _given(passphrase_file: Path | None, secret: Secret | None) -> Callable[[], str] | None:
    value = os.environ.get("BACKSTAY_PASSPHRASE")
    if passphrase_file is not None:
        return lambda: _not_empty(read_secret_file(passphrase_file))
    if secret is not None:
        return secret.read
    if value is not None:
        return lambda: _not_empty(value)
    return None


def _not_empty(passphrase: str) -> str:
    if not passphrase:
        raise BadInput("an empty passphrase protects nothing", where="passphrase")
    return passphrase


def _nothing_given() -> str:
    raise WrongKey(
        "the repository is encrypted and no passphrase was given",
        hint="set BACKSTAY_PASSPHRASE or use --passphrase-file",
    )


def _owner(place: Place) -> Engine | None:
    """The engine of this machine that has the repository open: alive, and listening where owner.json says."""
    try:
        said = json.loads(owner_file(place).read_text(encoding="utf-8"))
        pid, owner = int(said["pid"]), str(said["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = next((word.removeprefix("unix:") for word in owner.split() if word.startswith("unix:")), "")
    engine = Engine(Path(path))
    return engine if path and _alive(pid) and engine.listens() else None


def _starting(directory: Place) -> Engine | None:
    """The engine that took the repository a moment ago and is about to listen."""
    until = time.monotonic() + START_SECONDS
    while True:
        engine = _owner(directory)
        if engine is not None or not _is_engine(directory) or time.monotonic() > until:
            return engine
        time.sleep(0.1)


def _is_engine(directory: Place) -> bool:
    try:
        return had_by_engine(owner_file(directory))
    except (OSError, ValueError):
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
