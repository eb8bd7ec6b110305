"""Ending the nbdkit processes that an engine left which was killed in the instant in which it started them.

nbdkit ends with its parent, but asks the kernel for that only once it runs: a parent killed before that leaves it.
Its folder tells: it names the process that it serves. What serves a living process, or another user's, is left alone.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from connectors.vsphere.nbdkit import FOLDER_PREFIX, OWNER_FILE, Spot, identity

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long a stray may take to close its disk before it is killed."""


def end_strays(scratch: Path | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> list[int]:
    """End every nbdkit whose engine is dead and remove its folder; the pids that were ended. Blocking.

    `scratch` is where the folders lie, as in the transports' settings; None for the system's temporary folder.
    """
    ended: list[int] = []
    for folder in sorted(Path(scratch or tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*")):
        if not _is_left_over(folder):
            continue
        ended += [pid for pid in _serving(folder) if _end(pid, folder, patience_seconds)]
        shutil.rmtree(folder, ignore_errors=True)
    return ended


def _is_left_over(folder: Path) -> bool:
    """Whether it is a folder of ours whose engine is gone."""
    try:
        if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.geteuid():
            return False
        owner = (folder / OWNER_FILE).read_text()
        return owner != identity(int(owner.split()[0]))
    except (OSError, ValueError, IndexError):
        return False


def _serving(folder: Path) -> Iterator[int]:
    """Processes of this user that serve the folder's socket: the one of its pid file, or one that has none yet."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _serves(int(process.name), folder):
            yield int(process.name)


def _serves(pid: int, folder: Path) -> bool:
    spot = Spot(folder, -1)
    try:
        if Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            return False
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    wanted = [(b"-U", os.fsencode(spot.socket)), (b"-P", os.fsencode(spot.pid_file))]
    pairs = list(pairwise(words))
    return all(pair in pairs for pair in wanted)


def _end(pid: int, folder: Path, patience_seconds: float) -> bool:
    """Ask it, then kill it. The pidfd stays with this very process, whatever its number is given to later."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _serves(pid, folder):
            return False
        for number, seconds in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, PATIENCE_SECONDS)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], seconds)[0]:
                break
    finally:
        os.close(process)
    log.warning("ended an nbdkit that a killed engine left", extra={"pid": pid, "folder": str(folder)})
    return True
