"""Packs on their way out, as the store knows them: condemned first, then being freed.

`condemned/PACK` says that nothing reached a pack: whoever learns of packs later adds nothing to it, and its age by the
store's clock counts. It may be taken back. `freeing/PACK` says that a pack is about to be deleted; it is never taken
back, and stays for FREED_KEPT, so that every writer that may have counted on the pack finds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from storage.blobs import Blobs
from storage.errors import AlreadyExists, Damaged, Missing
from storage.format import ObjectKind, PackName, parse_pack_key
from storage.moments import stamp
from storage.sealing import Sealing

CONDEMNED = "condemned/"
FREEING = "freeing/"

FREED_KEPT = timedelta(hours=48)
"""How long it can be told that a pack was freed: more than twice as long as a writer may go without asking."""


@dataclass(frozen=True, slots=True)
class Condemnation:
    """Why a pack goes, who said so, and when by the writer's clock (which no age is taken from)."""

    name: PackName
    reason: str
    at: datetime
    writer: str


def note_key(prefix: str, name: PackName) -> str:
    """Where a note about a pack lies."""
    return prefix + name.key.rpartition("/")[2]


def pack_of(key: str) -> PackName | None:
    """The pack that a note is about; None if this is no note."""
    stem = key.rpartition("/")[2]
    return parse_pack_key(f"packs/{stem[6:8]}/{stem}")


def noted(blobs: Blobs, prefix: str) -> set[PackName]:
    """The packs that have a note, listed twice: a listing that leaves one out must not make a pack look safe."""
    keys = {*blobs.list(prefix), *blobs.list(prefix)}
    return {name for name in map(pack_of, keys) if name}


def write_note(blobs: Blobs, sealing: Sealing, prefix: str, note: Condemnation) -> None:
    """Write a note; one that is there already is as good."""
    key = note_key(prefix, note.name)
    document = {"at": stamp(note.at), "reason": note.reason, "writer": note.writer}
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    try:
        blobs.put(key, sealing.close(ObjectKind.CONDEMNATION, key, payload))
    except AlreadyExists:
        return


def read_note(blobs: Blobs, sealing: Sealing, prefix: str, name: PackName) -> Condemnation:
    """What a note says; Missing, Damaged."""
    key = note_key(prefix, name)
    payload = sealing.open(ObjectKind.CONDEMNATION, key, blobs.get(key))
    try:
        said = json.loads(payload)
        return Condemnation(name, said["reason"], datetime.fromisoformat(said["at"]), said["writer"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"the condemnation does not say what it should: {error}", where=key) from error


def stored_at(blobs: Blobs, key: str) -> datetime | None:
    """When a blob was published, by the store's clock; None when it is gone."""
    try:
        return datetime.fromtimestamp(blobs.age_stamp(key), UTC)
    except Missing:
        return None


def tidy(blobs: Blobs, there: Iterable[PackName], clock: datetime) -> None:
    """Remove notes about packs that are no more: a condemnation at once, that a pack was freed when nobody may ask."""
    packs = set(there)
    for name in noted(blobs, CONDEMNED) - packs:
        blobs.delete(note_key(CONDEMNED, name))
    for name in noted(blobs, FREEING) - packs:
        key = note_key(FREEING, name)
        since = stored_at(blobs, key)
        if since is not None and clock - since >= FREED_KEPT:
            blobs.delete(key)
