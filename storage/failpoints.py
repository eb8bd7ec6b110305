"""Named points at which a test lets the process die, as a power cut would.

BACKSTAY_FAILPOINT=name kills this process with SIGKILL when it reaches the point; name:3 the third time.
"""

from __future__ import annotations

import os
import signal

_name, _, _count = os.environ.get("BACKSTAY_FAILPOINT", "").partition(":")
_left = int(_count or 1)


def failpoint(name: str) -> None:
    """Die here if the environment says so; else nothing."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
