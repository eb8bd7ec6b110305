"""What a restore point keeps of a VM beside its disks: configuration, NVRAM and a summary, in one archive.

The archive is a ZIP file whose entries are stored as they are and carry no time, so that equal parts give equal
bytes. Restore points made before it hold the bare configuration, which is read as well. Pure.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.errors import Rejected

CONFIGURATION = "configuration.xml"
NVRAM = "nvram"
SUMMARY = "summary.json"

MAX_BYTES = 64 << 20
"""Nothing larger was ever written; a greater entry is not one of ours."""

_SHAPES = {"missing": dict, "attributes": dict, "tags": list, "cards": list, "disks": list}

_START = b"PK\x03\x04"
_NO_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class KeptVm:
    """`configuration` is the connector's own; `nvram` is empty where there is none; `summary` is for people."""

    configuration: bytes
    nvram: bytes = b""
    summary: Mapping[str, Any] = field(default_factory=dict)


def pack(kept: KeptVm) -> bytes:
    """The archive. NVRAM comes first: it changes least, and so its blocks stay the same from point to point."""
    summary = json.dumps(kept.summary, sort_keys=True, indent=1).encode()
    parts = [(NVRAM, kept.nvram)] if kept.nvram else []
    parts += [(CONFIGURATION, kept.configuration), (SUMMARY, summary)]
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts:
            archive.writestr(zipfile.ZipInfo(name, _NO_TIME), data)
    return held.getvalue()


def unpack(data: bytes) -> KeptVm:
    """What was packed, or the bare configuration of an older restore point; Rejected for a broken archive."""
    if not data.startswith(_START):
        return KeptVm(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            if CONFIGURATION not in sizes or max(sizes.values()) > MAX_BYTES or not stored:
                raise Rejected("what the restore point keeps of the VM is not an archive of ours")
            parts = {name: archive.read(name) for name in (CONFIGURATION, NVRAM, SUMMARY) if name in sizes}
        summary = json.loads(parts.get(SUMMARY) or b"{}")
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise Rejected(f"what the restore point keeps of the VM cannot be read: {error}") from error
    return KeptVm(parts[CONFIGURATION], parts.get(NVRAM, b""), _shaped(summary) if isinstance(summary, dict) else {})


def _shaped(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary without what has another shape than ours: a restore acts on it."""
    found: dict[str, Any] = {
        name: value for name, value in summary.items() if isinstance(value, _SHAPES.get(name, object))
    }
    for name in ("missing", "attributes"):
        if name in found:
            found[name] = {key: str(value) for key, value in found[name].items()}
    for name in ("cards", "disks"):
        if name in found:
            found[name] = [one for one in found[name] if isinstance(one, dict)]
    return found
