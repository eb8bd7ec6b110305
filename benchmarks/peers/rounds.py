"""Rounds: every tool does the same step on the same data, one after the other, before the next step begins."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import comparing
from benchmarks.images.making import NEXT_DAY, copy_sparse, hints, image
from benchmarks.peers.drivers import Driver, Source
from benchmarks.peers.goals import BOUND, OURS
from benchmarks.peers.measuring import Measured, busy_seconds, copy_state, folder_bytes, run, warm
from benchmarks.peers.records import Record

STEPS = ("init", "full", "next day", "hinted", "restore", "verify")
SERIES = (("A", 1), ("B", 1), ("C", 1), ("A", 2), ("C", 2))

CALM_SECONDS, CALM_SHARE = 0.5, 0.1
"""Half a second in which all others use less than a tenth of a core is calm."""

Say = Callable[[str], None]


class Mismatch(Exception):
    """What was restored is not what was backed up."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where everything lies: images, and a working folder on the file system that is measured."""

    images: Path
    work: Path
    say: Say
    patience_seconds: float = 10.0

    def settle(self) -> None:
        """What the step before left to be written does not burden the next, nor what soon ends beside us."""
        os.sync()
        end = time.monotonic() + self.patience_seconds
        while time.monotonic() < end:
            busy = busy_seconds()
            time.sleep(CALM_SECONDS)
            if busy_seconds() - busy < CALM_SHARE * CALM_SECONDS:
                return

    def state(self, driver: Driver) -> Path:
        return self.work / "states" / driver.name

    def hinted_state(self, driver: Driver) -> Path:
        """What the tool kept before it saw the next day, for the same day once more with hints."""
        return self.work / "states" / f"{driver.name}.hinted"

    def source(self, disk: str, day: int, *, hinted: bool = False) -> Source:
        """The image at the path that the disk has on both days, read into the page cache."""
        name = NEXT_DAY[disk] if day == 2 else disk
        place = self.work / "sources" / f"{disk}.img"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(image(self.images, name), place)
        except OSError:
            copy_sparse(image(self.images, name), place)
        warm(place)
        return Source(disk, day, place, hints(self.images, name) if hinted else None)

    def fresh(self, driver: Driver) -> Path:
        """An empty state."""
        for old in (self.state(driver), self.hinted_state(driver)):
            shutil.rmtree(old, ignore_errors=True)
        self.state(driver).mkdir(parents=True)
        driver.prepare(self.state(driver))
        return self.state(driver)

    def log(self, driver: Driver) -> Path:
        return self.work / f"{driver.name}.log"


def one_round(bench: Bench, drivers: Sequence[Driver], disk: str, number: int, steps: Sequence[str]) -> list[Record]:
    """All steps with all tools. The order of the tools turns from step to step and from round to round."""
    records: list[Record] = []
    for place, step in enumerate(STEPS):
        if step not in steps:
            continue
        turn = (number + place) % len(drivers)
        for driver in [*drivers[turn:], *drivers[:turn]]:
            if step == "hinted" and not driver.takes_hints:
                continue
            paired = step == "full" and driver.name == OURS
            if paired and number % 2:
                records.append(_bound(bench, disk, number))
            bench.settle()
            records.append(_record(number, disk, step, driver.name, _step(bench, driver, disk, step)))
            beside = " (disturbed)" if records[-1].disturbed else ""
            bench.say(f"round {number} {disk} {step}: {driver.name} {records[-1].wall_seconds:.2f} s{beside}")
            if paired and not number % 2:
                records.append(_bound(bench, disk, number))
    return records


def series(bench: Bench, driver: Driver) -> tuple[list[Record], dict[str, int]]:
    """Three fulls and two next days into one repository, then the NTFS disk: bytes kept, and one time of each."""
    state = bench.fresh(driver)
    sizes: dict[str, int] = {}
    records: list[Record] = []
    for command in driver.init(state):
        run(command, bench.log(driver))
    for disk, day in (*SERIES, ("N", 1)):
        source = bench.source(disk, day)
        bench.settle()
        measured = run(driver.backup(state, source), bench.log(driver))
        records.append(_record(1, "series", source.point, driver.name, measured))
        bench.say(f"series {source.point}: {driver.name} {measured.wall_seconds:.2f} s")
        sizes[source.point] = sum(folder_bytes(folder) for folder in driver.kept(state))
    for disk, day in (("B", 1), ("C", 2), ("N", 1)):
        _restore(bench, driver, state, bench.source(disk, day))
    shutil.rmtree(state)
    return records, {"kept_bytes": sizes["C-2"], **sizes}


def _step(bench: Bench, driver: Driver, disk: str, step: str) -> Measured:
    state, log = bench.state(driver), bench.log(driver)
    match step:
        case "init":
            state = bench.fresh(driver)
            return _all([run(command, log) for command in driver.init(state)])
        case "full":
            measured = run(driver.backup(state, bench.source(disk, 1)), log)
            if driver.takes_hints:
                copy_state(state, bench.hinted_state(driver), driver.immutable)
            return measured
        case "next day":
            return run(driver.backup(state, bench.source(disk, 2)), log)
        case "hinted":
            source = bench.source(disk, 2, hinted=True)
            warm(bench.hinted_state(driver))
            measured = run(driver.backup(bench.hinted_state(driver), source), log)
            _restore(bench, driver, bench.hinted_state(driver), source)
            return measured
        case "restore":
            return _restore(bench, driver, state, bench.source(disk, 2))
        case "verify":
            warm(state)
            return run(driver.verify(state), log)
        case _:
            raise ValueError(step)


def _restore(bench: Bench, driver: Driver, state: Path, source: Source) -> Measured:
    """Restore into an empty folder, fsync included, and compare every byte."""
    target = bench.work / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    warm(state)
    command, file = driver.restore(state, source, target)
    bench.settle()
    measured = run(command, bench.log(driver), synced=file)
    if different := comparing.differences(source.file, file):
        raise Mismatch(f"{driver.name} restored {source.point} with {len(different)} different blocks, see {file}")
    shutil.rmtree(target)
    return measured


def _bound(bench: Bench, disk: str, number: int) -> Record:
    command = (sys.executable, "-m", "benchmarks.peers.bound", str(image(bench.images, disk)))
    used, busy, began = _children(), busy_seconds(), time.perf_counter()
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    used, busy, wall = _children() - used, busy_seconds() - busy, time.perf_counter() - began
    seconds = float(told["seconds"])
    bench.say(f"round {number} {disk} full: {BOUND} {seconds:.2f} s")
    share = max(0.0, busy - used) / wall  # the process also reads the image, which is not in its seconds
    return Record(number, disk, "full", BOUND, seconds, others_cpu_seconds=share * seconds)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _all(parts: Sequence[Measured]) -> Measured:
    return Measured(
        sum(part.wall_seconds for part in parts),
        sum(part.cpu_seconds for part in parts),
        max(part.peak_rss_bytes for part in parts),
        max(part.peak_private_bytes for part in parts),
        sum(part.others_cpu_seconds for part in parts),
    )


def _record(number: int, disk: str, step: str, tool: str, measured: Measured) -> Record:
    return Record(number, disk, step, tool, **dataclasses.asdict(measured))
