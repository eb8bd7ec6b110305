"""The real console script, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKSTAY = Path(sys.executable).parent / "backstay"


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)


def backstay(
    *arguments: str | Path,
    home: Path,
    env: Mapping[str, str] | None = None,
    expect: int | None = 0,
    prepare: Callable[[], None] | None = None,
) -> Ran:
    """Run a command to its end with nothing of this user's environment; it must never show a traceback.

    `expect` is the exit code that it must have, None for any; `prepare` runs in the child before it starts.
    """
    done = subprocess.run(
        [BACKSTAY, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home) | dict(env or {}),
        timeout=120,
        check=False,
        preexec_fn=prepare,
    )
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in ran.err + ran.out, ran.err
    if expect is not None:
        bugs = "".join(path.read_text() for path in home.glob("backstay-bug-*.log"))
        assert ran.code == expect, f"exit {ran.code}, not {expect}\n{ran.out}\n{ran.err}\n{bugs}"
    return ran


def environment(home: Path) -> dict[str, str]:
    """An environment in which every default place lies below home."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
        "LC_ALL": "C.UTF-8",
        "BACKSTAY_CONFIG": str(home / "none" / "backstay.toml"),
        "BACKSTAY_BUG_DIR": str(home),
    }
