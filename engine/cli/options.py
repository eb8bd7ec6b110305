"""The options that several commands share, with one wording each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
