"""Backstay against restic, borg and benji, in turn on the same data.

python -m benchmarks.peers makes disk images below .bench (once, some minutes, as root on Debian), gets the peers, runs
the rounds and prints tables; --json prints everything as JSON instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.images.making import NEXT_DAY, ensure_images
from benchmarks.peers.drivers import Backstay, Benji, Borg, Driver, Restic
from benchmarks.peers.records import Records, read_results, records_of
from benchmarks.peers.report import document, tables
from benchmarks.peers.rounds import STEPS, Bench, one_round, series
from benchmarks.peers.tools import Tools, ensure_tools

TUNED = ("--chunker-params", "fixed,65536", "--sparse", "--compression", "zstd,1", "--files-cache", "disabled")


def drivers_of(tools: Tools) -> list[Driver]:
    """Every tool with every setting that is compared."""
    return [
        Backstay("backstay"),
        Backstay("backstay-encrypted", encrypted=True),
        Backstay("backstay-128k", options=("--block", "128KiB")),
        Restic(tools.restic),
        Borg(tools.borg, "borg", "no encryption, content-defined chunks, lz4 (defaults)", ()),
        Borg(tools.borg, "borg-tuned", f"no encryption, {' '.join(TUNED)}", TUNED),
        Benji(tools.benji),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _options(arguments)
    folder = options.folder.resolve()
    images = (options.images or folder / "images").resolve()
    manifest = ensure_images(images, folder / "cache", options.seed, _say)
    if options.images_only:
        return 0
    known = drivers_of(ensure_tools(folder / "tools", _say))
    chosen = [driver for driver in known if not options.tools or driver.name in options.tools]
    bench = Bench(images, folder / "work", _say, options.patience)
    bench.work.mkdir(parents=True, exist_ok=True)
    earlier = read_results(options.results) if options.results else {}
    records, sizes = list(records_of(earlier).all), dict(earlier.get("sizes", {}))
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "tools": {**earlier.get("tools", {}), **{driver.name: _about(driver) for driver in chosen}},
        "images": {name: _brief(image) for name, image in manifest["images"].items()},
    }

    def gathered() -> dict[str, Any]:
        results = document(about, Records(tuple(records)), sizes)
        if options.results:
            options.results.write_text(json.dumps(results, indent=1))
        return results

    for disk in options.disks:
        first = 1 + max((record.round for record in records if record.disk == disk), default=0)
        first -= options.resume
        for number in range(first, first + options.rounds):
            records += one_round(bench, chosen, disk, number, options.steps)
            gathered()
    if "series" in options.steps:
        for driver in chosen:
            timed, sizes[driver.name] = series(bench, driver)
            records = [r for r in records if (r.disk, r.tool) != ("series", driver.name)] + timed
            gathered()
    if not options.keep:
        shutil.rmtree(bench.work)
    results = gathered()
    print(json.dumps(results, indent=1) if options.json else tables(results, Records(tuple(records))))
    return 0


def machine() -> dict[str, str]:
    """What the figures depend on."""
    told = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in told.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
    }


def _brief(image: Mapping[str, Any]) -> dict[str, Any]:
    """An image without the list of its packages, which its manifest keeps."""
    return {**image, "packages": len(image["packages"])}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="rounds for each disk")
    add("--disks", type=_list(tuple(NEXT_DAY)), default=list(NEXT_DAY), help="of A and C; comma-separated")
    add("--steps", type=_list((*STEPS, "series")), default=[*STEPS, "series"], help="comma-separated; else all")
    add("--tools", type=lambda text: text.split(","), help="comma-separated; else all")
    add("--folder", type=Path, default=Path(".bench"), help="for everything that is made; default .bench")
    add("--images", type=Path, help="folder of the images; else FOLDER/images")
    add("--images-only", action="store_true", help="make the images and stop")
    add("--seed", type=int, default=7, help="of the images")
    add("--results", type=Path, help="add to the rounds in this JSON file")
    add("--keep", action="store_true", help="keep the repositories, for other steps of the same round")
    add("--resume", action="store_true", help="the steps belong to the last round in --results, whose work was kept")
    add("--patience", type=float, default=10, help="seconds to wait for a calm machine before each process")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def _list(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{unknown.pop()} is none of {', '.join(known)}")
        return names

    return parse


def _about(driver: Driver) -> dict[str, Any]:
    return {
        "version": driver.version(),
        "settings": driver.settings,
        "durability": driver.durability,
        "encrypted": driver.encrypted,
    }


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
