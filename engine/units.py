"""Sizes as people write and read them; durations are `policies.units`."""

from __future__ import annotations

import re

_DECIMAL = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES = _DECIMAL | {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def parse_size(text: str) -> int:
    """Bytes of "64KiB", "2.5 GB" and the like; ValueError says what is understood."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _SIZES:
        raise ValueError(f'"{text}" is not a size; write a number with a unit, such as "64KiB" or "2GB"')
    return int(float(match[1]) * _SIZES[match[2].upper()])


def show_size(count: float) -> str:
    """A size for people: three digits and a binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"
