"""A day on a simulated vCenter, compressed into minutes: `make day SEED=7 VMS=100`.

People, guests and DRS work on the VMs, vCenter loses sessions and answers with faults, the engine is killed again and
again. At the end a reader that shares no code with Backstay looks at what is left in vCenter, every restore point is
restored and compared with what the lab froze, and what is said about each VM is compared with what is true.

The script follows from the seed. Progress goes to stderr; the last line of stdout is a JSON object with the figures.
Exit code 0 when all is as it must be, 1 when not: then everything is left in the directory that is named.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.acceptance.day.play import play
from tests.acceptance.day.script import script
from tests.acceptance.day.world import say


def main(argv: list[str] | None = None) -> int:
    """Play a day and tell."""
    parser = argparse.ArgumentParser(prog="make day", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vms", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="how long the day takes, without morning and evening")
    parser.add_argument("--script", action="store_true", help="show what would be done when, and do nothing")
    parser.add_argument("--keep", action="store_true", help="leave the directory also when all is well")
    options = parser.parse_args(argv)
    seconds = options.seconds or length(options.vms)
    if options.script:
        for step in script(options.seed, options.vms, seconds):
            print(f"{step.at:6.1f}  {step}")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # the engine is in a session of its own and would go on
    directory = Path(tempfile.mkdtemp(prefix="backstay-day-"))
    well = False
    try:
        found = play(directory, seed=options.seed, vms=options.vms, seconds=seconds)
        well = not found.wrong
        print(found.figures.line(), flush=True)
    finally:
        if well and not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            say(f"everything is left in {directory}")
    return 0 if well else 1


def length(vms: int) -> float:
    """Seconds that a day takes when nothing is said."""
    return max(12.0, 1.5 * vms)


if __name__ == "__main__":
    sys.exit(main())
