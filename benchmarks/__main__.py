"""Runs every benchmark in turn: `make bench`. Each also runs alone, as `python -m benchmarks.NAME`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def names() -> list[str]:
    """Every benchmark: a module here, or a folder that can be run; those with an underscore only help others."""
    here = Path(__file__).parent
    files = [*here.glob("*.py"), *(file.parent for file in here.glob("*/__main__.py"))]
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The worst exit status of all; figures are printed, never judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; else all")
    chosen = parser.parse_args(arguments).names
    if unknown := set(chosen) - set(names()):
        parser.error(f"there is no benchmark {unknown.pop()}")
    worst = 0
    for name in chosen or names():
        print(f"\n== {name}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
