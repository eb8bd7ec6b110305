"""Programs to measure as they are once installed: with the bytecode that an installation leaves.

Where the environment forbids Python to keep bytecode, or a checkout is newer than its own, each process would compile
itself once more: 0.1 s of ours and of borg's, 0.9 s of benji's.
"""

from __future__ import annotations

import compileall
import sys
import sysconfig
from functools import cache
from pathlib import Path

PACKAGES = ("connectors", "engine", "metrics", "policies", "storage")


@cache
def backstay() -> tuple[str, ...]:
    """The command of this checkout, compiled, its dependencies included."""
    root = Path(__file__).parents[1]
    for folder in (*(root / package for package in PACKAGES), Path(sysconfig.get_paths()["purelib"])):
        compile_folder(folder)
    program = Path(sys.executable).with_name("backstay")
    return (str(program),) if program.exists() else (sys.executable, "-m", "engine")


def compile_folder(folder: Path) -> None:
    """Bytecode for every module below a folder that lacks it, for the Python that runs here."""
    compileall.compile_dir(folder, maxlevels=20, quiet=2, workers=0)
