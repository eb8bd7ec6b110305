"""What the last verification found damaged, for the next backup and the next reclaim. Derived; may be deleted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import suppress

from storage.blobs import Blobs
from storage.errors import Damaged, StorageError
from storage.format import PackName, parse_pack_key

KEY = "distrusted"

log = logging.getLogger(__name__)


class Distrust:
    """`chunks` that no pack has intact, and `packs` in which something is damaged. The caller locks."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.chunks: set[bytes] = set()
        self.packs: set[PackName] = set()
        with suppress(Damaged, ValueError, TypeError, KeyError):  # the next verification tells again
            said = json.loads(blobs.get(KEY))
            self.chunks = {bytes.fromhex(chunk) for chunk in said["chunks"]}
            self.packs = {name for name in map(parse_pack_key, said["packs"]) if name}

    def replace(self, chunks: Iterable[bytes], packs: Iterable[PackName]) -> None:
        """Take a new verification's findings."""
        self.chunks, self.packs = set(chunks), set(packs)
        said = {
            "chunks": sorted(chunk.hex() for chunk in self.chunks),
            "packs": sorted(name.key for name in self.packs),
        }
        try:
            self._blobs.replace(KEY, json.dumps(said).encode())
        except StorageError as error:
            log.warning("what is damaged is known to this process only: %s", error)
