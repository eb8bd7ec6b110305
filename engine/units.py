"""Sizes and durations as people write and read them."""

from __future__ import annotations

import re
from datetime import timedelta

_DECIMAL = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES = _DECIMAL | {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_DURATION = re.compile(r"\s*(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w)\s*)+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_size(text: str) -> int:
    """Bytes of "64KiB", "2.5 GB" and the like; ValueError says what is understood."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _SIZES:
        raise ValueError(f'"{text}" is not a size; write a number with a unit, such as "64KiB" or "2GB"')
    return int(float(match[1]) * _SIZES[match[2].upper()])


def parse_duration(text: str) -> timedelta:
    """The time of "15m", "1h 30m" and the like; ValueError says what is understood."""
    if _DURATION.fullmatch(text) is None:
        raise ValueError(f'"{text}" is not a duration; write a number with a unit, such as "15m", "4h" or "7d"')
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))


def show_size(count: float) -> str:
    """A size for people: three digits and a binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"


def show_duration(time: timedelta) -> str:
    """A duration for people: the largest unit, and the next where it says something."""
    seconds = int(time.total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    for unit, size, below, step in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // step
            return f"{sign}{seconds // size}{unit}" + (f" {rest}{below}" if rest else "")
    return f"{sign}{seconds}s"
