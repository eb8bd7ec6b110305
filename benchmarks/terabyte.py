"""An increment of 1 GiB on a fully allocated disk of 1 TiB, against the same on one of 16 GiB, and what maps cost.

python -m benchmarks.terabyte. The first restore point is synthesised: every block of the disk is mapped to one of a few
thousand real chunks, at random, so that every node of the map is its own; writing it takes a minute instead of hours.
The increment is real: `backstay disk backup --changed` as a whole process, of a sparse file with blocks of a real disk
image at the changed places.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._programs import backstay
from benchmarks.images.making import ensure_images, image
from benchmarks.peers.bound import compress_all, unique_blocks
from benchmarks.peers.measuring import Command, Measured, copy_state, run, warm
from benchmarks.peers.report import table
from policies.facts import VmId
from storage.blockmap import MapBuilder, Root
from storage.filecalls import Buffer
from storage.format import VERSION, ObjectKind
from storage.manifest import DiskHead, DiskRecord, Manifest, PointHead, encode, manifest_key
from storage.nodes import StoredNodes
from storage.repository import Repository, create, open_repository

BLOCK = 64 << 10
SIZES = {"16 GiB": 16 << 30, "1 TiB": 1 << 40}
CHANGED_BLOCKS = (1 << 30) // BLOCK
RUN_BLOCKS = 256
"""How many changed blocks lie together where change is clustered."""
SEEDS = 4096
ENTRY_BYTES = 48
BASE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Metadata:
    """What 1 % of change adds: the nodes with their entries in the pack, and the blocks at what they are stored as."""

    size: str
    shape: str
    changed_blocks: int
    node_bytes: int
    data_bytes: int


def make_base(root: Path, capacity: int, blocks: Sequence[bytes]) -> None:
    """A repository with one restore point of one disk, every block of it mapped."""
    create(root, now=BASE)
    with open_repository(str(root), now=BASE, owner="benchmark") as repository:
        with repository.new_point(PointHead(VmId("disk:seeds"), "seeds", BASE)) as pending:
            ingest = pending.disk(DiskHead("disk", len(blocks) * BLOCK), base=None)
            for number, block in enumerate(blocks):
                ingest.write(number * BLOCK, memoryview(block))
            ingest.finish()
            pending.commit()
        ids = [repository.sealing.chunk_id(block) for block in blocks]
        _commit_map(repository, capacity, ids)


def _commit_map(repository: Repository, capacity: int, ids: Sequence[bytes]) -> None:
    count, chance = capacity // BLOCK, random.Random(capacity)
    session = repository.store.session()
    builder = MapBuilder(StoredNodes(repository.store, session), repository.config.fan_out, count, None)
    for first in range(0, count, 1024):
        builder.set(list(zip(range(first, first + 1024), chance.choices(ids, k=1024), strict=True)))
    root = builder.finish()
    repository.store.flush(session)
    repository.store.end(session)
    head = PointHead(VmId("disk:big"), "big", BASE, attributes={"reason": "synthesised"})
    record = DiskRecord(DiskHead("disk", capacity), root, mapped_bytes=capacity)
    point = repository.new_point_id(BASE)
    config, writer = repository.config, repository.writer
    manifest = Manifest(
        point, head, BASE, writer.id.hex(), writer.epoch, config.fan_out, config.block_bytes, disks=(record,)
    )
    key = manifest_key(point)
    repository.blobs.put(key, repository.sealing.close(ObjectKind.MANIFEST, key, encode(manifest)))
    repository.committed(manifest)


def places(capacity: int, count: int, shape: str) -> list[int]:
    """The numbers of changed blocks, in order: in runs, or each by itself."""
    chance, blocks = random.Random(f"{capacity} {shape}"), capacity // BLOCK
    if shape == "random":
        return sorted(chance.sample(range(blocks), count))
    runs = chance.sample(range(blocks // RUN_BLOCKS), -(-count // RUN_BLOCKS))
    return [run * RUN_BLOCKS + at for run in sorted(runs) for at in range(RUN_BLOCKS)][:count]


def metadata(root: Path, size: str, shape: str, stored_share: float) -> Metadata:
    """What a change of 1 % adds to the map; the nodes are really stored, the chunks only named."""
    with open_repository(str(root), now=datetime.now(UTC), owner="benchmark") as repository:
        base = _root(repository)
        session = repository.store.session()
        nodes = _Counted(StoredNodes(repository.store, session))
        blocks = SIZES[size] // BLOCK
        builder = MapBuilder(nodes, repository.config.fan_out, blocks, base, blocks)
        changed, chance = places(SIZES[size], blocks // 100, shape), random.Random(size + shape)
        for first in range(0, len(changed), 16):
            builder.set([(block, chance.randbytes(32)) for block in changed[first : first + 16]])
        builder.finish()
        repository.store.flush(session)
        repository.store.end(session)
        added = nodes.inner.stored_bytes + nodes.count * ENTRY_BYTES
    return Metadata(size, shape, len(changed), added, round(len(changed) * (BLOCK * stored_share + ENTRY_BYTES)))


class _Counted:
    """A NodeStore that counts what it stores."""

    def __init__(self, inner: StoredNodes) -> None:
        self.inner, self.count = inner, 0

    def put_nodes(self, nodes: Sequence[bytes]) -> list[bytes]:
        self.count += len(nodes)
        return self.inner.put_nodes(nodes)

    def get_nodes(self, ids: Sequence[bytes]) -> list[Buffer]:
        return self.inner.get_nodes(ids)


def _root(repository: Repository) -> Root:
    base = repository.latest(VmId("disk:big"))
    if base is None:
        raise RuntimeError("the synthesised restore point is not there")
    return base.disks[0].root


def increment(folder: Path, size: str, shape: str, blocks: Iterable[bytes]) -> Measured:
    """Back up 1 GiB of changed extents onto a copy of the base."""
    state, source, hints = folder / "state", folder / "source.img", folder / "changed.json"
    changed = places(SIZES[size], CHANGED_BLOCKS, shape)
    copy_state(folder / size, state, "packs")
    fd = os.open(source, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.truncate(fd, SIZES[size])
        for number, block in zip(changed, blocks, strict=False):
            os.pwrite(fd, block, number * BLOCK)
    finally:
        os.close(fd)
    hints.write_text(json.dumps([{"offset": number * BLOCK, "length": BLOCK} for number in changed]))
    os.sync()
    warm(state, source)
    arguments = ("disk", "backup", str(source), "--name", "big", "--changed", str(hints), "--repo", str(state))
    measured = run(Command((*backstay(), *arguments), folder), folder / "log")
    source.unlink()
    shutil.rmtree(state)
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.terabyte", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--images", type=Path, help="folder of the images; else FOLDER/images")
    parser.add_argument("--keep", action="store_true", help="keep the synthesised repositories for another time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    images = (options.images or options.folder / "images").resolve()
    ensure_images(images, options.folder / "cache", 7, _say)
    content = unique_blocks(image(images, "A"))
    folder = (options.folder / "terabyte").resolve()
    for size, capacity in SIZES.items():
        if not (folder / f"{size}.made{VERSION}").exists():
            _say(f"synthesising a disk of {size}")
            shutil.rmtree(folder / size, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            make_base(folder / size, capacity, content[-SEEDS:])
            (folder / f"{size}.made{VERSION}").touch()
    timed: dict[str, dict[str, list[Measured]]] = {}
    for shape in ("clustered", "random"):
        timed[shape] = {size: [] for size in SIZES}
        for number in range(options.rounds):
            for size in list(SIZES)[:: -1 if number % 2 else 1]:
                timed[shape][size].append(increment(folder, size, shape, content))
                _say(f"{shape} {size}: {timed[shape][size][-1].wall_seconds:.2f} s")
    added = []
    sample = content[::16]
    share = compress_all(sample, os.cpu_count() or 1)[1] / (len(sample) * BLOCK)
    for size in SIZES:
        for shape in ("clustered", "random"):
            state = folder / "state"
            copy_state(folder / size, state, "packs")
            added.append(metadata(state, size, shape, share))
            shutil.rmtree(state)
    if not options.keep:
        shutil.rmtree(folder)
    _print(timed, added, options.json)
    return 0


def _print(timed: dict[str, dict[str, list[Measured]]], added: Sequence[Metadata], as_json: bool) -> None:
    if as_json:
        raw = {
            shape: {s: [dataclasses.asdict(m) for m in runs] for s, runs in of.items()} for shape, of in timed.items()
        }
        print(
            json.dumps({"format": 1, "increments": raw, "metadata": [dataclasses.asdict(m) for m in added]}, indent=1)
        )
        return
    rows = []
    for shape, of in timed.items():
        small, large = ([m.wall_seconds for m in of[size]] for size in SIZES)
        ratio = statistics.median(large) / statistics.median(small)
        memory = max(m.peak_rss_bytes for m in of["1 TiB"]) >> 20
        rows.append([shape, _show(small), _show(large), f"{ratio:.2f}", str(memory)])
    head = ["1 GiB changed and hinted", "16 GiB disk, s", "1 TiB disk, s", "ratio (must 1.5)", "peak MiB"]
    print(table(head, rows) + "\n")
    rows = [
        [
            f"{m.size}, 1 % {m.shape}",
            str(m.changed_blocks),
            f"{m.node_bytes / 1e6:.2f}",
            f"{m.node_bytes / m.data_bytes:.2%}",
        ]
        for m in added
    ]
    print(table(["every block allocated", "changed blocks", "map, MB", "of the new data"], rows))


def _show(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}–{max(values):.2f}]"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
