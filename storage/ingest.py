"""The way in: one disk's changed parts become chunks and a new block map."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from storage.blockmap import MapBuilder, Root, lookup
from storage.chunking import BATCH_BYTES, batched, check_placement, split
from storage.chunkstore import Added, ChunkStore, Session
from storage.filecalls import Buffer
from storage.format import PackKind, Pieced
from storage.manifest import DiskHead, DiskRecord, DiskStats
from storage.nodes import KeptNodes, StoredNodes
from storage.piecelists import read_blocks
from storage.piecing import Piecing


class DiskIngest:
    """One disk of a restore point that is being written. `write` and `zero` from any thread, then `finish` once."""

    def __init__(
        self,
        store: ChunkStore,
        session: Session,
        head: DiskHead,
        *,
        block_bytes: int,
        fan_out: int,
        base: DiskRecord | None,
        done: Callable[[DiskRecord], None],
    ) -> None:
        self.head = head
        self._store = store
        self._session = session
        self._block_bytes = block_bytes
        self._zeros = bytes(block_bytes)
        self._nodes = StoredNodes(store, session)
        self._lock = threading.Lock()
        self._read = self._new = self._stored = self._known = 0
        self._done = done
        self._blocks = -(-head.capacity_bytes // block_bytes)
        base_blocks = -(-base.head.capacity_bytes // block_bytes) if base else 0
        self._map = MapBuilder(self._nodes, fan_out, self._blocks, base.root if base else None, base_blocks)
        self._base = base.root if base else None
        self._base_blocks = base_blocks
        self._base_nodes = KeptNodes(StoredNodes(store, session))
        self._fan_out = fan_out
        self._piecing = Piecing(store, session, block_bytes, self._before)
        self._may_share = self._piecing.worth_trying
        self._finished = False
        if base is not None and head.capacity_bytes < base.head.capacity_bytes and head.capacity_bytes % block_bytes:
            self._cut_last_block(base.root, fan_out)

    def write(self, offset: int, view: memoryview) -> None:
        """Store a part of the disk; whole blocks, but for the disk's end. Blocks until it is in a pack."""
        self.write_parts([(offset, view)])

    def write_parts(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        """As `write`, for parts (offset, bytes) anywhere: many small ones cost little more than a large one."""
        for offset, view in parts:
            check_placement(offset, len(view), self._block_bytes, self.head.capacity_bytes)
        for batch in batched(parts, max(1, BATCH_BYTES // self._block_bytes) * self._block_bytes):
            self._write_batch(batch)

    def zero(self, offset: int, length: int) -> None:
        """This part of the disk is known to read as zeros."""
        check_placement(offset, length, self._block_bytes, self.head.capacity_bytes)
        self._session.check()
        first = offset // self._block_bytes
        self._map.clear(first, -(-(offset + length) // self._block_bytes) - first)

    def finish(self) -> DiskStats:
        """The disk is complete; nothing may be written to it any more."""
        if self._finished:
            raise ValueError(f"disk {self.head.name} is finished already")
        self._finished = True
        self._session.check()
        root = self._map.finish()
        mapped = min(root.mapped_blocks * self._block_bytes, self.head.capacity_bytes)
        stats = DiskStats(self._read, self._new, self._stored + self._nodes.stored_bytes, self._known, mapped)
        self._done(
            DiskRecord(
                self.head, root, stats.read_bytes, stats.new_bytes, stats.stored_bytes, stats.dedup_bytes, mapped
            )
        )
        return stats

    def _write_batch(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        chunk_id = self._store.sealing.chunk_id
        items: list[tuple[bytes, Buffer]] = []
        placed: list[tuple[int, bytes | None]] = []
        pieced: dict[bytes, Pieced] = {}
        composed = Added()

        def compose(new: Sequence[tuple[bytes, Buffer]]) -> Collection[bytes]:
            blocks = {chunk: block for block, chunk in placed if chunk}
            pieced.update(self._piecing.compose([(blocks[chunk], chunk, data) for chunk, data in new], composed))
            return pieced.keys()

        for offset, view in parts:
            for block, data in split(offset, view, self._block_bytes, self._zeros):
                if data is None:
                    placed.append((block, None))
                else:
                    chunk = chunk_id(data)
                    items.append((chunk, data))
                    placed.append((block, chunk))
        if items:
            added = self._store.add(self._session, PackKind.DATA, items, instead=compose if self._may_share else None)
        else:
            added = Added()
        if pieced:
            placed = [(block, pieced.get(chunk, chunk) if chunk else None) for block, chunk in placed]
        self._map.set(placed)
        with self._lock:
            self._read += sum([len(view) for _, view in parts])
            for one in (added, composed):
                self._new += one.new_bytes
                self._stored += one.stored_bytes
                self._known += one.known_bytes

    def _before(self, blocks: Sequence[int]) -> list[bytes]:
        """What the base's map has for these blocks; empty where it has nothing."""
        if self._base is None:
            return [b""] * len(blocks)
        there = [block for block in blocks if block < self._base_blocks]
        found = dict(zip(there, lookup(self._base_nodes, self._base, self._fan_out, there), strict=True))
        return [found.get(block, b"") for block in blocks]

    def _cut_last_block(self, base: Root, fan_out: int) -> None:
        """The disk shrank within a block: what lay behind its new end must not come back when it grows again."""
        offset = (self._blocks - 1) * self._block_bytes
        chunk = lookup(self._nodes, base, fan_out, [self._blocks - 1])[0]
        if chunk:
            data = memoryview(read_blocks(self._store, [chunk])[0])[: self.head.capacity_bytes - offset]
            self._write_batch([(offset, data)])
            self._read -= len(data)
