"""Named points at which a test lets the process die, as a power cut would, or looks on.

BACKSTAY_FAILPOINT=name kills this process with SIGKILL when it reaches the point; name:3 the third time.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable

_watcher: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Nothing, unless somebody watches."""
    if _watcher is not None:
        _watcher(name)


def watch(watcher: Callable[[str], None] | None) -> None:
    """From now on each point that any thread reaches is told to this function; None ends it. One watcher at a time."""
    global _watcher
    _watcher = watcher


def dying_at(point: str) -> Callable[[str], None]:
    """A watcher that kills the process at `name`, or the n-th time at `name:n`; a bare `:n` counts every point."""
    name, _, nth = point.partition(":")
    left = int(nth or 1)
    lock = threading.Lock()

    def die(reached: str) -> None:
        nonlocal left
        if name in ("", reached):
            with lock:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    return die


def counting(passed: Counter[str]) -> Callable[[str], None]:
    """A watcher that counts how often each point is reached."""
    lock = threading.Lock()

    def count(reached: str) -> None:
        with lock:
            passed[reached] += 1

    return count


if os.environ.get("BACKSTAY_FAILPOINT"):
    watch(dying_at(os.environ["BACKSTAY_FAILPOINT"]))
