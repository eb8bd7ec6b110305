"""Durations, shares and sizes as a policy writes them, and as a sentence shows them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal

from policies.errors import Unusable, quoted

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:[0-9]{1,6}[smhdw])(?: ?[0-9]{1,6}[smhdw])*", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%", re.ASCII)

_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([KMGT]i?B)", re.ASCII)
_DECIMAL = {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_BYTES = _DECIMAL | {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_TWO_DIGITS = tuple(f"{number:02}" for number in range(60))

LONGEST = timedelta(days=36_525)
"""A century. Longer durations are mistakes, and would overflow dates."""


def parse_duration(text: str) -> timedelta:
    """ "90s", "10m", "4h", "30d", "2w" or a sum such as "1h30m"; raises Unusable."""
    if not _DURATION.fullmatch(text):
        raise Unusable(f"{quoted(text)} is not a duration", 'write a number and a unit (s, m, h, d, w) such as "4h"')
    parts = re.findall(r"([0-9]+)([smhdw])", text)
    units = [unit for _, unit in parts]
    if len(set(units)) != len(units):
        raise Unusable(f"{quoted(text)} names one unit twice", 'write each unit once such as "1h30m"')
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > LONGEST.total_seconds():
        raise Unusable(f"{quoted(text)} is longer than a century", 'write at most "36525d"')
    return timedelta(seconds=seconds)


def parse_share(text: str) -> float:
    """ "5%" as 0.05; raises Unusable."""
    match = _SHARE.fullmatch(text)
    if not match or float(match[1]) > 100:
        raise Unusable(f"{quoted(text)} is not a share", 'write a percentage from "0%" to "100%" such as "5%"')
    return float(match[1]) / 100


def parse_size(text: str) -> int:
    """ "500GiB", "1.5 TB" and the like in bytes; raises Unusable."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise Unusable(
            f"{quoted(text)} is not a size",
            'write a number and a unit (KiB, MiB, GiB, TiB, KB, MB, GB, TB) such as "500GiB"',
        )
    return int(Decimal(match[1]) * _BYTES[match[2]])


def size(count: int) -> str:
    """A size for a sentence, in binary units: "512 B", "1.5 KiB", "600 GiB"."""
    shown, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if shown < 1024 or unit == "TiB":
            break
        shown /= 1024
    return f"{shown:.3f}".rstrip("0").rstrip(".") + f" {unit}"


def span(duration: timedelta) -> str:
    """A duration for a sentence, in its two greatest units: "4 h", "1 d 6 h", "10 m", "45 s"."""
    seconds = round(abs(duration.total_seconds()))
    shown: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            shown.append(f"{count} {unit}")
        if len(shown) == 2 or (shown and not count):
            break
    return " ".join(shown) or "0 s"


def counted(number: int, noun: str) -> str:
    """A number of things for a sentence: "1 restore point", "2 restore points", "3 policies"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun.removesuffix('y')}ies" if noun.endswith("cy") else f"{number} {noun}s"


def stamp(at: datetime) -> str:
    """Such as "20261122T140000", for keys: as strftime writes it, in a tenth of its time."""
    two = _TWO_DIGITS
    return f"{at.year:04}{two[at.month]}{two[at.day]}T{two[at.hour]}{two[at.minute]}{two[at.second]}"


def clock(at: datetime, zone: tzinfo, now: datetime | None = None) -> str:
    """A time for a sentence, in the zone, which it names; the date is left out when it is the date of now."""
    local = at.astimezone(zone)
    if now is not None and local.date() == now.astimezone(zone).date():
        return f"{local:%H:%M %Z}"
    return f"{local:%Y-%m-%d %H:%M %Z}"
