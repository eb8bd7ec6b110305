"""Run a lab in the foreground: `python -m tests.lab --vms 12` prints how to reach it as one line of JSON."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.lab.build import LabUnavailable
from tests.lab.vcenter import MIB, start_lab


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description="A simulated vCenter to try Backstay with."
    )
    parser.add_argument("--vms", type=int, default=12)
    parser.add_argument("--disks", type=int, help="per VM; without it, every third VM has two")
    parser.add_argument("--disk-mib", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=3, help="per cluster")
    parser.add_argument("--empty", action="store_true", help="disks without file systems: a thousand VMs in seconds")
    parser.add_argument("--tracking", action="store_true", help="change tracking is on from the start")
    parser.add_argument("--root", type=Path, help="where the lab's files go; without it, a folder that goes at the end")
    parser.add_argument("--password", default="lab-secret-7")
    parser.add_argument("--until-eof", action="store_true", help="also stop when standard input ends")
    return parser.parse_args()


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = _arguments()
    signal.signal(signal.SIGTERM, _stop)
    root = options.root or Path(tempfile.mkdtemp(prefix="backstay-lab-"))
    try:
        with start_lab(
            root,
            vms=options.vms,
            disks_per_vm=options.disks,
            disk_bytes=options.disk_mib * MIB,
            clusters=options.clusters,
            hosts=options.hosts,
            content=not options.empty,
            tracking=options.tracking,
            password=options.password,
        ) as lab:
            print(json.dumps(lab.facts()), flush=True)
            if options.until_eof:
                sys.stdin.buffer.read()
            else:
                signal.pause()
    except KeyboardInterrupt:
        pass
    except LabUnavailable as missing:
        print(missing, file=sys.stderr)
        return 1
    finally:
        if options.root is None:
            shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
