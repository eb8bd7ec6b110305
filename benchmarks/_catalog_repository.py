"""Synthetic repositories of millions of chunks, made in bulk, that the real code opens, reads and extends.

Headers, footers, trailers, tree packs, nodes and manifests are real, byte for byte. The payloads of data packs are
holes: nothing that these benchmarks measure reads a chunk's content. Data packs lie as nightly backups leave them
(one or more for each restore point), tree packs as reclaim leaves them (merged to full size).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from policies.facts import PointId, VmId
from storage import config as configs
from storage.blobs import LocalBlobs
from storage.blockmap import Root, levels_for
from storage.format import (
    COUNT_BYTES,
    ENTRY,
    HEADER_BYTES,
    ID_BYTES,
    NODE_HEAD,
    ObjectKind,
    PackHeader,
    PackKind,
    PackName,
    pack_header,
    pack_trailer,
)
from storage.manifest import DiskHead, DiskRecord, Manifest, PointHead, encode, manifest_key
from storage.pack import new_pack_name
from storage.repository import create
from storage.sealing import Sealing

FAN_OUT = 64
BLOCK_BYTES = 64 << 10
PACK_BYTES = 64 << 20
PACK_CHUNKS = 2450
"""Of a full data pack: 26.8 kB each, as blocks of VM images become at zstd 1."""

DISK = "disk"
BIG_NAME = "big"
"""What `backstay disk backup --name` is to call the disk of a million blocks."""

BIG_BLOCKS = 1_000_000
RUN = 4 * FAN_OUT
"""So many blocks in a row of a first full come from a template that all VMs share, as many are the VM's own."""

_ENTRY = np.dtype(
    [("id", "<u8", (4,)), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("check", "<u4")], align=False
)
_WRITER = bytes(range(16))


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the repository is. Half of what a night changes is new to the repository."""

    vms: int
    points: int
    disk_blocks: int
    changed: int

    @property
    def chunks(self) -> int:
        """Unique chunks of data."""
        return self.disk_blocks // 2 * (self.vms + 1) + (self.points - 1) * self.vms * (self.changed // 2)

    @property
    def extents(self) -> int:
        """What a catalog with a row for each mapped block of each change would hold."""
        return self.vms * (self.disk_blocks + (self.points - 1) * self.changed)


def shape_for(chunks: int) -> Shape:
    """100 VMs with 100 restore points each, with about so many chunks."""
    return Shape(vms=100, points=100, disk_blocks=chunks // 100 // (2 * RUN) * 2 * RUN, changed=chunks // 10_000)


@dataclass(frozen=True, slots=True)
class Made:
    """What was made. `big` is a restore point of a disk of a million blocks."""

    shape: Shape
    big: PointId
    newest: PointId
    packs: int
    nodes: int


def chunk_ids(numbers: Any) -> Any:
    """Ids as (n, 4) words, from chunk numbers: as random as hashes, and made again at will."""
    words = (numbers.astype(np.uint64)[..., None] << np.uint64(2)) | np.arange(4, dtype=np.uint64)
    words += np.uint64(0x51)
    words *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


class _Packs:
    """Writes packs without syncing: nobody else needs them."""

    def __init__(self, root: Path, sealing: Sealing, created: datetime) -> None:
        self._root = root
        self._sealing = sealing
        self._created = int(created.timestamp())
        self.count = 0
        self.nodes = 0
        self._chance = np.random.default_rng(7)
        self._lengths = self._chance.integers(13_000, 40_000, 1 << 16, dtype=np.uint32)
        self._tree: list[tuple[bytes, bytes]] = []
        self._tree_bytes = 0
        for folder in range(256):
            (root / "packs" / f"{folder:02x}").mkdir(exist_ok=True)

    def _begin(self, kind: PackKind) -> tuple[PackName, bytes]:
        self.count += 1
        name = new_pack_name(self.count, kind)
        header = PackHeader(
            kind, 0, self._sealing.repository, name.id, _WRITER, 1, self.count, self._created, self._sealing.salt()
        )
        return name, pack_header(header)

    def data(self, first: int, count: int) -> None:
        """Data packs for chunks with consecutive numbers."""
        while count:
            part = min(count, PACK_CHUNKS)
            name, head = self._begin(PackKind.DATA)
            entries = np.zeros(part, _ENTRY)
            entries["id"] = chunk_ids(np.arange(first, first + part))
            at = first % (len(self._lengths) - part)
            entries["stored"] = self._lengths[at : at + part]
            entries["offset"][1:] = np.cumsum(entries["stored"])[:-1]
            entries["offset"] += HEADER_BYTES
            entries["raw"] = 1 << 24 | BLOCK_BYTES
            end = int(entries["offset"][-1]) + int(entries["stored"][-1])
            self._write(name, head, end, entries.tobytes(), [])
            first, count = first + part, count - part

    def node(self, node: bytes) -> bytes:
        """A node for the tree pack that is being filled; returns its id."""
        found = self._sealing.node_id(node)
        if self._tree_bytes + len(node) > PACK_BYTES:
            self.close_tree()
        self._tree.append((found, node))
        self._tree_bytes += len(node)
        self.nodes += 1
        return found

    def close_tree(self) -> None:
        """Write the tree pack that is being filled."""
        name, head = self._begin(PackKind.TREE)
        at = HEADER_BYTES
        entries = []
        for found, node in self._tree:
            entries.append(ENTRY.pack(found, at, len(node), len(node), crc32(node)))
            at += len(node)
        self._write(name, head, at, b"".join(entries), [node for _, node in self._tree])
        self._tree, self._tree_bytes = [], 0

    def _write(self, name: PackName, head: bytes, end: int, footer: bytes, payloads: list[bytes]) -> None:
        fd = os.open(self._root / name.key, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, head + b"".join(payloads), 0)
            os.pwrite(fd, footer + pack_trailer(head, footer, end, len(footer) // ENTRY.size), end)
        finally:
            os.close(fd)


class _Tree:
    """The block map of one disk, every block mapped: the ids on each level, of which changed nodes are made anew."""

    def __init__(self, packs: _Packs, blocks: int) -> None:
        self._packs = packs
        self.blocks = blocks
        self.levels = levels_for(blocks, FAN_OUT)
        self.ids = [
            np.zeros((-(-blocks // FAN_OUT ** (level + 1)), ID_BYTES), np.uint8) for level in range(self.levels)
        ]

    def update(self, numbers: Any, leaves: Any) -> Root:
        """Write these leaves of a disk (its chunks by number), and every node above them."""
        for leaf, ids in zip(leaves.tolist(), _leaf_ids(numbers, leaves), strict=True):
            used = min(FAN_OUT, self.blocks - leaf * FAN_OUT)
            self._put(0, leaf, _node(0, [ids[: used * ID_BYTES]], used))
        reach, nodes = 1, leaves
        for level in range(1, self.levels):
            reach *= FAN_OUT
            nodes = np.unique(nodes // FAN_OUT)
            below = self.ids[level - 1]
            for index in nodes.tolist():
                first, last = index * FAN_OUT, min((index + 1) * FAN_OUT, len(below))
                counts = [
                    min(reach, self.blocks - at * reach).to_bytes(COUNT_BYTES, "little") for at in range(first, last)
                ]
                self._put(level, index, _node(level, [below[first:last].tobytes(), *counts], last - first))
        return Root(self.ids[-1][0].tobytes(), self.levels, self.blocks)

    def _put(self, level: int, index: int, node: bytes) -> None:
        self.ids[level][index] = np.frombuffer(self._packs.node(node), np.uint8)


def _leaf_ids(numbers: Any, leaves: Any) -> list[bytes]:
    slots = np.minimum(leaves[:, None] * FAN_OUT + np.arange(FAN_OUT), len(numbers) - 1)
    raw = chunk_ids(numbers[slots]).tobytes()
    step = FAN_OUT * ID_BYTES
    return [raw[at : at + step] for at in range(0, len(raw), step)]


def _node(level: int, parts: list[bytes], used: int) -> bytes:
    head = NODE_HEAD.pack(level, 0, FAN_OUT) + ((1 << used) - 1).to_bytes(FAN_OUT // 8, "little")
    return b"".join([head, *parts])


class _Maker:
    def __init__(self, root: Path, shape: Shape, now: datetime) -> None:
        create(root, now=now)
        self.config, self._sealing = configs.load(LocalBlobs(root), None)
        self._root = root
        self._shape = shape
        self._now = now
        self.packs = _Packs(root, self._sealing, now - timedelta(days=200))
        self._chance = np.random.default_rng(1)
        self._next = shape.disk_blocks // 2

    def base(self) -> tuple[list[Any], list[_Tree]]:
        """The first full of every VM."""
        shape, disks = self._shape, list[Any]()
        trees: list[_Tree] = []
        self.packs.data(0, self._next)
        shared = np.arange(shape.disk_blocks // 2, dtype=np.uint32).reshape(-1, RUN)
        leaves = np.arange(shape.disk_blocks // FAN_OUT)
        own = leaves // (RUN // FAN_OUT) % 2 == 1
        for vm in range(shape.vms):
            mine = np.arange(self._next, self._next + shape.disk_blocks // 2, dtype=np.uint32).reshape(-1, RUN)
            self.packs.data(self._next, mine.size)
            self._next += mine.size
            disk = np.stack([shared, mine], axis=1).reshape(-1)
            tree = _Tree(self.packs, shape.disk_blocks)
            if vm:
                tree.ids[0][:] = trees[0].ids[0]
            root = tree.update(disk, leaves[own] if vm else leaves)
            self.manifest(vm, 0, root, shape.disk_blocks)
            disks.append(disk)
            trees.append(tree)
        return disks, trees

    def night(self, point: int, disks: list[Any], trees: list[_Tree]) -> PointId:
        """A further restore point of every VM: about ten clusters change; half is new, half was elsewhere already."""
        shape = self._shape
        length = max(2, shape.changed // 10)
        made = PointId("")
        for vm in range(shape.vms):
            starts = np.sort(self._chance.integers(0, shape.disk_blocks // length, 10)) * length
            blocks = (np.unique(starts)[:, None] + np.arange(length)).reshape(-1)
            fresh = shape.changed // 2
            known = int(self._chance.integers(0, max(1, shape.disk_blocks // 2 - len(blocks))))
            numbers = np.arange(known, known + len(blocks), dtype=np.uint32)
            there = min(fresh, len(blocks))
            numbers[:there] = np.arange(self._next, self._next + there)
            self.packs.data(self._next, fresh)
            self._next += fresh
            disks[vm][blocks] = numbers
            root = trees[vm].update(disks[vm], np.unique(blocks // FAN_OUT))
            made = self.manifest(vm, point, root, shape.disk_blocks)
        return made

    def big(self) -> PointId:
        """A disk of a million blocks, first full and nights like any other's, on chunks that are there."""
        shape = self._shape
        disk: Any = self._chance.integers(0, self._next, BIG_BLOCKS).astype(np.uint32)
        disk = (disk[::RUN, None] // 2 + np.arange(RUN, dtype=np.uint32)).reshape(-1)[:BIG_BLOCKS]
        tree = _Tree(self.packs, BIG_BLOCKS)
        self.manifest(shape.vms, 0, tree.update(disk, np.arange(BIG_BLOCKS // FAN_OUT)), BIG_BLOCKS)
        made = PointId("")
        for point in range(1, shape.points):
            starts = np.unique(self._chance.integers(0, BIG_BLOCKS // 1000, 10)) * 1000
            blocks = (starts[:, None] + np.arange(1000)).reshape(-1)
            known = int(self._chance.integers(0, self._next))
            disk[blocks] = np.arange(known, known + len(blocks)) % self._next
            made = self.manifest(shape.vms, point, tree.update(disk, np.unique(blocks // FAN_OUT)), BIG_BLOCKS)
        return made

    def manifest(self, vm: int, point: int, root: Root, blocks: int) -> PointId:
        """The manifest of one restore point."""
        taken = self._now - timedelta(days=self._shape.points - point) + timedelta(seconds=vm)
        name = PointId(f"{taken.astimezone(UTC):%Y%m%dt%H%M%Sz}-{vm:04x}{point:04x}")
        who = f"vm-{vm:04}" if vm < self._shape.vms else f"disk:{BIG_NAME}"
        head = DiskHead(DISK, blocks * BLOCK_BYTES)
        amount = self._shape.changed * BLOCK_BYTES
        record = DiskRecord(head, root, amount, amount // 2, amount // 5, amount // 2, blocks * BLOCK_BYTES)
        attributes = {"policy": "gold", "rule": "nightly", "complete": "yes"}
        manifest = Manifest(
            name, PointHead(VmId(who), who, taken, {"moref": f"vm-{vm}"}, attributes=attributes),
            taken, _WRITER.hex(), 1, FAN_OUT, BLOCK_BYTES, (record,),
        )  # fmt: skip
        key = manifest_key(name)
        (self._root / key).write_bytes(self._sealing.close(ObjectKind.MANIFEST, key, encode(manifest)))
        return name


def make_repository(root: Path, shape: Shape, now: datetime) -> Made:
    """Make a repository in an empty folder. Not durable; without catalog and index, which opening makes."""
    maker = _Maker(root, shape, now)
    disks, trees = maker.base()
    newest = PointId("")
    for point in range(1, shape.points):
        newest = maker.night(point, disks, trees)
    big = maker.big()
    maker.packs.close_tree()
    return Made(shape, big, newest, maker.packs.count, maker.packs.nodes)
