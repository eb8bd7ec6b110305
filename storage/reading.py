"""The way out: one disk of a restore point, every byte checked against its chunk's id."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property

from storage.blockmap import lookup, walk
from storage.chunkstore import ChunkStore
from storage.filecalls import Buffer
from storage.format import Pieced
from storage.manifest import DiskRecord, Manifest
from storage.mapdiff import differences
from storage.nodes import StoredNodes
from storage.piecelists import read_blocks, read_lists


class PointDisk:
    """A disk as it was. Thread-safe; nothing is cached but the latest leaf of the map."""

    def __init__(self, store: ChunkStore, manifest: Manifest, record: DiskRecord) -> None:
        self.record = record
        self.point = manifest.id
        self.capacity_bytes = record.head.capacity_bytes
        self.block_bytes = manifest.block_bytes
        self.fan_out = manifest.fan_out
        self.store = store
        self._nodes = StoredNodes(store)
        self._zeros = bytes(manifest.block_bytes)
        self._lock = threading.Lock()
        self._leaf: tuple[int, list[bytes]] = (-1, [])

    def leaves(self) -> Iterator[tuple[int, dict[int, bytes]]]:
        """(first block, slot → chunk id) of every used leaf of the map, in order."""
        return walk(self._nodes, self.record.root, self.fan_out)

    @cached_property
    def _extents(self) -> list[tuple[int, int]]:
        merged: list[tuple[int, int]] = []
        for first, children in self.leaves():
            for slot in sorted(children):
                offset = (first + slot) * self.block_bytes
                length = min(self.block_bytes, self.capacity_bytes - offset)
                if merged and sum(merged[-1]) == offset:
                    merged[-1] = (merged[-1][0], merged[-1][1] + length)
                else:
                    merged.append((offset, length))
        return merged

    def extents(self) -> list[tuple[int, int]]:
        """(offset, length) of the mapped parts, sorted and disjoint; all else reads as zeros."""
        return self._extents

    def differing(self, other: PointDisk) -> list[tuple[int, int]]:
        """(offset, length) of what may differ between the two, sorted and disjoint; only unshared nodes are read.

        ValueError when the two have other sizes or grids.
        """
        if (self.block_bytes, self.fan_out, self.capacity_bytes) != (
            other.block_bytes,
            other.fan_out,
            other.capacity_bytes,
        ):
            raise ValueError("disks of different sizes or grids cannot be compared by their maps")
        merged: list[tuple[int, int]] = []
        for block, _ in differences(self._nodes, other.record.root, self.record.root, self.fan_out):
            offset = block * self.block_bytes
            length = min(self.block_bytes, self.capacity_bytes - offset)
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((offset, length))
        return merged

    def chunks(self, first: int, count: int) -> list[bytes]:
        """The chunk ids of a run of blocks; empty for zeros."""
        found: list[bytes] = []
        while count:
            leaf, slot = divmod(first, self.fan_out)
            with self._lock:
                cached, ids = self._leaf
            if cached != leaf:
                start = leaf * self.fan_out
                ids = lookup(self._nodes, self.record.root, self.fan_out, range(start, start + self.fan_out))
                with self._lock:
                    self._leaf = leaf, ids
            part = ids[slot : slot + count]
            found += part
            first, count = first + len(part), count - len(part)
        return found

    def contents(self, blocks: Sequence[int]) -> list[bytes]:
        """The id of what each block holds, as `content_of` gives it; only the map is read. Damaged, Missing."""
        ids = lookup(self._nodes, self.record.root, self.fan_out, blocks)
        lists = read_lists(self.store, ids)
        return [lists[id_].content if isinstance(id_, Pieced) else id_ for id_ in ids]

    def content_of(self, data: memoryview) -> bytes:
        """The id of a block of these bytes, empty for zeros. Thread-safe."""
        return b"" if self._zeros.startswith(data) else self.store.sealing.chunk_id(data)

    def blocks(self, ids: Sequence[bytes]) -> list[Buffer]:
        """What the map's slots stand for, in the order of their ids; none of them empty. Damaged, Missing."""
        return read_blocks(self.store, ids)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from offset on, zeros included. Damaged, before view is complete, when a byte is not intact."""
        if offset < 0 or offset + len(view) > self.capacity_bytes:
            raise ValueError(f"offset {offset}, length {len(view)}: beyond the disk's {self.capacity_bytes} bytes")
        if not len(view):
            return
        block_bytes = self.block_bytes
        step = max(1, (1 << 20) // block_bytes)
        first, last = offset // block_bytes, (offset + len(view) - 1) // block_bytes
        for start in range(first, last + 1, step):
            ids = self.chunks(start, min(step, last + 1 - start))
            wanted = [(start + i, chunk) for i, chunk in enumerate(ids) if chunk]
            view_start = max(start * block_bytes - offset, 0)
            view_end = min((start + len(ids)) * block_bytes - offset, len(view))
            if len(wanted) < len(ids):
                view[view_start:view_end] = bytes(view_end - view_start)
            for (block, _), data in zip(wanted, self.blocks([chunk for _, chunk in wanted]), strict=True):
                at = block * block_bytes - offset
                low, high = max(at, 0), min(at + block_bytes, len(view))
                piece = memoryview(data)[low - at : high - at]
                view[low : low + len(piece)] = piece
                if low + len(piece) < high:  # the disk ended within this block once, and has grown since
                    view[low + len(piece) : high] = bytes(high - low - len(piece))
