"""A repository's config: its id, its block size, and the key slots of an encrypted one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from unicodedata import normalize

from blake3 import blake3

from storage.blobs import Blobs
from storage.errors import Damaged, NoRepository, Unsupported, WrongKey
from storage.format import CONFIG_KEY, HASH_BLAKE3, MAX_BLOCK_BYTES, MAX_FAN_OUT, VERSION, ObjectKind, parse_envelope
from storage.manifest import stamp
from storage.sealing import KEY_BYTES, Sealing, open_plain

FAN_OUT = 64
"""Slots of a block-map node; see decisions/0003-block-map-node-size."""

KDF_MEMORY_KIB = 64 << 10
KDF_ITERATIONS = 3
KDF_LANES = 4
MAX_KDF_MEMORY_KIB = 4 << 20
_SLOT_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class Config:
    """What is fixed when a repository is made."""

    repository: bytes
    created_at: str
    block_bytes: int
    fan_out: int
    slots: tuple[dict[str, Any], ...] = ()

    @property
    def encrypted(self) -> bool:
        """Whether a key is needed."""
        return bool(self.slots)


def new_config(now: datetime, block_bytes: int, passphrase: str | None) -> tuple[Config, bytes]:
    """A config and its stored form."""
    if block_bytes % 4096 or not 4096 <= block_bytes < MAX_BLOCK_BYTES:
        raise ValueError(f"block size {block_bytes}: a multiple of 4096 below {MAX_BLOCK_BYTES} is needed")
    repository = secrets.token_bytes(16)
    master = secrets.token_bytes(KEY_BYTES) if passphrase is not None else None
    slots = (_new_slot(repository, master, passphrase),) if master is not None and passphrase is not None else ()
    config = Config(repository, stamp(now), block_bytes, FAN_OUT, slots)
    return config, encode(config, Sealing(repository, master))


def encode(config: Config, sealing: Sealing) -> bytes:
    """The stored form. With a key, a keyed digest lets nobody else change it."""
    document: dict[str, Any] = {
        "format": VERSION,
        "hash": HASH_BLAKE3,
        "created_at": config.created_at,
        "block_bytes": config.block_bytes,
        "fan_out": config.fan_out,
        "slots": list(config.slots),
    }
    if config.encrypted:
        document["seal"] = blake3(_canonical(document), key=sealing.config_key).hexdigest()
    return sealing.close_plain(ObjectKind.CONFIG, CONFIG_KEY, _canonical(document))


def load(blobs: Blobs, passphrase: Callable[[], str] | None) -> tuple[Config, Sealing]:
    """Config and keys of a repository. NoRepository, WrongKey, Damaged or Unsupported."""
    try:
        blobs.size(CONFIG_KEY)
    except Damaged:
        raise NoRepository(
            "there is no repository here",
            where=str(getattr(blobs, "root", "")),
            hint="make one with: backstay repo init",
        ) from None
    data = blobs.get(CONFIG_KEY)
    repository = parse_envelope(data, CONFIG_KEY).repository
    document = json.loads(open_plain(ObjectKind.CONFIG, CONFIG_KEY, data))
    if document["format"] > VERSION or document["hash"] != HASH_BLAKE3 or document["fan_out"] > MAX_FAN_OUT:
        raise Unsupported("the repository was made by a newer version", where=CONFIG_KEY, hint="use a newer Backstay")
    config = Config(
        repository, document["created_at"], document["block_bytes"], document["fan_out"], tuple(document["slots"])
    )
    if not config.encrypted:
        return config, Sealing(repository, None)
    if passphrase is None:
        raise WrongKey("the repository is encrypted and no passphrase was given", hint="set BACKSTAY_PASSPHRASE")
    sealing = Sealing(repository, _unlock(config, passphrase()))
    seal = document.pop("seal", "")
    if blake3(_canonical(document), key=sealing.config_key).hexdigest() != seal:
        raise Damaged("the config is not what was written with this key", where=CONFIG_KEY)
    return config, sealing


def with_passphrase(blobs: Blobs, config: Config, known: str, added: str) -> Config:
    """Add a key slot, so that a second passphrase opens the repository; the config is replaced."""
    master = _unlock(config, known)
    slots = (*config.slots, _new_slot(config.repository, master, added))
    changed = Config(config.repository, config.created_at, config.block_bytes, config.fan_out, slots)
    blobs.replace(CONFIG_KEY, encode(changed, Sealing(config.repository, master)))
    return changed


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _new_slot(repository: bytes, master: bytes, passphrase: str) -> dict[str, Any]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    slot: dict[str, Any] = {
        "kind": "passphrase",
        "kdf": "argon2id",
        "salt": secrets.token_bytes(32).hex(),
        "memory_kib": KDF_MEMORY_KIB,
        "iterations": KDF_ITERATIONS,
        "lanes": KDF_LANES,
    }
    sealed = AESGCM(_slot_key(slot, passphrase)).encrypt(_SLOT_NONCE, master, repository + _canonical(slot))
    return slot | {"sealed": sealed.hex()}


def _slot_key(slot: dict[str, Any], passphrase: str) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    if slot["memory_kib"] > MAX_KDF_MEMORY_KIB:
        raise Damaged("a key slot asks for too much memory", where=CONFIG_KEY)
    kdf = Argon2id(
        salt=bytes.fromhex(slot["salt"]),
        length=KEY_BYTES,
        iterations=slot["iterations"],
        lanes=slot["lanes"],
        memory_cost=slot["memory_kib"],
    )
    return kdf.derive(normalize("NFC", passphrase).encode(errors="surrogateescape"))


def _unlock(config: Config, passphrase: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    for slot in config.slots:
        bare = {key: value for key, value in slot.items() if key != "sealed"}
        try:
            return AESGCM(_slot_key(bare, passphrase)).decrypt(
                _SLOT_NONCE, bytes.fromhex(slot["sealed"]), config.repository + _canonical(bare)
            )
        except InvalidTag:
            continue
    raise WrongKey("the passphrase does not open this repository", hint="check BACKSTAY_PASSPHRASE")
