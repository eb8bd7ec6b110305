"""How commands say what their arguments are, and the options that several share, with one wording each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple


class Parameter(NamedTuple):
    """What a signature does not say of an argument: cyclopts' Parameter, which `frame` makes of it, without its weight.

    Without a name it is the argument's own; `negative` is what switches an option off.
    """

    name: str | tuple[str, ...] | None = None
    help: str | None = None
    negative: str | None = None


Repo = Annotated[
    str | None,
    Parameter(name="--repo", help="Directory or s3://, gs:// or az:// URL of the repository; else as configured."),
]
Config = Annotated[
    Path | None, Parameter(name="--config", help="Configuration file; else BACKSTAY_CONFIG or the default place.")
]
PassphraseFile = Annotated[
    Path | None,
    Parameter(
        name="--passphrase-file",
        help="File of the passphrase, or a key file; else BACKSTAY_PASSPHRASE or a prompt.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON for programs.")]
Point = Annotated[str, Parameter(help="Id of a restore point, the beginning of one, or NAME@latest.")]
