"""Key slots: the ways to a repository's master key. Each wraps it under a passphrase or under a key file.

What opens a slot is text: a passphrase, or the one line of a key file, which is known by its first word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from blake3 import blake3

from storage import keyderivation, randomness
from storage.errors import Damaged, StorageError, Unsupported, WrongKey
from storage.format import CONFIG_KEY
from storage.keyderivation import (
    KDF_ITERATIONS,
    KDF_LANES,
    KDF_MEMORY_KIB,
    KEY_BYTES,
    KEY_FILE_HEAD,
    Derivation,
    is_key_file,
)
from storage.moments import stamp
from storage.sealing import cipher, derive

Slot = Mapping[str, Any]
"""One entry of the config's `slots`, as it stands there: a newer version's kinds have other fields."""

PASSPHRASE = "passphrase"
KEY_FILE = "key-file"

MAX_KDF_MEMORY_KIB = 1 << 20
"""A config may come from anybody: one that asks for more must not take a reader's memory."""

MAX_KDF_WORK = 16 << 20
"""Memory in KiB times iterations: keeps a hostile config from taking more than about half a minute."""

MAX_SLOTS = 16
_SALT_BYTES = 32
_NONCE = bytes(12)  # each slot has its own key, from its own salt
_SEALED_BYTES = KEY_BYTES + 16
_ID = re.compile(r"[0-9a-f]{8}")


def canonical(document: Mapping[str, Any]) -> bytes:
    """JSON that is always the same for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def new_key_file() -> str:
    """The line of a new key file: a word that says what it is, 32 random bytes, and a check against mistyping."""
    secret = randomness.token_hex(KEY_BYTES)
    return f"{KEY_FILE_HEAD}:{secret}:{_check(secret)}"


def new_slot(repository: bytes, master: bytes, opener: str, now: datetime, slot_id: str | None = None) -> Slot:
    """A slot that this passphrase or key file opens; WrongKey when a key file is not as it was made."""
    slot: dict[str, Any] = {
        "id": slot_id or randomness.token_hex(4),
        "created_at": stamp(now),
        "salt": randomness.token_bytes(_SALT_BYTES).hex(),
    }
    if is_key_file(opener):
        slot |= {"kind": KEY_FILE, "kdf": "blake3"}
    else:
        slot |= {
            "kind": PASSPHRASE, "kdf": "argon2id",
            "memory_kib": KDF_MEMORY_KIB, "iterations": KDF_ITERATIONS, "lanes": KDF_LANES,
        }  # fmt: skip
    sealed = cipher(_wrapping_key(repository, slot, opener)).encrypt(_NONCE, master, repository + canonical(slot))
    return slot | {"sealed": sealed.hex()}


def unlock(repository: bytes, slots: Sequence[Slot], opener: str) -> tuple[str, bytes]:
    """(slot id, master key) by the first slot that this opens. WrongKey, Unsupported, or Damaged.

    A slot that is of no known kind, or not as one can have been written, matters only when no other opens.
    """
    wanted = KEY_FILE if is_key_file(opener) else PASSPHRASE
    trouble: StorageError | None = None
    known = False
    for slot in slots:
        kind = slot.get("kind")
        known = known or kind in (KEY_FILE, PASSPHRASE)
        if kind != wanted:
            continue
        try:
            master = _opened(repository, slot, opener)
        except Damaged as error:
            trouble = trouble or error
            continue
        if master is not None:
            return slot["id"], master
    if trouble is not None:
        raise trouble
    if not known:
        raise Unsupported("no key slot is of a kind that this version knows", where=CONFIG_KEY, hint="use a newer one")
    what = "the key file" if wanted == KEY_FILE else "the passphrase"
    raise WrongKey(f"{what} does not open this repository", hint="check its file or BACKSTAY_PASSPHRASE")


def _opened(repository: bytes, slot: Slot, opener: str) -> bytes | None:
    from cryptography.exceptions import InvalidTag

    _require_sound(slot)
    bare = {key: value for key, value in slot.items() if key != "sealed"}
    try:
        key = _wrapping_key(repository, bare, opener)
        return cipher(key).decrypt(_NONCE, bytes.fromhex(slot["sealed"]), repository + canonical(bare))
    except InvalidTag:
        return None


def _require_sound(slot: Slot) -> None:
    """Damaged unless the slot is one that new_slot may have made, and costs no more than it may."""
    numbers = ("memory_kib", "iterations", "lanes") if slot["kind"] == PASSPHRASE else ()
    if not (isinstance(slot.get("id"), str) and _ID.fullmatch(slot["id"])):
        raise Damaged("a key slot has no id", where=CONFIG_KEY)
    where = f"{CONFIG_KEY}, key slot {slot['id']}"
    for name, length in (("salt", _SALT_BYTES), ("sealed", _SEALED_BYTES)):
        value = slot.get(name)
        if not (isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value)):
            raise Damaged(f"{name} is not {length} bytes in hexadecimal", where=where)
    if slot.get("kdf") != ("argon2id" if numbers else "blake3"):
        raise Damaged("the key derivation is not one for this kind of slot", where=where)
    for name in numbers:
        if type(slot.get(name)) is not int or slot[name] < 1:
            raise Damaged(f"{name} is not a number above 0", where=where)
    if numbers and (
        slot["memory_kib"] > MAX_KDF_MEMORY_KIB
        or slot["memory_kib"] * slot["iterations"] > MAX_KDF_WORK
        or slot["memory_kib"] < 8 * slot["lanes"]
    ):
        raise Damaged("the key derivation asks for more memory or time than any that was written", where=where)


def _wrapping_key(repository: bytes, slot: Slot, opener: str) -> bytes:
    salt = bytes.fromhex(slot["salt"])
    if slot["kind"] == KEY_FILE:
        return derive("key file", _key_file_secret(opener), salt, repository)
    return keyderivation.derive(Derivation(opener, salt, slot["memory_kib"], slot["iterations"], slot["lanes"]))


def _key_file_secret(opener: str) -> bytes:
    _, _, rest = opener.strip().partition(":")
    secret, _, check = rest.partition(":")
    if not re.fullmatch(f"[0-9a-f]{{{2 * KEY_BYTES}}}", secret) or check != _check(secret):
        raise WrongKey("the key file is not as it was made", hint="it is one line; take it from a sound copy")
    return bytes.fromhex(secret)


def _check(secret: str) -> str:
    return blake3(secret.encode()).hexdigest()[:8]
