"""A repository's config: its id, its block size, the features it uses, and the key slots of an encrypted one.

It lies in the store twice, as `config` and `config.copy`. A change writes the copy first; where the two differ, the
one with the higher revision counts, and the next owner puts the other right. With a key, a keyed digest over
everything lets nobody else make a revision.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from blake3 import blake3

from storage import randomness
from storage.blobs import Blobs
from storage.errors import (
    Changed,
    Damaged,
    Missing,
    NoRepository,
    NoSpace,
    StorageError,
    StoreFailed,
    Unsupported,
    WrongKey,
)
from storage.failpoints import failpoint
from storage.format import (
    CONFIG_COPY_KEY,
    CONFIG_KEY,
    HASH_BLAKE3,
    KNOWN_FEATURES,
    MAX_BLOCK_BYTES,
    MAX_FAN_OUT,
    VERSION,
    ObjectKind,
    parse_envelope,
)
from storage.keyderivation import KEY_BYTES
from storage.keyslots import MAX_SLOTS, Slot, canonical, new_slot, unlock
from storage.moments import stamp
from storage.sealing import Sealing, open_plain

log = logging.getLogger(__name__)

FAN_OUT = 64
"""Slots of a block-map node; see decisions/0003-block-map-node-size."""

MAX_CONFIG_BYTES = 1 << 20
_COPIES = (CONFIG_COPY_KEY, CONFIG_KEY)
"""In the order of writing."""


@dataclass(frozen=True, slots=True)
class Config:
    """What is fixed when a repository is made, and the key slots, which may change.

    `rest` holds what a newer version wrote and this one does not know; it is kept when the config is written again.
    `opened_by` is the id of the slot that opened it here; `whole` says that both copies were found sound and equal.
    """

    repository: bytes
    created_at: str
    block_bytes: int
    fan_out: int
    slots: tuple[Slot, ...] = ()
    revision: int = 1
    features: tuple[str, ...] = ()
    optional_features: tuple[str, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)
    opened_by: str = ""
    whole: bool = True

    @property
    def encrypted(self) -> bool:
        """Whether a key is needed."""
        return bool(self.slots)


Edit = Callable[[Config], Config]


@dataclass(frozen=True, slots=True)
class _Copy:
    """One copy as it lies in the store: `config` if it is sound, else `trouble`; no `data` if there is none."""

    key: str
    data: bytes | None
    config: Config | None = None
    seal: str = ""
    trouble: StorageError | None = None


def new_config(now: datetime, block_bytes: int, passphrase: str | None) -> tuple[Config, bytes]:
    """A config and its stored form."""
    if block_bytes % 4096 or not 4096 <= block_bytes < MAX_BLOCK_BYTES:
        raise ValueError(f"block size {block_bytes}: a multiple of 4096 below {MAX_BLOCK_BYTES} is needed")
    repository = randomness.token_bytes(16)
    master = randomness.token_bytes(KEY_BYTES) if passphrase is not None else None
    slots = (new_slot(repository, master, passphrase, now),) if master is not None and passphrase is not None else ()
    config = Config(repository, stamp(now), block_bytes, FAN_OUT, slots)
    return config, encode(config, Sealing(repository, master))


def encode(config: Config, sealing: Sealing) -> bytes:
    """The stored form, the same for both copies."""
    document = _document(config)
    if config.encrypted:
        document["seal"] = _seal(config, sealing)
    return sealing.close_plain(ObjectKind.CONFIG, CONFIG_KEY, canonical(document))


def put_new(blobs: Blobs, data: bytes) -> None:
    """Store the config of a new repository; AlreadyExists."""
    blobs.put(CONFIG_COPY_KEY, data)
    failpoint("create.copy_written")
    blobs.put(CONFIG_KEY, data)


def load(blobs: Blobs, passphrase: Callable[[], str] | None) -> tuple[Config, Sealing]:
    """Config and keys of a repository, from the newest sound copy. NoRepository, WrongKey, Damaged or Unsupported."""
    copies = [_read(blobs, key) for key in reversed(_COPIES)]
    whole = copies[0].data == copies[1].data
    candidates = sorted((copy for copy in copies if copy.config is not None), key=_precedence, reverse=True)
    configs = [copy.config for copy in candidates if copy.config is not None]
    if not configs:
        _refuse(blobs, copies)
    if len({config.repository for config in configs}) > 1:
        raise Damaged("config and config.copy are of two repositories", where=CONFIG_KEY, hint="put the right one back")
    if not configs[0].encrypted:
        _require_features(configs[0], candidates[0].key)
        return replace(configs[0], whole=whole), Sealing(configs[0].repository, None)
    try:
        opener = _opener(passphrase)
        opened_by, sealing = _unlocked(configs if not whole else configs[:1], opener)
    except WrongKey as error:
        raise WrongKey(error.what, where=error.where or _place(blobs), hint=error.hint) from None
    newest = _newest(copies, sealing)
    if newest is None or newest.config is None:
        raise Damaged("the config is not what was written with this key", where=CONFIG_KEY)
    _require_features(newest.config, newest.key)  # not before its seal: anybody can write a name into a copy
    config = newest.config
    if opened_by not in {slot.get("id") for slot in config.slots}:
        log.warning("a change of keys that was cut short gets finished: this key opened the repository a last time")
    return replace(config, opened_by=opened_by, whole=whole), sealing


def list_slots(blobs: Blobs) -> tuple[Slot, ...]:
    """The key slots of the newest copy, for somebody who has no key: nothing vouches for them but a plain digest."""
    copies = [_read(blobs, key) for key in reversed(_COPIES)]
    configs = [copy.config for copy in sorted(copies, key=_precedence, reverse=True) if copy.config is not None]
    if not configs:
        _refuse(blobs, copies)
    return configs[0].slots


def mend(blobs: Blobs, config: Config, sealing: Sealing) -> None:
    """Put right a copy that is missing, damaged or older. Only for the repository's owner, after `load`."""
    if config.whole:
        return
    copies = [_read(blobs, key) for key in _COPIES]
    newest = _newest(copies, sealing)
    if newest is None or newest.data is None:
        raise Damaged("the config is not what was written with this key", where=CONFIG_KEY)
    for copy in copies:
        if copy.data == newest.data:
            continue
        why = "is missing" if copy.data is None else "is damaged" if copy.config is None else "is not the newest"
        try:
            blobs.replace_if(copy.key, newest.data, copy.data)
        except (StoreFailed, NoSpace, Changed) as error:
            log.warning("%s %s and could not be put right: %s", copy.key, why, error)
        else:
            log.warning("%s %s and was put right from %s", copy.key, why, newest.key)


def damage(blobs: Blobs, sealing: Sealing) -> list[StorageError]:
    """What is wrong with the two copies now: each must be there, sound, and the newest."""
    copies = [_read(blobs, key) for key in _COPIES]
    newest = _newest(copies, sealing)
    found = []
    for copy in copies:
        if copy.trouble is not None:
            found.append(copy.trouble)
        elif copy.data is None:
            found.append(Missing("a copy of the config is missing", where=copy.key))
        elif newest is None or copy.data != newest.data:
            found.append(Damaged("this copy of the config is not the newest", where=copy.key))
    return found


def change(blobs: Blobs, sealing: Sealing, edit: Edit) -> Config:
    """Write the config as edited, as the next revision; what `edit` is given is what lies there now.

    Changed when another process changes it at this moment, too. The change is made once the copy is written: what
    comes after is finished at the next open if it fails here.
    """
    copies = {key: _read(blobs, key) for key in _COPIES}
    newest = _newest(list(copies.values()), sealing)
    if newest is None or newest.config is None:
        raise Damaged("the config is not what was written with this key", where=CONFIG_KEY)
    changed = replace(edit(newest.config), revision=newest.config.revision + 1)
    data = encode(changed, sealing)
    blobs.replace_if(CONFIG_COPY_KEY, data, copies[CONFIG_COPY_KEY].data)
    failpoint("key.copy_written")
    blobs.replace_if(CONFIG_KEY, data, copies[CONFIG_KEY].data)
    failpoint("key.config_written")
    return replace(changed, whole=True)


def _read(blobs: Blobs, key: str) -> _Copy:
    try:
        data = blobs.get(key)
    except Missing:
        return _Copy(key, None)
    try:
        config, seal = _decode(data, key)
    except (Damaged, Unsupported) as error:
        return _Copy(key, data, trouble=error)
    return _Copy(key, data, config, seal)


def _precedence(copy: _Copy) -> tuple[bool, int]:
    """Higher counts. A plain config beside an encrypted one is not believed: nobody makes one of the other."""
    assert copy.config is not None or copy.data is None or copy.trouble is not None
    return (copy.config.encrypted, copy.config.revision) if copy.config is not None else (False, 0)


def _refuse(blobs: Blobs, copies: list[_Copy]) -> None:
    for copy in copies:
        if copy.trouble is not None:
            raise copy.trouble
    raise NoRepository("there is no repository here", where=_place(blobs), hint="make one with: backstay repo init")


def _place(blobs: Blobs) -> str:
    return str(getattr(blobs, "root", ""))


def _opener(passphrase: Callable[[], str] | None) -> str:
    if passphrase is None:
        raise WrongKey("the repository is encrypted and no passphrase was given", hint="set BACKSTAY_PASSPHRASE")
    return passphrase()


def _unlocked(configs: list[Config], opener: str) -> tuple[str, Sealing]:
    """(slot id, keys) by the first config that this opens; where a key change was cut short the older one may be it."""
    failure: StorageError | None = None
    for config in configs:
        if not config.encrypted:
            continue
        try:
            slot, master = unlock(config.repository, config.slots, opener)
        except (WrongKey, Damaged, Unsupported) as error:
            failure = failure or error
            continue
        return slot, Sealing(config.repository, master)
    assert failure is not None
    raise failure


def _newest(copies: list[_Copy], sealing: Sealing) -> _Copy | None:
    """The copy with the highest revision among those that were written with this key."""
    genuine = [
        copy
        for copy in copies
        if copy.config is not None
        and copy.config.repository == sealing.repository
        and copy.config.encrypted == sealing.encrypted
        and (not sealing.encrypted or copy.seal == _seal(copy.config, sealing))
    ]
    return max(genuine, key=_precedence, default=None)


def _seal(config: Config, sealing: Sealing) -> str:
    return blake3(canonical(_document(config)), key=sealing.config_key).hexdigest()


def _document(config: Config) -> dict[str, Any]:
    return {
        **config.rest,
        "format": VERSION,
        "hash": HASH_BLAKE3,
        "created_at": config.created_at,
        "block_bytes": config.block_bytes,
        "fan_out": config.fan_out,
        "revision": config.revision,
        "features": list(config.features),
        "optional_features": list(config.optional_features),
        "slots": [dict(slot) for slot in config.slots],
    }


def _decode(data: bytes, where: str) -> tuple[Config, str]:
    """(config, seal) of one copy, every type and bound checked; Damaged or Unsupported."""
    if len(data) > MAX_CONFIG_BYTES:
        raise Damaged(f"a config of {len(data)} bytes is none", where=where)
    repository = parse_envelope(data, where).repository
    try:
        document = json.loads(open_plain(ObjectKind.CONFIG, CONFIG_KEY, data, where))
    except (ValueError, RecursionError):
        raise Damaged("the config is not JSON", where=where) from None
    if not isinstance(document, dict):
        raise Damaged("the config is not an object of JSON", where=where)
    format, hash_kind = (_number(document, name, 0, 1 << 32, where) for name in ("format", "hash"))
    if format != VERSION or hash_kind != HASH_BLAKE3:
        raise Unsupported(
            f"the repository is of format {format} with hash kind {hash_kind}; this version reads format {VERSION}",
            where=where,
            hint="use a newer Backstay",
        )
    slots = document.pop("slots", None)
    if not isinstance(slots, list) or len(slots) > MAX_SLOTS or not all(isinstance(slot, dict) for slot in slots):
        raise Damaged(f"the config's slots are not a list of up to {MAX_SLOTS} objects", where=where)
    created_at, seal = document.pop("created_at", None), document.pop("seal", "")
    if not isinstance(created_at, str) or not isinstance(seal, str):
        raise Damaged("the config lacks its time or its seal", where=where)
    block_bytes = _number(document, "block_bytes", 4096, MAX_BLOCK_BYTES - 1, where)
    fan_out = _number(document, "fan_out", 2, MAX_FAN_OUT, where)
    if block_bytes % 4096:
        raise Damaged("the config's block_bytes is not a multiple of 4096", where=where)
    config = Config(
        repository,
        created_at,
        block_bytes,
        fan_out,
        tuple(slots),
        _number(document, "revision", 1, 1 << 62, where),
        _names(document, "features", where),
        _names(document, "optional_features", where),
        document,
    )
    return config, seal


def _number(document: dict[str, Any], name: str, least: int, most: int, where: str) -> int:
    value = document.pop(name, None)
    if type(value) is not int or not least <= value <= most:
        raise Damaged(f"the config's {name} is not a number from {least} to {most}", where=where)
    return value


def _names(document: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = document.pop(name, None)
    if not isinstance(value, list) or not all(isinstance(one, str) and one.isprintable() for one in value):
        raise Damaged(f"the config's {name} is not a list of names", where=where)
    return tuple(value)


def _require_features(config: Config, where: str) -> None:
    unknown = sorted(set(config.features) - KNOWN_FEATURES)
    if unknown:
        raise Unsupported(
            f"the repository uses what this version does not know: {', '.join(unknown)}",
            where=where,
            hint="use a newer Backstay",
        )
