"""The engine's configuration: one TOML file, read once; every mistake is told with its place and what to write."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

import tomli
from pydantic import Field, ValidationError, model_validator

from engine.complaints import complaints
from engine.failures import BadInput
from engine.hours import Hours
from engine.sections import Api, Bus, Copy, Limits, Maintenance, Metrics, Timers, Transport, VCenter
from engine.stores import RepositorySection, anchored
from engine.stores import Section as _Section
from engine.targets import Notify
from policies.windows import Window
from storage import places
from storage.places import Place

PlaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
"""What policies may call a repository or a copy."""

SYSTEM_FILE = Path("/etc/backstay/backstay.toml")


class Config(_Section):
    """The whole file. Paths are absolute: relative ones were taken from the file's own directory."""

    schema_number: Literal[1] = Field(alias="schema")
    name: str = Field(default_factory=socket.gethostname, min_length=1)
    state_dir: Path = Field(default_factory=lambda: default_state_dir())
    policies: Path = Field(default=Path("policies.d"))
    repository: RepositorySection
    repositories: dict[PlaceName, RepositorySection] = Field(default_factory=dict)
    copies: dict[PlaceName, Copy] = Field(default_factory=dict)
    vcenter: dict[str, VCenter] = Field(default_factory=dict)
    notify: dict[str, Notify] = Field(default_factory=dict)
    api: Api = Field(default_factory=Api)
    metrics: Metrics = Field(default_factory=Metrics)
    bus: Bus | None = None
    transport: Transport = Field(default_factory=Transport)
    limits: Limits = Field(default_factory=Limits)
    timers: Timers = Field(default_factory=Timers)
    maintenance: Maintenance = Field(default_factory=Maintenance)

    @model_validator(mode="after")
    def _is_at_different_places(self) -> Config:
        if same := self._two_at_one_place():
            raise ValueError(same)
        return self

    def _two_at_one_place(self) -> str:
        """Which two sections name one place, by whatever way there; "" when none do."""
        seen: dict[tuple[str, str], str] = {}
        named: dict[str, RepositorySection] = {"repository": self.repository}
        named |= {f"repositories.{name}": section for name, section in self.repositories.items()}
        named |= {f"copies.{name}": section for name, section in self.copies.items()}
        for name, section in named.items():
            where = os.path.realpath(section.path) if section.path is not None else section.url.rstrip("/")
            place = (where, section.endpoint.rstrip("/"))
            if place in seen:
                return f"{seen[place]} and {name} are one place; leave one of them out"
            seen[place] = name
        return ""

    @property
    def place(self) -> Place:
        """Where the repository lies."""
        return self.repository.place(self.state_dir)

    def reclaim_hours(self, name: str = "") -> Hours:
        """When space of a repository may be freed; the engine's own has no name."""
        return self.hours_of(self._named(name))

    def verify_hours(self, name: str = "") -> Hours:
        """When a repository may be read back."""
        return self.hours_of(self._named(name), self.maintenance.verify_window)

    def hours_of(self, section: RepositorySection | None, usual: tuple[Window, ...] = ()) -> Hours:
        """When what loads the store may run there, or anywhere: its own window, the usual one, or that of all."""
        own = section.maintenance_window if section is not None else ()
        return Hours(own or usual or self.maintenance.window, self.maintenance.timezone)

    def _named(self, name: str) -> RepositorySection:
        return self.repositories[name] if name else self.repository

    @property
    def socket(self) -> Path:
        """Where the API listens."""
        return self.api.socket or default_socket(self.state_dir)


def load(path: Path | None = None) -> Config:
    """The configuration at path, or at the first default place that exists; BadInput tells every mistake."""
    chosen = path or find()
    try:
        text = chosen.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput("this is not UTF-8 text", where=str(chosen)) from None
    except OSError as error:
        raise BadInput(
            f"the configuration cannot be read: {error.strerror}", where=str(chosen), hint="backstay init writes one"
        ) from None
    return parse(text, chosen)


def parse(text: str, path: Path) -> Config:
    """The configuration that a text holds; path is named in messages and is where relative paths start."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise BadInput(f"this is not TOML: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}") from None
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        raise BadInput("\n".join(complaints(error, Config, text, path))) from None
    absolute: Config = anchored(config, path.absolute().parent)
    if same := absolute._two_at_one_place():
        raise BadInput(same, where=str(path))
    return absolute


def find() -> Path:
    """The file that BACKSTAY_CONFIG names, else the user's own, else the system's."""
    named = os.environ.get("BACKSTAY_CONFIG")
    if named:
        return Path(named)
    own = user_file()
    return own if os.geteuid() != 0 and own.exists() else SYSTEM_FILE


def user_file() -> Path:
    """Where a user's own configuration lies."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "backstay" / "backstay.toml"


def default_state_dir() -> Path:
    """Where the engine keeps its own state when nothing is said."""
    return places.default_state_dir()


def default_socket(state_dir: Path) -> Path:
    """Where the API's socket lies when nothing is said: beside the state, or in the runtime directory."""
    if state_dir != default_state_dir():
        return state_dir / "backstay.sock"
    if os.geteuid() == 0:
        return Path("/run/backstay/backstay.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "backstay" / "backstay.sock" if runtime else state_dir / "backstay.sock"


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    return Path(value) if value else Path.home() / default
