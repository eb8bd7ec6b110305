"""How each tool is told to do the same work. A driver only says which process to run; it runs none itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks._programs import backstay
from benchmarks.peers.measuring import Command

PASSPHRASE = "only a benchmark"


@dataclass(frozen=True, slots=True)
class Source:
    """A disk image to back up: which disk it is, and the day. Hints list what changed since the day before."""

    disk: str
    day: int
    file: Path
    hints: Path | None = None

    @property
    def point(self) -> str:
        """What tools that want a name for it call its restore point."""
        return f"{self.disk}-{self.day}"


class Driver(Protocol):
    """One tool with one set of settings. `state` holds all that it keeps: repository, database, caches."""

    name: str
    settings: str
    durability: str
    encrypted: bool
    takes_hints: bool
    immutable: str

    def version(self) -> str: ...
    def prepare(self, state: Path) -> None:
        """What the tool needs before it is started for the first time, such as a configuration file."""

    def init(self, state: Path) -> list[Command]: ...
    def backup(self, state: Path, source: Source) -> Command: ...
    def restore(self, state: Path, source: Source, target: Path) -> tuple[Command, Path]:
        """The command, and the file that it leaves in the target folder."""

    def verify(self, state: Path) -> Command: ...
    def kept(self, state: Path) -> list[Path]:
        """The folders that hold what a restore needs."""


class Restic:
    """restic always encrypts, and takes no hints."""

    encrypted, takes_hints, immutable = True, False, "data"
    settings = "repository version 2, automatic compression (defaults)"
    durability = "fsyncs each pack file and its folder"

    def __init__(self, program: Path, name: str = "restic") -> None:
        self.name, self._program = name, program

    def version(self) -> str:
        return _say(str(self._program), "version").split()[1]

    def prepare(self, state: Path) -> None:
        _write_passphrase(state)

    def init(self, state: Path) -> list[Command]:
        return [self._command(state, state, "init")]

    def backup(self, state: Path, source: Source) -> Command:
        return self._command(
            state, source.file.parent, "backup", "--host", "h", "--tag", source.point, source.file.name
        )

    def restore(self, state: Path, source: Source, target: Path) -> tuple[Command, Path]:
        chosen = ("restore", "latest", "--tag", source.point, "--target", str(target))
        return self._command(state, target, *chosen), target / source.file.name

    def verify(self, state: Path) -> Command:
        return self._command(state, state, "check", "--read-data")

    def kept(self, state: Path) -> list[Path]:
        return [state / "repository"]

    def _command(self, state: Path, folder: Path, *arguments: str) -> Command:
        environment = {
            "RESTIC_REPOSITORY": str(state / "repository"),
            "RESTIC_PASSWORD_FILE": str(state / "passphrase"),
            "RESTIC_CACHE_DIR": str(state / "cache"),
        }
        return Command((str(self._program), "-q", *arguments), folder, environment)


class Borg:
    """borg without encryption."""

    encrypted, takes_hints, immutable = False, False, "data"
    durability = "fdatasyncs each segment file and its folder"

    def __init__(self, program: Path, name: str, settings: str, options: tuple[str, ...]) -> None:
        self.name, self._program, self.settings, self._options = name, program, settings, options

    def version(self) -> str:
        return _say(str(self._program), "--version").split()[1]

    def prepare(self, state: Path) -> None:
        (state / "base").mkdir()

    def init(self, state: Path) -> list[Command]:
        return [self._command(state, state, "init", "--encryption=none", str(state / "repository"))]

    def backup(self, state: Path, source: Source) -> Command:
        archive = f"{state / 'repository'}::{source.point}"
        return self._command(state, source.file.parent, "create", *self._options, archive, source.file.name)

    def restore(self, state: Path, source: Source, target: Path) -> tuple[Command, Path]:
        archive = f"{state / 'repository'}::{source.point}"
        return self._command(state, target, "extract", "--sparse", archive), target / source.file.name

    def verify(self, state: Path) -> Command:
        return self._command(state, state, "check", "--verify-data", str(state / "repository"))

    def kept(self, state: Path) -> list[Path]:
        return [state / "repository"]

    def _command(self, state: Path, folder: Path, *arguments: str) -> Command:
        environment = {"BORG_BASE_DIR": str(state / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        return Command((str(self._program), *arguments), folder, environment)


class Benji:
    """benji with SQLite as its database; hints are what `rbd diff` prints."""

    encrypted, takes_hints, immutable = False, True, "storage"
    settings = "blocks of 4 MiB (default), zstd level 1, SQLite"
    durability = "fdatasyncs each block file, not its folder; SQLite's own commits"

    def __init__(self, program: Path, name: str = "benji") -> None:
        self.name, self._program = name, program

    def version(self) -> str:
        python = str(self._program.with_name("python"))
        return _say(python, "-c", "from importlib.metadata import version; print(version('benji'))").strip()

    def prepare(self, state: Path) -> None:
        (state / "storage").mkdir()
        self._configure(state)

    def init(self, state: Path) -> list[Command]:
        return [self._command(state, "database-init")]

    def backup(self, state: Path, source: Source) -> Command:
        self._configure(state)
        hinted: tuple[str, ...] = ()
        if source.hints is not None:
            extents = json.loads(source.hints.read_text())
            rbd = state / "hints.json"
            rbd.write_text(json.dumps([{**extent, "exists": "true"} for extent in extents]))
            hinted = ("--rbd-hints", str(rbd), "--base-version", f"{source.disk}-{source.day - 1}")
        return self._command(state, "backup", "--uid", source.point, *hinted, f"file://{source.file}", source.disk)

    def restore(self, state: Path, source: Source, target: Path) -> tuple[Command, Path]:
        self._configure(state)
        file = target / source.file.name
        return self._command(state, "restore", "--sparse", source.point, f"file://{file}"), file

    def verify(self, state: Path) -> Command:
        self._configure(state)
        return self._command(state, "batch-deep-scrub")

    def kept(self, state: Path) -> list[Path]:
        return [state / "storage", state / "database"]

    def _configure(self, state: Path) -> None:
        """The paths in the configuration are absolute, and a state may have been copied."""
        (state / "database").mkdir(exist_ok=True)
        text = {
            "configurationVersion": "1",
            "databaseEngine": f"sqlite:///{state}/database/benji.sqlite",
            "defaultStorage": "file",
            "storages": [
                {
                    "name": "file",
                    "module": "file",
                    "storageId": 1,
                    "configuration": {"path": f"{state}/storage", "activeTransforms": ["zstd"]},
                }
            ],
            "transforms": [{"name": "zstd", "module": "zstd", "configuration": {"level": 1}}],
            "ios": [{"name": "file", "module": "file"}],
        }
        (state / "benji.yaml").write_text(json.dumps(text))  # JSON is YAML

    def _command(self, state: Path, *arguments: str) -> Command:
        return Command(
            (str(self._program), "-c", str(state / "benji.yaml"), "--log-level", "WARNING", *arguments), state
        )


class Backstay:
    """Ourselves, through the command line."""

    takes_hints, immutable = True, "packs"
    durability = "fdatasyncs each pack, its folder and the manifest; a restore is fsynced"

    def __init__(self, name: str, *, encrypted: bool = False, options: Sequence[str] = ()) -> None:
        self.name, self.encrypted = name, encrypted
        self._options = ("--encrypt",) * encrypted + tuple(options)
        self.settings = "blocks of 64 KiB, zstd 1 with matches from seven bytes (defaults)" + (
            ", AES-256-GCM" if encrypted else ""
        )
        self.settings += f", but {' '.join(options)}" if options else ""

    def version(self) -> str:
        version = _say(*backstay(), "--version").split()[-1]
        root = str(Path(__file__).parents[2])
        revision = subprocess.run(
            ["git", "-C", root, "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True
        )
        return f"{version} ({revision.stdout.strip()})" if revision.returncode == 0 else version

    def prepare(self, state: Path) -> None:
        _write_passphrase(state)

    def init(self, state: Path) -> list[Command]:
        return [self._command(state, "repo", "init", str(state / "repository"), *self._options)]

    def backup(self, state: Path, source: Source) -> Command:
        hinted = ["--changed", str(source.hints)] if source.hints is not None else []
        return self._command(state, "disk", "backup", str(source.file), "--name", source.disk, *hinted, *_repo(state))

    def restore(self, state: Path, source: Source, target: Path) -> tuple[Command, Path]:
        file = target / source.file.name
        wanted = (f"{source.disk}@latest", "--to", str(file))
        return self._command(state, "disk", "restore", *wanted, *_repo(state)), file

    def verify(self, state: Path) -> Command:
        return self._command(state, "verify", "--scope", "full", "--anew", *_repo(state))

    def kept(self, state: Path) -> list[Path]:
        return [state / "repository"]

    def _command(self, state: Path, *arguments: str) -> Command:
        passphrase = ["--passphrase-file", str(state / "passphrase")] if self.encrypted else []
        return Command((*backstay(), *arguments, *passphrase), state)


def _write_passphrase(state: Path) -> None:
    file = state / "passphrase"
    file.touch(mode=0o600)
    file.write_text(PASSPHRASE)


def _repo(state: Path) -> tuple[str, str]:
    return "--repo", str(state / "repository")


def _say(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
