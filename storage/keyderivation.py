"""The key that a passphrase stands for. Deriving it takes a tenth of a second, so who will need it may begin early.

Quick to load: it is begun before a command is known in full.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import NamedTuple

KEY_BYTES = 32
KEY_FILE_HEAD = "backstay-key-1"

KDF_MEMORY_KIB = 64 << 10
KDF_ITERATIONS = 3
KDF_LANES = 4

ARGON2 = "cryptography.hazmat.primitives.kdf.argon2"
"""The module that derives; who loads others beside it loads it first, as they would hinder it."""


class Derivation(NamedTuple):
    """What Argon2id makes a key of."""

    passphrase: str
    salt: bytes
    memory_kib: int
    iterations: int
    lanes: int

    def __repr__(self) -> str:
        return f"Derivation({self.memory_kib} KiB, {self.iterations} times, {self.lanes} lanes)"


def is_key_file(opener: str) -> bool:
    """Whether this text is a key file's and no passphrase."""
    return opener.lstrip().startswith(f"{KEY_FILE_HEAD}:")


_begun: dict[Derivation, _Begun] = {}
_deriving = threading.Lock()
"""OpenSSL has threads for one derivation: a second one beside it is refused, or never ends."""


def begin(derivation: Derivation) -> None:
    """Derive a key in a thread, for a `derive` that may come. RuntimeError when no thread can be started."""
    # Loaded here: two threads that load modules hinder each other, and this one is waited for in the end.
    import_module(ARGON2)
    _begun[derivation] = _Begun(derivation)


def derive(derivation: Derivation) -> bytes:
    """The key, by what was begun for it if anything was."""
    begun = _begun.pop(derivation, None)
    return begun.key() if begun is not None else _argon2id(derivation)


class _Begun:
    def __init__(self, derivation: Derivation) -> None:
        self._derivation = derivation
        self._key: bytes | None = None
        self._thread = threading.Thread(target=self._run, name="key derivation", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._key = _argon2id(self._derivation)
        except Exception:  # told to whoever needs the key
            return

    def key(self) -> bytes:
        self._thread.join()
        return self._key if self._key is not None else _argon2id(self._derivation)


def _argon2id(derivation: Derivation) -> bytes:
    from unicodedata import normalize

    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    kdf = Argon2id(
        salt=derivation.salt,
        length=KEY_BYTES,
        iterations=derivation.iterations,
        lanes=derivation.lanes,
        memory_cost=derivation.memory_kib,
    )
    with _deriving:
        return kdf.derive(normalize("NFC", derivation.passphrase).encode(errors="surrogateescape"))
