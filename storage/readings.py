"""When each pack was last read back and found good. Derived, and private to who verifies; it may be deleted.

A log that is only appended to, so that a process that dies keeps what it has done. Nothing in it is believed blindly:
each record has a keyed check, and stands for a pack of this number, id, kind, size and age only.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from struct import Struct

from storage.format import PackKind, PackName

KEY = "verified"
_RECORD = Struct("<4sIB3x16sQQQ")
_MAGIC = b"BSTR"
_CHECK_BYTES = 16
RECORD_BYTES = _RECORD.size + _CHECK_BYTES

log = logging.getLogger(__name__)


class _Said(IntEnum):
    """What a record is about; 1 and 2 are kinds of packs."""

    FULL_BEGUN = 16
    FULL_DONE = 17
    SOUND = 18
    SINCE = 19


@dataclass(frozen=True, slots=True)
class PackState:
    """What must be as it was for an earlier reading to count: bytes, and when the store last saw the blob written."""

    size: int
    stamp_us: int


@dataclass(frozen=True, slots=True)
class _Reading:
    state: PackState
    at: datetime


class Readings:
    """The log. Thread-safe. A log that cannot be written costs only that more is read again."""

    def __init__(self, path: Path, check: Callable[[bytes], bytes]) -> None:
        self._path = path
        self._check = check
        self._lock = threading.Lock()
        self._packs: dict[PackName, _Reading] = {}
        self._records = 0
        self._fd = -1
        self._writable = True
        self.full_begun: datetime | None = None
        """When the full verification began that is not finished yet."""
        self.sound_at: datetime | None = None
        """When a verification last left nothing unread that it should read, and found no damage."""
        self.since: datetime | None = None
        """Every byte was read back or written at this time or later, as the newest verification left it."""
        with suppress(OSError):
            self._load(path.read_bytes())

    def read_at(self, name: PackName, state: PackState) -> datetime | None:
        """When the pack as it is now was last read back and found good."""
        with self._lock:
            reading = self._packs.get(name)
        return reading.at if reading is not None and reading.state == state else None

    def good(self, name: PackName, state: PackState, at: datetime) -> None:
        """All of a pack was read back and is good."""
        with self._lock:
            self._packs[name] = _Reading(state, at)
            self._append(name.number, name.kind, name.id, state, at)

    def bad(self, name: PackName) -> None:
        """Something in a pack is not good, whatever an earlier reading said."""
        with self._lock:
            known = self._packs.pop(name, None)
            if known is not None:
                self._append(name.number, name.kind, name.id, PackState(0, 0), known.at)

    def begin_full(self, at: datetime) -> None:
        """A full verification begins: what was read before does not count for it."""
        with self._lock:
            self.full_begun = at
            self._append(0, _Said.FULL_BEGUN, bytes(16), PackState(0, 0), at)

    def end_full(self, at: datetime) -> None:
        """It has read everything."""
        with self._lock:
            self.full_begun = None
            self._append(0, _Said.FULL_DONE, bytes(16), PackState(0, 0), at)

    def sound(self, at: datetime) -> None:
        """Nothing is left to read, and nothing was damaged."""
        with self._lock:
            self.sound_at = at
            self._append(0, _Said.SOUND, bytes(16), PackState(0, 0), at)

    def covers(self, since: datetime) -> None:
        """Every byte was read back or written at this time or later."""
        with self._lock:
            self.since = since
            self._append(0, _Said.SINCE, bytes(16), PackState(0, 0), since)

    def close(self, there: Iterable[PackName]) -> None:
        """Make the log durable; write it anew when most of it is about packs that are gone or were read again."""
        with self._lock:
            if self._fd >= 0:
                with suppress(OSError):
                    os.fdatasync(self._fd)
                os.close(self._fd)
                self._fd = -1
            packs = self._packs.keys() & set(there)
            if self._records > 2 * len(packs) + 64:
                self._packs = {name: self._packs[name] for name in packs}
                self._write_anew()

    def _append(self, number: int, kind: int, pack: bytes, state: PackState, at: datetime) -> None:
        if not self._writable:
            return
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            record = self._record(number, kind, pack, state, at)
            if os.write(self._fd, record) != len(record):
                raise OSError("no room for a whole record")
            self._records += 1
        except OSError as error:
            self._writable = False
            log.warning("progress of the verification is not kept: %s", error)

    def _record(self, number: int, kind: int, pack: bytes, state: PackState, at: datetime) -> bytes:
        body = _RECORD.pack(_MAGIC, number, kind, pack, state.size, state.stamp_us, int(at.timestamp() * 1e6))
        return body + self._check(body)[:_CHECK_BYTES]

    def _load(self, data: bytes) -> None:
        for start in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            body = data[start : start + _RECORD.size]
            if self._check(body)[:_CHECK_BYTES] != data[start + _RECORD.size : start + RECORD_BYTES]:
                log.warning("progress of earlier verifications forgotten: a record is not what was written")
                self._packs.clear()
                self.full_begun = self.sound_at = self.since = None
                self._records = len(data) // RECORD_BYTES + 64  # have it written anew
                return
            magic, number, kind, pack, size, stamp_us, at_us = _RECORD.unpack(body)
            if magic == _MAGIC:
                self._take(number, kind, pack, PackState(size, stamp_us), datetime.fromtimestamp(at_us / 1e6, UTC))
            self._records += 1
        if len(data) % RECORD_BYTES:  # the last record was torn: what is appended must not follow it
            self._write_anew()

    def _take(self, number: int, kind: int, pack: bytes, state: PackState, at: datetime) -> None:
        match kind:
            case _Said.FULL_BEGUN:
                self.full_begun = at
            case _Said.FULL_DONE:
                self.full_begun = None
            case _Said.SOUND:
                self.sound_at = at
            case _Said.SINCE:
                self.since = at
            case PackKind.DATA | PackKind.TREE if state.size:
                self._packs[PackName(number, pack, PackKind(kind))] = _Reading(state, at)
            case PackKind.DATA | PackKind.TREE:
                self._packs.pop(PackName(number, pack, PackKind(kind)), None)
            case _:
                pass

    def _write_anew(self) -> None:
        none = PackState(0, 0)
        records = [self._record(n.number, n.kind, n.id, r.state, r.at) for n, r in self._packs.items()]
        times = {_Said.SOUND: self.sound_at, _Said.SINCE: self.since, _Said.FULL_BEGUN: self.full_begun}
        records += [self._record(0, said, bytes(16), none, at) for said, at in times.items() if at is not None]
        part = self._path.with_name(f"{KEY}.part")
        try:
            part.write_bytes(b"".join(records))
            part.replace(self._path)
            self._records = len(records)
        except OSError as error:
            self._writable = False
            log.warning("progress of the verification is not kept: %s", error)
            with suppress(OSError):
                part.unlink(missing_ok=True)
