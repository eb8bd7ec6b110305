"""An object store with 10,000 packs: how many requests each piece of work makes, and how long it takes on loopback.

python -m benchmarks.stores [--json] [--packs N] [--dir DIR]

The server is a real one (seaweedfs), started for this and removed again. Its answers take about a millisecond; a store
that is far away takes 10 to 50, which is why the requests count more than the seconds. Requests that several threads
make at once are counted like any other.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from policies.facts import PointId, VmId
from storage import chunkstore
from storage.objects import ObjectBlobs
from storage.places import ObjectPlace
from storage.reclaim import plan_reclaim
from storage.repository import DiskHead, PointHead, Repository, create, open_repository
from storage.restore import restore_disk
from tests.stores.server import object_server_in

BLOCK_BYTES = 4096
BLOCKS_PER_PACK = 4
PACKS_PER_POINT = 100
DISK = "disk"
KINDS = ("list", "head", "get", "put", "delete")


def now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


class Measured:
    """Collects, for each piece of work, its seconds and its requests by kind."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def work(self, name: str, blobs: Callable[[], ObjectBlobs], *, anew: bool = False) -> Iterator[None]:
        """Measure what is inside. With `anew` the store is opened inside, and all its requests count."""
        before = {} if anew else dict(blobs().calls.counts)
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        counts = blobs().calls.counts
        requests = {kind: counts[kind] - before.get(kind, 0) for kind in KINDS}
        self.rows.append({"work": name, "seconds": round(seconds, 3), "requests": sum(requests.values()), **requests})


def store_of(repository: Repository) -> ObjectBlobs:
    """The store beneath a plain repository."""
    assert isinstance(repository.blobs, ObjectBlobs)
    return repository.blobs


def fill(place: ObjectPlace, packs: int) -> None:
    """Restore points of different VMs, each with PACKS_PER_POINT packs of random blocks."""
    with open_repository(place, now=now) as repository, patch.object(chunkstore, "PACK_BYTES", 1):
        for number in range(max(1, packs // PACKS_PER_POINT)):
            back_up(repository, f"vm-{number}", PACKS_PER_POINT * BLOCKS_PER_PACK)


def back_up(repository: Repository, vm: str, blocks: int) -> PointId:
    """One restore point of random blocks, written in pieces of one pack's size."""
    step = BLOCKS_PER_PACK * BLOCK_BYTES
    with repository.new_point(PointHead(VmId(vm), vm, now())) as pending:
        ingest = pending.disk(DiskHead(DISK, blocks * BLOCK_BYTES), base=None)
        for offset in range(0, blocks * BLOCK_BYTES, step):
            ingest.write(offset, memoryview(os.urandom(step)))
        ingest.finish()
        return pending.commit().id


def measure(directory: Path, packs: int) -> list[dict[str, Any]]:
    """Every piece of work in turn."""
    measured = Measured()
    with object_server_in(directory / "server") as server:
        place = server.place(directory / "first", "benchmark")
        other = server.place(directory / "second", "benchmark")
        create(place, now=now(), block_bytes=BLOCK_BYTES)
        begun = time.perf_counter()
        fill(place, packs)
        print(f"made in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        held: list[Repository] = []

        def blobs() -> ObjectBlobs:
            return store_of(held[-1])

        for name in ("open, nothing known yet", "open again"):
            with measured.work(name, blobs, anew=True):
                held.append(open_repository(other, now=now))
                held[-1].opened_catalog()
            if name == "open again":
                break
            held.pop().close()
        with held[-1] as repository:
            with measured.work("list restore points", blobs):
                points = repository.points()
            with measured.work("follow other writers", blobs):
                repository.refresh()
            with measured.work("back up 4 MiB of new data", blobs):
                back_up(repository, "new", (4 << 20) // BLOCK_BYTES)
            with tempfile.TemporaryFile() as target, measured.work(f"restore from {PACKS_PER_POINT} packs", blobs):
                restore_disk(repository.read_disk(points[0].id, DISK), target.fileno())
            with measured.work("hold a restore point", blobs):
                repository.mark_hold(points[1].id, "benchmark", now())
            with measured.work("expire a restore point", blobs):
                repository.expire(points[0].id, "benchmark", now())
            with measured.work("plan a reclaim", blobs):
                plan_reclaim(repository, now() + timedelta(seconds=1))
    return measured.rows


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--packs", type=int, default=10_000)
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="backstay-stores-", dir=options.dir))
    try:
        rows = measure(directory, options.packs)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        print(json.dumps({"packs": options.packs, "work": rows}, indent=1))
        return 0
    print(f"{options.packs} packs\n{'work':30} {'seconds':>8} {'requests':>8}  " + " ".join(f"{k:>6}" for k in KINDS))
    for row in rows:
        print(f"{row['work']:30} {row['seconds']:8.3f} {row['requests']:8}  " + " ".join(f"{row[k]:6}" for k in KINDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
