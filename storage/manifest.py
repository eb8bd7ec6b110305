"""What a restore point is made of, and the manifest that records it: canonical JSON, written once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from policies.facts import Consistency, PointId, VmId
from storage.blockmap import Root
from storage.errors import Damaged
from storage.format import ID_BYTES, MAX_BLOCK_BYTES, MAX_FAN_OUT
from storage.moments import legible, moment, stamp

PREFIX = "manifests/"

MOST = (1 << 62) - 1
"""No size or count is greater: the catalog keeps them as 64-bit numbers, and sums of them."""

MOST_LEVELS = 62


@dataclass(frozen=True, slots=True)
class DiskHead:
    """A disk as it was when the restore point was taken. `name` is unique within the point."""

    name: str
    capacity_bytes: int
    uuid: str = ""
    change_id: str = ""
    key: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PointHead:
    """What is known of a restore point before its data is read. Nobody can expire it before `locked_until`."""

    vm: VmId
    vm_name: str
    taken_at: datetime
    aliases: Mapping[str, str] = field(default_factory=dict)
    consistency: Consistency = Consistency.CRASH
    attributes: Mapping[str, str] = field(default_factory=dict)
    locked_until: datetime | None = None

    @property
    def complete(self) -> bool:
        """Whether all of the VM's disks that are to be protected are in it."""
        return self.attributes.get("complete", "yes") == "yes"


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Bytes of one disk's run: taken from the source, new, stored for them in packs, known already, mapped now."""

    read_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    dedup_bytes: int = 0
    mapped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """One disk of a restore point."""

    head: DiskHead
    root: Root
    read_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    dedup_bytes: int = 0
    mapped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a restore needs to know; no other manifest is read for it."""

    id: PointId
    head: PointHead
    committed_at: datetime
    writer: str
    epoch: int
    fan_out: int
    block_bytes: int
    disks: tuple[DiskRecord, ...] = ()
    unprotected: tuple[tuple[str, str], ...] = ()
    configuration: tuple[bytes, ...] = ()


def manifest_key(point: PointId) -> str:
    """Where a restore point's manifest lies."""
    return PREFIX + point


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII."""
    head = manifest.head
    document = {
        "id": manifest.id,
        "vm": head.vm,
        "vm_name": head.vm_name,
        "taken_at": stamp(head.taken_at),
        "committed_at": stamp(manifest.committed_at),
        "aliases": dict(head.aliases),
        "consistency": head.consistency.value,
        "attributes": dict(head.attributes),
        "locked_until": stamp(head.locked_until) if head.locked_until else None,
        "writer": manifest.writer,
        "epoch": manifest.epoch,
        "fan_out": manifest.fan_out,
        "block_bytes": manifest.block_bytes,
        "disks": [_encode_disk(disk) for disk in manifest.disks],
        "unprotected": [list(pair) for pair in manifest.unprotected],
        "configuration": [chunk.hex() for chunk in manifest.configuration],
    }
    return json.dumps(_legible(document), sort_keys=True, separators=(",", ":")).encode()


def _legible(value: Any) -> Any:
    """All texts as `decode` takes them: the name of a file is bytes, and a commit must not fail for it, nor be lost."""
    match value:
        case str():
            return legible(value)
        case dict():
            return {legible(name): _legible(each) for name, each in value.items()}
        case list():
            return [_legible(each) for each in value]
        case _:
            return value


def _encode_disk(disk: DiskRecord) -> dict[str, Any]:
    return {
        "name": disk.head.name,
        "capacity_bytes": disk.head.capacity_bytes,
        "uuid": disk.head.uuid,
        "change_id": disk.head.change_id,
        "key": disk.head.key,
        "attributes": dict(disk.head.attributes),
        "root": disk.root.node.hex(),
        "levels": disk.root.levels,
        "mapped_blocks": disk.root.mapped_blocks,
        "read_bytes": disk.read_bytes,
        "new_bytes": disk.new_bytes,
        "stored_bytes": disk.stored_bytes,
        "dedup_bytes": disk.dedup_bytes,
        "mapped_bytes": disk.mapped_bytes,
    }


def decode(payload: bytes, where: str) -> Manifest:
    """The manifest, or Damaged when it is not one (its digest was right, so a broken or hostile writer made it)."""
    try:
        document = json.loads(payload)
        locked = document["locked_until"]
        return Manifest(
            id=PointId(_text(document["id"])),
            head=PointHead(
                vm=VmId(_text(document["vm"])),
                vm_name=_text(document["vm_name"]),
                taken_at=moment(document["taken_at"]),
                aliases=_texts(document["aliases"]),
                consistency=Consistency(document["consistency"]),
                attributes=_texts(document["attributes"]),
                locked_until=moment(locked) if locked else None,
            ),
            committed_at=moment(document["committed_at"]),
            writer=_text(document["writer"]),
            epoch=_number(document["epoch"], most=0xFFFF_FFFF),
            fan_out=_number(document["fan_out"], 2, MAX_FAN_OUT),
            block_bytes=_number(document["block_bytes"], 1, MAX_BLOCK_BYTES),
            disks=tuple(_decode_disk(disk) for disk in document["disks"]),
            unprotected=tuple((_text(label), _text(reason)) for label, reason in document["unprotected"]),
            configuration=tuple(_id(chunk) for chunk in document["configuration"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"the manifest does not say what a manifest says: {error}", where=where) from error


def _decode_disk(document: dict[str, Any]) -> DiskRecord:
    root = document["root"]
    return DiskRecord(
        head=DiskHead(
            name=_text(document["name"]),
            capacity_bytes=_number(document["capacity_bytes"]),
            uuid=_text(document["uuid"]),
            change_id=_text(document["change_id"]),
            key=_number(document["key"], -MOST),
            attributes=_texts(document["attributes"]),
        ),
        root=Root(
            _id(root) if root else b"",
            _number(document["levels"], 1, MOST_LEVELS),
            _number(document["mapped_blocks"]),
        ),
        read_bytes=_number(document["read_bytes"]),
        new_bytes=_number(document["new_bytes"]),
        stored_bytes=_number(document["stored_bytes"]),
        dedup_bytes=_number(document["dedup_bytes"]),
        mapped_bytes=_number(document["mapped_bytes"]),
    )


def _number(value: object, least: int = 0, most: int = MOST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"not a number from {least} to {most}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()  # no lone surrogate, which no catalog could keep
    return value


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("not a table of texts")
    return {_text(name): _text(text) for name, text in value.items()}


def _id(value: object) -> bytes:
    found = bytes.fromhex(_text(value))
    if len(found) != ID_BYTES:
        raise ValueError("not the id of a chunk or node")
    return found
