"""Secrets stay where they are kept; a configuration only names the place."""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.failures import BadInput

KINDS = ("file", "env", "credential", "command")

SOURCES = 'write "file:/path", "env:NAME", "credential:NAME" (systemd) or "command:program arguments"'

COMMAND_SECONDS = 30.0
"""How long a command that prints a secret may take: longer than a vault's answer, shorter than a human's patience."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is kept. Its value is read when it is needed and never kept, printed or logged."""

    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"

    def read(self) -> str:
        """The secret without a trailing line end; BadInput names the place, never the value."""
        match self.kind:
            case "file":
                value = read_secret_file(Path(self.place))
            case "env":
                value = self._environment()
            case "credential":
                value = self._credential()
            case _:
                value = self._command()
        if not value:
            raise BadInput("the secret is empty", where=str(self))
        return value

    def _environment(self) -> str:
        value = os.environ.get(self.place)
        if value is None:
            raise BadInput("the environment variable is not set", where=str(self))
        return value

    def _credential(self) -> str:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise BadInput(
                "systemd passed no credentials to this process",
                where=str(self),
                hint=f"put LoadCredential={self.place}:/path into the unit",
            )
        return read_secret_file(Path(folder) / self.place)

    def _command(self) -> str:
        import subprocess  # 5 ms that few need

        try:
            done = subprocess.run(
                shlex.split(self.place),
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=COMMAND_SECONDS,
                text=True,
            )
        except subprocess.TimeoutExpired:
            raise BadInput(f"no answer within {COMMAND_SECONDS:.0f} s", where=str(self)) from None
        except subprocess.CalledProcessError as error:
            raise BadInput(f"the command ended with code {error.returncode}", where=str(self)) from None
        except OSError as error:
            raise BadInput(f"the command cannot be run: {error.strerror}", where=str(self)) from None
        return done.stdout.rstrip("\r\n")


def parse_secret(text: str) -> Secret:
    """The source that a configuration names. A ValueError never repeats the text: it may be the secret itself."""
    kind, colon, place = text.partition(":")
    if not colon or kind not in KINDS or not place:
        raise ValueError(f"a secret does not stand here itself; {SOURCES}")
    return Secret(kind, place)


def read_secret_file(path: Path) -> str:
    """The file's text without the trailing line end; refused when everybody may read the file."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
                raise BadInput("everybody may read this secret", where=str(path), hint=f"run: chmod 600 {path}")
            return file.read().rstrip("\r\n")
    except OSError as error:
        raise BadInput(f"the secret cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("the secret is not text", where=str(path)) from None
