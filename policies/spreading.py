"""Starts that would all come at one instant, spread over a time: a VM and slot always have the same place in it."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

_WHOLE = 2**64


def delay(spread: timedelta, opens: datetime, until: datetime, *key: str) -> timedelta:
    """How long after `opens` the start of this key is: less than `spread`, and before `until`.

    `until` is the end of the window or the deadline, whichever comes first. Where there is no time before it, the
    start is not put off at all.
    """
    room = min(spread, until - opens)
    if room <= timedelta():
        return timedelta()
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=8).digest()
    return timedelta(seconds=int(room.total_seconds()) * int.from_bytes(digest, "big") // _WHOLE)
