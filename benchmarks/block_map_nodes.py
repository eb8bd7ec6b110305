"""How large the nodes of a block map should be: bytes and time by fan-out, for a disk of one million blocks.

python -m benchmarks.block_map_nodes
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from blake3 import blake3

from storage.blockmap import MapBuilder, Root, walk

BLOCKS = 1 << 20
BLOCK_BYTES = 64 << 10
STORED_SHARE = 0.41  # what zstd 1 leaves of a block of a VM image


class _Nodes:
    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.new_bytes = 0

    def put_nodes(self, nodes: Sequence[bytes]) -> list[bytes]:
        ids = [blake3(node).digest() for node in nodes]
        for node_id, node in zip(ids, nodes, strict=True):
            if node_id not in self.nodes:
                self.nodes[node_id] = node
                self.new_bytes += len(node) + 48  # and its entry in the pack's footer
        return ids

    def get_nodes(self, ids: Sequence[bytes]) -> list[bytes | bytearray | memoryview]:
        return [self.nodes[node_id] for node_id in ids]


def _change(store: _Nodes, fan_out: int, root: Root, blocks: Sequence[int], salt: int) -> tuple[float, float]:
    """(share of metadata in the new stored bytes, seconds)."""
    store.new_bytes = 0
    began = time.perf_counter()
    builder = MapBuilder(store, fan_out, BLOCKS, root, BLOCKS)
    for start in range(0, len(blocks), 16):
        builder.set([(b, blake3(b"%d %d" % (b, salt)).digest()) for b in blocks[start : start + 16]])
    builder.finish()
    seconds = time.perf_counter() - began
    data = len(blocks) * (BLOCK_BYTES * STORED_SHARE + 48)
    return store.new_bytes / (store.new_bytes + data), seconds


def main() -> None:
    """Print the table."""
    chance = random.Random(1)
    print("fan-out | full map MB | read map s | clustered 1600 | random 0.1 % | random 1 % | commit 10,000 random s")
    for fan_out in (8, 16, 32, 64, 128, 256):
        store = _Nodes()
        builder = MapBuilder(store, fan_out, BLOCKS, None)
        for start in range(0, BLOCKS, 16):
            builder.set([(b, blake3(b"%d" % b).digest()) for b in range(start, start + 16)])
        root = builder.finish()
        full = store.new_bytes / 1e6
        began = time.perf_counter()
        assert sum(len(children) for _, children in walk(store, root, fan_out)) == BLOCKS
        read = time.perf_counter() - began
        clustered, _ = _change(store, fan_out, root, range(500_000, 501_600), 1)
        sparse, _ = _change(store, fan_out, root, sorted(chance.sample(range(BLOCKS), BLOCKS // 1000)), 2)
        spread, seconds = _change(store, fan_out, root, sorted(chance.sample(range(BLOCKS), 10_000)), 3)
        print(
            f"{fan_out:7} | {full:11.1f} | {read:10.2f} | {clustered:14.2%} | {sparse:12.2%} | {spread:10.2%}"
            f" | {seconds:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
