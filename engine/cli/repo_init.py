"""backstay repo init DIR"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import PassphraseFile
from engine.cli.output import say
from engine.cli.reach import new_passphrase, utc_now
from engine.failures import BadInput
from engine.units import parse_size
from storage.repository import BLOCK_BYTES, create


def repo_init(
    directory: Path,
    /,
    *,
    encrypt: Annotated[bool, Parameter(help="Encrypt everything with a key that the passphrase opens.")] = False,
    passphrase_file: PassphraseFile = None,
    block: Annotated[str | None, Parameter(help="Size of a block; 64KiB suits virtual disks.")] = None,
) -> None:
    """Make a repository.

    Asks nothing without a terminal: plain, unless --encrypt is given; the passphrase then comes from
    --passphrase-file, BACKSTAY_PASSPHRASE or a prompt.

    Parameters
    ----------
    directory
        Where the repository will lie; made when it is not there.
    """
    if passphrase_file is not None and not encrypt:
        raise BadInput("a passphrase is only used with --encrypt", where="--passphrase-file", hint="add --encrypt")
    passphrase = new_passphrase(passphrase_file) if encrypt else None
    if directory.exists() and not directory.is_dir():
        raise BadInput("a directory is wanted here, and this is none", where=str(directory))
    if not directory.exists():
        try:
            directory.mkdir(mode=0o700, parents=True)  # disks hold secrets
        except OSError as error:
            raise BadInput(f"cannot be made: {error.strerror}", where=str(directory)) from None
    create(directory, now=utc_now(), passphrase=passphrase, block_bytes=_block_bytes(block))
    how = "an encrypted" if encrypt else "a plain"
    say(f"Made {how} repository at {directory}.")


def _block_bytes(text: str | None) -> int:
    if text is None:
        return BLOCK_BYTES
    try:
        size = parse_size(text)
    except ValueError as error:
        raise BadInput(str(error), where="--block") from None
    if size % 4096 or not 4096 <= size <= 1 << 20:
        raise BadInput(f"{text} is not a possible block size", where="--block", hint="a multiple of 4KiB up to 1MiB")
    return size
