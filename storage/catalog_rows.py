"""The catalog's tables, and rows for them from what the repository holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from policies.facts import Consistency, PointId, RestorePoint, VmId
from storage.format import ENTRY
from storage.manifest import DiskRecord, Manifest
from storage.marks import Mark, MarkKind, MarkState
from storage.moments import stamp
from storage.pack import Footer

TABLES: dict[str, dict[str, str]] = {
    "packs": {
        "number": "UINTEGER", "id": "VARCHAR", "kind": "VARCHAR", "bytes": "UBIGINT", "chunks": "UINTEGER",
        "created": "TIMESTAMP", "writer": "VARCHAR", "epoch": "UINTEGER",
    },
    "chunks": {
        "h0": "UBIGINT", "h1": "UBIGINT", "h2": "UBIGINT", "h3": "UBIGINT", "pack": "UINTEGER", "slot": "USMALLINT",
        "stored_bytes": "UINTEGER", "raw_bytes": "UINTEGER", "codec": "UTINYINT",
    },
    "points": {
        "id": "VARCHAR", "vm": "VARCHAR", "vm_name": "VARCHAR", "taken_at": "TIMESTAMP", "committed_at": "TIMESTAMP",
        "consistency": "VARCHAR", "complete": "BOOLEAN", "attributes": "VARCHAR", "aliases": "VARCHAR",
        "unprotected": "VARCHAR", "disk_bytes": "UBIGINT", "read_bytes": "UBIGINT", "new_bytes": "UBIGINT",
        "stored_bytes": "UBIGINT", "dedup_bytes": "UBIGINT", "writer": "VARCHAR", "epoch": "UINTEGER",
        "locked_until": "TIMESTAMP",
    },
    "disks": {
        "point": "VARCHAR", "position": "UINTEGER", "name": "VARCHAR", "capacity_bytes": "UBIGINT", "uuid": "VARCHAR",
        "change_id": "VARCHAR", "key": "BIGINT", "attributes": "VARCHAR", "root": "VARCHAR", "levels": "UTINYINT",
        "mapped_bytes": "UBIGINT", "read_bytes": "UBIGINT", "new_bytes": "UBIGINT", "stored_bytes": "UBIGINT",
        "dedup_bytes": "UBIGINT",
    },
    "marks": {
        "point": "VARCHAR", "sequence": "UINTEGER", "kind": "VARCHAR", "marked_at": "TIMESTAMP", "text": "VARCHAR",
        "lock_until": "TIMESTAMP", "name": "VARCHAR",
    },
}  # fmt: skip

VIEWS = {
    "restore_points": "SELECT * FROM points ORDER BY taken_at",
    "vms": "SELECT vm AS id, max_by(vm_name, taken_at) AS name, count(*) AS restore_points,"
    " min(taken_at) AS oldest, max(taken_at) AS newest, sum(stored_bytes)::UBIGINT AS stored_bytes"
    " FROM points GROUP BY vm ORDER BY name",
    "disks": "SELECT * FROM disks ORDER BY point, position",
    "packs": "SELECT * FROM packs ORDER BY number",
    "chunks": "SELECT printf('%016x%016x%016x%016x', h0, h1, h2, h3) AS id, pack, slot, stored_bytes,"
    " raw_bytes, codec FROM chunks",
    "marks": "SELECT * FROM marks ORDER BY point, sequence",
}
"""What read-only SQL elsewhere may see."""


def _from_hex(first: int, end: int, type: str, step: int = 1) -> str:
    """SQL for a number from the hex digits of an entry's bytes; with a step of -1 the first byte is the lowest."""
    if step == 1:
        return f"('0x' || e[{2 * first + 1}:{2 * end}])::{type}"
    digits = " || ".join(f"e[{2 * byte + 1}:{2 * byte + 2}]" for byte in reversed(range(first, end)))
    return f"('0x' || {digits})::{type}"


_HASHES = ", ".join(_from_hex(at, at + 8, "UBIGINT") for at in range(0, 32, 8))
LOAD_CHUNKS = f"""INSERT INTO chunks SELECT {_HASHES}, pack::UINTEGER, i - 1, {_from_hex(36, 40, "UINTEGER", -1)},
    {_from_hex(40, 43, "UINTEGER", -1)}, {_from_hex(43, 44, "UTINYINT")}
    FROM (SELECT l[1] AS pack, unnest(l[2:]) AS e, generate_subscripts(l[2:], 1) AS i
        FROM (SELECT string_split(unnest(string_split(?, '\n')), ' ') AS l))"""
"""Adds the chunks of packs, of each the `hex_entries` as a line. DuckDB does it without Python's lock."""

JOIN = """UPDATE points SET vm = joined.vm FROM (
    SELECT point, arg_max(text, (sequence, name)) AS vm FROM marks WHERE kind = 'joined' GROUP BY point
) joined WHERE points.id = joined.point AND points.vm <> joined.vm"""
"""Gives restore points the VM whose history they were joined to."""

LOST = "lost: its manifest is gone and nobody expired it"

Row = tuple[object, ...]


def aware(moment: datetime) -> datetime:
    """A moment of the catalog, which keeps UTC without saying so."""
    return moment.replace(tzinfo=UTC)


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def pack_row(footer: Footer) -> Row:
    """The row of a pack."""
    header = footer.header
    created = datetime.fromtimestamp(header.created, UTC)
    name = footer.name
    return (
        name.number, name.id.hex(), name.kind.name.lower(), footer.size, len(footer), _naive(created),
        header.writer.hex(), header.epoch,
    )  # fmt: skip


def point_row(manifest: Manifest) -> Row:
    """The row of a restore point."""
    head, disks = manifest.head, manifest.disks
    return (
        manifest.id, head.vm, head.vm_name, _naive(head.taken_at), _naive(manifest.committed_at),
        head.consistency.value, head.complete, _json(dict(head.attributes)),
        _json(dict(head.aliases)), _json([list(pair) for pair in manifest.unprotected]),
        sum(disk.head.capacity_bytes for disk in disks), sum(disk.read_bytes for disk in disks),
        sum(disk.new_bytes for disk in disks), sum(disk.stored_bytes for disk in disks),
        sum(disk.dedup_bytes for disk in disks), manifest.writer, manifest.epoch,
        _naive(head.locked_until) if head.locked_until else None,
    )  # fmt: skip


def disk_rows(manifest: Manifest) -> Iterator[Row]:
    """A row for each disk of a restore point."""
    for position, disk in enumerate(manifest.disks):
        yield _disk_row(manifest.id, position, disk)


def _disk_row(point: PointId, position: int, disk: DiskRecord) -> Row:
    head = disk.head
    return (
        point, position, head.name, head.capacity_bytes, head.uuid, head.change_id, head.key,
        _json(dict(head.attributes)), disk.root.node.hex(), disk.root.levels, disk.mapped_bytes, disk.read_bytes,
        disk.new_bytes, disk.stored_bytes, disk.dedup_bytes,
    )  # fmt: skip


def mark_row(mark: Mark) -> Row:
    """The row of a mark."""
    until = _naive(mark.until) if mark.until else None
    return mark.point, mark.sequence, mark.kind.value, _naive(mark.at), mark.text, until, mark.key


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def restore_point(row: tuple[Any, ...], state: MarkState) -> RestorePoint:
    """A restore point from the columns that `Catalog.points` asks for, and its marks."""
    point, vm, vm_name, taken_at, complete, consistency, attributes, read, stored, disk_bytes, locked = row
    locks = [until for until in (aware(locked) if locked else None, state.locked_until) if until is not None]
    said = json.loads(attributes)
    return RestorePoint(
        id=PointId(point),
        vm=VmId(vm),
        vm_name=vm_name,
        taken_at=aware(taken_at),
        complete=complete,
        consistency=Consistency(consistency),
        damaged=bool(state.damaged),
        holds=state.holds,
        locked_until=max(locks, default=None),
        expiring_since=state.expiring_since,
        policy=said.get("policy", ""),
        rule=said.get("rule", ""),
        reason=said.get("reason", ""),
        read_bytes=read,
        stored_bytes=stored,
        disk_bytes=disk_bytes,
    )


def lost_point(mark: Mark, vm: str = "") -> RestorePoint:
    """A restore point of which only a mark is left, as far as the mark tells; `vm` if its history was joined."""
    said = json.loads(mark.text)
    return replace(
        unknown_point(mark.point, datetime.fromisoformat(said["taken_at"])),
        vm=VmId(vm or said["vm"]),
        vm_name=said["vm_name"],
        disk_bytes=said["disk_bytes"],
    )


def unknown_point(point: PointId, taken_at: datetime) -> RestorePoint:
    """A lost restore point of which nothing else is known."""
    return RestorePoint(point, VmId(""), "unknown", taken_at, complete=False, damaged=True, reason=LOST)


def lost_text(point: RestorePoint) -> str:
    """What the mark of a lost restore point says of it."""
    said = {"vm": point.vm, "vm_name": point.vm_name, "taken_at": stamp(point.taken_at), "disk_bytes": point.disk_bytes}
    return json.dumps(said, sort_keys=True)


def mark_of(row: tuple[Any, ...]) -> Mark:
    """The mark that a row stands for."""
    point, sequence, kind, at, text, until, name = row
    return Mark(name, point, sequence, MarkKind(kind), aware(at), text, aware(until) if until else None)


def hex_entries(footer: Footer) -> str:
    """A pack's number and its footer's entries as LOAD_CHUNKS takes them."""
    return f"{footer.name.number} {footer.entries.hex(' ', ENTRY.size)}"


def chunk_arrays(footers: Sequence[Footer]) -> dict[str, Any]:
    """The rows of the chunks of several packs, as numpy arrays by column."""
    import numpy as np

    entry = np.dtype([("h", ">u8", (4,)), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("check", "<u4")])
    all_entries = np.concatenate([np.frombuffer(footer.entries, entry) for footer in footers])
    hashes = all_entries["h"].astype(np.uint64)
    lengths = [len(footer) for footer in footers]
    return {
        **{f"h{i}": np.ascontiguousarray(hashes[:, i]) for i in range(4)},
        "pack": np.repeat(np.array([footer.name.number for footer in footers], np.uint32), lengths),
        "slot": np.concatenate([np.arange(n, dtype=np.uint16) for n in lengths]),
        "stored_bytes": np.ascontiguousarray(all_entries["stored"]),
        "raw_bytes": np.ascontiguousarray(all_entries["raw"] & 0xFFFFFF),
        "codec": (all_entries["raw"] >> 24).astype(np.uint8),
    }
