"""backstay repo init [PLACE]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from engine.cli.options import Config, Parameter, PassphraseFile
from engine.cli.output import say
from engine.cli.reach import configured_place, new_passphrase, place_of, utc_now
from engine.failures import BadInput
from engine.units import parse_size
from storage.repository import BLOCK_BYTES, create


def repo_init(
    location: str | None = None,
    /,
    *,
    encrypt: Annotated[bool, Parameter(help="Encrypt everything with a key that the passphrase opens.")] = False,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    block: Annotated[str | None, Parameter(help="Size of a block; 64KiB suits virtual disks.")] = None,
) -> None:
    """Make a repository.

    Asks nothing without a terminal: plain, unless --encrypt is given; the passphrase then comes from
    --passphrase-file, BACKSTAY_PASSPHRASE or a prompt. Without a place, the repository that the configuration names is
    made, encrypted if the configuration has a passphrase for it.

    Parameters
    ----------
    location
        Where the repository will lie: a directory, made when it is not there, or s3://bucket/prefix, gs:// or az://.
    """
    if passphrase_file is not None and not encrypt:
        raise BadInput("a passphrase is only used with --encrypt", where="--passphrase-file", hint="add --encrypt")
    if location is not None:
        place, source = place_of(location), None
    else:
        place, source = configured_place(config)
    encrypt = encrypt or source is not None
    passphrase = None
    if encrypt:
        passphrase = source.read() if source is not None else new_passphrase(passphrase_file)
    if isinstance(place, Path):
        _make_directory(place)
    create(place, now=utc_now(), passphrase=passphrase, block_bytes=_block_bytes(block))
    how = "an encrypted" if encrypt else "a plain"
    say(f"Made {how} repository at {place}.")


def _make_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise BadInput("a directory is wanted here, and this is none", where=str(directory))
    if not directory.exists():
        try:
            directory.mkdir(mode=0o700, parents=True)  # disks hold secrets
        except OSError as error:
            raise BadInput(f"cannot be made: {error.strerror}", where=str(directory)) from None


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
