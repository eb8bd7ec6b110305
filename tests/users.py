"""Other users of this machine, whom root can become: for tests of who may do what.

They are forks of this process with all modules loaded, as another user may not be able to read where Python lies.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1

OWNER, WRITER, STRANGER = 61_001, 61_002, 61_003
"""Users without a name. WRITER is also the group that OWNER and WRITER share."""


LATE = ("duckdb", "numpy", "cryptography.hazmat.primitives.ciphers.aead", "cryptography.hazmat.primitives.kdf.argon2")
"""What the repository imports only when it is needed; numpy and DuckDB import more when they are first used."""


def _load() -> None:
    for name in LATE:
        importlib.import_module(name)
    ctypes.CDLL(None)


def as_user(uid: int, act: Callable[[], object], *, gid: int = WRITER, status: int = 0) -> None:
    """Do something in a process of another user; whatever it raises, or another end than expected, fails the test."""
    _load()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            act()
            code = 0
        except BaseException:  # told by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def give(root: Path, uid: int) -> None:
    """Make a folder of a test, and all in it, a user's."""
    for path in (root, *root.rglob("*")):
        os.chown(path, uid, WRITER)
    root.chmod(0o755)


@contextmanager
def serving(uid: int, serve: Callable[[], object], ready: Path) -> Iterator[None]:
    """Let another user's process serve until the block ends; it ends with this process, too. It makes `ready`."""
    _load()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(WRITER)
            os.setuid(uid)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                serve()
        except BaseException:  # told by what is missing
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="backstay-users-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
