"""Our values as JSON has them, one shape for the API, the command line and scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

from policies.facts import RestorePoint, instant_text


def plain(value: Any) -> Any:
    """The value made of dicts, lists, strings, numbers and None. Times are ISO 8601 in UTC, durations seconds."""
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return show_time(value)
        case timedelta():
            return value.total_seconds()
        case PurePath():
            return str(value)
        case bytes():
            return value.hex()
        case RestorePoint():
            return point_row(value)
        case Mapping():
            return {str(plain(key)): plain(part) for key, part in value.items()}
        case frozenset() | set():
            return sorted(plain(part) for part in value)
        case list() | tuple():
            return [plain(part) for part in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return str(value)


def point_row(point: RestorePoint) -> dict[str, Any]:
    """A restore point as scripts see it: `id`, `vm` (the name), `vm_id` and `taken_at` never change their meaning."""
    return {
        "id": point.id,
        "vm": point.vm_name,
        "vm_id": point.vm,
        "taken_at": show_time(point.taken_at),
        "complete": point.complete,
        "consistency": point.consistency.value,
        "damaged": point.damaged,
        "holds": list(point.holds),
        "locked_until": point.locked_until and show_time(point.locked_until),
        "expiring_since": point.expiring_since and show_time(point.expiring_since),
        "policy": point.policy,
        "rule": point.rule,
        "reason": point.reason,
        "disk_bytes": point.disk_bytes,
        "read_bytes": point.read_bytes,
        "stored_bytes": point.stored_bytes,
        "repository": point.repository,
    }


def show_time(at: datetime) -> str:
    """As all that is told to programs has it; a time without a zone is UTC."""
    return instant_text(at if at.tzinfo else at.replace(tzinfo=UTC))
