"""Numbers for new packs. Where several processes write one store, each takes blocks of numbers that it claims first.

A claim is a create-once blob `numbers/BLOCK`, so no two packs ever have one number. What is left of a block is used by
the next process with the same work folder, but not after a restart of the machine: what a crash wrote last is in doubt.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storage.blobs import Blobs
from storage.errors import AlreadyExists, StoreFailed
from storage.failpoints import failpoint
from storage.filecalls import translated
from storage.pack import Writer

PREFIX = "numbers/"
BLOCK_BITS = 8
LAST_BLOCK = (1 << 32 - BLOCK_BITS) - 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


class PackNumbers:
    """Rising numbers above every pack that was listed. The caller locks."""

    def __init__(self) -> None:
        self._next = 1

    def stay_above(self, listed: Iterable[int]) -> None:
        """Packs with these numbers are there."""
        self._next = max(self._next, max(listed, default=0) + 1)

    def take(self) -> int:
        """A number that no other pack has."""
        number, self._next = self._next, self._next + 1
        return number


class ClaimedNumbers(PackNumbers):
    """Numbers from claimed blocks. `take` may ask the store, once in 256 times."""

    def __init__(self, blobs: Blobs, writer: Writer, memory: Path) -> None:
        super().__init__()
        self._blobs = blobs
        self._writer = writer
        self._memory = memory
        self._highest = 0
        self._end = 0
        self._boot = _boot_id()
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(memory.read_text())
            if said["boot"] == self._boot and self._boot and 0 < int(said["next"]) <= int(said["end"]):
                self._next, self._end = int(said["next"]), int(said["end"])

    def stay_above(self, listed: Iterable[int]) -> None:
        for number in listed:
            self._highest = max(self._highest, number)
            if self._next <= number < self._end:  # ours, from a process that could not remember it
                self._next = number + 1

    def take(self) -> int:
        if self._next >= self._end:
            self._claim()
        number = self._next
        self._next += 1
        self._remember()
        return number

    def _claim(self) -> None:
        claimed = [int(key.removeprefix(PREFIX), 16) for key in self._blobs.list(PREFIX)]
        block = max([self._highest >> BLOCK_BITS, *claimed]) + 1
        while block <= LAST_BLOCK:
            try:
                self._blobs.put(f"{PREFIX}{block:06x}", f"{self._writer.id.hex()}\n".encode())
            except AlreadyExists:
                block += 1
                continue
            failpoint("numbers.claimed")
            self._next, self._end = block << BLOCK_BITS, (block + 1) << BLOCK_BITS
            log.info("pack numbers claimed", extra={"first": self._next})
            return
        raise StoreFailed("there are no pack numbers left", where=PREFIX, hint="copy the repository to a new one")

    def _remember(self) -> None:
        document = json.dumps({"boot": self._boot, "next": self._next, "end": self._end})
        temporary = self._memory.with_suffix(".part")
        with translated(str(self._memory)):
            temporary.write_text(document)
            temporary.replace(self._memory)
        failpoint("numbers.remembered")


def _boot_id() -> str:
    with suppress(OSError):
        return BOOT_ID.read_text().strip()
    return ""
