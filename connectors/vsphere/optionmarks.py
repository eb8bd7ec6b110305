"""What a mark of ours says that lies as JSON among a VM's options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

WHOSE = (
    "name",
    "config.annotation",
    "config.extraConfig",
    "config.instanceUuid",
    "config.files.vmPathName",
    "config.hardware.device",
    "runtime.powerState",
    "snapshot",
)
"""The properties by which a VM that we made is told from one that somebody has made his."""


def read_option(options: Iterable[Any], key: str) -> Mapping[str, Any] | None:
    """What the option of this key says; None where there is none, or where it is no mark of ours."""
    text = next((str(o.value) for o in options if o.key == key), "")
    try:
        told = json.loads(text) if text else None
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
