"""Catalog and lookup index at 10 and 100 million chunks, against their targets.

python -m benchmarks.catalog [--json] [--chunks N] [--dir DIR] [--only PART]

Makes a synthetic repository (see _catalog_repository.py), measures each part in a process of its own and removes the
repository again. Memory is what the process has for itself, RssAnon + RssShmem of /proc/PID/status at its highest,
asked every 5 ms; pages of mapped files, which the kernel can take back, are not in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks._catalog_repository import (
    BIG_BLOCKS,
    BIG_NAME,
    BLOCK_BYTES,
    DISK,
    FAN_OUT,
    Made,
    chunk_ids,
    make_repository,
    shape_for,
)
from benchmarks._programs import backstay
from policies.facts import PointId, VmId
from storage.bulkreads import as_words, locate_many
from storage.format import PackKind
from storage.rebuild import rebuild
from storage.reclaim import plan_reclaim
from storage.repository import DiskHead, PointHead, Repository, open_repository
from storage.wholemaps import read_map

LOOKUPS = 4096
ROUNDS = 5
HINTED_BYTES = 100 << 20
COMPRESSIBLE = 0.59
"""Share of zeros in each new block of the hinted increment, so that zstd leaves of it what it leaves of VM images."""

Figures = dict[str, float]

TARGETS = {
    "lookups: 4,096 new chunks, warm (ms)": 10,
    "lookups: 4,096 blocks of a disk, warm (ms)": 10,
    "map of a million blocks, warm (ms)": 100,
    "commit of 10,000 changed blocks, clustered (ms)": 100,
    "expiry of one restore point (ms)": 50,
    "plan of reclaim (s)": 30,
    "plan of reclaim, memory (MiB)": 4096,
    "rebuild, seconds for a million chunks": 10,
    "catalog and index, bytes a chunk": 60,
    "hinted increment of 100 MiB, whole process (s)": 1.5,
    "hinted increment of 100 MiB, memory (MiB)": 300,
}


def _now() -> datetime:
    return datetime.now(UTC)


def _opened(root: Path) -> Repository:
    return open_repository(root, now=_now, owner="benchmark")


@contextmanager
def _timed(figures: dict[str, list[float]], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    figures.setdefault(name, []).append((time.perf_counter() - began) * 1000)


def _drop_caches(root: Path, *folders: str) -> None:
    """Take files out of the page cache, as far as an ordinary process can."""
    os.sync()
    for folder in folders:
        for path in (root / folder).rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


# --- the parts ---


def _rebuild(root: Path, made: Made) -> Figures:
    began = time.perf_counter()
    report = rebuild(root, now=_now, owner="benchmark")
    seconds = time.perf_counter() - began
    derived = sum(path.stat().st_size for path in (*root.glob("catalog.duckdb*"), *root.glob("index/*")))
    return {
        "rebuild (s)": seconds,
        "rebuild, seconds for a million chunks": seconds / report.chunks * 1e6,
        "catalog and index, bytes a chunk": derived / report.chunks,
        "chunks and nodes": report.chunks,
    }


def _opening(root: Path, made: Made) -> Figures:
    figures: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        with _timed(figures, "opening, catalog included (ms)"):
            repo = _opened(root)
            repo.opened_catalog()
        with _timed(figures, "listing all restore points (ms)"):
            repo.points()
        with _timed(figures, "listing those of one VM (ms)"):
            repo.points(VmId("vm-0007"))
        repo.close()
    return _medians(figures)


def _lookups(root: Path, made: Made) -> Figures:
    chance = np.random.default_rng(4)
    figures: dict[str, list[float]] = {}
    with _opened(root) as repo:
        disk = repo.read_disk(made.newest, DISK)
        whole = read_map(repo.store, disk.record.root, FAN_OUT)
    wanted: dict[str, Callable[[], Any]] = {
        "4,096 new chunks": lambda: as_words([os.urandom(32) for _ in range(LOOKUPS)]),
        "4,096 blocks of a disk": lambda: whole.ids[int(chance.integers(0, len(whole.ids) - LOOKUPS)) :][:LOOKUPS],
        "4,096 chunks anywhere": lambda: chunk_ids(chance.integers(0, made.shape.chunks, LOOKUPS)),
    }
    for name, ids in wanted.items():
        _drop_caches(root, "index", "packs")
        with _opened(root) as repo:
            batch = ids()
            with _timed(figures, f"lookups: {name}, cold (ms)"):
                locate_many(repo.store, batch)
            for _ in range(ROUNDS):
                batch = ids()
                locate_many(repo.store, batch)  # the index's pages and the footers are in memory now
                with _timed(figures, f"lookups: {name}, warm (ms)"):
                    found = locate_many(repo.store, batch)
                assert (found.pack >= 0).all() == ("new" not in name)
            one_by_one = [chunk.tobytes() for chunk in batch]
            with _timed(figures, f"lookups: {name}, warm, one by one (ms)"):
                for chunk in one_by_one:
                    repo.store.locate(chunk)
    return _medians(figures)


def _maps(root: Path, made: Made) -> Figures:
    figures: dict[str, list[float]] = {}
    _drop_caches(root, "index", "packs")
    with _opened(root) as repo:
        disk = repo.read_disk(made.big, DISK)
        with _timed(figures, "map of a million blocks, cold (ms)"):
            read_map(repo.store, disk.record.root, FAN_OUT)
        for _ in range(2 * ROUNDS):
            with _timed(figures, "map of a million blocks, warm (ms)"):
                whole = read_map(repo.store, disk.record.root, FAN_OUT)
            assert len(whole.blocks) == BIG_BLOCKS
        with _timed(figures, "map of a million blocks, node by node (ms)"):
            assert sum(len(children) for _, children in disk.leaves()) == BIG_BLOCKS
    return _medians(figures)


def _commit(repo: Repository, base: PointId, blocks: Any, figures: dict[str, list[float]], name: str) -> PointId:
    """New chunks of a few bytes are stored beforehand: what is measured is maps, seals, manifest, index and catalog."""
    blocks = blocks.tolist()
    chunks = [os.urandom(32) for _ in blocks]
    with repo.new_point(PointHead(VmId(f"disk:{BIG_NAME}"), BIG_NAME, _now())) as pending:
        ingest = pending.disk(DiskHead(DISK, BIG_BLOCKS * BLOCK_BYTES), base=(base, DISK))
        for start in range(0, len(chunks), 16):
            pieces = [(chunk, chunk) for chunk in chunks[start : start + 16]]
            repo.store.add(ingest._session, PackKind.DATA, pieces)
        with _timed(figures, name):
            for start in range(0, len(chunks), 16):
                ingest._map.set(list(zip(blocks[start : start + 16], chunks[start : start + 16], strict=True)))
            ingest.finish()
            return pending.commit().id


def _commits(root: Path, made: Made) -> Figures:
    chance = np.random.default_rng(5)
    figures: dict[str, list[float]] = {}
    with _opened(root) as repo:
        base = repo.points(VmId(f"disk:{BIG_NAME}"))[-1].id
        committed: list[PointId] = []
        for round_ in range(2 * ROUNDS + 1):
            starts = np.unique(chance.integers(0, BIG_BLOCKS // 1000, 10)) * 1000
            blocks = (starts[:, None] + np.arange(1000)).reshape(-1)
            name = "commit of 10,000 changed blocks, clustered (ms)"
            base = _commit(repo, base, blocks, figures if round_ else {}, name)
            committed.append(base)
        for _ in range(ROUNDS):
            blocks = np.unique(chance.integers(0, BIG_BLOCKS, 10_000))
            base = _commit(repo, base, blocks, figures, "commit of 10,000 changed blocks, anywhere (ms)")
        for point in committed:
            with _timed(figures, "expiry of one restore point (ms)"):
                repo.expire(point, "benchmark", _now())
    return _medians(figures)


def _plan(root: Path, made: Made) -> Figures:
    with _opened(root) as repo:
        repo.opened_catalog()
        began = time.perf_counter()
        plan_reclaim(repo, _now() + timedelta(days=3))
        return {"plan of reclaim (s)": time.perf_counter() - began, "plan of reclaim, packs": len(repo.store.live)}


PARTS: dict[str, Callable[[Path, Made], Figures]] = {
    "rebuild": _rebuild,
    "opening": _opening,
    "lookups": _lookups,
    "map": _maps,
    "commit": _commits,
    "plan of reclaim": _plan,
}


def _medians(figures: dict[str, list[float]]) -> Figures:
    return {name: median(values) for name, values in figures.items()}


# --- processes ---


def _watched(command: Sequence[str]) -> tuple[float, float, str]:
    """(seconds, highest memory of its own in MiB, what it printed) of a process that must succeed."""
    began = time.perf_counter()
    highest = 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text().split()
            except OSError:
                break
            fields = dict(pairwise(status))
            highest = max(highest, int(fields.get("RssAnon:", "0")) + int(fields.get("RssShmem:", "0")))
            time.sleep(0.005)
        if process.wait() not in (0, None):
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        seconds = time.perf_counter() - began
        out.seek(0)
        return seconds, highest / 1024, out.read()


def _hinted(root: Path, folder: Path) -> Figures:
    """100 MiB in eight clusters of the disk of a million blocks, new each time, through the command."""
    source, hints = folder / "disk.raw", folder / "changed.json"
    chance = np.random.default_rng(6)
    seconds, memory = [], []
    count = HINTED_BYTES // BLOCK_BYTES
    with source.open("wb") as file:
        file.truncate(BIG_BLOCKS * BLOCK_BYTES)
    try:
        for _ in range(ROUNDS + 1):
            extents = []
            with source.open("r+b") as file:
                for start in sorted(chance.integers(0, BIG_BLOCKS - count, 8).tolist()):
                    length = count // 8 * BLOCK_BYTES
                    data = chance.bytes(length)
                    block = memoryview(bytearray(data))
                    zeros = int(BLOCK_BYTES * COMPRESSIBLE)
                    for at in range(0, length, BLOCK_BYTES):
                        block[at : at + zeros] = bytes(zeros)
                    file.seek(start * BLOCK_BYTES)
                    file.write(block)
                    extents.append({"offset": start * BLOCK_BYTES, "length": length})
            hints.write_text(json.dumps(extents))
            took, highest, _ = _watched(
                [*backstay(), "disk", "backup", str(source), "--name", BIG_NAME, "--changed", str(hints),
                 "--repo", str(root), "--json"]
            )  # fmt: skip
            seconds.append(took)
            memory.append(highest)
    finally:
        source.unlink()
    return {
        "hinted increment of 100 MiB, whole process (s)": median(seconds[1:]),
        "hinted increment of 100 MiB, slowest (s)": max(seconds[1:]),
        "hinted increment of 100 MiB, memory (MiB)": max(memory),
    }


def measure(folder: Path, chunks: int, parts: Sequence[str]) -> Figures:
    """Make a repository of about so many chunks below a folder and measure these parts of it."""
    root = folder / "repository"
    began = time.perf_counter()
    made = make_repository(root, shape_for(chunks), _now())
    figures: Figures = {
        "making it (s)": time.perf_counter() - began,
        "chunks": made.shape.chunks,
        "extents": made.shape.extents,
        "restore points": (made.shape.vms + 1) * made.shape.points,
        "packs": made.packs,
        "nodes": made.nodes,
    }
    (folder / "made").write_bytes(pickle.dumps(made))
    if parts[0] != "rebuild":  # else the first part would make them, beside what it measures
        began = time.perf_counter()
        with _opened(root) as repo:
            repo.opened_catalog()
        figures["making index and catalog (s)"] = time.perf_counter() - began
    for part in parts:
        if part == "hinted":
            figures |= _hinted(root, folder)
            continue
        _, memory, said = _watched([sys.executable, "-m", "benchmarks.catalog", "--dir", str(folder), "--part", part])
        figures |= json.loads(said)
        figures[f"{part}, memory (MiB)"] = memory
    return figures


def main() -> int:
    """Print a table or JSON; figures are never judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--chunks", type=int, default=10_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", action="append", choices=[*PARTS, "hinted"], help="measure these parts alone")
    parser.add_argument("--part", choices=[*PARTS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        logging.disable()
        made = pickle.loads((options.dir / "made").read_bytes())
        print(json.dumps(PARTS[options.part](options.dir / "repository", made)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="catalog-", dir=options.dir))
    try:
        figures = measure(folder, options.chunks, options.only or [*PARTS, "hinted"])
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps({"figures": figures, "targets": TARGETS, "at": _now().isoformat()}, indent=1))
        return 0
    for name, value in figures.items():
        target = TARGETS.get(name)
        print(f"{name:58} {value:15,.1f}" + (f"   of {target:,}" if target else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
