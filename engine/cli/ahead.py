"""What is begun before the modules of a command are loaded: the key of an encrypted repository.

It is a guess from the arguments. Where nothing can be said for sure nothing is begun, and the command does it all.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.keyderivation import KDF_ITERATIONS, KDF_LANES, KDF_MEMORY_KIB, Derivation, begin, is_key_file

CONFIG_HEAD_BYTES = 64
CONFIG_BYTES = 64 << 10
SECRET_BYTES = 4 << 10
USUAL = {"kdf": "argon2id", "memory_kib": KDF_MEMORY_KIB, "iterations": KDF_ITERATIONS, "lanes": KDF_LANES}
"""The derivation that a repository is made with; no other is begun for a config that nobody has checked yet."""


def begin_key(given: Sequence[str]) -> None:
    """Begin to derive the key that these arguments will ask for."""
    options = dict(itertools.pairwise(given))
    if "--repo" not in options:
        return
    repository = Path(options["--repo"])
    try:
        slot = _first_slot(repository)
        if slot is not None and not had_by_engine(repository / "owner.json"):
            passphrase = _passphrase(options.get("--passphrase-file"))
            if passphrase and not is_key_file(passphrase):
                salt = bytes.fromhex(slot["salt"])
                begin(Derivation(passphrase, salt, slot["memory_kib"], slot["iterations"], slot["lanes"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError):
        return  # told by the command


def had_by_engine(owner: Path) -> bool:
    """Whether an engine had the repository last, and may have it now: it has the key, too. OSError, ValueError."""
    return '"engine unix:' in owner.read_text(encoding="utf-8")


def _first_slot(repository: Path) -> dict[str, Any] | None:
    with (repository / "config").open("rb") as file:
        text = file.read(CONFIG_BYTES)[CONFIG_HEAD_BYTES:].decode("latin-1")
    document, _ = json.JSONDecoder().raw_decode(text)
    slots: list[dict[str, Any]] = [slot for slot in document["slots"] if slot["kind"] == "passphrase"]
    return slots[0] if slots and slots[0].items() >= USUAL.items() else None


def _passphrase(path: str | None) -> str | None:
    if path is None:
        return os.environ.get("BACKSTAY_PASSPHRASE")
    # A pipe may be opened once, by the command itself; a secret that everybody may read is refused.
    secret = Path(path)
    if not secret.is_file():
        return None
    with secret.open(encoding="utf-8") as file:
        return None if os.fstat(file.fileno()).st_mode & stat.S_IRWXO else file.read(SECRET_BYTES).rstrip("\r\n")
