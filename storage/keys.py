"""The keys that open a repository: adding, removing and rotating slots. The master key beneath stays what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from storage import config as configs
from storage.config import Config
from storage.errors import Damaged, Refused, Unsupported, WrongKey
from storage.keyderivation import is_key_file
from storage.keyslots import MAX_SLOTS, Slot, new_slot, unlock
from storage.moments import moment
from storage.repository import Repository


@dataclass(frozen=True, slots=True)
class KeySlot:
    """What can be told of a slot. `derivation` is its key derivation with its parameters."""

    id: str
    kind: str
    created_at: datetime | None
    derivation: str


def add_slot(repository: Repository, opener: str) -> str:
    """Let one more passphrase or key file open the repository; the id of its slot. Refused, WrongKey."""
    master = _master(repository)
    slot = new_slot(repository.config.repository, master, opener, repository.now())

    def edit(config: Config) -> Config:
        _require_new(config, opener)
        if len(config.slots) >= MAX_SLOTS:
            raise Refused(f"there are {MAX_SLOTS} keys already", hint="remove one that is not needed")
        return replace(config, slots=(*config.slots, slot))

    _change(repository, edit)
    return str(slot["id"])


def remove_slot(repository: Repository, slot_id: str) -> None:
    """Take a slot away. Refused for the last one, and for the one that opened the repository.

    So whoever removes a slot has shown that another one works.
    """
    _master(repository)

    def edit(config: Config) -> Config:
        _require(config, slot_id)
        if len(config.slots) == 1:
            raise Refused(
                "the last key of a repository cannot be removed", hint="add another first, or rotate this one"
            )
        if slot_id == repository.config.opened_by:
            raise Refused(
                f"key {slot_id} opened the repository just now",
                hint="open it with one that stays, then remove this one",
            )
        return replace(config, slots=tuple(slot for slot in config.slots if slot.get("id") != slot_id))

    _change(repository, edit)


def require_slot(repository: Repository, slot_id: str) -> None:
    """Refused when no slot has this id."""
    _master(repository)
    _require(repository.config, slot_id)


def rotate(repository: Repository, opener: str, slot_id: str | None = None) -> str:
    """Put a new wrapping in the place of a slot's, by default of the one that opened the repository; its id stays.

    The slot then opens with this passphrase or key file alone, under a new salt and today's parameters.
    """
    master = _master(repository)
    chosen = slot_id or repository.config.opened_by
    new = new_slot(repository.config.repository, master, opener, repository.now(), chosen)

    def edit(config: Config) -> Config:
        _require(config, chosen)
        _require_new(config, opener, apart_from=chosen)
        return replace(config, slots=tuple(new if slot.get("id") == chosen else slot for slot in config.slots))

    _change(repository, edit)
    return chosen


def described(slot: Slot) -> KeySlot:
    """A slot for people; whatever a stranger may have written in it is text here."""
    derivation = str(slot.get("kdf", ""))
    if derivation == "argon2id":
        derivation += f", {slot.get('memory_kib')} KiB, {slot.get('iterations')} times, {slot.get('lanes')} lanes"
    try:
        created_at = moment(str(slot.get("created_at", "")))
    except ValueError:
        created_at = None
    return KeySlot(str(slot.get("id", "")), str(slot.get("kind", "")), created_at, derivation)


def _master(repository: Repository) -> bytes:
    if repository.sealing.master is None:
        raise Refused("the repository is not encrypted and has no keys", where=str(repository.location))
    return repository.sealing.master


def _require(config: Config, slot_id: str) -> None:
    known = [str(slot.get("id")) for slot in config.slots]
    if slot_id not in known:
        raise Refused(f"there is no key {slot_id}", hint=f"its keys: {', '.join(known)}")


def _require_new(config: Config, opener: str, *, apart_from: str = "") -> None:
    others = [slot for slot in config.slots if slot.get("id") != apart_from]
    try:
        known, _ = unlock(config.repository, others, opener)
    except (WrongKey, Damaged, Unsupported):
        return
    what = "key file" if is_key_file(opener) else "passphrase"
    raise Refused(f"this {what} is key {known} already", hint="name another one; two keys alike are no more than one")


def _change(repository: Repository, edit: configs.Edit) -> None:
    changed = configs.change(repository.blobs, repository.sealing, edit)
    repository.config = replace(changed, opened_by=repository.config.opened_by)
