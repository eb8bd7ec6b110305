"""Footers of packs that lie far away, kept on the local disk: each is fetched once, ahead and many at a time.

A kept footer is checked as one from the store is; one that is not sound is fetched again. Verification reads the store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from struct import Struct

from storage import randomness
from storage.blobs import Blobs
from storage.errors import Damaged
from storage.filecalls import translated
from storage.format import (
    HEADER_BYTES,
    TRAILER_BYTES,
    PackHeader,
    PackName,
    pack_header,
    pack_trailer,
    parse_trailer,
)
from storage.pack import Footer, Footers, read_footer, read_header, read_range
from storage.parallel import for_each
from storage.sealing import Sealing

TAIL_BYTES = 128 << 10
"""Fetched from the end of a pack at once: the footer of 2,700 chunks, which is more than most packs have."""

FETCHERS = 16
_SIZE = Struct("<Q")

log = logging.getLogger(__name__)


class Ends:
    """Both ends of one pack in memory, as far as `read_footer` asks a store for them."""

    def __init__(self, size: int, head: bytes, tail: bytes) -> None:
        self.bytes = size
        self.head = head
        self.tail = tail

    def size(self, key: str) -> int:
        """The whole pack's."""
        return self.bytes

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        """From either end; Damaged when it is asked for what lies between."""
        if offset + len(view) <= len(self.head):
            view[:] = self.head[offset : offset + len(view)]
            return
        start = offset - (self.bytes - len(self.tail))
        if start < 0 or start + len(view) > len(self.tail):
            raise Damaged("the pack's footer is not where its trailer says", where=key)
        view[:] = self.tail[start : start + len(view)]


class KeptFooters(Footers):
    """Footers that outlive the process. Thread-safe."""

    def __init__(self, blobs: Blobs, sealing: Sealing, folder: Path) -> None:
        super().__init__(blobs, sealing)
        self._folder = folder
        with translated(str(folder)):
            folder.mkdir(exist_ok=True)

    def remember(self, footer: Footer) -> None:
        super().remember(footer)
        if not self._path(footer.name).exists():
            head = pack_header(footer.header)
            stored = footer.seal.close_footer(footer.entries)
            offset = footer.size - TRAILER_BYTES - len(stored)
            self._keep(footer.name, Ends(footer.size, head, stored + pack_trailer(head, stored, offset, len(footer))))

    def forget(self, name: PackName) -> None:
        super().forget(name)
        with suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def expect(self, names: Iterable[PackName]) -> None:
        """Fetch what is not kept yet, many at a time."""
        there = {path.name for path in self._folder.iterdir()}

        def fetch(name: PackName) -> None:
            with suppress(Damaged):  # told when it is asked for
                self._keep(name, self._fetched(name))

        for_each([name for name in names if self._path(name).name not in there], lambda: fetch, FETCHERS)

    def prune(self, live: Iterable[PackName]) -> None:
        """Drop footers of packs that other writers removed."""
        known = {self._path(name).name for name in live}
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name not in known:
                    path.unlink()

    def _read(self, name: PackName) -> Footer:
        try:
            kept = self._path(name).read_bytes()
        except OSError:
            kept = b""
        if len(kept) > _SIZE.size + HEADER_BYTES:
            size, head = _SIZE.unpack_from(kept)[0], kept[_SIZE.size : _SIZE.size + HEADER_BYTES]
            try:
                return read_footer(Ends(size, head, kept[_SIZE.size + HEADER_BYTES :]), self._sealing, name)
            except Damaged:
                log.warning("kept footer not sound, fetched again", extra={"pack": name.key})
        ends = self._fetched(name)
        footer = read_footer(ends, self._sealing, name)
        self._keep(name, ends)
        return footer

    def _glance(self, name: PackName) -> tuple[PackHeader, int]:
        with suppress(OSError, Damaged), self._path(name).open("rb") as kept:
            start = kept.read(_SIZE.size + HEADER_BYTES)
            if len(start) == _SIZE.size + HEADER_BYTES:
                size = _SIZE.unpack_from(start)[0]
                return read_header(Ends(size, start[_SIZE.size :], b""), name), size
        footer = self.get(name)
        return footer.header, footer.size

    def _fetched(self, name: PackName) -> Ends:
        key = name.key
        size = self._blobs.size(key)
        if size < HEADER_BYTES + TRAILER_BYTES:
            raise Damaged("the pack is too short", where=key)
        tail = bytes(read_range(self._blobs, key, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES)))
        head = tail[:HEADER_BYTES] if len(tail) == size else bytes(read_range(self._blobs, key, 0, HEADER_BYTES))
        at = parse_trailer(tail[-TRAILER_BYTES:], key).footer_offset
        if not HEADER_BYTES <= at <= size - TRAILER_BYTES:
            raise Damaged("the pack's length is not what was written", where=key)
        if at < size - len(tail):
            tail = bytes(read_range(self._blobs, key, at, size - len(tail) - at)) + tail
        return Ends(size, head, tail[at - (size - len(tail)) :])

    def _keep(self, name: PackName, ends: Ends) -> None:
        path = self._path(name)
        temporary = path.with_name(f"{path.name}.{randomness.token_hex(4)}")
        try:
            temporary.write_bytes(_SIZE.pack(ends.bytes) + ends.head + ends.tail)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            log.debug("footer not kept: %s", error)

    def _path(self, name: PackName) -> Path:
        return self._folder / name.key.rpartition("/")[2]
