"""The list of changed extents that a user hands over: JSON, checked entry by entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from connectors.disks import Extent, merge
from engine.failures import BadInput

SHAPE = 'a list such as [{"offset": 0, "length": 65536}]'


def read_extents(path: Path) -> list[Extent]:
    """The extents that a file lists, sorted and merged; BadInput names the file and the entry that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("this is not UTF-8 text", where=str(path), hint=f"write {SHAPE}") from None
    return parse_extents(text, str(path))


def parse_extents(text: str, where: str) -> list[Extent]:
    """The extents of a JSON text, sorted and merged."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"this is not JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}") from None
    except RecursionError:
        raise BadInput("this is nested too deeply", where=where, hint=f"write {SHAPE}") from None
    if not isinstance(entries, list):
        raise BadInput("this is not a list of extents", where=where, hint=f"write {SHAPE}")
    return merge([_extent(entry, index, where) for index, entry in enumerate(entries)])


def check_fit(extents: list[Extent], capacity_bytes: int, where: str) -> None:
    """BadInput when an extent ends behind the disk."""
    for extent in extents:
        if extent.end > capacity_bytes:
            raise BadInput(
                f"the extent at offset {extent.offset} ends at {extent.end}, behind the disk's {capacity_bytes} bytes",
                where=where,
                hint="is this the list of another disk?",
            )


def _extent(entry: Any, index: int, where: str) -> Extent:
    if not isinstance(entry, dict):
        raise BadInput(f"entry {index} is not an object", where=where, hint=f"write {SHAPE}")
    if unknown := sorted(set(entry) - {"offset", "length"}):
        raise BadInput(f"entry {index} has an unknown key: {unknown[0]}", where=where, hint="offset and length alone")
    return Extent(_number(entry, "offset", index, where), _number(entry, "length", index, where))


def _number(entry: dict[str, Any], key: str, index: int, where: str) -> int:
    if key not in entry:
        raise BadInput(f"entry {index} has no {key}", where=where, hint=f"write {SHAPE}")
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"entry {index}: {key} is not a whole number", where=where, hint="count in bytes")
    if not 0 <= value < 1 << 63:
        raise BadInput(f"entry {index}: {key} {value} is not possible", where=where, hint="count in bytes from 0")
    return value
